"""The standardised uptake value of PET, by body weight.

SUVbw = activity in Bq/ml × weight in g / dose in Bq, the dose decayed to the time that the image is
corrected to. Where the file says too little, values stay as they are, and a note says why.

Source: QIBA FDG-PET/CT profile, appendix G (vendor-neutral pseudo-code); DICOM PS3.3, C.8.9.1.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TypeGuard

from qinjing.data.dicom.elements import Elements

_TRACER = 0x00540016


def uptake(file: Elements) -> tuple[float, str, str]:
    """Return what rescaled values are multiplied with, the units then, and a note.

    Args:
        file: a PET image's elements.
    """
    units = file.text(0x00541001).upper()
    if units == "GML":
        kind = file.text(0x00541006).upper() or "BW"
        return 1.0, f"SUV{kind.lower()}", ""
    if units == "CNTS":
        factor = file.number(0x70531000)  # Philips: counts → SUVbw
        if file.text(0x70530010).startswith("Philips PET") and factor and math.isfinite(factor):
            return factor, "SUVbw", "SUVbw by Philips' own factor for counts."
        return 1.0, "counts", "SUV was not computed: values are counts."
    if units != "BQML":
        return 1.0, units, f"SUV was not computed: values are in {units or 'no unit'}."
    weight_kg = file.number(0x00101030)
    tracer = (file.items(_TRACER) or [Elements(b"", True, True)])[0]
    dose_bq, half_life_s = tracer.number(0x00181074), tracer.number(0x00181075)
    if not (_is_some(weight_kg) and _is_some(dose_bq) and _is_some(half_life_s)):
        lacks = "SUV was not computed: the file lacks weight, dose or half-life."
        return 1.0, "Bq/ml", lacks
    decayed = _decay(file, tracer, half_life_s)
    if isinstance(decayed, str):
        return 1.0, "Bq/ml", f"SUV was not computed: {decayed}."
    factor = 1000 * weight_kg / (dose_bq * decayed)
    note = f"SUVbw: Bq/ml × {factor:.6g} (weight, and dose decayed to {100 * decayed:.1f} %)."
    return factor, "SUVbw", note


def _is_some(value: float | None) -> TypeGuard[float]:
    return value is not None and 0 < value < 1e15


def _decay(file: Elements, tracer: Elements, half_life_s: float) -> float | str:
    """What part of the dose is left at the time that values are corrected to, or why not."""
    corrected = file.text(0x00541102).upper()
    if corrected == "ADMIN":
        return 1.0
    if corrected != "START":
        return "it does not say what time decay was corrected to"
    # The series' time is the scan's start, unless a later copy of the series has its own.
    scan = _time(file.text(0x00080021), file.text(0x00080031))
    acquired = _time(file.text(0x00080022), file.text(0x00080032))
    if scan is None or (acquired is not None and scan > acquired):
        scan = acquired
    given = _time(tracer.text(0x00181078)[:8], tracer.text(0x00181078)[8:])
    if given is None and scan is not None:
        given = _time(scan.strftime("%Y%m%d"), tracer.text(0x00181072))
        if given is not None and given > scan:  # injected before midnight
            given -= timedelta(days=1)
    if scan is None or given is None:
        return "it does not say when the dose was given, or when the scan began"
    waited_s = (scan - given).total_seconds()
    if not 0 <= waited_s < 2 * 86400:
        return "the dose was not given in the two days before the scan"
    return float(2 ** (-waited_s / half_life_s))


def _time(date: str, time: str) -> datetime | None:
    digits = time.split("+")[0].split("-")[0].split(".")[0].replace(":", "")
    try:
        return datetime.strptime(date + digits.ljust(6, "0"), "%Y%m%d%H%M%S") if digits else None
    except ValueError:
        return None
