"""DICOM images of any mixture, as series and their volumes.

Files are told by what they say, never by their names: a series by its UID, a plane by its place.
Headers come first and pixels only when a volume is loaded, so that fifty series need the memory of
one. What cannot be read right is refused with its reason, series by series, and the rest goes on.

Source: DICOM PS3.3, C.7.6.2 (image plane), C.7.6.16 (multi-frame).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qinjing.data.dicom.apart import alike, part
from qinjing.data.dicom.elements import DamagedError, read_elements
from qinjing.data.dicom.files import find_files, series_files
from qinjing.data.dicom.header import Identity, Plane, identify, planes_of
from qinjing.data.dicom.pixels import read_frames
from qinjing.data.dicom.series import DicomVolume, Reading, Refusal, Source
from qinjing.data.dicom.stack import Stack, resample, stack
from qinjing.data.nifti import Header
from qinjing.errors import FormatError, GeometryError, InputError
from qinjing.volume import Volume


@dataclass(frozen=True, eq=False)
class Planned:
    """A volume whose planes are known and whose pixels are not read yet.

    Attributes:
        stack: its planes and their grid.
        what: what tells it from the series' other volumes, or "".
        dtype: of the voxels: as stored where nothing scales them, else float32.
        units: "HU", "SUVbw" and so on, "" where none is stated.
        notes: sentences that say what is done to the voxels or the grid.
    """

    stack: Stack
    what: str
    dtype: np.dtype
    units: str
    notes: tuple[str, ...]

    @property
    def header(self) -> Header:
        """Shape, affine and type of the volume."""
        return Header(self.stack.shape, self.stack.affine, self.dtype)

    @property
    def file(self) -> Identity:
        """The first plane's file."""
        return self.stack.planes[0].file


@dataclass(eq=False)
class Series:
    """One series by its headers.

    Attributes:
        study: StudyInstanceUID.
        uid: SeriesInstanceUID.
        modality: "CT", "MR" and so on.
        volumes: those that can be loaded.
        refused: why others, or all, cannot be.
        sound: every file could be read.
        stacks: how many sets of parallel planes of one size they hold.
    """

    study: str
    uid: str
    modality: str
    volumes: list[Planned] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    sound: bool = True
    stacks: int = 1


@dataclass(eq=False)
class Place:
    """The series of a folder, zip, DICOMDIR or file.

    Attributes:
        series: in the order of their UIDs.
        refused: files of no series.
    """

    series: list[Series]
    refused: list[Refusal]
    # Of an unpacked zip: the folder goes when nobody holds the place any more.
    _unpacked: object = field(default=None, repr=False)


def read_dicom(place: str | Path) -> Reading:
    """Read every volume of a place into memory; `find_series` and `load` go one by one.

    Args:
        place: a folder with all below it, a zip, a DICOMDIR or a file.

    Raises:
        ConfigError: pydicom is not installed, which decodes compressed pixels.
        FormatError: there is no such place.
    """
    found = find_series(place)
    reading = Reading(refused=list(found.refused), _unpacked=found._unpacked)
    for series in found.series:
        reading.refused += series.refused
        for planned in series.volumes:
            try:
                reading.volumes.append(load(planned))
            except (FormatError, GeometryError) as error:
                reading.refused.append(Refusal(series.uid, planned.file.path, str(error)))
    return reading


def find_series(place: str | Path, progress: Callable[[int, int], None] | None = None) -> Place:
    """Find the series of a place and how their volumes lie, by headers alone.

    Args:
        place: a folder with all below it, a zip, a DICOMDIR or a file.
        progress: called with (files done, files in all).

    Raises:
        FormatError: there is no such place.
    """
    files = find_files(Path(place))
    series, refused = _series_of(files.paths, progress)
    return Place(series, files.refused + refused, files.unpacked)


def load(planned: Planned) -> DicomVolume:
    """Read a volume's pixels.

    Raises:
        ConfigError: pydicom is not installed, which decodes compressed pixels.
        FormatError: pixels are cut off, or cannot be decoded here.
    """
    grid, file = planned.stack, planned.file
    with _refusals(file.path):
        shape = (len(grid.planes), *grid.planes[0].shape)
        voxels = np.empty(shape, planned.dtype)
        _fill(voxels, grid.planes)
        if grid.resampling is not None:
            voxels = resample(voxels, grid.resampling)
    planes: tuple[tuple[Source, ...], ...] = tuple((plane.source,) for plane in grid.planes)
    if grid.resampling is not None:
        planes = tuple(
            tuple(grid.planes[i].source for i, _ in grid.resampling.parents(d))
            for d in range(grid.shape[0])
        )
    return DicomVolume(
        Volume(voxels, grid.affine, file.frame_of_reference or None), file.study, file.series,
        file.modality, planes, grid.resampling is not None, planned.what, planned.units,
        planned.notes,
    )  # fmt: skip


def read_series(folder: str | Path) -> Volume:
    """Read a folder that holds one series of one volume, its slices as they are.

    D runs along the normal of the slices (from the feet to the head in an axial series), H down
    the rows, W along them. Stored values keep their type where no file declares a scale; otherwise
    they become float32, in Hounsfield units for CT. What `load` would resample is refused here,
    where nothing could say so.

    Args:
        folder: its ``*.dcm`` files are read, or where there are none, all that are DICOM by their
            first bytes; others and subfolders are left alone.

    Raises:
        ConfigError: pydicom is not installed, which decodes compressed pixels.
        FormatError: a file is damaged, no image, of another series, or compressed in a way that
            this installation cannot undo.
        GeometryError: the slices make no regular grid: a gap, a tilt, two at one place.
    """
    return load(_single(Path(folder))).volume


def read_series_header(folder: str | Path) -> Header:
    """Read shape, affine and type of what `read_series` returns, without the pixels.

    Raises:
        FormatError: a file is damaged, no image, or of another series.
        GeometryError: the slices make no regular grid.
    """
    return _single(Path(folder)).header


def read_patient_id(folder: str | Path) -> str:
    """Return the PatientID of a folder's first file, "" where there is none.

    Raises:
        FormatError: no file, or a damaged one.
    """
    path = series_files(Path(folder))[0]
    with _refusals(path):
        file = read_elements(path)
        coded = "utf-8" if "192" in file.text(0x00080005) else "latin-1"
        return file.raw(0x00100020).decode(coded, "replace").strip(" \0")


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file brings about into one sentence that names it."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise FormatError("image", "small enough for this machine's memory", where=path) from None
    except DamagedError as error:
        # "name must be rule, got value", as all refusals are.
        name, _, rest = str(error).partition(" must be ")
        rule, _, got = rest.partition(", got ")
        if not rest:
            raise FormatError("file", "sound DICOM", error, where=path) from None
        raise FormatError(name, rule, got or None, where=path) from None
    except OSError as error:
        raise FormatError("file", "readable", error, where=path) from None


def _series_of(
    paths: Iterable[Path], progress: Callable[[int, int], None] | None = None
) -> tuple[list[Series], list[Refusal]]:
    """Sort files into series by UID, and plan each; files of none are refused."""
    found: dict[str, Series] = {}
    planes: dict[str, list[Plane]] = {}
    refused: list[Refusal] = []
    seen: set[tuple[str, str]] = set()
    every = list(paths)
    for done, path in enumerate(every, 1):
        key = ""
        try:
            with _refusals(path):
                file = read_elements(path)
                if 0x00041220 in file:
                    continue  # a DICOMDIR
                one = identify(file, path)
                key = one.series_key
                if key not in found:
                    found[key], planes[key] = Series(one.study, one.series, one.modality), []
                if one.instance and (key, one.instance) in seen:
                    continue  # a copy: the same UID is the same image
                planes[key] += planes_of(file, one, path.stat().st_size)
                seen.add((key, one.instance))
        except FormatError as error:
            if not key:
                refused.append(Refusal("", path, str(error)))
            elif found[key].sound:
                found[key].sound = False
                found[key].refused.append(Refusal(found[key].uid, path, str(error)))
        if progress is not None:
            progress(done, len(every))
    for key, series in found.items():
        # Without one of its slices a series would be another one.
        if series.sound:
            _plan(series, planes[key])
    return [found[key] for key in sorted(found)], refused


def _plan(series: Series, planes: list[Plane]) -> None:
    """Part a series' planes into volumes, and find the grid of each."""
    groups = alike(planes)
    series.stacks = len(groups)
    for k, group in enumerate(groups, 1):
        prefix = f"stack {k} " if len(groups) > 1 else ""
        parts = part(group)
        most = max(len(some) for _, some in parts)
        for what, some in parts:
            try:
                _refuse_fewer(len(some), most)
                with _refusals(some[0].file.path.parent):
                    series.volumes.append(_planned(some, (prefix + what).strip()))
            except GeometryError as error:
                path = some[0].file.path
                where = path.parent if some[0].single else path
                reason = f"{prefix + what}: {error}" if prefix + what else str(error)
                series.refused.append(Refusal(series.uid, path, f"{reason} ({where})"))


def _refuse_fewer(n: int, most: int) -> None:
    """Refuse a time point that broke off: without its last slices no gap shows it."""
    if n < most:
        rule = "as many as in the series' other volumes"
        raise GeometryError("slices", rule, f"{n} of {most}")


def _planned(planes: list[Plane], what: str) -> Planned:
    grid = stack(planes)
    scaled = any((plane.scale.slope, plane.scale.intercept) != (1.0, 0.0) for plane in planes)
    keep = not scaled and grid.resampling is None
    dtype = planes[0].stored.dtype if keep else np.dtype(np.float32)
    units = {plane.scale.units for plane in planes}
    said = dict.fromkeys(note for plane in grid.planes for note in plane.scale.notes)
    notes = [*grid.notes, *list(said)[:3]]
    if not planes[0].file.series:
        notes.append("Files without SeriesInstanceUID: those of one folder were taken as a series.")
    return Planned(grid, what, dtype, units.pop() if len(units) == 1 else "", tuple(notes))


def _fill(voxels: np.ndarray, planes: tuple[Plane, ...]) -> None:
    """Read all planes, each file once."""
    files: dict[Path, dict[int, list[int]]] = {}
    for d, plane in enumerate(planes):
        files.setdefault(plane.file.path, {}).setdefault(plane.frame, []).append(d)
    for path, frames in files.items():
        first = planes[next(iter(frames.values()))[0]]
        wanted = sorted(frames)
        with _refusals(path):
            for frame, pixels in zip(wanted, read_frames(first.stored, wanted), strict=True):
                for d in frames[frame]:
                    _scale(pixels, planes[d], voxels[d])


def _scale(pixels: np.ndarray, plane: Plane, out: np.ndarray) -> None:
    """Cut a plane out of its frame and turn stored values into what they mean."""
    if plane.tile is not None:
        row, column = plane.tile
        pixels = pixels[row : row + plane.shape[0], column : column + plane.shape[1]]
    slope, intercept = plane.scale.slope, plane.scale.intercept
    if out.dtype == pixels.dtype:
        out[...] = pixels
    elif slope == 1 and pixels.dtype.itemsize <= 2 and pixels.dtype.kind in "iu":
        np.add(pixels, np.float32(intercept), out=out)  # exact: the values fit into 24 bits
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = pixels * np.float64(slope) + intercept


def _single(folder: Path) -> Planned:
    """The only volume of a folder's only series, its planes as they are."""
    series, refused = _series_of(series_files(folder))
    if refused:
        raise _as_error(FormatError, refused[0])
    if len(series) > 1:
        files = sorted(_a_file(each).name for each in series)
        got = f"{len(series)}, others in {' and '.join(files[:2])}"
        advice = "name the folder of one series"
        raise FormatError("folder", "of one series", got, where=folder, advice=advice)
    if not series:
        raise FormatError("folder", "of one series", "none", where=folder)
    one = series[0]
    if not one.sound:
        raise _as_error(FormatError, one.refused[0])
    advice = "`qinjing data dicom` reads such series"
    if one.stacks > 1:
        rule = "parallel, of one size, spacing and type, in one frame of reference"
        raise GeometryError("slices", rule, f"{one.stacks} stacks", where=folder, advice=advice)
    if one.refused:
        raise _as_error(GeometryError, one.refused[0])
    if len(one.volumes) > 1:
        got = ", ".join(planned.what for planned in one.volumes)
        raise GeometryError("series", "of one volume", got, where=folder, advice=advice)
    grid = one.volumes[0].stack
    if grid.resampling is not None:
        rule = "stacked at a right angle and evenly spaced"
        raise GeometryError("slices", rule, grid.fault, where=folder, advice=advice)
    return one.volumes[0]


def _a_file(series: Series) -> Path:
    """A file that belongs to the series."""
    return series.volumes[0].file.path if series.volumes else series.refused[0].path


def _as_error(kind: type[FormatError] | type[GeometryError], refusal: Refusal) -> InputError:
    """The error that a refusal was made of."""
    error = kind("series", "readable", where=refusal.path)
    error.args = (refusal.reason,)
    return error
