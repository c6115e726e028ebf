"""One folder of one CT or MR series, single-frame files, as a Volume.

Place and order come from ImagePositionPatient, ImageOrientationPatient and PixelSpacing alone:
file names, InstanceNumber, SliceLocation and SliceThickness are known to lie. What a regular grid
cannot say (uneven gaps, a tilted gantry) is refused, never resampled in silence.

Source: DICOM PS3.3, C.7.6.2 (image plane), C.11.1 (modality LUT).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.data.dicom.series import DicomVolume, Reading, Refusal, Source
from qinjing.data.nifti import Header
from qinjing.errors import ConfigError, FormatError, GeometryError
from qinjing.volume import Volume

KINDS = {"1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.4": "MR"}
# How far a slice may lie from its place on the regular grid, as a part of the gap: what rounding
# of written positions explains, and far below what a missing slice does.
TOLERANCE = 0.05
SAME_DIRECTION = 1e-4  # of direction cosines, which are written with six digits or more
SAME_PLACE_MM = 1e-3
_TAGS = (
    "SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImageType", "NumberOfFrames",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "RescaleSlope", "RescaleIntercept",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Slice:
    """What one file says of itself.

    Attributes:
        path: the file.
        series: SeriesInstanceUID.
        frame: FrameOfReferenceUID, "" where there is none.
        shape: (rows, columns).
        dtype: as the pixels are stored.
        position: centre of the first voxel, LPS millimetres.
        directions: unit vectors along W (a row) and along H (a column), LPS, (2, 3).
        spacing_mm: along H and W.
        slope: what stored values are multiplied with.
        intercept: what is added then.
    """

    path: Path
    series: str
    frame: str
    shape: tuple[int, int]
    dtype: np.dtype
    position: np.ndarray
    directions: np.ndarray
    spacing_mm: np.ndarray
    slope: float
    intercept: float


def read_series(folder: str | Path) -> Volume:
    """Read a folder that holds one series, its slices in the order of their positions.

    D runs along the normal of the slices (from the feet to the head in an axial series), H down
    the rows, W along them. Stored values keep their type where no file declares a scale; otherwise
    they become float32, in Hounsfield units for CT.

    Args:
        folder: its ``*.dcm`` files are read, or where there are none, all that are DICOM by their
            first bytes; others and subfolders are left alone.

    Raises:
        ConfigError: pydicom is not installed.
        FormatError: a file is damaged, no CT or MR image, of another series, or compressed in a
            way that this installation cannot undo.
        GeometryError: the slices make no regular grid: a gap, a tilt, two at one place.
    """
    slices, header = _read_headers(Path(folder))
    voxels = np.empty(header.shape, header.dtype)
    for d, one in enumerate(slices):
        pixels = _read_pixels(one)
        if header.dtype == one.dtype:
            voxels[d] = pixels
        else:
            voxels[d] = pixels * one.slope + one.intercept
    return Volume(voxels, header.affine, slices[0].frame or None)


def read_series_header(folder: str | Path) -> Header:
    """Read shape, affine and type of what `read_series` returns, without the pixels.

    Raises:
        ConfigError: pydicom is not installed.
        FormatError: a file is damaged, no CT or MR image, or of another series.
        GeometryError: the slices make no regular grid.
    """
    return _read_headers(Path(folder))[1]


def read_patient_id(folder: str | Path) -> str:
    """Return the PatientID of a folder's first file, "" where there is none.

    Raises:
        ConfigError: pydicom is not installed.
        FormatError: no file, or a damaged one.
    """
    file = series_files(Path(folder))[0]
    with _refusals(file):
        return str(_dcmread(file, ["PatientID"]).get("PatientID") or "").strip()


def series_files(folder: Path) -> list[Path]:
    """Return the files of a folder that make its series, by name.

    Raises:
        FormatError: there is no such folder, or no DICOM file in it.
    """
    try:
        files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
        named = [file for file in files if file.suffix.lower() == ".dcm"]
        found = named or [file for file in files if _has_magic(file)]
    except OSError as error:
        raise FormatError("series", "a folder that can be read", error, where=folder) from None
    if not found:
        raise FormatError("series", "a folder of DICOM files", "none", where=folder)
    return found


def _has_magic(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes of the parser into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd values; those that are used are checked
            yield
    except (FormatError, GeometryError, ConfigError):
        raise
    except MemoryError:
        raise FormatError("image", "small enough for this machine's memory", where=path) from None
    except Exception as error:  # pydicom names no common class for them
        raise FormatError("file", "sound DICOM", error, where=path) from None


def _dcmread(path: Path, tags: Sequence[str] | None = None) -> Any:
    """Read a file; with `tags` these alone, and no pixels."""
    try:
        from pydicom import dcmread
    except ModuleNotFoundError as error:
        advice = "pip install 'qinjing[dicom]'"
        raise ConfigError(
            error.name or "pydicom", "installed to read DICOM", advice=advice
        ) from None
    if tags is None:
        return dcmread(path)
    return dcmread(path, stop_before_pixels=True, specific_tags=list(tags))


def _read_headers(folder: Path) -> tuple[list[_Slice], Header]:
    """The slices in order, and the grid that they make."""
    slices = []
    for file in series_files(folder):
        with _refusals(file):
            slices.append(_parse(_dcmread(file, _TAGS), file))
    _check_alike(slices, folder)
    slices, affine = _stack(slices, folder)
    scaled = any((one.slope, one.intercept) != (1.0, 0.0) for one in slices)
    dtype = np.dtype(np.float32) if scaled else slices[0].dtype
    return slices, Header((len(slices), *slices[0].shape), affine, dtype)


def _parse(file: Any, path: Path) -> _Slice:
    """Check one file's header."""
    sop = file.get("SOPClassUID") or file.file_meta.get("MediaStorageSOPClassUID")
    if str(sop) not in KINDS:
        got = getattr(sop, "name", None) or "an object of no class"
        raise FormatError("file", "a single-frame CT or MR image", got, where=path)
    if "MOSAIC" in (file.get("ImageType") or ()) or int(file.get("NumberOfFrames") or 1) != 1:
        raise FormatError("file", "one slice", "several in one image", where=path)
    colours = (int(file.get("SamplesPerPixel") or 1), file.get("PhotometricInterpretation"))
    if colours != (1, "MONOCHROME2"):
        raise FormatError("pixels", "grey, MONOCHROME2", colours[1], where=path)
    bits, signed = int(file.BitsAllocated), int(file.PixelRepresentation)
    if bits not in (8, 16, 32) or signed not in (0, 1):
        raise FormatError("BitsAllocated", "8, 16 or 32", bits, where=path)
    directions = _numbers(file, "ImageOrientationPatient", 6, path).reshape(2, 3)
    spacing_mm = _numbers(file, "PixelSpacing", 2, path)
    if (spacing_mm <= 0).any():
        raise GeometryError("PixelSpacing", "positive", spacing_mm.tolist(), where=path)
    lengths = np.linalg.norm(directions, axis=1)
    if abs(lengths - 1).max() > 1e-3 or abs(directions[0] @ directions[1]) > 1e-3:
        raise GeometryError("ImageOrientationPatient", "two unit vectors at a right angle",
                            directions.tolist(), where=path)  # fmt: skip
    return _Slice(
        path=path,
        series=str(file.SeriesInstanceUID),
        frame=str(file.get("FrameOfReferenceUID") or ""),
        shape=(int(file.Rows), int(file.Columns)),
        dtype=np.dtype(f"{'i' if signed else 'u'}{bits // 8}"),
        position=_numbers(file, "ImagePositionPatient", 3, path),
        directions=directions / lengths[:, None],
        spacing_mm=spacing_mm,
        slope=float(_numbers(file, "RescaleSlope", 1, path, 1.0)[0]),
        intercept=float(_numbers(file, "RescaleIntercept", 1, path, 0.0)[0]),
    )


def _numbers(file: Any, name: str, n: int, path: Path, default: float | None = None) -> np.ndarray:
    """Finite numbers of an element; a missing one is refused unless it has a default."""
    value = file.get(name)
    if value is None and default is not None:
        value = default
    found = np.atleast_1d(np.asarray([] if value is None else value, dtype=np.float64))
    if found.shape != (n,) or not np.isfinite(found).all():
        got = "nothing" if value is None else value
        raise FormatError(name, "a number" if n == 1 else f"{n} numbers", got, where=path)
    return found


def _check_alike(slices: Sequence[_Slice], folder: Path) -> None:
    """Refuse a folder of more than one series, or of slices of different make."""
    first = slices[0]
    for one in slices[1:]:
        both = f"others in {first.path.name} and {one.path.name}"
        if one.series != first.series:
            n = len({each.series for each in slices})
            raise FormatError("folder", "of one series", f"{n}, {both}", where=folder,
                              advice="name the folder of one series")  # fmt: skip
        turned = abs(one.directions - first.directions).max() > SAME_DIRECTION
        if turned or one.frame != first.frame:
            raise GeometryError("slices", "parallel, in one frame of reference", both, where=folder)
        same_size = one.shape == first.shape and one.dtype == first.dtype
        if not same_size or not np.allclose(one.spacing_mm, first.spacing_mm, rtol=1e-5):
            raise GeometryError("slices", "of one size, spacing and type", both, where=folder)


def _stack(slices: Sequence[_Slice], folder: Path) -> tuple[list[_Slice], np.ndarray]:
    """Order slices along their normal; the affine of the grid that they make.

    Raises:
        GeometryError: they make none.
    """
    if len(slices) < 2:
        raise GeometryError("series", "of at least two slices", len(slices), where=folder)
    along_row, along_column = slices[0].directions
    normal = np.cross(along_row, along_column)
    ordered = sorted(slices, key=lambda one: float(one.position @ normal))
    moved = np.array([one.position - ordered[0].position for one in ordered])
    heights = moved @ normal
    gaps = np.diff(heights)
    narrow = int(gaps.argmin())
    if gaps[narrow] < SAME_PLACE_MM:
        pair = f"{ordered[narrow].path.name} and {ordered[narrow + 1].path.name}"
        raise GeometryError("slices", "one at each place", f"two at one, {pair}", where=folder,
                            advice="take the time points or echoes apart")  # fmt: skip
    gap = float(heights[-1]) / len(gaps)
    sideways = np.linalg.norm(moved - np.outer(heights, normal), axis=1)
    if sideways.max() > TOLERANCE * gap:
        worst = int(sideways.argmax())
        tilt_deg = math.degrees(math.atan2(sideways[worst], heights[worst]))
        raise GeometryError("slices", "stacked at a right angle, without gantry tilt",
                            f"{tilt_deg:.1f} degrees", where=folder)  # fmt: skip
    if abs(heights - gap * np.arange(len(ordered))).max() > TOLERANCE * gap:
        wide = int(gaps.argmax())
        got = (
            f"gaps of {gaps.min():.4g} to {gaps.max():.4g} mm, the widest between"
            f" {ordered[wide].path.name} and {ordered[wide + 1].path.name}"
        )
        raise GeometryError("slices", "evenly spaced, none missing", got, where=folder)
    affine = np.eye(4)
    row_mm, column_mm = slices[0].spacing_mm
    affine[:3, 0] = normal / np.linalg.norm(normal) * gap
    affine[:3, 1] = along_column * row_mm
    affine[:3, 2] = along_row * column_mm
    affine[:3, 3] = ordered[0].position
    return ordered, affine


def _read_pixels(one: _Slice) -> np.ndarray:
    """The stored values of a slice, (H, W)."""
    with _refusals(one.path):
        file = _dcmread(one.path)
        syntax = file.file_meta.TransferSyntaxUID
        try:
            pixels = file.pixel_array
        except (RuntimeError, NotImplementedError):
            # pydicom lists in many lines which packages would be needed.
            rule = "of a transfer syntax that can be decoded here"
            advice = "decompress the series first"
            raise FormatError("pixels", rule, syntax.name, where=one.path, advice=advice) from None
        if pixels.shape != one.shape:
            raise FormatError("pixels", f"of shape {one.shape}", pixels.shape, where=one.path)
        return np.asarray(pixels)


def read_dicom(place: Path) -> Reading:
    """Read every series below a folder: volumes and refusals.

    Raises:
        ConfigError: pydicom is not installed.
    """
    found: dict[str, list[Path]] = {}
    reading = Reading()
    for file in sorted(p for p in Path(place).rglob("*") if p.is_file()):
        try:
            if _has_magic(file):
                with _refusals(file):
                    uid = str(_dcmread(file, ["SeriesInstanceUID"]).SeriesInstanceUID)
                found.setdefault(uid, []).append(file)
        except FormatError as error:
            reading.refused.append(Refusal("", file, str(error)))
    for uid, files in sorted(found.items()):
        try:
            reading.volumes.append(_read_one(files))
        except (FormatError, GeometryError) as error:
            reading.refused.append(Refusal(uid, files[0], str(error)))
    return reading


def _read_one(files: list[Path]) -> DicomVolume:
    slices = []
    for file in files:
        with _refusals(file):
            slices.append(_parse(_dcmread(file, _TAGS), file))
    _check_alike(slices, files[0].parent)
    slices, affine = _stack(slices, files[0].parent)
    voxels = np.stack(
        [(_read_pixels(one) * one.slope + one.intercept).astype(np.float32) for one in slices]
    )
    planes = []
    for one in slices:
        head = _dcmread(one.path, ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Modality"])
        planes.append((Source(one.path, str(head.SOPClassUID), str(head.SOPInstanceUID), None),))
    modality = str(head.get("Modality") or "")
    return DicomVolume(
        Volume(voxels, affine, slices[0].frame or None), str(head.StudyInstanceUID),
        slices[0].series, modality, tuple(planes), False, "", "HU" if modality == "CT" else "", (),
    )  # fmt: skip
