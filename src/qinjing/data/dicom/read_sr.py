"""The numbers of a structured report of anybody's making.

Source: DICOM PS3.16, TID 1500 (measurement report), TID 1411 (volumetric ROI), TID 300.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinjing.data.dicom.codes import Code
from qinjing.data.dicom.derived import needs, refusals
from qinjing.errors import FormatError

REPORTS = (
    "1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.88.33",
    "1.2.840.10008.5.1.4.1.1.88.34",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A number of a report.

    Attributes:
        name: what it is.
        value: the number.
        unit: its unit.
        how: how it was derived (mean, percentile), or None.
    """

    name: Code
    value: float
    unit: Code
    how: Code | None


@dataclass(frozen=True)
class MeasuredGroup:
    """What a report says of one finding.

    Attributes:
        tracking_id: what a person calls it.
        tracking_uid: the same at each date.
        finding: what it is.
        site: where it lies.
        side: left, right or both.
        seg: UID of the segmentation and number of the segment that was measured, or None.
        measured: the numbers.
    """

    tracking_id: str
    tracking_uid: str
    finding: Code | None
    site: Code | None
    side: Code | None
    seg: tuple[str, int] | None
    measured: tuple[Measured, ...]


def read_sr(path: str | Path) -> tuple[MeasuredGroup, ...]:
    """Read the measurement groups of a TID 1500 report of anybody's making.

    Raises:
        ConfigError: pydicom is not installed.
        FormatError: it is no such report, or damaged.
    """
    path = Path(path)
    try:
        from pydicom import dcmread
    except ModuleNotFoundError as error:
        raise needs(error.name or "pydicom") from None
    with refusals(path, "a sound structured report"):
        file = dcmread(path)
        if file.get("SOPClassUID") not in REPORTS:
            got = getattr(file.get("SOPClassUID"), "name", None) or "an object of no class"
            raise FormatError("file", "a structured report", got, where=path)
        groups = [item for item in _walk(file) if _name(item).value == "125007"]
        return tuple(_parse(group) for group in groups)


def _walk(item: Any) -> Iterator[Any]:
    for child in item.get("ContentSequence") or ():
        yield child
        yield from _walk(child)


def _name(item: Any) -> Code:
    return _code(item, "ConceptNameCodeSequence") or Code("", "", "")


def _code(item: Any, sequence: str) -> Code | None:
    for one in item.get(sequence) or ():
        value = str(one.get("CodeValue") or one.get("LongCodeValue") or "")
        return Code(value, str(one.CodingSchemeDesignator), str(one.CodeMeaning))
    return None


def _parse(group: Any) -> MeasuredGroup:
    texts: dict[str, str] = {}
    codes: dict[str, Code | None] = {}
    side, seg, measured = None, None, []
    for item in group.get("ContentSequence") or ():
        name = _name(item)
        if item.ValueType in ("TEXT", "UIDREF"):
            texts[name.value] = str(item.get("TextValue") or item.get("UID") or "")
        elif item.ValueType == "CODE":
            codes[name.meaning.lower()] = _code(item, "ConceptCodeSequence")
            for below in item.get("ContentSequence") or ():
                if _name(below).meaning == "Laterality":
                    side = _code(below, "ConceptCodeSequence")
        elif item.ValueType == "IMAGE" and item.ReferencedSOPSequence[0].get(
            "ReferencedSegmentNumber"
        ):
            to = item.ReferencedSOPSequence[0]
            seg = str(to.ReferencedSOPInstanceUID), int(to.ReferencedSegmentNumber)
        elif item.ValueType == "NUM" and item.get("MeasuredValueSequence"):
            number = item.MeasuredValueSequence[0]
            how = [
                _code(below, "ConceptCodeSequence")
                for below in item.get("ContentSequence") or ()
                if _name(below).meaning == "Derivation"
            ]
            unit = _code(number, "MeasurementUnitsCodeSequence") or Code("1", "UCUM", "no units")
            measured.append(
                Measured(name, float(number.NumericValue), unit, how[0] if how else None)
            )
    return MeasuredGroup(
        tracking_id=texts.get("112039", ""),
        tracking_uid=texts.get("112040", ""),
        finding=codes.get("finding"),
        site=codes.get("finding site"),
        side=side,
        seg=seg,
        measured=tuple(measured),
    )
