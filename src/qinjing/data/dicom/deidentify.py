"""Take the patient out of a DICOM object: the Basic Application Level Confidentiality Profile.

What becomes of each attribute is in `confidentiality.py`. Pseudonyms, UIDs and the shift of dates
are drawn from a secret: files that are done at different times still fit together, and without the
secret nobody comes back. The pixels are left as they are: text that is burned into them, and a face
that could be drawn from them, are warned of and not removed.

Source: DICOM PS3.15, Annex E.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from qinjing.data.dicom.confidentiality import OPTIONS, SAFE_PRIVATE, action, clean_words
from qinjing.errors import ConfigError, FormatError

SECRET_BYTES = 16  # the least
# Dates move back, so that none lies in the future: by one to ten years and a half or so.
LEAST_SHIFT_DAYS, SHIFTS_DAYS = 366, 3500
DUMMIES = {
    "AE": "REMOVED", "AS": "000Y", "CS": "REMOVED", "DA": "19000101", "DS": "0",
    "DT": "19000101000000", "IS": "0", "LO": "REMOVED", "LT": "REMOVED", "PN": "REMOVED",
    "SH": "REMOVED", "ST": "REMOVED", "TM": "000000", "UC": "REMOVED", "UR": "urn:removed",
    "UT": "REMOVED", "OB": b"\0\0", "OW": b"\0\0", "UN": b"\0\0",
}  # fmt: skip
_TEXTS = ("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT")
_PATIENT_ID, _PATIENT_NAME = 0x00100020, 0x00100010
_CONTENT, _PERSON_CODE = 0x0040A730, 0x00401101
# Kinds of objects that often have text in their pixels, by the beginning of their SOP class.
_WRITTEN_ON = {
    "1.2.840.10008.5.1.4.1.1.7": "a secondary capture",
    "1.2.840.10008.5.1.4.1.1.3.1": "an ultrasound image",
    "1.2.840.10008.5.1.4.1.1.6.": "an ultrasound image",
    "1.2.840.10008.5.1.4.1.1.77.1": "a photograph or video",
}
_WRITTEN_WORDS = ("SCREEN SAVE", "SCREENSAVE", "SECONDARY CAPTURE", "DOSE", "REPORT", "LOCALIZER")


def deidentify(
    dataset: Any, options: Collection[str] = (), secret: bytes = b""
) -> tuple[Any, list[str]]:
    """Return a copy of a data set without its patient, and what a person must still look at.

    The copy shares the pixels with the original, which is left as it was.

    Args:
        dataset: a pydicom Dataset, with its file meta information where it was read from a file.
        options: names of `confidentiality.OPTIONS` that keep more than the basic profile does.
        secret: at least 16 bytes; the same secret gives the same pseudonyms, UIDs and dates.

    Returns:
        The data set, ready to be saved, and sentences that name nobody.

    Raises:
        ConfigError: an unknown option, or a secret that is too short.
        FormatError: the object has no SOP class or no UID, or is a directory of files.

    Source: DICOM PS3.15, E.1.1 (what a de-identifier does), E.2, E.3.
    """
    for option in options:
        if option not in OPTIONS:
            raise ConfigError("option", f"one of {', '.join(OPTIONS)}", option)
    if len(secret) < SECRET_BYTES:
        raise ConfigError("secret", f"{SECRET_BYTES} bytes or more", len(secret))
    kind, instance = _identity(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values, which are kept or go as any other
        who = _who(dataset)
        work = _Work(frozenset(options), secret, _shift_days(secret, who), _name(secret, who))
        clean = work.copy(dataset)
        other = instance if "uids" in options else _other_uid(secret, instance)
        _set(clean, SOPClassUID=kind, SOPInstanceUID=other)
        found = _warnings(dataset, kind, work)
        _declare(clean, work, burned=dataset.get("BurnedInAnnotation") == "YES")
        _give_meta(clean, dataset)
    return clean, found


def pseudonym(patient_id: str, secret: bytes) -> str:
    """Return the name that stands for a patient under a secret: "QJ-" and 16 letters."""
    return _name(secret, f"id {patient_id.strip()}")


def _identity(dataset: Any) -> tuple[str, str]:
    """The SOP class and UID; where the data set is silent, those of the file meta information."""
    meta = getattr(dataset, "file_meta", None) or {}
    kind = dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
    instance = dataset.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID")
    if not kind or not instance or "DirectoryRecordSequence" in dataset:
        raise FormatError(
            "object", "of a SOP class, with a SOPInstanceUID, and no directory",
            advice="a DICOMDIR is made anew from the files that it names",
        )  # fmt: skip
    return str(kind).strip(), str(instance).strip()


def _keyed(secret: bytes, what: str, value: str) -> bytes:
    return hmac.new(secret, f"{what}\n{value}".encode(), hashlib.sha256).digest()


def _name(secret: bytes, who: str) -> str:
    return "QJ-" + base64.b32encode(_keyed(secret, "patient", who)[:10]).decode()


def _shift_days(secret: bytes, who: str) -> int:
    drawn = int.from_bytes(_keyed(secret, "dates", who)[:8], "big")
    return -(LEAST_SHIFT_DAYS + drawn % SHIFTS_DAYS)


@lru_cache(1 << 16)
def _other_uid(secret: bytes, uid: str) -> str:
    """The same UID, the same answer; those that the standard itself gave away stay."""
    if uid.startswith("1.2.840.10008.") or not uid:
        return uid
    return f"2.25.{uuid.UUID(bytes=_keyed(secret, 'uid', uid)[:16], version=4).int}"


def _who(dataset: Any) -> str:
    """What tells this patient from others: the ID, else name and birth, else the study."""
    patient_id = str(dataset.get("PatientID") or "").strip()
    if patient_id:
        return f"id {patient_id}"
    name, birth = (str(dataset.get(k) or "").strip() for k in ("PatientName", "PatientBirthDate"))
    if name:
        return f"name {name}\n{birth}"
    return f"study {dataset.get('StudyInstanceUID') or dataset.SOPInstanceUID}"


@dataclass(frozen=True)
class _Work:
    """One object's rules.

    Attributes:
        keep: options.
        secret: of UIDs.
        shift_days: of dates, below zero.
        name: the patient's pseudonym.
    """

    keep: frozenset[str]
    secret: bytes
    shift_days: int
    name: str

    def copy(self, dataset: Any) -> Any:
        """Copy a data set, each element as the profile says."""
        from pydicom.dataset import Dataset

        clean = Dataset()
        for tag in sorted(dataset.keys()):
            if tag.group == 2:
                continue
            if tag.is_private:
                self._copy_private(dataset, tag, clean)
                continue
            known = _known(int(tag))
            if known is None:
                continue  # neither the standard's nor private: nobody knows what it says
            element = dataset[tag]
            what = action(int(tag), element.VR, known == "retired", self.keep)
            if what != "X":
                self._put(clean, element, what)
        return clean

    def _copy_private(self, dataset: Any, tag: Any, clean: Any) -> None:
        """Keep a private element that the standard's list thinks safe, with its creator."""
        if "private" not in self.keep or tag.element < 0x1000:
            return
        block = (tag.group << 16) | (tag.element >> 8)
        creator = dataset.get(block)
        safe = SAFE_PRIVATE.get(str(creator.value).strip() if creator else "", frozenset())
        if (tag.group, tag.element & 0xFF) in safe and dataset[tag].VR not in ("SQ", "UN"):
            clean.add(creator)
            clean.add(dataset[tag])

    def _put(self, clean: Any, element: Any, what: str) -> None:
        from pydicom.dataelem import DataElement

        tag, vr = element.tag, element.VR
        value: Any
        if tag in (_PATIENT_ID, _PATIENT_NAME):
            value = self.name
        elif vr == "SQ":
            value = self._sequence(element, what)
        elif what == "K":
            clean.add(element)
            return
        elif what == "Z":
            value = None
        elif what == "U" or (what == "D" and vr == "UI"):
            value = _each(element, lambda uid: _other_uid(self.secret, uid.strip()))
        elif what == "D":
            value = DUMMIES.get(vr, 0)
        else:
            value = self._cleaned(element)
        clean.add(DataElement(tag, vr, value))

    def _sequence(self, element: Any, what: str) -> list[Any]:
        if what == "Z":
            return []
        if what == "D" and element.tag == _CONTENT:
            return [_removed_content()]
        if what == "D" and element.tag == _PERSON_CODE:
            return [_code("REMOVED", "99QINJING", "Removed")]
        return [self.copy(item) for item in element.value or ()]

    def _cleaned(self, element: Any) -> Any:
        if element.VR in ("DA", "DT"):
            return _each(element, lambda text: moved(text, self.shift_days))
        if element.VR in _TEXTS:
            return _each(element, clean_words)
        return element.value if element.VR == "TM" else None


@lru_cache(1 << 13)
def _known(tag: int) -> str | None:
    """Whether the dictionary has a tag: "current", "retired" or None."""
    from pydicom.datadict import dictionary_is_retired, keyword_for_tag

    if not keyword_for_tag(tag):
        return None
    return "retired" if dictionary_is_retired(tag) else "current"


def _each(element: Any, change: Any) -> Any:
    """Change each value of an element; those of which nothing is left stay empty."""
    value = element.value
    if value is None:
        return None
    if isinstance(value, str):
        return change(value)
    try:
        return [change(str(one)) for one in value]
    except TypeError:
        return change(str(value))


def moved(text: str, days: int) -> str:
    """Move a DA or DT by whole days; the time of day and the zone stay.

    Returns:
        "" where it names no whole day, since a month alone cannot be moved by days.
    """
    text = text.strip()
    digits = text.replace(".", "", 2) if text[4:5] == "." else text  # as ACR-NEMA wrote dates
    try:
        day = datetime.strptime(digits[:8], "%Y%m%d") + timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{day:%Y%m%d}".rjust(8, "0") + "".join(c for c in digits[8:] if c in "0123456789.+-")


def _code(value: str, scheme: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _removed_content() -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "TEXT"
    item.ConceptNameCodeSequence = [_code("121106", "DCM", "Comment")]
    item.TextValue = "REMOVED"
    return item


def _set(clean: Any, **values: Any) -> None:
    """Set elements as new ones: those that are kept are the original's own."""
    for keyword, value in values.items():
        clean.pop(keyword, None)
        setattr(clean, keyword, value)


def _declare(clean: Any, work: _Work, *, burned: bool) -> None:
    """Say in the object what was done to it (PS3.15, E.1.1 and E.2)."""
    used = [("113100", "Basic Application Confidentiality Profile")]
    used += [OPTIONS[name] for name in OPTIONS if name in work.keep]
    _set(
        clean,
        PatientID=work.name,
        PatientName=work.name,
        # An object whose pixels are known to name the patient is not free of identity.
        PatientIdentityRemoved="NO" if burned else "YES",
        DeidentificationMethod=[f"Qinjing: {meaning}"[:64] for _, meaning in used],
        DeidentificationMethodCodeSequence=[_code(code, "DCM", word) for code, word in used],
        LongitudinalTemporalInformationModified="MODIFIED" if "dates" in work.keep else "REMOVED",
    )
    for required in ("PatientBirthDate", "PatientSex"):
        if required not in clean:
            setattr(clean, required, None)


def _give_meta(clean: Any, dataset: Any) -> None:
    """Write file meta information anew: the old one may name stations and private things."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    old = getattr(dataset, "file_meta", None)
    syntax = old.get("TransferSyntaxUID") if old else None
    if syntax is None:
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        syntax = ExplicitVRBigEndian if little is False else syntax
    clean.file_meta = FileMetaDataset()
    clean.file_meta.MediaStorageSOPClassUID = clean.SOPClassUID
    clean.file_meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    clean.file_meta.TransferSyntaxUID = syntax
    clean.preamble = b"\0" * 128


def _warnings(dataset: Any, kind: str, work: _Work) -> list[str]:
    """What a person must look at before the object leaves the house; never a value of it."""
    found = []
    burned = str(dataset.get("BurnedInAnnotation") or "").upper()
    kinds = [words for start, words in _WRITTEN_ON.items() if _of(kind, start)]
    words = " ".join(map(str, _listed(dataset.get("ImageType")))).upper()
    if not kinds and any(word in words for word in _WRITTEN_WORDS):
        kinds = ["a picture of a screen, a table or a planning scan"]
    if burned == "YES":
        found.append("its pixels hold burned-in text, which is still there")
    elif burned != "NO" and kinds:
        found.append(f"it is {kinds[0]}: its pixels may hold burned-in text")
    if _CONTENT in dataset:
        found.append("the content of the report was removed")
    if dataset.get("EncapsulatedDocument"):
        found.append("the document inside was removed")
    if "private" not in work.keep and _holds_private(dataset):
        found.append("private elements were removed")
    return found


def _of(sop_class: str, start: str) -> bool:
    return sop_class == start or sop_class.startswith(start.rstrip(".") + ".")


def _listed(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _holds_private(dataset: Any) -> bool:
    tags = dataset.keys()  # of the data set itself one would get elements
    return any(tag.is_private for tag in tags)
