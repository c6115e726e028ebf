"""Fetch studies from a PACS by DICOMweb into the catalogue."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from qinjing.errors import FormatError
from qinjing.serve.catalogue import Catalogue
from qinjing.serve.dicomweb import retrieve
from qinjing.serve.node import described
from qinjing.serve.peer import Caller

# A file of a PACS may lack its preamble: Orthanc keeps what dicomweb-client stores without one.
_PREAMBLE, _BARE = b"\0" * 128 + b"DICM", (b"\x02\x00\x00\x00", b"\x02\x00\x02\x00")
LOG = logging.getLogger("qinjing.serve.fetch")


@dataclass(frozen=True)
class Fetched:
    """What came of a study.

    Attributes:
        kept: instances that are new.
        known: that were here already.
        refused: that are no sound DICOM, or of another study.
    """

    kept: int
    known: int
    refused: int


def fetch(caller: Caller, catalogue: Catalogue, study: str, series: str = "") -> Fetched:
    """Fetch a study, or one series of it; what broke off is asked for again.

    Each instance is kept as it comes, so that one is in memory at a time.

    Args:
        caller: of the PACS's root of DICOMweb.
        catalogue: where it goes.
        study: StudyInstanceUID.
        series: SeriesInstanceUID; "" for all.

    Raises:
        QinjingError: the PACS does not answer, or not as it should.
        OSError: the disk takes no more.
    """
    new: set[str] = set()

    def once() -> Fetched:
        known = refused = 0
        for content in retrieve(caller, study, series):
            uid = take(content, catalogue, new, study)
            refused += uid is None
            known += uid is not None and uid not in new
        return Fetched(len(new), known, refused)

    fetched = caller.repeated(once)
    if fetched.refused:
        LOG.warning("%d instances were refused that came with a study", fetched.refused)
    if not fetched.kept and not fetched.known:
        raise FormatError("study", "of at least one sound instance", "none", where=caller.peer.name)
    return fetched


def take(content: bytes, catalogue: Catalogue, new: set[str], study: str = "") -> str | None:
    """Keep a DICOM file; its UID, None where it is no sound DICOM or of another study.

    Args:
        content: of the file.
        catalogue: where it goes.
        new: the UID is added here where it was not known before.
        study: that it must be of; "" for any.

    Raises:
        OSError: the disk takes no more.
        ConfigError: the database does not.
    """
    content = preambled(content)
    try:
        instance = described(content)
    except Exception:  # pydicom names no common class of what damaged bytes make of it
        return None
    if study and instance.study_instance_uid != study:
        return None
    if catalogue.keep(instance, content):
        new.add(instance.sop_instance_uid)
    return instance.sop_instance_uid


def preambled(content: bytes) -> bytes:
    """Return a DICOM file with the preamble that it may lack."""
    return _PREAMBLE + content if content[:4] in _BARE else content
