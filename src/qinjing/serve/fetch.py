"""Fetch studies from a PACS by DICOMweb into the catalogue."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from qinjing.errors import ConfigError, FormatError, QinjingError
from qinjing.serve.catalogue import Catalogue
from qinjing.serve.dicomweb import Found, retrieve
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


def fetch_all(
    caller: Caller, catalogue: Catalogue, found: Iterable[Found], kinds: Collection[str]
) -> dict[str, Any]:
    """Fetch studies and put them in the queue; one that does not come holds up no other.

    Args:
        caller: of the PACS's root of DICOMweb.
        catalogue: where they go.
        found: which.
        kinds: of jobs, for each study.

    Returns:
        studies: how many came; new, known: instances; queued: jobs; refused: a sentence each.

    Raises:
        QinjingError: the PACS stops answering while it is searched.
        OSError: the disk takes no more.
    """
    counts, refused = {"studies": 0, "new": 0, "known": 0, "queued": 0}, []
    for number, one in enumerate(found, start=1):
        try:
            fetched = fetch(caller, catalogue, one.study_instance_uid)
        except ConfigError:
            raise
        except QinjingError as error:
            refused.append(f"study {number}: {error}")
            continue
        if fetched.refused:
            refused.append(f"study {number}: {fetched.refused} instances that are not sound")
        counts["studies"] += 1
        counts["new"] += fetched.kept
        counts["known"] += fetched.known
        study = catalogue.study(one.study_instance_uid)
        counts["queued"] += catalogue.again(study, kinds) if study and kinds else 0
    return {**counts, "refused": refused}


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
