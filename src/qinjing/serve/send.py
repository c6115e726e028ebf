"""Send DICOM files on: to another node by C-STORE, to a server by STOW-RS, or into a folder.

Source: DICOM PS3.4, annex B; PS3.7, 9.1.1; PS3.18, 10.5.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import socket
import ssl
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinjing.config import atomic_path
from qinjing.errors import ConfigError, QinjingError
from qinjing.serve.certificates import Certificates
from qinjing.serve.peer import PassingError, Peer
from qinjing.serve.settings import is_loopback

_MOST_CONTEXTS = 128  # of one association, PS3.8, 9.3.2.2
_FOR_NOW = 2  # of a rejection: PS3.8, table 9-21
_WARNINGS = (0xB000, 0xB006, 0xB007)  # stored, with a remark: PS3.4, table B.2-1


@dataclass(frozen=True)
class Destination:
    """Another node.

    Attributes:
        ae_title: what it is called.
        host: its address.
        port: its port.
        calling: what we call ourselves.
        certificates: of TLS; None sends without.
    """

    ae_title: str
    host: str
    port: int
    calling: str = "QINJING"
    certificates: Certificates | None = None

    @classmethod
    def parse(
        cls, text: str, calling: str = "QINJING", login: Path | None = None,
        ca: Path | None = None, *, plain: bool = False,
    ) -> Place:  # fmt: skip
        """Return where results go: "AET@HOST:PORT", the URL of a DICOMweb server, or a folder.

        Args:
            text: of one of these forms; the folder must be there.
            calling: what we call ourselves to a node.
            login: a file that opens the server, as `Peer` has it; for a node, our certificate and
                its key in PEM.
            ca: certificates in PEM that the other's own must be signed by.
            plain: whether a node on another machine may be sent to without TLS.

        Raises:
            ConfigError: the text is of another form, or a node far away has no TLS.
        """
        if plain and "@" not in text:
            raise ConfigError("--plain", "given with AET@HOST:PORT", text)
        if text.startswith(("https://", "http://")):
            return Peer(text, login, ca)
        found = re.fullmatch(r"([\x21-\x7e]{1,16})@([^@\s]+):(\d{1,5})", text)
        if found and 0 < int(found[3]) < 65536:
            host = found[2].strip("[]")
            if (login is None) != (ca is None):
                rule = "given together, our certificate with its key and who signed theirs"
                raise ConfigError("--login and --ca", rule, "one", where=text)
            certificates = Certificates(login, None, ca) if login and ca else None
            if certificates is not None:
                certificates.calling()  # now, rather than when the first study is to go out
                if plain:
                    raise ConfigError("--plain", "given without --login and --ca", "both")
            elif not plain and not is_loopback(host):
                raise ConfigError(
                    "destination", "sent to over TLS, unless it is on this machine", text,
                    advice="give --login and --ca, or --plain where the network is the hospital's "
                    "own and the archive knows no TLS",
                )  # fmt: skip
            return cls(found[1], host, int(found[3]), calling, certificates)
        if text and Path(text).is_dir():
            return Path(text)
        rule = "AET@HOST:PORT, https://HOST/PATH, or a folder that is there"
        raise ConfigError("destination", rule, text)


# A node by C-STORE, a DICOMweb server by STOW-RS, or a folder.
Place = Destination | Peer | Path


def send(files: Sequence[Path], destination: Place) -> int:
    """Send files, all or an error; return how many.

    One that is there already is sent again, which to DICOM is no harm.

    Args:
        files: DICOM files.
        destination: to whom.

    Raises:
        PassingError: nobody is there just now.
        QinjingError: one was not taken.
    """
    if isinstance(destination, Peer):
        from qinjing.serve.dicomweb import store

        return store(files, destination)
    if isinstance(destination, Path):
        return _copy(files, destination)
    return _send(files, destination)


def _copy(files: Sequence[Path], folder: Path) -> int:
    """A folder a study, a file an instance, by digests of their UIDs: no sender makes a path."""
    from pydicom import dcmread

    names = ("SOPInstanceUID", "StudyInstanceUID", "Modality")
    for file in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd values, which would be repeated
            found = dcmread(file, stop_before_pixels=True, specific_tags=list(names))
            instance, study, kind = (str(found.get(name) or "") for name in names)
        kind = kind if kind.isascii() and kind.isalnum() else "DICOM"
        digests = [hashlib.sha256(one.encode()).hexdigest()[:16] for one in (study, instance)]
        target = folder / digests[0] / f"{kind}-{digests[1]}.dcm"
        try:
            target.parent.mkdir(exist_ok=True, mode=0o700)
            with atomic_path(target) as temporary:
                shutil.copyfile(file, temporary)
        except OSError as error:
            why = error.strerror or "OSError"
            raise QinjingError(f"the folder of results takes nothing: {why}") from None
    return len(files)


def _send(files: Sequence[Path], destination: Destination) -> int:
    from pydicom import dcmread
    from pydicom.uid import UID
    from pynetdicom import AE, evt

    hush()
    context = destination.certificates.calling() if destination.certificates else None
    kinds: dict[tuple[str, str], list[Path]] = {}
    for file in files:
        meta = dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
        kind = (str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
        kinds.setdefault(kind, []).append(file)
    named, sent = sorted(kinds), 0
    for start in range(0, len(named), _MOST_CONTEXTS):
        ae = AE(ae_title=destination.calling)
        ae.acse_timeout = ae.connection_timeout = 10.0
        ae.network_timeout = ae.dimse_timeout = 60.0
        part = named[start : start + _MOST_CONTEXTS]
        for sop_class, syntax in part:
            ae.add_requested_context(UID(sop_class), UID(syntax))
        try:
            association = ae.associate(
                destination.host, destination.port, ae_title=destination.ae_title,
                evt_handlers=[(evt.EVT_CONN_OPEN, _at_once)],
                tls_args=(context, destination.host) if context else None,
            )  # fmt: skip
        except OSError:  # nobody knows the host's name just now
            raise PassingError(f"{destination.ae_title} is not found") from None
        if not association.is_established:
            raise _not_let_in(association, destination, context)
        try:
            for kind in part:
                for file in kinds[kind]:
                    _one(association, file, destination)
                    sent += 1
        finally:
            association.release()
    return sent


def _not_let_in(
    association: Any, destination: Destination, context: ssl.SSLContext | None
) -> QinjingError:
    """Why there is no association: who is away comes back, who does not want us must be asked."""
    title = destination.ae_title
    if association.is_rejected:
        said = association.acceptor.primitive
        if said.result == _FOR_NOW:
            return PassingError(f"{title} lets nobody in just now")
        return QinjingError(f"{title} does not let {destination.calling} in")
    try:  # pynetdicom says alike that nobody is there and that somebody broke off
        with socket.create_connection((destination.host, destination.port), 10) as plain:
            if context is not None:
                context.wrap_socket(plain, server_hostname=destination.host).close()
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason or "another protocol"
        return QinjingError(f"{title} and we do not believe each other's certificates: {why}")
    except OSError:
        return PassingError(f"{title} does not answer")
    return QinjingError(f"{title} takes no such instances, or breaks off")


def _at_once(event: Any) -> None:
    """Let no packet wait for the one before it to be acknowledged: 40 ms of each instance."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def hush() -> None:
    """Keep the DICOM libraries' own lines out of every log: they repeat what is sent."""
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _one(association: Any, file: Path, destination: Destination) -> None:
    from pydicom import dcmread

    try:
        status = association.send_c_store(dcmread(file)).get("Status")
    except (ValueError, RuntimeError) as error:  # no context was agreed for it, or it went away
        kind = type(error).__name__
        raise QinjingError(f"{destination.ae_title} does not take an instance: {kind}") from None
    if status is None or (status and status not in _WARNINGS):
        got = "nothing" if status is None else f"0x{status:04X}"
        raise QinjingError(f"{destination.ae_title} answered {got} to an instance")
