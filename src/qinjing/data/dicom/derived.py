"""What every object that we derive from a series shares: its patient, its study, who made it.

Source: DICOM PS3.3, C.7.1 to C.7.5 (patient, study, series, equipment), C.12.1 (SOP common).
"""

from __future__ import annotations

import hashlib
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from qinjing.config import atomic_path
from qinjing.data.dicom.planes import Plane, read_header
from qinjing.data.dicom.series import DicomVolume, Source
from qinjing.errors import ConfigError, FormatError, InputError

MANUFACTURER = "Qinjing"
# Of the patient and the study, as the source says them; what a receiver matches by, and no more.
_COPIED = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge",
    "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class Maker:
    """Who makes an object.

    Attributes:
        algorithm: the model's name.
        version: the model's version.
        creator: person or program that answers for the content, "family^given" for a person.
        method: "AUTOMATIC", "SEMIAUTOMATIC" (a person corrected it) or "MANUAL".
        series_number: of the new series in the study.
        seed: two objects made of the same from one seed have the same UIDs; None draws new ones.
        when: date and time that are written; now, where None.
    """

    algorithm: str = MANUFACTURER
    version: str = "0"
    creator: str = f"{MANUFACTURER}^"
    method: str = "AUTOMATIC"
    series_number: int = 9000
    seed: int | None = None
    when: datetime | None = None


def needs(package: str) -> ConfigError:
    """Say that a package is missing which writes DICOM."""
    advice = "pip install 'qinjing[dicom]'"
    return ConfigError(package, "installed to write DICOM", advice=advice)


def require(package: str) -> None:
    """Refuse to go on without a package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        raise needs(error.name or package) from None


def software() -> str:
    """Return this package's version as SoftwareVersions states it."""
    try:
        return f"qinjing {metadata.version('qinjing')}"
    except metadata.PackageNotFoundError:
        return "qinjing"


def uids(maker: Maker, source: DicomVolume, kind: str) -> Callable[..., str]:
    """Return a function that gives a UID for words, below 2.25 as a UUID.

    Under a seed the same words of the same source give the same UID.
    """

    def draw(*words: object) -> str:
        if maker.seed is None:
            return f"2.25.{uuid.uuid4().int}"
        said = [maker.seed, source.series_instance_uid, source.what, kind, *words]
        digest = hashlib.sha256("\0".join(map(str, said)).encode()).digest()
        return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"

    return draw


def first_source(source: DicomVolume) -> Source:
    """Return the first plane's source.

    Raises:
        FormatError: the volume names none.
    """
    for sources in source.planes:
        for one in sources:
            return one
    raise FormatError("source", "a volume that names its files", "none")


def instances(source: DicomVolume) -> list[Source]:
    """Return each file of a volume once, whatever its frames are."""
    once = {one.sop_instance_uid: one for sources in source.planes for one in sources}
    return list(once.values())


def patient_and_study(source: DicomVolume) -> Any:
    """Return a dataset of what the source says of patient and study, in UTF-8.

    Raises:
        FormatError: the source's first file cannot be read, or is of another study.
    """
    from pydicom import Dataset

    place = first_source(source).path
    with quiet():
        header = read_header(place)
        found = Dataset()
        # Names in any script are read by their own character set and written in this one.
        found.SpecificCharacterSet = "ISO_IR 192"
        for name in _COPIED:
            if name in header and header[name].value not in (None, "", []):
                setattr(found, name, _decoded(header[name].value))
        for name in _EMPTY:
            if name not in found:
                setattr(found, name, None)
    if found.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in found:
        found.DeidentificationMethod = "not stated by the source"  # something must stand here
    if found.get("StudyInstanceUID") != source.study_instance_uid:
        got = "another study"
        raise FormatError("source", "as it was when the series was read", got, where=place)
    return found


def _decoded(value: Any) -> Any:
    """Text of a person's name without the character set that it came in."""
    return str(value) if type(value).__name__ == "PersonName" else value


def frame_of_reference(source: DicomVolume, draw: Callable[..., str]) -> str:
    """Return the source's frame of reference, or a new one where it states none."""
    return source.volume.frame_of_reference or draw("frame of reference")


def finish(file: Any, maker: Maker, draw: Callable[..., str]) -> None:
    """Write when an object was made, and UIDs of our own where a library drew some."""
    when = maker.when or datetime.now()
    date, time = when.strftime("%Y%m%d"), when.strftime("%H%M%S")
    for name in ("InstanceCreationDate", "ContentDate", "SeriesDate", "StructureSetDate"):
        if name in file:
            setattr(file, name, date)
    for name in ("InstanceCreationTime", "ContentTime", "SeriesTime", "StructureSetTime"):
        if name in file:
            setattr(file, name, time)
    for item in file.get("ContributingEquipmentSequence") or ():
        item.ContributionDateTime = date + time
    for name in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in file.get(name) or ():
            item.DimensionOrganizationUID = draw("dimensions")


def save(file: Any, path: str | Path) -> Path:
    """Write a DICOM file whole or not at all."""
    path = Path(path)
    with quiet(), atomic_path(path) as temporary:
        file.save_as(temporary, enforce_file_format=True)
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's and highdicom's remarks on odd values of the source off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def references(sources: Iterable[Source]) -> list[Any]:
    """Return items that reference instances, each once."""
    from pydicom import Dataset

    items: dict[str, Any] = {}
    for one in sources:
        item = Dataset()
        item.ReferencedSOPClassUID = one.sop_class_uid
        item.ReferencedSOPInstanceUID = one.sop_instance_uid
        items.setdefault(one.sop_instance_uid, item)
    return list(items.values())


def coded(code: Any) -> Any:
    """Return a code sequence's item."""
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme
    item.CodeMeaning = code.meaning
    return item


def references_of(plane: Plane) -> list[Any]:
    """Return items that reference the images that a plane came from, and their frames."""
    items = references(plane.sources)
    for item in items:
        uid = item.ReferencedSOPInstanceUID
        frames = [one.frame for one in plane.sources if one.sop_instance_uid == uid and one.frame]
        if frames:
            item.ReferencedFrameNumber = frames if len(frames) > 1 else frames[0]
    return items


def new_file(
    sop_class: str, modality: str, source: DicomVolume, maker: Maker, draw: Callable[..., str]
) -> Any:
    """Return a new instance in the source's patient and study, by pydicom alone.

    Raises:
        ConfigError: pydicom is not installed.
        FormatError: the source's first file cannot be read, or is of another study.
    """
    try:
        from pydicom.dataset import FileMetaDataset
    except ModuleNotFoundError as error:
        raise needs(error.name or "pydicom") from None
    file = patient_and_study(source)
    file.SOPClassUID, file.SOPInstanceUID = sop_class, draw("instance")
    file.Modality, file.SeriesInstanceUID = modality, draw("series")
    file.SeriesNumber, file.InstanceNumber = maker.series_number, 1
    file.Manufacturer = file.ManufacturerModelName = MANUFACTURER
    file.SoftwareVersions = file.DeviceSerialNumber = software()
    file.OperatorsName = None
    file.InstanceCreationDate = file.InstanceCreationTime = ""
    file.SeriesDate = file.SeriesTime = ""
    file.file_meta = FileMetaDataset()
    file.file_meta.MediaStorageSOPClassUID = sop_class
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    file.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    return file


@contextmanager
def refusals(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a damaged file makes of the parser into one sentence."""
    try:
        with quiet():
            yield
    except InputError:
        raise
    except MemoryError:
        raise FormatError("image", "small enough for this machine's memory", where=path) from None
    except Exception as error:  # pydicom names no common class for them
        raise FormatError("file", what, error, where=path) from None
