"""Structure sets against voxel centres judged one by one, and dciodvfy."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

pydicom = pytest.importorskip("pydicom")

from qinjing.data.dicom.derived import Maker  # noqa: E402
from qinjing.data.dicom.rtstruct import read_rtstruct, write_rtstruct  # noqa: E402
from qinjing.errors import FormatError, GeometryError, LabelError  # noqa: E402
from qinjing.volume import Volume  # noqa: E402
from tests.data.dicom.derive import described, errors_of, plain_volume, source_of  # noqa: E402
from tests.data.dicom.series import AXIAL, uid, write_series  # noqa: E402

OBLIQUE = ((0.8, 0.48, 0.36), (-0.6, 0.64, 0.48))
SAGITTAL_BACK = ((0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
FLIPPED = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
NAMES = {1: "Left kidney", 2: "liver tumour", 5: "Knoten 肝"}
SHAPE = (5, 12, 10)


def labels() -> np.ndarray:
    """Noise with holes, islands and pieces that touch at corners; two planes are empty."""
    found = np.random.default_rng(1).choice([0, 1, 1, 2, 5], SHAPE).astype(np.uint8)
    found[[0, 2]] = 0
    found[3, 2:9, 2:8], found[3, 4:7, 4:6] = 1, 0  # a ring
    return found


def series(folder, directions=AXIAL, **options):
    stored = np.zeros(SHAPE, np.int16)
    return plain_volume(write_series(folder, stored, directions=directions, **options))


def enclosed(file, source, number: int) -> np.ndarray:
    """Voxels whose centres lie inside an odd number of contours of the image that they name."""
    found = np.zeros(source.volume.shape, int)
    centres = np.argwhere(np.ones(source.volume.shape[1:]))
    (roi,) = [one for one in file.ROIContourSequence if one.ReferencedROINumber == number]
    for contour in roi.get("ContourSequence", ()):
        (image,) = contour.ContourImageSequence
        (d,) = [
            d for d, (one,) in enumerate(source.planes)
            if one.sop_instance_uid == image.ReferencedSOPInstanceUID
        ]  # fmt: skip
        header = pydicom.dcmread(source.planes[d][0].path)
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        # PS3.3, equation C.7.6.2.1-1, backwards.
        moved = points - np.array(header.ImagePositionPatient, float)
        turn = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        assert np.abs(moved @ np.cross(*turn)).max() < 1e-3
        columns = moved @ turn[0] / header.PixelSpacing[1]
        rows = moved @ turn[1] / header.PixelSpacing[0]
        inside = Polygon(np.stack([rows, columns], axis=1)).contains_points(centres)
        found[d] += inside.reshape(found.shape[1:])
    return found % 2 == 1


@pytest.mark.parametrize(
    "directions", [AXIAL, OBLIQUE, SAGITTAL_BACK, FLIPPED],
    ids=["axial", "oblique", "sagittal", "flipped"],
)  # fmt: skip
def test_encloses_the_right_voxels(tmp_path, directions):
    source = series(tmp_path / "s", directions)
    grid = source.volume.with_voxels(labels())
    made = write_rtstruct(tmp_path / "rt.dcm", grid, source, NAMES)
    assert errors_of(made.path) == []
    file, back = pydicom.dcmread(made.path), read_rtstruct(made.path)
    assert back.names == {1: "Left kidney", 2: "liver tumour", 3: "Knoten 肝"}
    for number, value in ((1, 1), (2, 2), (3, 5)):
        expected = labels() == value
        np.testing.assert_array_equal(enclosed(file, source, number), expected)
        for like in (source, source.volume):
            np.testing.assert_array_equal(back.mask(number, like).voxels, expected)
    kinds = {c.ContourGeometricType for c in file.ROIContourSequence[0].ContourSequence}
    assert kinds == {"CLOSED_PLANAR"}


def test_tilted_gantry(tmp_path):
    """Drawn on the planes that the gantry measured, and read back onto the upright grid."""

    def tilt(file, d):
        file.ImagePositionPatient = [-20, -30 + d, 100 + 2 * d]

    folder = write_series(
        tmp_path / "s", np.zeros((4, 8, 6), np.int16), spacing=(2.0, 0.5, 0.5), edit=tilt
    )
    headers = [(pydicom.dcmread(f), f) for f in sorted(folder.glob("*.dcm"))]
    affine = np.eye(4)
    affine[:3, :3] = np.diag([2.0, 0.5, 0.5])[[2, 1, 0]]
    affine[:3, 3] = -20, -30, 100
    upright = Volume(np.zeros((4, 14, 6), np.int16), affine, uid("P1", "frame"))
    planes = tuple((source_of(header, file),) for header, file in headers)
    source = described(upright, headers[0][0], planes, resampled=True)
    found = np.zeros(upright.shape, np.uint8)
    for d in range(4):
        found[d, 2 * d : 2 * d + 8] = np.random.default_rng(d).integers(0, 2, (8, 6))
    made = write_rtstruct(tmp_path / "t.dcm", upright.with_voxels(found), source, {1: "Liver"})
    assert errors_of(made.path) == []
    file = pydicom.dcmread(made.path)
    measured = np.stack([found[d, 2 * d : 2 * d + 8] for d in range(4)]) > 0
    on_planes = described(Volume(np.zeros((4, 8, 6)), affine), headers[0][0], planes)
    np.testing.assert_array_equal(enclosed(file, on_planes, 1), measured)
    for like in (source, upright):
        np.testing.assert_array_equal(read_rtstruct(made.path).mask(1, like).voxels, found)


def test_patient_codes_and_maker(tmp_path):
    source = series(tmp_path / "s", edit=lambda file, d: setattr(file, "PatientName", "A^B"))
    maker = Maker("net", "1.2", "Li^Wei", "MANUAL", seed=3, when=datetime(2026, 1, 2, 3, 4, 5))
    grid = source.volume.with_voxels(labels())
    made = [
        write_rtstruct(tmp_path / f"{k}.dcm", grid, source, NAMES, maker=maker) for k in range(2)
    ]
    assert made[0].path.read_bytes() == made[1].path.read_bytes()
    assert errors_of(made[0].path) == []
    file = pydicom.dcmread(made[0].path)
    assert str(file.PatientName) == "A^B" and file.StudyInstanceUID == source.study_instance_uid
    assert file.StructureSetDate == "20260102" and file.Modality == "RTSTRUCT"
    (frame,) = file.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == uid("P1", "frame")
    (study,) = frame.RTReferencedStudySequence
    (theirs,) = study.RTReferencedSeriesSequence
    assert theirs.SeriesInstanceUID == source.series_instance_uid
    images = [one.ReferencedSOPInstanceUID for one in theirs.ContourImageSequence]
    assert images == [one.sop_instance_uid for (one,) in source.planes]
    assert file.StructureSetROISequence[0].ROIGenerationAlgorithm == "MANUAL"
    code = file.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence[0]
    assert code.CodeValue == "64033007"
    assert code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert [one.RTROIInterpretedType for one in file.RTROIObservationsSequence] == ["ORGAN", "", ""]


def test_a_label_that_is_nowhere(tmp_path):
    source = series(tmp_path / "s")
    grid = source.volume.with_voxels((labels() == 1).astype(np.uint8))
    made = write_rtstruct(tmp_path / "rt.dcm", grid, source, NAMES)
    assert made.contours[2] == 0 and errors_of(made.path) == []
    assert not read_rtstruct(made.path).mask(2, source).voxels.any()


def test_refused_in_one_sentence(tmp_path):
    source = series(tmp_path / "s")
    grid = source.volume.with_voxels(labels())
    for volume, kind, message in (
        (Volume(grid.voxels[:, 1:], grid.affine), GeometryError, "on the grid of its series"),
        (grid.with_voxels(grid.voxels + 1), LabelError, "no name for 3, 6"),
        (grid.with_voxels(grid.voxels[None]), LabelError, "one map"),
    ):
        with pytest.raises(kind, match=message):
            write_rtstruct(tmp_path / "x.dcm", volume, source, NAMES)
    assert not (tmp_path / "x.dcm").exists()
    with pytest.raises(FormatError, match="structure set, got CT Image"):
        read_rtstruct(source.planes[0][0].path)
    made = write_rtstruct(tmp_path / "rt.dcm", grid, source, NAMES)
    with pytest.raises(LabelError, match="one of 1, 2, 3"):
        read_rtstruct(made.path).mask(9, source)
    turned = series(tmp_path / "other", OBLIQUE)
    with pytest.raises(GeometryError, match="in the planes of the series"):
        read_rtstruct(made.path).mask(1, turned)
    elsewhere = Volume(grid.voxels, grid.affine, "1.2.3")
    with pytest.raises(GeometryError, match="frame of reference"):
        read_rtstruct(made.path).mask(1, elsewhere)
