"""Series as scanners write them, against SimpleITK and the equation of the standard."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qinjing.data.dicom.read import read_patient_id, read_series, read_series_header
from qinjing.data.nifti import read_header
from qinjing.data.readers import find_reader, read_volume
from qinjing.errors import ConfigError, FormatError, GeometryError, InputError

pydicom = pytest.importorskip("pydicom")

from tests.data.dicom.series import uid, write_series  # noqa: E402

OBLIQUE = ((0.8, 0.48, 0.36), (-0.6, 0.64, 0.48))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
SAGITTAL_BACK = ((0.0, -1.0, 0.0), (0.0, 0.0, -1.0))


def stored(shape: tuple[int, int, int] = (5, 4, 6), dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def theirs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine, (d, h, w) → LPS, as SimpleITK reads them."""
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    columns = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, :3], affine[:3, 3] = columns[:, ::-1], image.GetOrigin()
    return sitk.GetArrayFromImage(image), affine


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize(
    "directions", [((1, 0, 0), (0, 1, 0)), OBLIQUE, CORONAL, SAGITTAL_BACK],
    ids=["axial", "oblique", "coronal", "sagittal"],
)  # fmt: skip
def test_as_simpleitk(tmp_path, directions, dtype):
    # The names run against the positions: nothing may come from them.
    write_series(tmp_path, stored(dtype=dtype), directions=directions, names="{}.dcm".format)
    volume = read_series(tmp_path)
    voxels, affine = theirs(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert volume.voxels.dtype == np.float32 and volume.frame_of_reference == uid("P1", "frame")


def test_each_voxel_lies_where_the_standard_puts_it(tmp_path):
    """PS3.3, equation C.7.6.2.1-1, slice by slice from the file itself."""
    pixels = np.arange(5 * 4 * 6, dtype=np.int16).reshape(5, 4, 6)
    shuffled = [3, 0, 4, 2, 1]
    write_series(
        tmp_path, pixels, directions=OBLIQUE, names=lambda d: f"{shuffled[d]}.dcm", slope=None
    )
    volume = read_series(tmp_path)
    for file in tmp_path.glob("*.dcm"):
        one = pydicom.dcmread(file)
        x, y = (np.array(one.ImageOrientationPatient[i : i + 3], float) for i in (0, 3))
        for i, j in ((0, 0), (5, 3), (2, 1)):  # column, row
            place = np.array(one.ImagePositionPatient, float)
            place = place + x * one.PixelSpacing[1] * i + y * one.PixelSpacing[0] * j
            index = np.linalg.inv(volume.affine) @ [*place, 1]
            d, h, w = np.rint(index[:3]).astype(int)
            np.testing.assert_allclose(index[:3], (d, h, w), atol=1e-4)
            assert volume.voxels[d, h, w] == one.pixel_array[j, i]
    assert volume.voxels.dtype == np.int16  # nothing declared a scale


def test_scale_of_each_slice(tmp_path):
    def scale(file, d):
        file.RescaleSlope, file.RescaleIntercept = 1.0 + d, -d / 2

    write_series(tmp_path, stored(), edit=scale)
    d = np.arange(5)[:, None, None]
    np.testing.assert_allclose(read_series(tmp_path).voxels, stored() * (1.0 + d) - d / 2)


def test_twelve_bits_of_sixteen(tmp_path):
    """The four unused bits may hold anything (PS3.5, 8.1.1)."""

    def narrow(file, d):
        pixels = np.frombuffer(file.PixelData, np.int16) & 0x0FFF
        file.PixelData = (pixels.astype(np.uint16) | 0x5000).tobytes()
        file.BitsStored, file.HighBit = 12, 11

    values = np.random.default_rng(1).integers(-2048, 2047, (3, 4, 6)).astype(np.int16)
    write_series(tmp_path, values, slope=None, edit=narrow)
    np.testing.assert_array_equal(read_series(tmp_path).voxels, values)


def test_header_without_pixels(tmp_path):
    for name, slope in (("scaled", 1.0), ("plain", None)):
        write_series(tmp_path / name, stored(), slope=slope, directions=OBLIQUE)
        header, volume = read_series_header(tmp_path / name), read_series(tmp_path / name)
        assert header.shape == volume.voxels.shape and header.dtype == volume.voxels.dtype
        np.testing.assert_array_equal(header.affine, volume.affine)


def test_what_lies_beside_the_slices(tmp_path):
    write_series(tmp_path, stored())
    (tmp_path / "LICENSE").write_text("CC BY")
    (tmp_path / "._1-001.dcm").write_bytes(b"mac")
    (tmp_path / "more").mkdir()
    assert read_volume(tmp_path).voxels.shape == (5, 4, 6)
    assert read_patient_id(tmp_path) == "P1"
    bare = write_series(tmp_path / "bare", stored(), names="IM{:04d}".format)
    (bare / "LICENSE").write_text("CC BY")
    assert find_reader(bare).read_header(bare).shape == (5, 4, 6)


def leave_out(*slices):
    return lambda file, d: d not in slices


def move(d_moved, by):
    def edit(file, d):
        if d == d_moved:
            place = np.array(file.ImagePositionPatient, float) + by
            file.ImagePositionPatient = [f"{value:.6f}" for value in place]

    return edit


def change(d_changed=None, **fields):
    def edit(file, d):
        if d_changed in (None, d):
            for name, value in fields.items():
                setattr(file, name, value)

    return edit


def tilt(file, d):
    file.ImagePositionPatient = [-20, -30 + 0.5 * d, 100 + 2 * d]


def without(name):
    return lambda file, d: delattr(file, name) if d == 2 else None


def lossless_jpeg2000(file, d):
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    file.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    file["PixelData"].VR = "OB"


def unknown_syntax(file, d):
    lossless_jpeg2000(file, d)
    file.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML


@pytest.mark.parametrize(
    ("edit", "kind", "message"),
    [
        (leave_out(2), GeometryError, r"none missing, got gaps of 2 to 4 mm.*1-001.*1-003"),
        (move(2, [0, 0, 0.5]), GeometryError, r"evenly spaced"),
        (move(1, [0, 0, 2]), GeometryError, r"one at each place.*1-001\.dcm and 1-002\.dcm"),
        (move(4, [1, 0, 0]), GeometryError, "right angle"),
        (tilt, GeometryError, r"got a gantry tilt of 14\.0 degrees"),
        (change(4, NumberOfFrames=2, PixelData=bytes(96)), FormatError, "without their groups"),
        (change(3, SeriesInstanceUID="1.2.3"), FormatError, r"one series, got 2.*1-000.*1-003"),
        (change(3, FrameOfReferenceUID="1.2.3"), GeometryError, "frame of reference"),
        (change(3, ImageOrientationPatient=[1, 0, 0, 0, 0, 1]), GeometryError, "parallel"),
        (change(3, PixelSpacing=[1, 1]), GeometryError, "one size, spacing"),
        (change(3, Rows=2, PixelData=bytes(24)), GeometryError, "one size, spacing"),
        (change(PixelSpacing=[0, 1]), FormatError, "PixelSpacing must be positive"),
        (change(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), FormatError, "right angle"),
        (change(ImageOrientationPatient=[1, 0, 0, 0, 2, 0]), FormatError, "unit vectors"),
        (without("ImagePositionPatient"), FormatError, r"3 numbers, got nothing.*1-002"),
        (without("PixelSpacing"), FormatError, "PixelSpacing"),
        (without("PixelData"), FormatError, r"without pixels.*1-002"),
        (change(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), FormatError, "segmentation"),
        (change(NumberOfFrames=3), FormatError, "as many as the header promises"),
        (change(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), FormatError, "CSA header"),
        (change(PhotometricInterpretation="MONOCHROME1"), FormatError, "MONOCHROME2"),
        (change(2, PixelData=bytes(10)), FormatError, r"1-002"),
        (change(2, RescaleSlope="1e400"), FormatError, "RescaleSlope"),
        (lossless_jpeg2000, FormatError, r"of shape \(4, 6\), got \(0, 0\)"),
        (unknown_syntax, FormatError, "decompress the series"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # of pydicom, while it writes what it should not
def test_refused_in_one_sentence(tmp_path, edit, kind, message):
    write_series(tmp_path, stored(), edit=edit)
    with pytest.raises(kind, match=message) as refusal:
        read_series(tmp_path)
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_rounding_of_positions_is_no_gap(tmp_path):
    def rounded(file, d):
        file.ImagePositionPatient = [-20, -30, round(100 + 0.7 * d, 2) + 0.01 * (d % 2)]

    write_series(tmp_path, stored(), spacing=(0.7, 1, 1), edit=rounded)
    assert read_series(tmp_path).spacing_mm == pytest.approx((0.7, 1, 1))


def test_no_folder_and_no_slices(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.dcm").write_bytes(b"")
    for path in ("missing", "empty", "file.dcm"):
        with pytest.raises(FormatError, match=path):
            read_series(tmp_path / path)
    with pytest.raises(FormatError, match="DICOM series' folder"):
        read_volume(tmp_path / "file.dcm")


def test_pydicom_is_asked_for_to_decode_alone(tmp_path, monkeypatch):
    write_series(tmp_path / "plain", stored())
    write_series(tmp_path / "packed", stored(), edit=lossless_jpeg2000)
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    assert read_series(tmp_path / "plain").shape == (5, 4, 6)
    with pytest.raises(ConfigError, match=r"pip install 'qinjing\[dicom\]'"):
        read_series(tmp_path / "packed")


def test_a_lone_slice_is_as_thick_as_it_says(tmp_path):
    write_series(tmp_path, stored(), edit=leave_out(1, 2, 3, 4))
    volume = read_series(tmp_path)
    assert volume.shape == (1, 4, 6) and volume.spacing_mm == pytest.approx((7, 0.75, 0.5))


@pytest.mark.filterwarnings("error")
def test_damaged_bytes_never_escape(tmp_path):
    write_series(tmp_path, stored((3, 4, 6)))
    file = tmp_path / "1-001.dcm"
    sound = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(sound[: rng.integers(len(sound))] if rng.random() < 0.3 else sound)
        for place in rng.integers(0, max(1, len(damaged)), rng.integers(1, 9)):
            damaged[place : place + 1] = rng.bytes(1)
        file.write_bytes(damaged)
        try:
            read_series(tmp_path)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


@pytest.fixture(scope="session")
def real(tmp_path_factory, data_root):
    """Unpack one of the archives of real series."""

    def unpack(name):
        archive = data_root / "dicom" / f"{name}.zip"
        if not archive.is_file():
            pytest.skip(f"no {archive}")
        folder = tmp_path_factory.mktemp("dicom")
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        return folder

    return unpack


@pytest.mark.data
def test_real_series_as_simpleitk_reads_them(real):
    folder = real("siemens_decubitus_HFS_HFP_HFDR_HFDL_t1_12mid") / "qa_decubitus" / "In"
    found = sorted(folder.glob("*/*/"))
    assert len(found) == 4
    for one in [*found, real("dicom_seg_pm_sr_rwv") / "dcmqi/data/segmentations/ct-3slice"]:
        volume = read_series(one)
        voxels, affine = theirs(one)
        np.testing.assert_array_equal(volume.voxels, voxels)
        np.testing.assert_allclose(volume.affine, affine, atol=1e-6)


@pytest.mark.data
def test_real_gantry_tilt_is_refused(real):
    folder = real("ct_ge_gantrytilt_variable_spacing") / "qa_ct/In/GE"
    with pytest.raises(GeometryError, match=r"18\.5 degrees and gaps of 1\.081 to 6\.999 mm"):
        read_series(folder)


@pytest.mark.data
def test_real_grid_is_that_of_its_segmentation(real):
    """Slices are JPEG 2000, which needs a decoder; the label map beside them is NIfTI."""
    folder = real("ct_siemens_j2k_20slices_totalseg") / "totalseg_dicom"
    header = read_series_header(folder / "example_ct_dicom")
    reference = read_header(folder / "example_seg_dicom.nii.gz")
    assert sorted(header.shape) == sorted(reference.shape)
    corners = [
        {tuple(np.round((one.affine @ [*(np.array(n) * (np.array(one.shape) - 1)), 1])[:3], 3))
         for n in np.ndindex(2, 2, 2)}
        for one in (header, reference)
    ]  # fmt: skip
    assert corners[0] == corners[1]
