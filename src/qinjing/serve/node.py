"""A DICOM node: takes studies in by C-STORE, commits to them, and says when one is complete.

Success is answered once an instance is on the disk and in the catalogue, not before; an instance
that is sent again is kept once. Nothing that a sender wrote is logged.

Source: DICOM PS3.4, annex B (storage service class); PS3.15, annex B (secure transport).
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinjing.errors import ConfigError, FormatError
from qinjing.serve.catalogue import ABOUT, Catalogue, Instance
from qinjing.serve.certificates import Certificates
from qinjing.serve.commitment import MODEL, Commitment
from qinjing.serve.send import Destination, hush
from qinjing.serve.settings import is_loopback

if TYPE_CHECKING:
    from pynetdicom import AE
    from pynetdicom.events import Event
    from pynetdicom.presentation import PresentationContext

LOG = logging.getLogger("qinjing.serve.node")
_UIDS = ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID")
_LONGEST = 100  # of what is kept of a study's attributes: a person's name has 64 letters a group
# Source: PS3.4, table B.2-1; PS3.7, annex C.
_SUCCESS, _OUT_OF_RESOURCES, _DOES_NOT_MATCH, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000


@dataclass(frozen=True)
class NodeConfig:
    """How the node is reached, and by whom.

    Attributes:
        ae_title: what callers must call it.
        host: address to listen on.
        port: to listen on; 0 takes any that is free.
        callers: AE titles that may call, "AET", or "AET@HOST:PORT" where reports of storage
            commitment go; all where there are none, on this machine alone.
        tls_cert: certificate chain in PEM; None listens without TLS, on this machine alone.
        tls_key: its private key in PEM.
        tls_ca: certificates in PEM that callers' own must be signed by.
        quiet_s: seconds without a new instance after which a study counts as complete.
        kinds: of jobs that a complete study gets.
        associations: most at once.
        idle_s: seconds after which a silent association ends.

    Raises:
        ConfigError: they do not fit together.
    """

    ae_title: str = "QINJING"
    host: str = "127.0.0.1"
    port: int = 11112
    callers: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    quiet_s: float = 5.0
    kinds: tuple[str, ...] = ()
    associations: int = 32
    idle_s: float = 60.0

    def __post_init__(self) -> None:
        for title in (self.ae_title, *self.titles):
            if not (0 < len(title.strip()) <= 16 and title.isascii() and title.isprintable()):
                raise ConfigError("AE title", "1 to 16 printable ASCII letters", title)
        _ = self.addresses
        given = [self.tls_cert, self.tls_key, self.tls_ca]
        if any(given) and not all(given):
            raise ConfigError("--tls-cert, --tls-key and --tls-ca", "given together", "some")
        if not all(given) and not is_loopback(self.host):
            raise ConfigError(
                "--host", "an address of this machine alone while there is no TLS", self.host,
                advice="give --tls-cert, --tls-key and --tls-ca",
            )  # fmt: skip
        if not self.callers and not is_loopback(self.host):
            raise ConfigError("--callers", "named where others reach the port", "none")

    @property
    def certificates(self) -> Certificates | None:
        """Of TLS; None where there is none."""
        if self.tls_cert is None or self.tls_ca is None:
            return None
        return Certificates(self.tls_cert, self.tls_key, self.tls_ca)

    @property
    def titles(self) -> tuple[str, ...]:
        """AE titles of those who may call."""
        return tuple(one.partition("@")[0] for one in self.callers)

    @property
    def addresses(self) -> tuple[Destination, ...]:
        """Where those of them who say so take reports."""
        found = []
        for one in self.callers:
            if "@" in one:
                try:
                    address = Destination.parse(one, self.ae_title, plain=True)
                except ConfigError:
                    raise ConfigError("--callers", "AET or AET@HOST:PORT each", one) from None
                if isinstance(address, Destination):  # as with an @ it is, and no URL
                    found.append(address)
        return tuple(found)


@contextmanager
def node(config: NodeConfig, catalogue: Catalogue) -> Iterator[tuple[str, int]]:
    """Listen while the block runs; yields host and port.

    Raises:
        ConfigError: pynetdicom is not installed, or the port or the certificates cannot be used.
    """
    ae, certificates = _entity(config), config.certificates
    client = certificates.calling(named=False) if certificates else None
    commitment = Commitment(catalogue, config.addresses, client)
    handlers = _handlers(catalogue, commitment)
    contexts = _Shared(ae.supported_contexts)
    context = certificates.listening() if certificates else None
    try:
        server = ae.start_server(
            (config.host, config.port), block=False, evt_handlers=handlers, contexts=contexts,
            ssl_context=context,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            "--host and --port", "an address that is free here", error.strerror,
            where=f"{config.host}:{config.port}",
        ) from None  # fmt: skip
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(config, catalogue, ended), daemon=True)
    watching.start()
    try:
        yield server.server_address[:2]  # type: ignore[union-attr]
    finally:
        ended.set()
        server.shutdown()  # type: ignore[union-attr]
        ae.shutdown()
        commitment.__exit__()
        watching.join()


def _entity(config: NodeConfig) -> AE:
    try:
        from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
        from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
    except ModuleNotFoundError as error:
        raise ConfigError(
            "DICOM node", "run with pynetdicom", f"no package {error.name}",
            advice="pip install 'qinjing[serve]'",
        ) from None  # fmt: skip
    hush()
    ae = AE(ae_title=config.ae_title)
    ae.require_called_aet = True
    ae.require_calling_aet = list(config.titles)
    ae.maximum_associations = config.associations
    ae.network_timeout = ae.dimse_timeout = config.idle_s
    ae.acse_timeout = 10.0
    ae.add_supported_context(Verification)
    ae.add_supported_context(MODEL)
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    return ae


class _Shared(list["PresentationContext"]):
    """Contexts that no association changes, so that their thousands of UIDs need not be copied.

    pynetdicom copies all of them for each association, which took half of the node's time.
    """

    def __deepcopy__(self, _: Any) -> _Shared:
        return _Shared(copy(context) for context in self)


def _handlers(catalogue: Catalogue, commitment: Commitment) -> list[Any]:
    from pynetdicom import evt

    return [
        (evt.EVT_C_STORE, lambda event: _store(event, catalogue)),
        (evt.EVT_C_ECHO, lambda _: _SUCCESS),
        (evt.EVT_N_ACTION, commitment.asked),
    ]


def _store(event: Event, catalogue: Catalogue) -> int:
    content = event.encoded_dataset()
    try:
        instance = described(content)
    except Exception as error:  # pydicom names no common class of what damaged bytes make of it
        LOG.warning("an instance was refused that is no sound DICOM: %s", type(error).__name__)
        return _CANNOT_UNDERSTAND
    request: Any = event.request
    asked = (request.AffectedSOPInstanceUID, request.AffectedSOPClassUID)
    if asked != (instance.sop_instance_uid, instance.sop_class_uid):
        LOG.warning("an instance was refused that is another than its request says")
        return _DOES_NOT_MATCH
    try:
        catalogue.keep(instance, content)
    except FormatError:
        LOG.warning("an instance was refused that is of another patient than its study")
        return _DOES_NOT_MATCH
    except (OSError, ConfigError) as error:
        LOG.error("an instance could not be kept: %s", _cause(error))
        return _OUT_OF_RESOURCES
    return _SUCCESS


def described(content: bytes) -> Instance:
    """Return what a DICOM file says of itself.

    Args:
        content: of the file.

    Raises:
        ValueError: a UID is missing or none; or what pydicom raises for damaged bytes.
    """
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values, which would be repeated
        found = dcmread(
            io.BytesIO(content), stop_before_pixels=True, specific_tags=[*_UIDS, *ABOUT]
        )
        uids = [found.get(name) for name in _UIDS]
        if not all(uid and uid.is_valid for uid in uids):
            raise ValueError("a UID is missing")
        about = {name: str(found.get(name) or "")[:_LONGEST] for name in ABOUT}
    instance, sop_class, series, study = map(str, uids)
    return Instance(instance, sop_class, series, study, about)


def _watch(config: NodeConfig, catalogue: Catalogue, ended: threading.Event) -> None:
    """Put studies that have gone quiet into the queue, until the node ends."""
    while not ended.wait(min(1.0, config.quiet_s / 2)):
        try:
            catalogue.queue_quiet(config.quiet_s, config.kinds)
        except ConfigError as error:  # a database that is away comes back
            LOG.error("the queue could not be written: %s", _cause(error))


def _cause(error: Exception) -> str:
    """What failed, without what was sent: a file's path is of digests, but its folder's is not."""
    return error.strerror or "OSError" if isinstance(error, OSError) else str(error)
