"""A PACS that is asked by DICOMweb: find studies, fetch their instances, store results.

Source: DICOM PS3.18, 10.4 (retrieve, WADO-RS), 10.5 (store, STOW-RS), 10.6 (search, QIDO-RS);
PS3.18, annex F (the JSON model).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from qinjing.errors import ConfigError, FormatError, QinjingError
from qinjing.serve.multipart import BrokenOffError, boundary, joined, joined_length, parts
from qinjing.serve.peer import Caller, PassingError, Peer, RefusedError

MOST_BYTES = 2 * 1024**3  # of one instance, which is held in memory
PAGE = 100
_AT_ONCE = 64 * 1024 * 1024  # bytes of one request to store, unless one file is longer
_PIECE = 1024 * 1024
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_DATES = re.compile(r"(\d{8})?-?(\d{8})?")
# As it is stored: nothing is packed anew on its way.
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass(frozen=True)
class Found:
    """A study of a PACS.

    Attributes:
        study_instance_uid: which it is.
        date: when it was made, YYYYMMDD, "" where nobody said.
        description: of the study.
        modalities: of its series.
        instances: how many there are; None where the PACS does not say.
    """

    study_instance_uid: str
    date: str
    description: str
    modalities: tuple[str, ...]
    instances: int | None


def find_studies(
    caller: Caller,
    modality: str = "",
    dates: str = "",
    description: str = "",
    page: int = PAGE,
) -> Iterator[Found]:
    """Yield the studies of a PACS that fit all that is given.

    Args:
        caller: of the PACS's root of DICOMweb.
        modality: of one of its series.
        dates: YYYYMMDD, or YYYYMMDD-YYYYMMDD, of which either may be missing.
        description: a part of it; the PACS decides whether capitals matter.
        page: how many are asked for at once.

    Raises:
        ConfigError: the dates are of another form.
        QinjingError: the PACS does not answer, or not as it should.
    """
    if not _DATES.fullmatch(dates) or dates == "-":
        raise ConfigError("dates", "YYYYMMDD or YYYYMMDD-YYYYMMDD", dates)
    wanted = {"StudyDate": dates, "includefield": "StudyDescription"}
    # Orthanc takes an escaped letter of a query for itself: one word goes there, the rest is ours.
    if word := max(re.findall(r"[A-Za-z0-9]+", description), key=len, default=""):
        wanted["StudyDescription"] = f"*{word}*"
    query = {name: value for name, value in wanted.items() if value}
    seen: set[str] = set()
    while True:
        # Not by the length of a page: a PACS may give fewer than it was asked for.
        paged = {**query, "limit": str(page), "offset": str(len(seen))}
        address = f"/studies?{urlencode(paged, safe='*', quote_via=quote)}"
        answer = caller.json("GET", address)
        fresh = [one for one in map(_found, _datasets(answer, caller.peer.name))
                 if one.study_instance_uid not in seen]  # fmt: skip
        if not fresh:
            return
        seen |= {one.study_instance_uid for one in fresh}
        for one in fresh:
            # Not there: Orthanc 1.10 loses studies of later pages where it looks for a modality.
            fits = not modality or modality in one.modalities
            if fits and description.lower() in one.description.lower():
                yield one


def retrieve(caller: Caller, study: str, series: str = "") -> Iterator[bytes]:
    """Yield the DICOM files of a study or of one of its series, as they are stored there.

    It is asked once: what breaks off is to be asked for again by `Caller.repeated`.

    Args:
        caller: of the PACS's root of DICOMweb.
        study: StudyInstanceUID.
        series: SeriesInstanceUID; "" for all.

    Raises:
        PassingError: it did not answer, or broke off.
        QinjingError: it answered no, or another thing.
    """
    path = f"/studies/{checked_uid(study)}" + (f"/series/{checked_uid(series)}" if series else "")
    with caller.once("GET", path, headers={"Accept": _AS_STORED}) as response:
        kind = response.headers.get("content-type", "")
        try:
            yield from parts(response.iter_raw(), kind, MOST_BYTES)
        except BrokenOffError as error:
            raise PassingError(f"{caller.peer.name}: {error}") from None


def store(files: Sequence[Path], peer: Peer, wait: Callable[[float], object] | None = None) -> int:
    """Store DICOM files in a PACS, all or an error; return how many.

    One that it has already is stored again, which to DICOM is no harm.

    Args:
        files: DICOM files.
        peer: the PACS's root of DICOMweb.
        wait: sleeps for so many seconds, between two tries.

    Raises:
        QinjingError: the PACS is not there, or did not take one.
    """
    with Caller(peer, *([wait] if wait else [])) as caller:
        for together in _portions(files):
            _store(caller, together)
    return len(files)


def checked_uid(text: str) -> str:
    """Return a UID that may stand in an address.

    Raises:
        FormatError: it is none.
    """
    if len(text) > 64 or not _UID.fullmatch(text):
        raise FormatError("UID", "of numbers and dots, 64 letters at most", "another thing")
    return text


def values(dataset: Mapping[str, Any], tag: str) -> list[Any]:
    """Return the values of an element in the JSON model, [] where there are none.

    Args:
        dataset: of the JSON model.
        tag: eight hexadecimal digits.
    """
    element = dataset.get(tag)
    found = element.get("Value") if isinstance(element, dict) else None
    return found if isinstance(found, list) else []


def first(dataset: Mapping[str, Any], tag: str) -> str:
    """Return an element's first value as text, "" where there is none."""
    found = values(dataset, tag)
    return str(found[0]) if found and found[0] is not None else ""


def _found(dataset: Mapping[str, Any]) -> Found:
    count = first(dataset, "00201208")
    return Found(
        checked_uid(first(dataset, "0020000D")),
        first(dataset, "00080020"),
        first(dataset, "00081030"),
        tuple(str(one) for one in values(dataset, "00080061")),
        int(count) if count.isascii() and count.isdigit() else None,
    )


def _datasets(answer: Any, name: str) -> list[Mapping[str, Any]]:
    if answer is None:  # 204: nothing fits
        return []
    if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
        raise FormatError("answer", "a list of data sets in JSON", "another thing", where=name)
    return answer


def _portions(files: Sequence[Path]) -> Iterator[list[Path]]:
    portion: list[Path] = []
    size = 0
    for file in files:
        length = file.stat().st_size
        if portion and size + length > _AT_ONCE:
            yield portion
            portion, size = [], 0
        portion.append(file)
        size += length
    if portion:
        yield portion


def _store(caller: Caller, files: Sequence[Path]) -> None:
    mark, kind = boundary(), "application/dicom"
    headers = {
        "Content-Type": f'multipart/related; type="{kind}"; boundary={mark}',
        # Not in chunks, which some servers do not take.
        "Content-Length": str(joined_length([file.stat().st_size for file in files], mark, kind)),
    }

    def content() -> Iterator[bytes]:
        return joined((_pieces(file) for file in files), mark, kind)

    name = caller.peer.name
    try:
        answer = caller.json("POST", "/studies", headers=headers, content=content)
    except RefusedError as error:
        if error.status != 409:
            raise
        raise QinjingError(f"{name} took none of {len(files)} instances") from None
    if not isinstance(answer, dict):
        raise FormatError("answer", "a data set in JSON", "another thing", where=name)
    failed = [first(one, "00081197") for one in values(answer, "00081198")]
    stored = len(values(answer, "00081199"))
    if failed or stored < len(files):
        reasons = sorted({f"0x{int(one):04X}" for one in failed if one.isdigit()})
        why = f" ({', '.join(reasons)})" if reasons else ""
        raise QinjingError(f"{name} took {stored} of {len(files)} instances{why}")


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            yield piece
