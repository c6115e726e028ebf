"""From stored values to what they mean: rescale, Philips' private scale, real world values, units.

The rule, in this order:

1. Philips MR with a private scale slope (2005,100E): where the real world value map states a unit
   (Hz of a field map), that map, otherwise Philips' floating-point value
   (stored × slope + intercept) / (slope × scale slope), which alone may be compared between series.
   It is what dcm2niix writes; the displayed value is this one × slope × scale slope.
2. RescaleSlope and RescaleIntercept, where they are.
3. The stored values.

Source: DICOM PS3.3, C.11.1, C.7.6.16.2.9, C.7.6.16.2.11; Chenevert et al., doi:10.1593/tlo.13811.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qinjing.data.dicom.elements import DamagedError, Elements
from qinjing.data.dicom.suv import uptake

_TRANSFORM, _REAL_WORLD, _UNIT, _PHILIPS = 0x00289145, 0x00409096, 0x004008EA, 0x2005140F
_NO_UNIT = ("", "1", "no units", "us")


@dataclass(frozen=True)
class Scale:
    """A line from stored values to what they mean.

    Attributes:
        slope: what stored values are multiplied with.
        intercept: what is added then.
        units: of the result, "" where none is stated.
        notes: sentences on where the line comes from, where that is not plain.
    """

    slope: float = 1.0
    intercept: float = 0.0
    units: str = ""
    notes: tuple[str, ...] = ()


def scale(file: Elements, own: Elements, shared: Elements) -> Scale:
    """Return the line for one frame.

    Args:
        file: the file's elements.
        own: the frame's functional groups; of a single-frame file the file itself.
        shared: those of all frames; likewise.

    Raises:
        DamagedError: a slope that is zero or no number.
    """
    single = own is file
    transform = file if single else _group(own, shared, _TRANSFORM)
    slope = _number(transform, 0x00281053, 1.0)
    intercept = _number(transform, 0x00281052, 0.0)
    if slope == 0:
        raise DamagedError("RescaleSlope must be other than 0")
    modality = file.text(0x00080060)
    if modality == "MR":
        private = file if single else _group(own, shared, _PHILIPS)
        philips = _philips(file, private, _group(own, shared, _REAL_WORLD), slope, intercept)
        if philips is not None:
            return philips
    if modality == "PT":
        factor, units, note = uptake(file)
        notes = (note,) if note else ()
        return Scale(slope * factor, intercept * factor, units, notes)
    declared = 0x00281053 in transform
    kind = transform.text(0x00281054).upper() if declared else ""
    hounsfield = modality == "CT" and declared and kind in ("", "HU")
    return Scale(slope, intercept, "HU" if hounsfield else "")


def _group(own: Elements, shared: Elements, tag: int) -> Elements:
    found = own.items(tag) or shared.items(tag)
    return found[0] if found else Elements(b"", True, True)


def _number(file: Elements, tag: int, default: float) -> float:
    found = file.number(tag)
    if found is None:
        return default
    if not math.isfinite(found) or abs(found) > 1e30:
        name = "RescaleSlope" if tag == 0x00281053 else "RescaleIntercept"
        raise DamagedError(f"{name} must be a finite number, got {found}")
    return found


def _philips(
    file: Elements, private: Elements, mapped: Elements, slope: float, intercept: float
) -> Scale | None:
    """Philips' own scale, None where there is none."""
    if not private.text(0x20050010).startswith("Philips MR Imaging DD"):
        return None
    scale_slope = private.number(0x2005100E)
    if not file.text(0x00080070).lower().startswith("philips") or not scale_slope:
        return None
    if not math.isfinite(scale_slope) or not math.isfinite(1 / (slope * scale_slope)):
        raise DamagedError(f"Philips' scale slope must be a finite number, got {scale_slope}")
    unit = (mapped.items(_UNIT) or [Elements(b"", True, True)])[0].text(0x00080100)
    real_slope, real_intercept = mapped.number(0x00409225), mapped.number(0x00409224)
    if unit.lower() not in _NO_UNIT and real_slope and math.isfinite(real_slope):
        if real_intercept is None or not math.isfinite(real_intercept):
            raise DamagedError("RealWorldValueIntercept must be a finite number")
        note = f"Values are the real world values that the file states, in {unit}."
        return Scale(real_slope, real_intercept, unit, (note,))
    note = (
        "Values are Philips' floating-point values, (stored × slope + intercept) / (slope × scale"
        f" slope); the displayed ones are {slope * scale_slope:.6g} times as large."
    )
    return Scale(1 / scale_slope, intercept / (slope * scale_slope), "", (note,))
