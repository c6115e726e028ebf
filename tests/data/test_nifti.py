"""Against nibabel for pixels and affine, against SimpleITK for LPS."""

from __future__ import annotations

import gzip
import struct

import nibabel
import numpy as np
import pytest

from qinjing.data.nifti import DTYPES, read_header, read_nifti, write_nifti
from qinjing.errors import FormatError, GeometryError, InputError
from qinjing.volume import Volume

OBLIQUE = np.array(
    [[-0.9, 0.1, 0.3, 90.5], [0.15, 1.1, -0.4, -126.25], [-0.2, 0.35, 2.9, -72.0], [0, 0, 0, 1]]
)


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    a, b, c = np.deg2rad(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


def rigid() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation((20, -35, 50)) * np.array([0.8, 1.3, 4.0])
    affine[:3, 3] = (-31.5, 12.25, 200)
    return affine


def pixels(shape: tuple[int, ...], dtype: np.dtype | type, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape, scale=100).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, size=shape, dtype=dtype, endpoint=True)


def to_lps(ras: np.ndarray) -> np.ndarray:
    """nibabel's affine, index (i, j, k) → RAS, as the affine of the reversed array in LPS."""
    reverse = np.eye(4)[[2, 1, 0, 3]]
    return np.diag([-1.0, -1, 1, 1]) @ ras @ reverse


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_reads_what_nibabel_writes(tmp_path, dtype, order, suffix):
    array = pixels((7, 5, 3), dtype)
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    image = nibabel.Nifti1Image(array, OBLIQUE, header, dtype=dtype)
    path = tmp_path / f"x{suffix}"
    nibabel.save(image, path)
    volume = read_nifti(path)
    theirs = nibabel.load(path)
    assert volume.voxels.dtype == np.dtype(dtype) and volume.voxels.dtype.isnative
    np.testing.assert_array_equal(volume.voxels.T, np.asanyarray(theirs.dataobj))
    np.testing.assert_allclose(volume.affine, to_lps(theirs.affine), rtol=0, atol=1e-12)
    header = read_header(path)
    assert (header.shape, header.dtype) == (volume.voxels.shape, volume.voxels.dtype)
    np.testing.assert_array_equal(header.affine, volume.affine)
    assert volume.voxels.flags.c_contiguous and volume.voxels.flags.writeable


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((6, 5), (1, 5, 6)),
        ((6, 5, 1), (1, 5, 6)),
        ((6, 5, 4), (4, 5, 6)),
        ((6, 5, 4, 1), (4, 5, 6)),
        ((6, 5, 4, 3), (3, 4, 5, 6)),
        ((6, 5, 4, 1, 3), (3, 4, 5, 6)),
        ((6, 5, 4, 3, 1, 1), (3, 4, 5, 6)),
    ],
)
def test_axes(tmp_path, kind, stored, expected):
    array = pixels(stored, np.int16)
    path = tmp_path / "x.nii.gz"
    nibabel.save(kind(array, OBLIQUE), path)
    volume = read_nifti(path)
    assert volume.voxels.shape == expected == read_header(path).shape
    np.testing.assert_array_equal(volume.voxels, array.T.reshape(expected))


def test_two_axes_beyond_space_are_refused(tmp_path):
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((3, 3, 3, 2, 2), np.uint8), np.eye(4)), tmp_path / "x.nii"
    )
    with pytest.raises(FormatError, match="one axis beyond"):
        read_nifti(tmp_path / "x.nii")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize(("slope", "intercept"), [(0.37, -12.5), (2.0, 0.0), (1.0, -1024.0)])
def test_scaled(tmp_path, dtype, slope, intercept):
    path = tmp_path / "x.nii.gz"
    image = nibabel.Nifti1Image(pixels((7, 5, 3), dtype), OBLIQUE)
    image.header.set_slope_inter(slope, intercept)
    # nibabel resets the factors on saving through an image; write the header it made as it is.
    raw = bytearray(nibabel.Nifti1Image(image.get_fdata().astype(dtype), OBLIQUE).to_bytes())
    struct.pack_into("<ff", raw, 112, slope, intercept)
    path.write_bytes(gzip.compress(bytes(raw)))
    theirs = nibabel.load(path).get_fdata()
    volume = read_nifti(path)
    assert volume.voxels.dtype == np.float32 == read_header(path).dtype
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(volume.voxels.T, theirs, rtol=0, atol=scale * 2e-7)


@pytest.mark.parametrize(("slope", "intercept"), [(0.0, 5.0), (1.0, 0.0), (np.nan, 0.0)])
def test_no_scale_keeps_integers(tmp_path, slope, intercept):
    raw = bytearray(nibabel.Nifti1Image(pixels((4, 4, 4), np.int16), np.eye(4)).to_bytes())
    struct.pack_into("<ff", raw, 112, slope, intercept)
    (tmp_path / "x.nii").write_bytes(raw)
    assert read_nifti(tmp_path / "x.nii").voxels.dtype == np.int16


def test_affine_rules_are_nibabels(tmp_path):
    """sform, else qform, else pixel sizes."""
    for sform, qform in [(1, 1), (0, 1), (2, 0), (0, 0)]:
        image = nibabel.Nifti1Image(pixels((4, 5, 6), np.uint8), None)
        image.header.set_zooms((0.5, 0.75, 3))
        image.header.set_qform(rigid(), qform)
        image.header.set_sform(OBLIQUE, sform)
        (tmp_path / "x.nii").write_bytes(image.to_bytes())
        theirs = nibabel.load(tmp_path / "x.nii")
        np.testing.assert_allclose(
            read_nifti(tmp_path / "x.nii").affine, to_lps(theirs.affine), atol=1e-12
        )


@pytest.mark.parametrize("units", ["mm", "meter", "micron"])
def test_lps_affine_is_simpleitks(tmp_path, units):
    sitk = pytest.importorskip("SimpleITK")
    image = nibabel.Nifti1Image(pixels((4, 5, 6), np.int16), rigid())
    image.header.set_xyzt_units(units)
    nibabel.save(image, tmp_path / "x.nii.gz")
    theirs = sitk.ReadImage(str(tmp_path / "x.nii.gz"))
    volume = read_nifti(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(theirs))
    np.testing.assert_allclose(volume.spacing_mm[::-1], theirs.GetSpacing(), rtol=1e-5)
    for index in [(0, 0, 0), (3, 4, 5), (1, 0, 4)]:
        point = theirs.TransformIndexToPhysicalPoint(index)
        ours = volume.affine @ (*index[::-1], 1)
        np.testing.assert_allclose(ours[:3], point, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "affine", [np.diag([1.0, 1, 3, 1]), rigid(), OBLIQUE], ids=["axis", "oblique", "shear"]
)
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 5, 7)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_round_trip(tmp_path, affine, shape, suffix):
    affine = affine.astype(np.float32).astype(np.float64)  # NIfTI-1 keeps 32 bits of it
    path = tmp_path / f"x{suffix}"
    for array in (pixels(shape, np.float32), pixels(shape, np.int16), pixels(shape, np.uint8) % 4):
        volume = Volume(array, affine)
        write_nifti(path, volume)
        back = read_nifti(path)
        np.testing.assert_array_equal(back.voxels, array)
        np.testing.assert_array_equal(back.affine, affine)
        theirs = nibabel.load(path)
        np.testing.assert_array_equal(np.asanyarray(theirs.dataobj).T, array)
        np.testing.assert_allclose(to_lps(theirs.affine), affine, atol=1e-12)
    assert list(tmp_path.iterdir()) == [path]


def test_qform_only_where_it_says_the_same(tmp_path):
    array = np.zeros((6, 7, 8), np.uint8)
    write_nifti(tmp_path / "rigid.nii", Volume(array, to_lps(rigid())))
    write_nifti(tmp_path / "shear.nii", Volume(array, to_lps(OBLIQUE)))
    assert nibabel.load(tmp_path / "rigid.nii").header["qform_code"] == 1
    np.testing.assert_allclose(nibabel.load(tmp_path / "rigid.nii").get_qform(), rigid(), atol=1e-4)
    assert nibabel.load(tmp_path / "shear.nii").header["qform_code"] == 0
    np.testing.assert_allclose(nibabel.load(tmp_path / "shear.nii").affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "stored"),
    [(0, 3, np.uint8), (0, 255, np.uint8), (0, 256, np.int16), (-1, 3, np.int16),
     (0, 40000, np.uint16), (-1, 40000, np.int32), (0, 2**31, np.uint32), (-5, 2**40, np.int64)],
)  # fmt: skip
def test_labels_are_stored_small(tmp_path, low, high, stored):
    array = np.array([low, high, 0, 1], np.int64).reshape(1, 2, 2)
    write_nifti(tmp_path / "x.nii.gz", Volume(array, np.eye(4)))
    back = read_nifti(tmp_path / "x.nii.gz")
    assert back.voxels.dtype == stored
    np.testing.assert_array_equal(back.voxels, array)


def test_types_that_cannot_hold_the_values_are_refused(tmp_path):
    for values in ([0.5, 1], [0.0, 300.0], [-1.0, 0.0], [np.nan, 0.0]):
        with pytest.raises(FormatError, match="fit uint8"):
            write_nifti(tmp_path / "x.nii", Volume(np.array([[values]]), np.eye(4)), np.uint8)
    with pytest.raises(FormatError, match="voxel type"):
        write_nifti(tmp_path / "x.nii", Volume(np.zeros((2, 2, 2), complex), np.eye(4)), complex)
    assert not list(tmp_path.iterdir())
    write_nifti(tmp_path / "x.nii", Volume(np.array([[[0.0, 255.0]]]), np.eye(4)), np.uint8)
    assert read_nifti(tmp_path / "x.nii").voxels.dtype == np.uint8


def test_long_axis_becomes_nifti_2(tmp_path):
    volume = Volume(pixels((1, 2, 40000), np.uint8), np.eye(4))
    write_nifti(tmp_path / "x.nii.gz", volume)
    assert isinstance(nibabel.load(tmp_path / "x.nii.gz"), nibabel.Nifti2Image)
    np.testing.assert_array_equal(read_nifti(tmp_path / "x.nii.gz").voxels, volume.voxels)


def test_same_volume_same_bytes(tmp_path):
    volume = Volume(pixels((3, 4, 5), np.int16), np.eye(4))
    write_nifti(tmp_path / "a.nii.gz", volume)
    write_nifti(tmp_path / "b.nii.gz", volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_extension_and_several_gzip_members(tmp_path):
    image = nibabel.Nifti1Image(pixels((9, 8, 7), np.int16), OBLIQUE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 5000))
    raw = image.to_bytes()
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))
    np.testing.assert_array_equal(
        read_nifti(tmp_path / "x.nii.gz").voxels.T, np.asanyarray(image.dataobj)
    )


def test_two_dimensional_without_thickness(tmp_path):
    image = nibabel.Nifti1Image(pixels((6, 5), np.uint8), None)
    sform = np.diag([0.5, 0.5, 0.0, 1.0])
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = sform[:3]
    image.header["sform_code"] = 1
    (tmp_path / "x.nii").write_bytes(image.to_bytes())
    np.testing.assert_allclose(read_nifti(tmp_path / "x.nii").spacing_mm, (1, 0.5, 0.5))


def good_bytes() -> bytearray:
    return bytearray(nibabel.Nifti1Image(pixels((20, 20, 20), np.int16), np.eye(4)).to_bytes())


@pytest.mark.parametrize(
    ("fmt", "offset", "values", "message"),
    [
        ("<i", 0, (0,), "header of 348 or 540"),
        ("<3s", 344, (b"abc",), "magic"),
        ("<3s", 344, (b"ni1",), "convert pairs"),
        ("<4h", 40, (3, 32767, 32767, 32767), "as its header promises"),
        ("<8h", 40, (7,) + (32767,) * 7, "one axis beyond"),
        ("<8h", 40, (4,) + (32767,) * 4 + (1, 1, 1), "as its header promises"),
        ("<h", 40, (0,), "2 to 7 axes"),
        ("<h", 40, (9,), "2 to 7 axes"),
        ("<h", 42, (0,), "at least one voxel"),
        ("<h", 42, (-1,), "at least one voxel"),
        ("<h", 42, (21,), "as its header promises"),
        ("<h", 70, (128,), "RGB"),
        ("<h", 70, (32,), "complex64"),
        ("<h", 70, (1,), "binary"),
        ("<h", 70, (2304,), "RGBA"),
        ("<h", 70, (1536,), "float128"),
        ("<h", 70, (777,), "code 777"),
        ("<f", 108, (float("nan"),), "vox_offset"),
        ("<f", 108, (-5.0,), "vox_offset"),
        ("<f", 108, (1e30,), "as its header promises"),
        ("<f", 108, (100.0,), "vox"),
        ("<4f", 280, (0, 0, 0, 0), "affine"),
        ("<f", 280, (float("nan"),), "affine"),
        ("<f", 280, (float("inf"),), "affine"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_headers_are_refused_in_one_sentence(
    tmp_path, fmt, offset, values, message, packed
):
    raw = good_bytes()
    struct.pack_into(fmt, raw, offset, *values)
    path = tmp_path / "x.nii"
    path.write_bytes(gzip.compress(bytes(raw)) if packed else raw)
    with pytest.raises((FormatError, GeometryError), match=message) as refusal:
        read_nifti(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_damaged_files_are_refused(tmp_path):
    raw = good_bytes()
    packed = gzip.compress(bytes(raw))
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 4
    path = tmp_path / "x.nii.gz"
    for content in (b"", b"\x1f", b"\x1f\x8b", raw[:200], raw[:-1], packed[:-1], packed[:-9],
                    packed[: len(packed) // 2], bytes(flipped), b"hello" * 200):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(FormatError) as refusal:
            read_nifti(path)
        assert str(path) in str(refusal.value)
    for wrong in (tmp_path, tmp_path / "nothing.nii", path / "below"):
        with pytest.raises(InputError):
            read_nifti(wrong)


def test_header_of_a_large_file_is_cheap(tmp_path):
    path = tmp_path / "x.nii.gz"
    write_nifti(path, Volume(np.zeros((64, 64, 64), np.float32), np.eye(4)))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert read_header(path).shape == (64, 64, 64)  # the damaged half is never unpacked
    with pytest.raises(FormatError, match=r"complete|promises"):
        read_nifti(path)
