"""Segmentations against pydicom's and highdicom's own reading, the standard's equation, dcmqi."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from pydicom.dataset import Dataset  # noqa: E402

from qinjing.data.dicom.codes import Code, Term, find_term  # noqa: E402
from qinjing.data.dicom.derived import Maker  # noqa: E402
from qinjing.data.dicom.read_seg import read_seg  # noqa: E402
from qinjing.data.dicom.seg import write_seg  # noqa: E402
from qinjing.errors import (  # noqa: E402
    ConfigError,
    FormatError,
    GeometryError,
    LabelError,
)
from qinjing.volume import Volume  # noqa: E402
from tests.data.dicom.derive import described, errors_of, plain_volume, source_of  # noqa: E402
from tests.data.dicom.series import AXIAL, uid, write_series  # noqa: E402

OBLIQUE = ((0.8, 0.48, 0.36), (-0.6, 0.64, 0.48))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
SAGITTAL_BACK = ((0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
FLIPPED = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
NAMES = {1: "Left kidney", 2: "liver tumour", 5: "Knoten 肝"}
SHAPE = (5, 7, 6)


def labels(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    found = np.random.default_rng(1).choice([0, 0, 1, 2, 5], shape).astype(np.uint8)
    found[[0, 2]] = 0  # planes that are left out, one of them inside
    return found


def series(folder: Path, directions=AXIAL, **options):
    stored = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16)
    return plain_volume(write_series(folder, stored, directions=directions, **options))


def placed(file: Path) -> dict[tuple[float, float, float], set[int]]:
    """Which segments lie where, frame by frame, by the standard's equation C.7.6.2.1-1."""
    seg = pydicom.dcmread(file)
    shared = seg.SharedFunctionalGroupsSequence[0]
    turn = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    down, along = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    found: dict[tuple[float, float, float], set[int]] = {}
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True):
        origin = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        numbered = frame.get("SegmentIdentificationSequence")
        for j, i in np.argwhere(pixels):
            place = origin + turn[:3] * along * i + turn[3:] * down * j
            number = numbered[0].ReferencedSegmentNumber if numbered else pixels[j, i]
            found.setdefault(tuple(np.round(place, 2)), set()).add(int(number))
    return found


def expected(volume: Volume, numbers: dict[int, int]) -> dict[tuple[float, float, float], set[int]]:
    found = {}
    for index in np.argwhere(volume.voxels):
        place = volume.affine @ [*index, 1]
        found[tuple(np.round(place[:3], 2))] = {numbers[int(volume.voxels[tuple(index)])]}
    return found


@pytest.mark.parametrize("how", ["binary", "labelmap"])
@pytest.mark.parametrize(
    "directions", [AXIAL, OBLIQUE, CORONAL, SAGITTAL_BACK, FLIPPED],
    ids=["axial", "oblique", "coronal", "sagittal", "flipped"],
)  # fmt: skip
def test_on_the_right_voxels(tmp_path, directions, how):
    source = series(tmp_path / "s", directions)
    written = source.volume.with_voxels(labels())
    made = write_seg(tmp_path / "seg.dcm", written, source, NAMES, how=how)
    assert placed(made.path) == expected(written, made.segments)
    assert made.segments == ({1: 1, 2: 2, 5: 3} if how == "binary" else {1: 1, 2: 2, 5: 5})
    # Ours back, on the source's grid and on the frames' own.
    back = read_seg(made.path)
    numbers = np.zeros(6, np.uint8)
    numbers[list(made.segments)] = list(made.segments.values())
    np.testing.assert_array_equal(back.labels(source).voxels, numbers[labels()])
    np.testing.assert_array_equal(back.labels(source.volume).voxels, numbers[labels()])
    own = back.labels()
    np.testing.assert_array_equal(own.voxels, numbers[labels()][1:])
    corner = source.volume.affine @ [1, 0, 0, 1]
    np.testing.assert_allclose(own.affine @ [0, 0, 0, 1], corner, atol=1e-3)
    mask = back.mask(made.segments[2], source)
    np.testing.assert_array_equal(mask.voxels, labels() == 2)
    if how == "binary":
        assert errors_of(made.path) == []


@pytest.mark.parametrize("how", ["binary", "labelmap"])
def test_as_highdicom_reads_it(tmp_path, how):
    """Its volume may run the other way and lack empty slices: its own geometry says where."""
    source = series(tmp_path / "s", OBLIQUE)
    made = write_seg(
        tmp_path / "seg.dcm", source.volume.with_voxels(labels()), source, NAMES, how=how
    )
    volume = highdicom.seg.segread(made.path).get_volume(combine_segments=True)
    for index in np.argwhere(volume.array):
        place = (volume.affine @ [*index, 1])[:3]
        d, h, w = np.rint((np.linalg.inv(source.volume.affine) @ [*place, 1])[:3]).astype(int)
        assert made.segments[labels()[d, h, w]] == volume.array[tuple(index)]
    assert np.count_nonzero(volume.array) == np.count_nonzero(labels())


def test_fractions(tmp_path):
    source = series(tmp_path / "s", OBLIQUE)
    chances = np.random.default_rng(2).random((2, *SHAPE)).astype(np.float32)
    chances[:, 0] = 0
    names = {1: "Liver", 2: "Spleen"}
    made = write_seg(
        tmp_path / "f.dcm", source.volume.with_voxels(chances), source, names, how="fractional"
    )
    assert errors_of(made.path) == []
    file = pydicom.dcmread(made.path)
    assert file.SegmentationFractionalType == "PROBABILITY" and file.MaximumFractionalValue == 255
    frames = zip(file.PerFrameFunctionalGroupsSequence, file.pixel_array, strict=True)
    for frame, pixels in frames:
        origin = frame.PlanePositionSequence[0].ImagePositionPatient
        d = round((np.linalg.inv(source.volume.affine) @ [*map(float, origin), 1])[0])
        of = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(pixels, np.around(chances[of - 1, d] * 255))
    back = read_seg(made.path)
    np.testing.assert_allclose(back.mask(2, source).voxels, chances[1], atol=0.5 / 255 + 1e-6)
    with pytest.raises(LabelError, match="fractional"):
        back.labels(source)


def test_overlapping_segments(tmp_path):
    source = series(tmp_path / "s")
    both = np.zeros((2, *SHAPE), np.uint8)
    both[0, 1:4], both[1, 3:5] = 1, 1
    names = {3: "Liver", 7: "lesion"}
    grid = source.volume.with_voxels(both)
    made = write_seg(tmp_path / "o.dcm", grid, source, names)
    back = read_seg(made.path)
    for value, channel in zip((3, 7), both, strict=True):
        np.testing.assert_array_equal(back.mask(made.segments[value], source).voxels, channel)
    with pytest.raises(LabelError, match="overlapping"):
        back.labels(source)
    with pytest.raises(LabelError, match="overlapping"):
        write_seg(tmp_path / "l.dcm", grid, source, names, how="labelmap")
    assert not (tmp_path / "l.dcm").exists()


def test_tilted_gantry(tmp_path):
    """Sheared upright for us, written on the planes that the gantry measured."""
    shift_mm = 1.0  # two columns of rows a slice: the shear is exact, so nothing may be lost

    def tilt(file, d):
        file.ImagePositionPatient = [-20, -30 + shift_mm * d, 100 + 2 * d]

    stored = np.zeros((4, 8, 6), np.int16)
    folder = write_series(tmp_path / "s", stored, spacing=(2.0, 0.5, 0.5), edit=tilt)
    headers = [(pydicom.dcmread(f), f) for f in sorted(folder.glob("*.dcm"))]
    affine = np.eye(4)
    affine[:3, :3] = np.diag([2.0, 0.5, 0.5])[[2, 1, 0]]
    affine[:3, 3] = -20, -30, 100
    frame = uid("P1", "frame")
    upright = Volume(np.zeros((4, 14, 6), np.int16), affine, frame)
    planes = tuple((source_of(header, file),) for header, file in headers)
    source = described(upright, headers[0][0], planes, resampled=True)
    found = np.zeros(upright.shape, np.uint8)
    for d in range(4):  # where something was measured at all
        found[d, 2 * d : 2 * d + 8] = np.random.default_rng(d).integers(0, 3, (8, 6))
    grid = upright.with_voxels(found)
    made = write_seg(tmp_path / "t.dcm", grid, source, {1: "Liver", 2: "Spleen"})
    assert placed(made.path) == expected(grid, made.segments)
    seg = pydicom.dcmread(made.path)
    assert (seg.Rows, seg.Columns) == (8, 6)
    for one in seg.PerFrameFunctionalGroupsSequence:
        place = one.PlanePositionSequence[0].ImagePositionPatient
        image = one.DerivationImageSequence[0].SourceImageSequence[0]
        (theirs,) = [h for h, _ in headers if h.SOPInstanceUID == image.ReferencedSOPInstanceUID]
        assert place == theirs.ImagePositionPatient and image.SpatialLocationsPreserved == "YES"
    assert errors_of(made.path) == []
    np.testing.assert_array_equal(read_seg(made.path).labels(source).voxels, found)
    np.testing.assert_array_equal(read_seg(made.path).labels(upright).voxels, found)
    assert read_seg(made.path).labels().affine[1, 0] == pytest.approx(shift_mm)


def test_uneven_gaps(tmp_path):
    """On our even grid a slice lies between two planes: labels go to the nearest of them."""
    heights = [0.0, 2.0, 6.0, 8.0]

    def move(file, d):
        file.ImagePositionPatient = [-20, -30, 100 + heights[d]]

    folder = write_series(tmp_path / "s", np.zeros((4, 7, 6), np.int16), edit=move)
    headers = [(pydicom.dcmread(f), f) for f in sorted(folder.glob("*.dcm"))]
    affine = np.eye(4)
    affine[:3, :3] = np.diag([2.0, 0.75, 0.5])[[2, 1, 0]]
    affine[:3, 3] = -20, -30, 100
    even = Volume(np.zeros(SHAPE, np.int16), affine, uid("P1", "frame"))
    of = [source_of(header, file) for header, file in headers]
    source = described(
        even, headers[0][0], ((of[0],), (of[1],), (of[1], of[2]), (of[2],), (of[3],)), True
    )
    found = np.random.default_rng(3).integers(0, 2, SHAPE).astype(np.uint8)
    made = write_seg(tmp_path / "u.dcm", even.with_voxels(found), source, {1: "Liver"})
    kept = found.copy()
    kept[2] = 0  # nobody measured there
    assert placed(made.path) == expected(even.with_voxels(kept), made.segments)
    back = read_seg(made.path).labels(source)
    np.testing.assert_array_equal(back.voxels[[0, 1, 3, 4]], found[[0, 1, 3, 4]])
    # Without the source the plane that nobody measured is one that is missing.
    np.testing.assert_array_equal(read_seg(made.path).labels().voxels, kept)
    file = pydicom.dcmread(of[3].path)
    file.ImagePositionPatient[2] = 108.9
    file.save_as(of[3].path)
    made = write_seg(tmp_path / "v.dcm", even.with_voxels(found | 1), source, {1: "Liver"})
    with pytest.raises(GeometryError, match=r"evenly spaced, .*its source's grid"):
        read_seg(made.path).labels()


def test_frames_of_one_file(tmp_path):
    """An enhanced image: each frame of the segmentation names the frame that it came from."""
    order = [2, 0, 3, 1, 4]  # place of each frame along the normal
    file = Dataset()
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2.1", uid("enhanced")
    file.StudyInstanceUID, file.SeriesInstanceUID = uid("study"), uid("series")
    file.PatientID, file.Modality, file.NumberOfFrames = "P9", "CT", 5
    file.Rows, file.Columns = SHAPE[1:]
    shared, turn, size = Dataset(), Dataset(), Dataset()
    turn.ImageOrientationPatient, size.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.75, 0.5]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [turn], [size]
    file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence = [shared], []
    for place in order:
        frame, at = Dataset(), Dataset()
        at.ImagePositionPatient = [-20, -30, 100 + 2 * place]
        frame.PlanePositionSequence = [at]
        file.PerFrameFunctionalGroupsSequence.append(frame)
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.save_as(tmp_path / "e.dcm", enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([2.0, 0.75, 0.5])[[2, 1, 0]]
    affine[:3, 3] = -20, -30, 100
    planes = [(source_of(file, tmp_path / "e.dcm", order.index(d) + 1),) for d in range(5)]
    source = described(Volume(np.zeros(SHAPE, np.int16), affine), file, tuple(planes))
    grid = source.volume.with_voxels(labels())
    made = write_seg(tmp_path / "seg.dcm", grid, source, NAMES)
    assert placed(made.path) == expected(grid, made.segments) and errors_of(made.path) == []
    seg = pydicom.dcmread(made.path)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        height = float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == file.SOPInstanceUID
        assert order[image.ReferencedFrameNumber - 1] == round((height - 100) / 2)
    assert [one.ReferencedSOPInstanceUID for one in seg.SourceImageSequence] == [uid("enhanced")]


def test_patient_study_and_maker(tmp_path):
    def name(file, d):
        file.SpecificCharacterSet = "ISO_IR 100"
        file.PatientName, file.PatientBirthDate = "Müller^Jörg", "19500203"
        file.PatientSex, file.StudyDate, file.AccessionNumber = "M", "20200102", "A7"

    source = series(tmp_path / "s", edit=name)
    maker = Maker("kidney net", "1.2", "Li^Wei", "SEMIAUTOMATIC", seed=3, when=datetime(2026, 1, 2))
    grid = source.volume.with_voxels(labels())
    own = {"liver tumour": Term(Code("X1", "99CLINIC", "Thing"), Code("X2", "99CLINIC", "Kind"))}
    made = write_seg(tmp_path / "a.dcm", grid, source, NAMES, maker=maker, terms=own)
    again = write_seg(tmp_path / "b.dcm", grid, source, NAMES, maker=maker, terms=own)
    assert made.path.read_bytes() == again.path.read_bytes()
    fresh = [write_seg(tmp_path / f"{k}.dcm", grid, source, NAMES) for k in range(2)]
    uids = [(one.sop_instance_uid, one.series_instance_uid) for one in (*fresh, made)]
    assert len({value for pair in uids for value in pair}) == 6
    assert errors_of(made.path) == []
    file = pydicom.dcmread(made.path)
    assert str(file.PatientName) == "Müller^Jörg" and file.PatientID == "P1"
    assert file.StudyInstanceUID == source.study_instance_uid and file.AccessionNumber == "A7"
    assert file.SeriesInstanceUID != source.series_instance_uid
    assert file.FrameOfReferenceUID == uid("P1", "frame")
    assert str(file.ContentCreatorName) == "Li^Wei" and "qinjing" in file.SoftwareVersions
    kidney, tumour, knot = file.SegmentSequence
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodeValue == "64033007"
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    assert kidney.SegmentAlgorithmType == "SEMIAUTOMATIC"
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("kidney net", "1.2")
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeValue == "X1"
    assert knot.SegmentLabel == "Knoten 肝"
    assert read_seg(made.path).segments[0].term == find_term("L kidney")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda v: Volume(v.voxels[:, 1:], v.affine), GeometryError, "on the grid of its series"),
        (lambda v: Volume(v.voxels, v.affine + shifted()), GeometryError, "a corner by 0.3 mm"),
        (lambda v: v.with_voxels(v.voxels.astype(np.float32)), LabelError, "whole numbers"),
        (lambda v: v.with_voxels(v.voxels + 1), LabelError, "no name for 3, 6"),
        (lambda v: v.with_voxels(v.voxels.astype(np.int16) - 1), LabelError, "-1 to 4"),
        (lambda v: v.with_voxels(np.stack([v.voxels] * 2)), LabelError, "one for each of 3"),
        (lambda v: v.with_voxels(np.stack([v.voxels] * 3)), LabelError, "from 0 to 1"),
    ],
)  # fmt: skip
def test_refused_in_one_sentence(tmp_path, change, kind, message):
    source = series(tmp_path / "s")
    with pytest.raises(kind, match=message):
        write_seg(tmp_path / "x.dcm", change(source.volume.with_voxels(labels())), source, NAMES)
    assert not (tmp_path / "x.dcm").exists()


def shifted() -> np.ndarray:
    moved = np.zeros((4, 4))
    moved[0, 3] = 0.3
    return moved


def test_what_is_no_segmentation(tmp_path):
    source = series(tmp_path / "s")
    with pytest.raises(FormatError, match="DICOM segmentation, got CT Image"):
        read_seg(source.planes[0][0].path)
    (tmp_path / "junk.dcm").write_bytes(b"junk" * 100)
    with pytest.raises(FormatError, match="sound DICOM segmentation"):
        read_seg(tmp_path / "junk.dcm")
    with pytest.raises(ConfigError, match="binary, fractional, labelmap"):
        write_seg(tmp_path / "x.dcm", source.volume, source, NAMES, how="surface")
    made = write_seg(tmp_path / "s.dcm", source.volume.with_voxels(labels()), source, NAMES)
    with pytest.raises(LabelError, match="one of 1, 2, 3, got 9"):
        read_seg(made.path).mask(9)
    cut = made.path.read_bytes()[:-20]
    (tmp_path / "cut.dcm").write_bytes(cut)
    with pytest.raises(FormatError, match=r"cut\.dcm"):
        read_seg(tmp_path / "cut.dcm").labels()


def test_what_a_source_leaves_out(tmp_path):
    """Found in a real series: de-identified, and the method an empty element."""

    def bare(file, d):
        file.PatientIdentityRemoved, file.DeidentificationMethod = "YES", ""
        file.StudyDate = file.PatientAge = ""
        del file.FrameOfReferenceUID

    source = series(tmp_path / "s", edit=bare)
    assert source.volume.frame_of_reference is None
    made = write_seg(tmp_path / "s.dcm", source.volume.with_voxels(labels()), source, NAMES)
    assert errors_of(made.path) == []
    file = pydicom.dcmread(made.path)
    assert file.PatientIdentityRemoved == "YES" and file.FrameOfReferenceUID.startswith("2.25.")
    assert "PatientAge" not in file and file.StudyDate == ""
    for frame in file.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        header = [pydicom.dcmread(one.path) for (one,) in source.planes]
        (theirs,) = [h for h in header if h.SOPInstanceUID == image.ReferencedSOPInstanceUID]
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        assert theirs.ImagePositionPatient == place


@pytest.fixture(scope="module")
def dcmqi(data_root, tmp_path_factory) -> Path:
    """Segmentations that dcmqi wrote, beside the NRRD that it wrote them from."""
    import zipfile

    archive = data_root / "dicom" / "dicom_seg_pm_sr_rwv.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in the real data")
    folder = tmp_path_factory.mktemp("dcmqi")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    (found,) = folder.rglob("segmentations")
    return found


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("liver.dcm", {1: ("liver_seg.nrrd", 1)}),
        ("partial_overlaps.dcm",
         {1: ("partial_overlaps-1.nrrd", 1), 2: ("partial_overlaps-2.nrrd", 2),
          3: ("partial_overlaps-3.nrrd", 3), 4: ("partial_overlaps-1.nrrd", 4),
          5: ("partial_overlaps-1.nrrd", 5)}),
        ("sparse-labelmap-noppv.dcm", {1: ("sparse_labelmap_noppv_seg.nrrd", 1)}),
        ("sparse-labelmap-ppv5.dcm", {1: ("sparse_labelmap_ppv5_seg.nrrd", 1)}),
    ],
)  # fmt: skip
def test_as_dcmqi_reads_its_own(dcmqi, file, parts):
    sitk = pytest.importorskip("SimpleITK")
    seg = read_seg(dcmqi / file)
    assert [segment.number for segment in seg.segments] == list(parts)
    for number, (name, value) in parts.items():
        image = sitk.ReadImage(str(dcmqi / name))
        affine = np.eye(4)
        columns = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        affine[:3, :3], affine[:3, 3] = columns[:, ::-1], image.GetOrigin()
        theirs = Volume(sitk.GetArrayFromImage(image) == value, affine)
        ours = seg.mask(number, theirs)
        assert theirs.voxels.any()
        np.testing.assert_array_equal(ours.voxels, theirs.voxels)
        own = seg.mask(number)
        assert np.count_nonzero(own.voxels) == np.count_nonzero(theirs.voxels)
    if seg.how == "labelmap":
        assert set(np.unique(seg.labels().voxels)) == {0, 1}
