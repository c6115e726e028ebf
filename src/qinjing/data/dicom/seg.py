"""DICOM segmentations: label maps on the planes of the series that they were made from.

`binary` is what every viewer opens: one bit a pixel and a frame for each plane of each label.
`labelmap` (2024) is one image of label values, smaller and faster to read where the receiver knows
it. `fractional` holds probabilities in 255 steps.

Source: DICOM PS3.3, A.51 (segmentation), A.90 (label map segmentation), C.8.20.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.data.dicom.codes import Term, find_term
from qinjing.data.dicom.derived import (
    MANUFACTURER,
    Maker,
    coded,
    finish,
    frame_of_reference,
    instances,
    patient_and_study,
    quiet,
    references,
    references_of,
    require,
    save,
    software,
    uids,
)
from qinjing.data.dicom.planes import Plane, source_planes, to_planes
from qinjing.data.dicom.rle import pack
from qinjing.data.dicom.series import DicomVolume
from qinjing.errors import ConfigError, GeometryError, LabelError
from qinjing.volume import Volume

HOW = ("binary", "fractional", "labelmap")
# Kelly's colours of maximum contrast, without black, white and grey.
_COLOURS = (
    (255, 179, 0), (128, 62, 117), (255, 104, 0), (166, 189, 215), (193, 0, 32), (206, 162, 98),
    (0, 125, 52), (246, 118, 142), (0, 83, 138), (255, 122, 92), (83, 55, 122), (255, 142, 0),
    (179, 40, 81), (244, 200, 0), (127, 24, 13), (147, 170, 0), (89, 51, 21), (241, 58, 19),
)  # fmt: skip


@dataclass(frozen=True)
class WrittenSeg:
    """What was written, as a report refers to it.

    Attributes:
        path: the file.
        sop_class_uid: segmentation, or label map segmentation.
        sop_instance_uid: new.
        series_instance_uid: new.
        segments: label value → number of its segment.
        tracking_uids: label value → what follows the finding through time.
        frames: how many frames were written.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    segments: dict[int, int]
    tracking_uids: dict[int, str]
    frames: int


def write_seg(
    path: str | Path,
    segmentation: Volume,
    source: DicomVolume,
    names: Mapping[int, str],
    *,
    how: str = "binary",
    terms: Mapping[str, Term] | None = None,
    maker: Maker | None = None,
) -> WrittenSeg:
    """Write a segmentation of a series as DICOM SEG, in the series' patient and study.

    Planes without a label are left out. Where the volume was resampled, labels go back to the
    planes that were measured, by nearest neighbour (`planes.source_planes`).

    Args:
        path: the file to write.
        segmentation: on the grid of `source`: a label map (D, H, W) of whole numbers, or one
            channel a label (C, D, H, W) in the order of `names`, of 0 and 1 (which may overlap), or
            of probabilities for `fractional`.
        source: what it was made from.
        names: label value → name, without the background.
        how: "binary", "fractional" or "labelmap".
        terms: codes of names that `codes.find_term` shall not look up.
        maker: who makes it.

    Raises:
        ConfigError: highdicom is not installed, or `how` is none of the three.
        FormatError: the source's files cannot be read any more.
        GeometryError: the segmentation lies on another grid.
        LabelError: values without a name, overlapping ones in a label map, or none at all.
    """
    maker = maker or Maker()
    if how not in HOW:
        raise ConfigError("kind of segmentation", f"one of {', '.join(HOW)}", how)
    require("highdicom")
    check_grid(segmentation, source)
    draw = uids(maker, source, f"SEG {how}")
    numbers = {v: v if how == "labelmap" else n for n, v in enumerate(sorted(names), start=1)}
    planes = source_planes(source)
    pixels = _pixels(segmentation, planes, numbers, how)
    tracking = {value: draw("segment", value) for value in names}
    with quiet():
        described = _describe(names, numbers, terms or {}, tracking, maker)
        file = _make(pixels, how, described, planes, source, maker, draw)
        _refer(file, planes, source)
        if how != "binary":  # label maps shrink forty times; single bits nobody packs
            pack(file)
    finish(file, maker, draw)
    return WrittenSeg(
        path=save(file, path),
        sop_class_uid=str(file.SOPClassUID),
        sop_instance_uid=str(file.SOPInstanceUID),
        series_instance_uid=str(file.SeriesInstanceUID),
        segments=numbers,
        tracking_uids=tracking,
        frames=int(file.NumberOfFrames),
    )


def _make(
    pixels: np.ndarray,
    how: str,
    described: list[Any],
    planes: Sequence[Plane],
    source: DicomVolume,
    maker: Maker,
    draw: Callable[..., str],
) -> Any:
    """The object as highdicom builds it, on stand-ins for the source's planes."""
    from highdicom.seg import Segmentation

    return Segmentation(
        source_images=_stand_ins(planes, source, frame_of_reference(source, draw)),
        pixel_array=pixels,
        segmentation_type=how.upper(),
        segment_descriptions=described,
        series_instance_uid=draw("series"),
        series_number=maker.series_number,
        sop_instance_uid=draw("instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=software(),
        device_serial_number=software(),
        content_label="SEGMENTATION",
        content_description=f"{maker.algorithm} {maker.version}"[:64],
        content_creator_name=maker.creator,
        series_description=f"Segmentation ({maker.algorithm})"[:64],
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )


def check_grid(segmentation: Volume, source: DicomVolume) -> None:
    """Refuse a segmentation that does not lie on its source's grid.

    Raises:
        GeometryError: it does not.
    """
    difference = source.volume.grid_difference(segmentation)
    if difference:
        raise GeometryError(
            "segmentation", "on the grid of its series", difference,
            advice="predict from the series itself, or resample the labels onto it",
        )  # fmt: skip


def _pixels(
    segmentation: Volume, planes: Sequence[Plane], numbers: Mapping[int, int], how: str
) -> np.ndarray:
    """Pixels as highdicom takes them: (P, rows, columns) of segment numbers, or (…, segments)."""
    voxels = segmentation.voxels
    if not numbers:
        raise LabelError("labels", "at least one")
    if voxels.ndim == 3:
        if how == "fractional" and voxels.dtype.kind == "f":
            raise LabelError("probabilities", "one channel a label, (C, D, H, W)", voxels.shape)
        on_planes = to_planes(planes, segmentation.with_voxels(renumber(voxels, numbers)))
        if how != "fractional":
            return on_planes
        channels = [on_planes == numbers[value] for value in sorted(numbers)]
        return np.stack(channels, axis=-1).astype(np.uint8)
    if len(voxels) != len(numbers):
        raise LabelError("channels", f"one for each of {len(numbers)} labels", len(voxels))
    kind = np.float32 if how == "fractional" and voxels.dtype.kind == "f" else np.uint8
    low, high = float(voxels.min()), float(voxels.max())
    if not (low >= 0 and high <= 1):
        raise LabelError("channels", "from 0 to 1", f"{low:.4g} to {high:.4g}")
    stacked = [to_planes(planes, segmentation.with_voxels(one.astype(kind))) for one in voxels]
    if how == "labelmap":
        if sum(np.count_nonzero(one) for one in stacked) > np.count_nonzero(np.any(stacked, 0)):
            raise LabelError("labels of a label map", "apart", "overlapping ones",
                             advice="write a binary segmentation")  # fmt: skip
        merged = np.zeros(stacked[0].shape, dtype=np.uint16)
        for one, value in zip(stacked, sorted(numbers), strict=True):
            merged[one > 0] = numbers[value]
        return merged
    return np.stack(stacked, axis=-1)


def renumber(voxels: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """Return a label map with each value's number in its place.

    Raises:
        LabelError: values that are no whole numbers, or that have no number.
    """
    if voxels.dtype.kind not in "iub":
        raise LabelError("labels", "whole numbers", voxels.dtype)
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0 or high > 65535:
        raise LabelError("labels", "from 0 to 65535", f"{low} to {high}")
    there = np.flatnonzero(np.bincount(voxels.reshape(-1), minlength=1)).tolist()
    unnamed = [value for value in there if value and value not in numbers]
    if unnamed:
        some = ", ".join(map(str, unnamed[:5]))
        raise LabelError("labels", "named, each value", f"no name for {some}",
                         advice="name them in the file of labels")  # fmt: skip
    table = np.zeros(high + 1, dtype=np.uint8 if max(numbers.values()) < 256 else np.uint16)
    for value, number in numbers.items():
        if value <= high:
            table[value] = number
    return table[voxels]


def _describe(
    names: Mapping[int, str],
    numbers: Mapping[int, int],
    terms: Mapping[str, Term],
    tracking: Mapping[int, str],
    maker: Maker,
) -> list[Any]:
    """A description of each segment."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    automatic = None
    if maker.method != "MANUAL":
        automatic = AlgorithmIdentificationSequence(
            name=maker.algorithm[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=maker.version[:64],
            source=MANUFACTURER,
        )
    described = []
    for k, value in enumerate(sorted(names)):
        term = terms.get(names[value]) or find_term(names[value])
        one = SegmentDescription(
            segment_number=numbers[value],
            segment_label=names[value][:64],
            segmented_property_category=CodedConcept(*_three(term.category)),
            segmented_property_type=CodedConcept(*_three(term.what)),
            algorithm_type=maker.method,
            algorithm_identification=automatic,
            tracking_uid=tracking[value],
            tracking_id=names[value][:64],
            anatomic_regions=[CodedConcept(*_three(term.site))] if term.site else None,
            display_color=CIELabColor.from_rgb(*colour(k)),
        )
        modifiers = [coded(code) for code in (term.side, term.part) if code]
        if modifiers and term.site:
            one.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = modifiers
        elif modifiers:
            kind = one.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = modifiers
        described.append(one)
    return described


def colour(k: int) -> tuple[int, int, int]:
    """Return the colour of the k-th label, from 0, as RGB from 0 to 255."""
    return _COLOURS[k % len(_COLOURS)]


def _three(code: Any) -> tuple[str, str, str]:
    return code.value, code.scheme, code.meaning


def _stand_ins(planes: Sequence[Plane], source: DicomVolume, frame: str) -> list[Any]:
    """A single-frame header for each plane, of what highdicom asks of a source image.

    The files' own headers lack what a scanner forgot to write, and of multi-frame images highdicom
    takes only whole ones.
    """
    from pydicom import Dataset

    shared = patient_and_study(source)
    shared.SeriesInstanceUID, shared.Modality = source.series_instance_uid, source.modality
    shared.FrameOfReferenceUID, shared.PositionReferenceIndicator = frame, None
    apart = np.diff([plane.origin @ planes[0].normal for plane in planes])
    gap = float(apart.min()) if len(apart) else 1.0
    turn = [_decimal(v) for v in (*_unit(planes[0].steps[:, 1]), *_unit(planes[0].steps[:, 0]))]
    spacing = [_decimal(v) for v in np.linalg.norm(planes[0].steps, axis=0)]
    images: list[Any] = []
    for plane in planes:
        one = Dataset()
        one.update(shared)  # the elements themselves are shared: none of them is set again
        one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        one.SOPInstanceUID = f"2.25.{len(images) + 1}"  # `_refer` writes the files' own
        one.Rows, one.Columns = plane.shape
        one.ImagePositionPatient = [_decimal(v) for v in plane.origin]
        one.ImageOrientationPatient, one.PixelSpacing = turn, spacing
        one.SliceThickness = _decimal(gap)
        images.append(one)
    return images


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _decimal(value: float) -> float:
    """A number that sixteen characters hold."""
    from pydicom.valuerep import format_number_as_ds

    return float(format_number_as_ds(float(value)))


def _refer(file: Any, planes: Sequence[Plane], source: DicomVolume) -> None:
    """Refer each frame to the images, and frames of them, that its plane came from."""
    from pydicom import Dataset

    file.SourceImageSequence = references(instances(source))
    series = Dataset()
    series.SeriesInstanceUID = source.series_instance_uid
    series.ReferencedInstanceSequence = references(instances(source))
    file.ReferencedSeriesSequence = [series]
    purpose = None
    at = {tuple(_decimal(v) for v in plane.origin): plane for plane in planes}
    made: dict[int, list[Any]] = {}
    for frame in file.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        plane = at[tuple(float(v) for v in place)]
        derivation = frame.DerivationImageSequence[0]
        purpose = purpose or derivation.SourceImageSequence[0].PurposeOfReferenceCodeSequence
        if id(plane) not in made:
            items = references_of(plane)
            for item in items:
                item.PurposeOfReferenceCodeSequence = purpose
                item.SpatialLocationsPreserved = "YES" if plane.preserved else "NO"
            made[id(plane)] = items
        derivation.SourceImageSequence = made[id(plane)]
