"""Send DICOM files to another node by C-STORE.

Source: DICOM PS3.4, annex B; PS3.7, 9.1.1.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinjing.errors import ConfigError, QinjingError

_MOST_CONTEXTS = 128  # of one association, PS3.8, 9.3.2.2
_WARNINGS = (0xB000, 0xB006, 0xB007)  # stored, with a remark: PS3.4, table B.2-1


@dataclass(frozen=True)
class Destination:
    """Another node.

    Attributes:
        ae_title: what it is called.
        host: its address.
        port: its port.
        calling: what we call ourselves.
    """

    ae_title: str
    host: str
    port: int
    calling: str = "QINJING"

    @classmethod
    def parse(cls, text: str, calling: str = "QINJING") -> Destination:
        """Return the node that "AET@HOST:PORT" names.

        Raises:
            ConfigError: the text is of another form.
        """
        found = re.fullmatch(r"([\x21-\x7e]{1,16})@([^@\s]+):(\d{1,5})", text)
        if not found or not 0 < int(found[3]) < 65536:
            raise ConfigError("destination", "AET@HOST:PORT", text)
        return cls(found[1], found[2].strip("[]"), int(found[3]), calling)


def send(files: Sequence[Path], destination: Destination) -> int:
    """Send files, all or an error; return how many.

    One that the other node has already is sent again, which to DICOM is no harm.

    Args:
        files: DICOM files.
        destination: to whom.

    Raises:
        QinjingError: the other node is not there, or did not take one.
    """
    from pydicom import dcmread
    from pydicom.uid import UID
    from pynetdicom import AE

    hush()
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
        association = ae.associate(
            destination.host, destination.port, ae_title=destination.ae_title
        )
        if not association.is_established:
            raise QinjingError(f"{destination.ae_title} does not answer, or lets nobody in")
        try:
            for kind in part:
                for file in kinds[kind]:
                    _one(association, file, destination)
                    sent += 1
        finally:
            association.release()
    return sent


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
