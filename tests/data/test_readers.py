from __future__ import annotations

import numpy as np
import pytest

from qinjing.data.nifti import write_nifti
from qinjing.data.readers import FILE_SUFFIXES, read_volume, stem, suffix
from qinjing.errors import FormatError
from qinjing.volume import Volume


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b_0000.nii.gz", "b_0000"), ("b.nii", "b"), ("B.NII.GZ", "B"), ("a.b.nii.gz", "a.b"),
     ("notes.txt", "notes.txt"), (".nii", ".nii")],
)  # fmt: skip
def test_stem(name, expected):
    assert stem(name) == expected


@pytest.mark.parametrize("end", FILE_SUFFIXES)
def test_every_suffix_reads(tmp_path, end):
    volume = Volume(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.eye(4))
    write_nifti(tmp_path / f"x{end}", volume)
    np.testing.assert_array_equal(read_volume(tmp_path / f"x{end}").voxels, volume.voxels)
    assert suffix(f"X{end.upper()}") == end


def test_unknown_suffix_lists_what_is_known(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(FormatError, match=r"\.nii\.gz, \.nii.*x\.png"):
        read_volume(tmp_path / "x.png")
