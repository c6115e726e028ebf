"""NRRD against SimpleITK, which 3D Slicer reads and writes it with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qinjing.data.nrrd import read_nrrd, write_nrrd
from qinjing.errors import FormatError
from qinjing.volume import Volume

itk = pytest.importorskip("SimpleITK")

TYPES = ["uint8", "int16", "uint16", "int32", "float32", "float64"]


def oblique() -> np.ndarray:
    """Index (d, h, w, 1) → LPS: turned by 30° about z, unlike spacings."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (0, 0, 3), (-2 * s, 2 * c, 0), (c, s, 0)
    affine[:3, 3] = (-10, 20.5, 30.25)
    return affine


def voxels(dtype: str) -> np.ndarray:
    return (np.arange(24).reshape(2, 3, 4) * 5 - (0 if dtype.startswith("u") else 7)).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("compress", [False, True])
def test_what_is_written_is_what_itk_reads(tmp_path: Path, dtype: str, compress: bool) -> None:
    write_nrrd(tmp_path / "a.nrrd", Volume(voxels(dtype), oblique()), compress=compress)
    image = itk.ReadImage(str(tmp_path / "a.nrrd"))
    assert np.array_equal(itk.GetArrayFromImage(image), voxels(dtype))
    assert itk.GetArrayFromImage(image).dtype == dtype
    for index in [(0, 0, 0), (3, 2, 1)]:
        expected = (oblique() @ [*index[::-1], 1])[:3]
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), expected, atol=1e-9)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("compress", [False, True])
def test_what_itk_writes_is_read(tmp_path: Path, dtype: str, compress: bool) -> None:
    image = itk.GetImageFromArray(voxels(dtype))
    matrix = oblique()[:3, :3][:, ::-1]
    image.SetSpacing([float(one) for one in np.linalg.norm(matrix, axis=0)])
    image.SetDirection((matrix / np.linalg.norm(matrix, axis=0)).ravel().tolist())
    image.SetOrigin(oblique()[:3, 3].tolist())
    image.SetMetaData("Segment0_Name", "liver")
    itk.WriteImage(image, str(tmp_path / "a.nrrd"), compress)
    found = read_nrrd(tmp_path / "a.nrrd")
    assert np.array_equal(found.volume.voxels, voxels(dtype))
    assert found.volume.voxels.dtype == dtype and found.said["Segment0_Name"] == "liver"
    assert np.allclose(found.volume.affine, oblique(), atol=1e-9)


def test_spaces_of_other_programs_are_turned(tmp_path: Path) -> None:
    write_nrrd(tmp_path / "a.nrrd", Volume(voxels("uint8"), oblique()))
    content = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(
        content.replace(b"left-posterior-superior", b"right-anterior-superior")
    )
    image = itk.ReadImage(str(tmp_path / "a.nrrd"))
    found = read_nrrd(tmp_path / "a.nrrd").volume
    assert np.allclose(found.affine[:3, 3], image.GetOrigin())
    assert np.allclose(found.affine[:3, 3], (10, -20.5, 30.25))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"NRRD0004", b"NIFTI"),
        (b"dimension: 3", b"dimension: 4"),
        (b"type: uint8", b"type: block"),
        (b"encoding: raw", b"encoding: gzip"),
        (b"encoding: raw", b"encoding: bzip2"),
        (b"encoding: raw", b"encoding: raw\ndata file: /etc/passwd"),
        (b"space: left-posterior-superior\n", b""),
        (b"sizes: 4 3 2", b"sizes: 4 3"),
        (b"sizes: 4 3 2", b"sizes: 4 3 3"),
        (b"sizes: 4 3 2", b"sizes: 4 3 -2"),
        (b"sizes: 4 3 2", b"sizes: 400000 300000 200000"),
        (b"space directions: (", b"space directions: (x"),
        (b"space directions: (", b"space directions: (1,"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    write_nrrd(tmp_path / "a.nrrd", Volume(voxels("uint8"), oblique()))
    content = (tmp_path / "a.nrrd").read_bytes()
    assert old in content
    (tmp_path / "a.nrrd").write_bytes(content.replace(old, new))
    with pytest.raises(FormatError, match="NRRD"):
        read_nrrd(tmp_path / "a.nrrd")


def test_a_type_that_nrrd_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="voxels"):
        write_nrrd(tmp_path / "a.nrrd", Volume(np.zeros((1, 2, 3), np.float16), np.eye(4)))
