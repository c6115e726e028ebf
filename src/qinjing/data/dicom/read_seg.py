"""DICOM segmentations of anybody's making, as label maps on a grid.

Frames are placed by what they say of their own position; which planes are missing, and in what
order they come, says nothing.

Source: DICOM PS3.3, A.51, A.90, C.8.20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.data.dicom.codes import ANATOMY, Code, Term
from qinjing.data.dicom.derived import needs, refusals
from qinjing.data.dicom.planes import (
    SAME_PLACE_MM,
    Plane,
    as_grid,
    from_planes,
    source_planes,
)
from qinjing.data.dicom.series import DicomVolume
from qinjing.errors import FormatError, GeometryError, LabelError
from qinjing.volume import Volume

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
SOUND = "a sound DICOM segmentation"


@dataclass(frozen=True)
class Segment:
    """What a file says of one of its segments.

    Attributes:
        number: its number, which is its value in a label map.
        name: the label's name.
        term: what it stands for.
        algorithm: name of what made it, "" where that is not said.
        tracking_uid: what follows it through time, or "".
    """

    number: int
    name: str
    term: Term
    algorithm: str
    tracking_uid: str


@dataclass(frozen=True, eq=False)
class DicomSeg:
    """A segmentation that was read; `labels` and `mask` put it on a grid.

    Attributes:
        path: the file.
        how: "binary", "fractional" or "labelmap".
        segments: without the background.
        study_instance_uid: the study's.
        series_instance_uid: the segmentation's own series.
        sop_instance_uid: the file's.
        sources: UIDs of the instances that it was made from, as far as it says.
        planes: where its frames lie, each place once, along their normal.
        gap_mm: between slices, where the file says it.
        frame_of_reference: its FrameOfReferenceUID, or None.
        maximum: what a fractional frame holds for 1.
        padding: what a label map holds beside 0 where there is nothing.
    """

    path: Path
    how: str
    segments: tuple[Segment, ...]
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sources: frozenset[str]
    planes: tuple[Plane, ...]
    gap_mm: float | None
    frame_of_reference: str | None
    maximum: int
    padding: int
    # Which plane and which segment (0 in a label map) each frame is.
    _plane_of: tuple[int, ...]
    _segment_of: tuple[int, ...]
    _frames: Callable[[], Iterator[np.ndarray]]

    def labels(self, like: DicomVolume | Volume | None = None) -> Volume:
        """Return a label map (D, H, W) of segment numbers, 0 where there is none.

        Args:
            like: the grid wanted; without one, the frames' own, missing ones filled with 0.

        Raises:
            FormatError: the pixels cannot be decoded.
            GeometryError: the frames make no grid of their own.
            LabelError: segments overlap, or are fractions; `mask` tells each of them.
        """
        if self.how == "fractional" and self.maximum != 1:
            raise LabelError("segmentation", "binary or a label map", "a fractional one",
                             where=self.path, advice="read each segment's fractions")  # fmt: skip
        dtype = np.uint8 if max(s.number for s in self.segments) < 256 else np.uint16
        pixels = np.zeros((len(self.planes), *self.planes[0].shape), dtype=dtype)
        for p, number, frame in self._each():
            if self.how == "labelmap":
                pixels[p] = np.where(frame == self.padding, 0, frame)
                continue
            there = frame > 0
            if (pixels[p][there] > 0).any():
                raise LabelError("segments", "apart, to make one label map", "overlapping ones",
                                 where=self.path, advice="read each segment alone")  # fmt: skip
            pixels[p][there] = number
        return self._on(pixels, like)

    def mask(self, number: int, like: DicomVolume | Volume | None = None) -> Volume:
        """Return one segment (D, H, W): 0 and 1, or of a fractional one float32 from 0 to 1.

        Args:
            number: the segment's number.
            like: as for `labels`.

        Raises:
            FormatError: the pixels cannot be decoded.
            GeometryError: the frames make no grid of their own.
            LabelError: there is no such segment.
        """
        if number not in [segment.number for segment in self.segments]:
            numbers = ", ".join(str(segment.number) for segment in self.segments)
            raise LabelError("segment", f"one of {numbers}", number, where=self.path)
        fraction = self.how == "fractional" and self.maximum != 1
        kind = np.float32 if fraction else np.uint8
        pixels = np.zeros((len(self.planes), *self.planes[0].shape), dtype=kind)
        for p, of, frame in self._each():
            if self.how == "labelmap":
                pixels[p] = frame == number
            elif of == number:
                pixels[p] = frame / np.float32(self.maximum) if fraction else frame > 0
        return self._on(pixels, like)

    def _each(self) -> Iterator[tuple[int, int, np.ndarray]]:
        with refusals(self.path, SOUND):
            yield from zip(self._plane_of, self._segment_of, self._frames(), strict=True)

    def _on(self, pixels: np.ndarray, like: DicomVolume | Volume | None) -> Volume:
        """Pixels of our planes on a grid."""
        if like is None:
            affine, steps = as_grid(self.planes, self.gap_mm)
            voxels = np.zeros((steps[-1] + 1, *pixels.shape[1:]), dtype=pixels.dtype)
            voxels[steps] = pixels
            return Volume(voxels, affine, self.frame_of_reference)
        grid = like.volume if isinstance(like, DicomVolume) else like
        if self.frame_of_reference and grid.frame_of_reference not in (
            None, self.frame_of_reference,
        ):  # fmt: skip
            raise GeometryError("segmentation", "in its source's frame of reference", "another",
                                where=self.path)  # fmt: skip
        planes: list[Plane] = list(self.planes)
        reach_mm = 0.5 * (self.gap_mm or _gap_of(planes, grid))
        if isinstance(like, DicomVolume):
            # With the planes that were left out as empty nobody has to guess how far one reaches.
            theirs = source_planes(like)
            empty = [one for one in theirs if not _has(planes, one)]
            if len(empty) == len(theirs) - len(planes):
                nothing = np.zeros((len(empty), *pixels.shape[1:]), dtype=pixels.dtype)
                planes, pixels = planes + empty, np.concatenate([pixels, nothing])
                heights = np.array([plane.origin @ planes[0].normal for plane in planes])
                order = np.argsort(heights)
                planes, pixels = [planes[k] for k in order], pixels[order]
                reach_mm = max(reach_mm, *(0.5 * np.diff(heights[order])), 0.0)
        return grid.with_voxels(from_planes(planes, pixels, grid, reach_mm * 1.001))


def read_seg(path: str | Path) -> DicomSeg:
    """Read a DICOM segmentation; its pixels are decoded when they are asked for.

    Raises:
        ConfigError: pydicom is not installed.
        FormatError: it is none, or says too little of its place.
        GeometryError: its frames are not parallel, or of different pixel sizes.
    """
    path = Path(path)
    try:
        from pydicom import dcmread
    except ModuleNotFoundError as error:
        raise needs(error.name or "pydicom") from None
    with refusals(path, SOUND):
        file = dcmread(path)
        if file.get("SOPClassUID") not in (SEGMENTATION, LABEL_MAP):
            got = getattr(file.get("SOPClassUID"), "name", None) or "an object of no class"
            raise FormatError("file", "a DICOM segmentation", got, where=path)
        how = "labelmap" if file.SOPClassUID == LABEL_MAP else str(file.SegmentationType).lower()
        planes, plane_of = _planes(file, path)
        numbered = how != "labelmap"
        return DicomSeg(
            path=path,
            how=how,
            segments=tuple(_segment(one) for one in file.SegmentSequence if one.SegmentNumber),
            study_instance_uid=str(file.StudyInstanceUID),
            series_instance_uid=str(file.SeriesInstanceUID),
            sop_instance_uid=str(file.SOPInstanceUID),
            sources=_sources(file),
            planes=planes,
            gap_mm=_gap(file),
            frame_of_reference=str(file.get("FrameOfReferenceUID") or "") or None,
            maximum=int(file.get("MaximumFractionalValue") or 1) if how == "fractional" else 1,
            padding=int(file.get("PixelPaddingValue") or 0),
            _plane_of=plane_of,
            _segment_of=tuple(_number(file, f) if numbered else 0 for f in range(len(plane_of))),
            _frames=lambda: _decode(file, path),
        )


def _of(file: Any, frame: int, group: str) -> Any:
    """A functional group of a frame, or the one that all share; None where there is none."""
    own = file.get("PerFrameFunctionalGroupsSequence") or []
    shared = file.get("SharedFunctionalGroupsSequence") or []
    for item in (*own[frame : frame + 1], *shared[:1]):
        if item.get(group):
            return item.get(group)[0]
    return None


def _planes(file: Any, path: Path) -> tuple[tuple[Plane, ...], tuple[int, ...]]:
    """Where frames lie, each place once and in order, and which of them each frame is."""
    found: list[Plane] = []
    for frame in range(int(file.get("NumberOfFrames") or 1)):
        place, turn, size = (
            _of(file, frame, f"{name}Sequence")
            for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures")
        )
        if place is None or turn is None or size is None:
            rule = "told by position, orientation and pixel size"
            raise FormatError(f"place of frame {frame + 1}", rule, "less", where=path)
        row, column = np.array(turn.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        down, along = (float(v) for v in size.PixelSpacing)
        steps = np.stack([column * down, row * along], axis=1)
        origin = np.array(place.ImagePositionPatient, dtype=np.float64)
        if not (np.isfinite(steps).all() and np.isfinite(origin).all() and origin.shape == (3,)):
            raise FormatError(f"place of frame {frame + 1}", "finite", where=path)
        found.append(Plane(origin, steps, (int(file.Rows), int(file.Columns))))
    if max(float(np.abs(plane.steps - found[0].steps).max()) for plane in found) > 1e-4:
        raise GeometryError("frames", "parallel, of one pixel size", "others", where=path)
    heights = [float(plane.origin @ found[0].normal) for plane in found]
    planes: list[Plane] = []
    plane_of = [0] * len(found)
    for k in np.argsort(heights, kind="stable"):
        if not planes or np.linalg.norm(found[k].origin - planes[-1].origin) > SAME_PLACE_MM:
            planes.append(found[k])
        plane_of[k] = len(planes) - 1
    return tuple(planes), tuple(plane_of)


def _has(planes: list[Plane], one: Plane) -> bool:
    return any(np.linalg.norm(one.origin - plane.origin) <= SAME_PLACE_MM for plane in planes)


def _gap(file: Any) -> float | None:
    size = _of(file, 0, "PixelMeasuresSequence")
    value = None if size is None else size.get("SpacingBetweenSlices")
    return float(value) if value and float(value) > 0 else None


def _gap_of(planes: list[Plane], grid: Volume) -> float:
    """How far apart slices are, where the file does not say it: as frames, or as the grid."""
    step = float(abs(grid.affine[:3, 0] @ planes[0].normal))
    apart = np.diff([plane.origin @ planes[0].normal for plane in planes])
    return min([float(v) for v in apart] + [step]) if step > 0 else float(apart.min(initial=1.0))


def _number(file: Any, frame: int) -> int:
    return int(_of(file, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)


def _segment(one: Any) -> Segment:
    def code(holder: Any, name: str, k: int = 0) -> Code | None:
        items = holder.get(name) if holder is not None else None
        if not items or len(items) <= k:
            return None
        value = items[k].get("CodeValue") or items[k].get("LongCodeValue") or ""
        scheme = str(items[k].get("CodingSchemeDesignator") or "")
        return Code(str(value), scheme, str(items[k].get("CodeMeaning") or ""))

    kind = one.SegmentedPropertyTypeCodeSequence[0]
    regions = one.get("AnatomicRegionSequence") or []
    region = regions[0] if regions else None
    modifiers = [code(kind, "SegmentedPropertyTypeModifierCodeSequence", k) for k in (0, 1)]
    modifiers += [code(region, "AnatomicRegionModifierSequence", k) for k in (0, 1)]
    told = [m for m in modifiers if m is not None]
    sides = [
        m for m in told if m.meaning.lower() in ("left", "right", "bilateral", "right and left")
    ]
    parts = [m for m in told if m not in sides]
    term = Term(
        what=code(one, "SegmentedPropertyTypeCodeSequence") or Code("", "", ""),
        category=code(one, "SegmentedPropertyCategoryCodeSequence") or ANATOMY,
        side=sides[0] if sides else None,
        part=parts[0] if parts else None,
        site=code(one, "AnatomicRegionSequence"),
    )
    name = str(one.get("SegmentLabel") or term.what.meaning)
    algorithm = str(one.get("SegmentAlgorithmName") or "")
    return Segment(int(one.SegmentNumber), name, term, algorithm, str(one.get("TrackingUID") or ""))


def _sources(file: Any) -> frozenset[str]:
    """UIDs of all instances that the file refers to as its images."""
    found = set()
    for series in file.get("ReferencedSeriesSequence") or ():
        for item in series.get("ReferencedInstanceSequence") or ():
            found.add(str(item.ReferencedSOPInstanceUID))
    for frame in file.get("PerFrameFunctionalGroupsSequence") or ():
        for derivation in frame.get("DerivationImageSequence") or ():
            for item in derivation.get("SourceImageSequence") or ():
                found.add(str(item.ReferencedSOPInstanceUID))
    return frozenset(found)


def _decode(file: Any, path: Path) -> Iterator[np.ndarray]:
    """The frames (rows, columns), one after the other."""
    rows, columns, frames = int(file.Rows), int(file.Columns), int(file.get("NumberOfFrames") or 1)
    if int(file.BitsAllocated) == 1 and not file.file_meta.TransferSyntaxUID.is_encapsulated:
        packed = np.frombuffer(file.PixelData, dtype=np.uint8)
        size = rows * columns
        if len(packed) * 8 < size * frames:
            got = f"{len(packed)} bytes for {frames} frames"
            raise FormatError("pixels", "as many as its header promises", got, where=path)
        for frame in range(frames):  # frames follow each other bit by bit, without padding
            first, skip = divmod(frame * size, 8)
            bits = np.unpackbits(packed[first : first + (skip + size + 7) // 8], bitorder="little")
            yield bits[skip : skip + size].reshape(rows, columns)
        return
    from pydicom.pixels import iter_pixels

    for pixels in iter_pixels(file, raw=True):
        yield np.asarray(pixels)
