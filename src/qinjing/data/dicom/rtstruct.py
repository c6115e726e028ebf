"""RT structure sets: each label's outlines on the planes of the series.

The planes are those that `planes.source_planes` tells, as for segmentations; what is drawn on them
is told in `contours`.

Source: DICOM PS3.3, A.19, C.8.8.5 (structure set), C.8.8.6 (contours), C.8.8.8 (observations).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.data.dicom.codes import ANATOMY, Term, find_term
from qinjing.data.dicom.contours import fill, outline
from qinjing.data.dicom.derived import (
    MANUFACTURER,
    Maker,
    coded,
    finish,
    frame_of_reference,
    instances,
    needs,
    new_file,
    quiet,
    references,
    references_of,
    refusals,
    save,
    uids,
)
from qinjing.data.dicom.planes import (
    Plane,
    from_planes,
    grid_planes,
    source_planes,
    to_planes,
)
from qinjing.data.dicom.seg import check_grid, colour, renumber
from qinjing.data.dicom.series import DicomVolume
from qinjing.errors import FormatError, GeometryError, LabelError
from qinjing.volume import Volume

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY = "1.2.840.10008.3.1.2.3.1"
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


@dataclass(frozen=True)
class WrittenRtstruct:
    """What was written.

    Attributes:
        path: the file.
        sop_instance_uid: new.
        series_instance_uid: new.
        contours: label value → how many were drawn.
    """

    path: Path
    sop_instance_uid: str
    series_instance_uid: str
    contours: dict[int, int]


def write_rtstruct(
    path: str | Path,
    segmentation: Volume,
    source: DicomVolume,
    names: Mapping[int, str],
    *,
    terms: Mapping[str, Term] | None = None,
    maker: Maker | None = None,
) -> WrittenRtstruct:
    """Write a label map as an RT structure set, in the series' patient and study.

    Args:
        path: the file to write.
        segmentation: label map (D, H, W) of whole numbers on the grid of `source`.
        source: what it was made from.
        names: label value → name, without the background.
        terms: codes of names that `codes.find_term` shall not look up.
        maker: who makes it.

    Raises:
        ConfigError: pydicom is not installed.
        FormatError: the source's files cannot be read any more.
        GeometryError: the segmentation lies on another grid.
        LabelError: values without a name, or no names at all.
    """
    maker = maker or Maker()
    if segmentation.voxels.ndim != 3:
        raise LabelError("labels", "one map, (D, H, W)", segmentation.voxels.shape)
    if not names:
        raise LabelError("labels", "at least one")
    check_grid(segmentation, source)
    numbers = {value: n for n, value in enumerate(sorted(names), start=1)}
    planes = source_planes(source)
    renumbered = segmentation.with_voxels(renumber(segmentation.voxels, numbers))
    pixels = to_planes(planes, renumbered)
    draw = uids(maker, source, "RTSTRUCT")
    with quiet():
        file = new_file(STRUCTURE_SET, "RTSTRUCT", source, maker, draw)
        file.SeriesDescription = f"Outlines ({maker.algorithm})"[:64]
        frame = frame_of_reference(source, draw)
        file.FrameOfReferenceUID, file.PositionReferenceIndicator = frame, None
        file.StructureSetLabel = MANUFACTURER
        file.StructureSetName = f"{maker.algorithm} {maker.version}"[:64]
        file.StructureSetDate = file.StructureSetTime = ""
        file.ApprovalStatus = "UNAPPROVED"
        file.ReferencedFrameOfReferenceSequence = [_referenced(source, frame)]
        file.StructureSetROISequence = []
        file.ROIContourSequence, file.RTROIObservationsSequence = [], []
        drawn = {}
        outlines = _contours(planes, pixels)
        for k, value in enumerate(sorted(names)):
            term = (terms or {}).get(names[value]) or find_term(names[value])
            file.StructureSetROISequence.append(_roi(numbers[value], names[value], frame, maker))
            contours = outlines.get(numbers[value], [])
            drawn[value] = len(contours)
            file.ROIContourSequence.append(_contoured(numbers[value], colour(k), contours))
            file.RTROIObservationsSequence.append(_observed(numbers[value], term, maker))
    finish(file, maker, draw)
    uids_ = str(file.SOPInstanceUID), str(file.SeriesInstanceUID)
    return WrittenRtstruct(save(file, path), *uids_, drawn)


def _referenced(source: DicomVolume, frame: str) -> Any:
    """The images that contours are drawn on, from frame of reference down to instance."""
    from pydicom import Dataset

    series, study, item = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.series_instance_uid
    series.ContourImageSequence = references(instances(source))
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY, source.study_instance_uid
    study.RTReferencedSeriesSequence = [series]
    item.FrameOfReferenceUID, item.RTReferencedStudySequence = frame, [study]
    return item


def _roi(number: int, name: str, frame: str, maker: Maker) -> Any:
    from pydicom import Dataset

    roi = Dataset()
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name[:64], frame
    roi.ROIGenerationAlgorithm = maker.method
    roi.ROIGenerationDescription = f"{maker.algorithm} {maker.version}"[:64]
    if maker.method != "MANUAL":
        algorithm, family = Dataset(), Dataset()
        family.CodeValue, family.CodingSchemeDesignator = "123110", "DCM"
        family.CodeMeaning = "Artificial Intelligence"
        algorithm.AlgorithmFamilyCodeSequence = [family]
        algorithm.AlgorithmName = maker.algorithm[:64]
        algorithm.AlgorithmVersion = maker.version[:64]
        algorithm.AlgorithmSource = MANUFACTURER
        roi.ROIDerivationAlgorithmIdentificationSequence = [algorithm]
    return roi


def _contours(planes: Sequence[Plane], pixels: np.ndarray) -> dict[int, list[Any]]:
    """The outlines of each label, plane after plane."""
    from scipy import ndimage

    found: dict[int, list[Any]] = {}
    for plane, labels in zip(planes, pixels, strict=True):
        for number, box in enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1):
            if box is None:
                continue
            drawn = found.setdefault(number, [])
            corner = np.array([box[0].start, box[1].start])
            for loop in outline(labels[box] == number):
                points = plane.origin + (loop + corner) @ plane.steps.T
                drawn.append(_contour(len(drawn) + 1, points, plane))
    return found


def _contour(number: int, points: np.ndarray, plane: Plane) -> Any:
    from pydicom import Dataset
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    contour = Dataset()
    contour.ContourNumber = number
    if plane.sources:
        contour.ContourImageSequence = references_of(plane)
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    # A tenth of a micrometre, far below the third of a voxel that a rounding may move. As text at
    # once: a number object for each coordinate takes pydicom most of the time.
    text = "\\".join(f"{value:.4f}" for value in points.reshape(-1).tolist()).encode()
    text += b" " * (len(text) % 2)
    tag = Tag("ContourData")
    contour[tag] = RawDataElement(tag, "DS", len(text), text, 0, False, True)
    contour.set_original_encoding(False, True, "iso8859")  # so that the text is written as it is
    return contour


def _contoured(number: int, rgb: Sequence[int], contours: list[Any]) -> Any:
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = number, list(rgb)
    if contours:
        item.ContourSequence = contours
    return item


def _observed(number: int, term: Term, maker: Maker) -> Any:
    from pydicom import Dataset

    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIInterpretedType = "ORGAN" if term.category == ANATOMY else ""
    item.ROIInterpreter = maker.creator
    identified = coded(term.what)
    modifiers = [coded(code) for code in (term.side, term.part) if code]
    if modifiers:
        identified.SegmentedPropertyTypeModifierCodeSequence = modifiers
    item.RTROIIdentificationCodeSequence = [identified]
    return item


@dataclass(frozen=True, eq=False)
class DicomRtstruct:
    """A structure set that was read.

    Attributes:
        path: the file.
        names: number of each region → its name.
        study_instance_uid: the study's.
        sources: UIDs of the instances that it was drawn on, as far as it says.
        frame_of_reference: of the first region, or None.
        contours: number of each region → (N, 3) points of each closed contour, LPS millimetres.
        left_out: how many contours are not closed (points, lines) and were not read.
    """

    path: Path
    names: dict[int, str]
    study_instance_uid: str
    sources: frozenset[str]
    frame_of_reference: str | None
    contours: dict[int, tuple[np.ndarray, ...]]
    left_out: int

    def mask(self, number: int, like: DicomVolume | Volume) -> Volume:
        """Return the voxels of a region whose centres its contours enclose, 0 and 1.

        Contours in one plane are exclusive: one inside the other is a hole.

        Args:
            number: the region's number.
            like: the grid, and with a series the planes that contours were drawn on.

        Raises:
            GeometryError: a contour lies across the slices, or in another frame of reference.
            LabelError: there is no such region.
        """
        if number not in self.names:
            numbers = ", ".join(map(str, self.names))
            raise LabelError("region", f"one of {numbers}", number, where=self.path)
        grid = like.volume if isinstance(like, DicomVolume) else like
        frames = (self.frame_of_reference, grid.frame_of_reference)
        if all(frames) and frames[0] != frames[1]:
            raise GeometryError("structures", "in their source's frame of reference", "another",
                                where=self.path)  # fmt: skip
        planes = source_planes(like) if isinstance(like, DicomVolume) else grid_planes(grid)
        planes = tuple(sorted(planes, key=lambda plane: float(plane.origin @ plane.normal)))
        pixels = np.zeros((len(planes), *planes[0].shape), dtype=np.uint8)
        for p, loops in self._by_plane(number, planes).items():
            pixels[p] = fill(loops, planes[p].shape)
        heights = [float(plane.origin @ planes[0].normal) for plane in planes]
        reach_mm = 0.5 * float(np.diff(heights).max(initial=0.0)) or np.inf
        return grid.with_voxels(from_planes(planes, pixels, grid, reach_mm * 1.001))

    def _by_plane(self, number: int, planes: Sequence[Plane]) -> dict[int, list[np.ndarray]]:
        """Contours as rows and columns of the plane that each lies in."""
        normal, into = planes[0].normal, np.linalg.pinv(planes[0].steps)
        heights = np.array([plane.origin @ normal for plane in planes])
        gap = float(np.diff(heights).min(initial=np.inf))
        found: dict[int, list[np.ndarray]] = {}
        for points in self.contours[number]:
            height = points @ normal
            if np.ptp(height) > 0.5 * min(gap, 10.0):
                raise GeometryError("contours", "in the planes of the series", "one across them",
                                    where=self.path)  # fmt: skip
            p = int(np.abs(heights - height.mean()).argmin())
            if abs(heights[p] - height.mean()) <= 0.5 * min(gap, 10.0):
                found.setdefault(p, []).append((points - planes[p].origin) @ into.T)
        return found


def read_rtstruct(path: str | Path) -> DicomRtstruct:
    """Read the closed contours of an RT structure set.

    Raises:
        ConfigError: pydicom is not installed.
        FormatError: it is none, or damaged.
    """
    path = Path(path)
    try:
        from pydicom import dcmread
    except ModuleNotFoundError as error:
        raise needs(error.name or "pydicom") from None
    with refusals(path, "a sound RT structure set"):
        file = dcmread(path)
        if file.get("SOPClassUID") != STRUCTURE_SET:
            got = getattr(file.get("SOPClassUID"), "name", None) or "an object of no class"
            raise FormatError("file", "an RT structure set", got, where=path)
        rois = file.get("StructureSetROISequence") or []
        names = {int(roi.ROINumber): str(roi.get("ROIName") or "") for roi in rois}
        frame = str(rois[0].get("ReferencedFrameOfReferenceUID") or "") if rois else ""
        contours: dict[int, list[np.ndarray]] = {number: [] for number in names}
        left_out = 0
        sources = set()
        for roi in file.get("ROIContourSequence") or ():
            for contour in roi.get("ContourSequence") or ():
                for image in contour.get("ContourImageSequence") or ():
                    sources.add(str(image.ReferencedSOPInstanceUID))
                if contour.ContourGeometricType not in CLOSED:
                    left_out += 1
                    continue
                points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
                if not np.isfinite(points).all():
                    raise FormatError("contours", "finite", where=path)
                contours[int(roi.ReferencedROINumber)].append(points)
    return DicomRtstruct(
        path=path,
        names=names,
        study_instance_uid=str(file.StudyInstanceUID),
        sources=frozenset(sources),
        frame_of_reference=frame or None,
        contours={number: tuple(found) for number, found in contours.items()},
        left_out=left_out,
    )
