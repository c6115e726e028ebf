"""Each fault is made on purpose in one case of five; the other four stay good."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qinjing.config import write_json
from qinjing.data.check import KINDS, check_dataset
from qinjing.data.layouts import open_dataset
from qinjing.data.layouts.discover import label_values
from qinjing.data.nifti import read_nifti, write_nifti
from qinjing.volume import Volume

AFFINE = np.array([[0.0, 0, -1.5, 20], [0, -1, 0, 30], [3, 0, 0, -40], [0, 0, 0, 1]])


def make_dataset(root: Path, channels: int = 1) -> Path:
    """Five cases of nnU-Net's layout with labels 0, 1, 2."""
    rng = np.random.default_rng(1)
    for i in range(5):
        for c in range(channels):
            image = Volume(rng.normal(size=(6, 7, 8)).astype(np.float32), AFFINE)
            write_nifti(root / f"imagesTr/p{i}_a_{c:04d}.nii.gz", image)
        label = Volume(rng.integers(0, 3, (6, 7, 8)).astype(np.uint8), AFFINE)
        write_nifti(root / f"labelsTr/p{i}_a.nii.gz", label)
    names = {str(c): f"channel {c}" for c in range(channels)}
    labels = {"background": 0, "liver": 1, "lesion": 2}
    content = {"channel_names": names, "labels": labels, "file_ending": ".nii.gz"}
    write_json(root / "dataset.json", content)
    return root


def change(path: Path, voxels=None, affine=None, dtype=None):
    volume = read_nifti(path)
    voxels = volume.voxels if voxels is None else voxels(volume.voxels)
    write_nifti(path, Volume(voxels, volume.affine if affine is None else affine), dtype)


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def put(value):
    def put_in(voxels):
        voxels = voxels.astype(np.float32 if isinstance(value, float) else voxels.dtype)
        voxels[2, 3, 4] = value
        return voxels

    return put_in


IMAGE, LABEL = "imagesTr/p2_a_0000.nii.gz", "labelsTr/p2_a.nii.gz"
BROKEN = {
    "missing image": (IMAGE, Path.unlink, "missing file"),
    "missing label": (LABEL, Path.unlink, "missing file"),
    "truncated image": (IMAGE, truncate, "damaged file"),
    "truncated label": (LABEL, truncate, "damaged file"),
    "shape": (LABEL, lambda p: change(p, lambda v: v[1:]), "shape mismatch"),
    "affine": (LABEL, lambda p: change(p, affine=AFFINE + np.eye(4, k=3)), "affine mismatch"),
    "shifted by half a voxel": (
        LABEL, lambda p: change(p, affine=AFFINE + np.array([[0, 0, 0, 0.75]] + [[0] * 4] * 3)),
        "affine mismatch",
    ),
    "unknown value": (LABEL, lambda p: change(p, put(7)), "unknown label"),
    "negative value": (LABEL, lambda p: change(p, lambda v: put(-1)(v.astype(int))),
                       "unknown label"),
    "half a label": (LABEL, lambda p: change(p, put(0.5)), "non-integer label"),
    "NaN in the label": (LABEL, lambda p: change(p, put(float("nan"))), "non-integer label"),
    "label with channels": (LABEL, lambda p: change(p, lambda v: np.stack([v, v])),
                            "label channels"),
    "NaN": (IMAGE, lambda p: change(p, put(float("nan"))), "not finite"),
    "infinite": (IMAGE, lambda p: change(p, put(float("-inf"))), "not finite"),
    "constant": (IMAGE, lambda p: change(p, np.ones_like), "constant image"),
    "two channels": (IMAGE, lambda p: change(p, lambda v: np.stack([v, -v])), "channel count"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_one_bad_case_is_named_and_the_rest_goes_on(tmp_path, name):
    file, break_it, kind = BROKEN[name]
    root = make_dataset(tmp_path)
    assert not check_dataset(open_dataset(root)).faults
    break_it(root / file)
    result = check_dataset(open_dataset(root))
    assert [(f.case_id, f.kind, f.severity) for f in result.faults] == [("p2_a", kind, "refused")]
    assert result.faults[0].path == str(root / file)
    assert str(root / file) in result.faults[0].message and "\n" not in result.faults[0].message
    assert [case.case_id for case in result.good] == ["p0_a", "p1_a", "p3_a", "p4_a"]


def test_pixels_copied_under_another_name(tmp_path):
    root = make_dataset(tmp_path)
    shutil.copy(root / "imagesTr/p1_a_0000.nii.gz", root / IMAGE)
    (fault,) = check_dataset(open_dataset(root)).faults
    assert (fault.case_id, fault.kind) == ("p2_a", "duplicate") and "p1_a_0000" in fault.message
    # The same voxels in another order of axes and another type are still the same scan.
    volume = read_nifti(root / "imagesTr/p1_a_0000.nii.gz")
    flipped = volume.affine.copy()
    flipped[:, 3] += flipped[:, 0] * 5
    flipped[:, 0] *= -1
    write_nifti(root / IMAGE, Volume(volume.voxels[::-1].astype(np.float64), flipped), np.float64)
    write_nifti(root / LABEL, Volume(np.ones((6, 7, 8), np.uint8), flipped))
    assert [f.kind for f in check_dataset(open_dataset(root)).faults] == ["duplicate"]


def test_channels(tmp_path):
    root = make_dataset(tmp_path, channels=2)
    assert not check_dataset(open_dataset(root)).faults
    shutil.copy(root / IMAGE, root / "imagesTr/p2_a_0001.nii.gz")
    assert [f.kind for f in check_dataset(open_dataset(root)).faults] == ["duplicate"]
    change(root / "imagesTr/p2_a_0001.nii.gz", lambda v: v[:, 1:] + 1)
    assert [f.kind for f in check_dataset(open_dataset(root)).faults] == ["channel grids"]
    (root / "imagesTr/p2_a_0001.nii.gz").unlink()
    assert [f.kind for f in check_dataset(open_dataset(root)).faults] == ["missing file"]


def test_warnings_leave_the_case_in(tmp_path):
    root = make_dataset(tmp_path)
    for i in range(5):
        change(root / f"labelsTr/p{i}_a.nii.gz", lambda v: (v == 1).astype(np.uint8))
    change(root / LABEL, np.zeros_like)
    result = check_dataset(open_dataset(root))
    assert len(result.good) == 5 and not result.refused
    assert [(f.case_id, f.kind) for f in result.faults] == [
        ("p2_a", "empty label"),
        ("", "label never seen"),
    ]
    assert "2 (lesion)" in result.faults[1].message


def test_case_without_label_among_labelled(tmp_path):
    for i in range(3):
        image = Volume(np.random.default_rng(i).normal(size=(4, 4, 4)), np.eye(4))
        write_nifti(tmp_path / f"p{i}.nii.gz", image)
    assert len(check_dataset(open_dataset(tmp_path)).good) == 3  # a folder to predict on
    write_nifti(
        tmp_path / "p0_label.nii.gz",
        Volume(np.eye(4, dtype=int)[None] + np.zeros((4, 1, 1), int), np.eye(4)),
    )
    result = check_dataset(open_dataset(tmp_path))
    assert [(f.case_id, f.kind) for f in result.faults] == [("p1", "no label"), ("p2", "no label")]


def test_patient_on_both_sides(tmp_path):
    root = make_dataset(tmp_path)
    for file in list(root.rglob("p1_a*")):
        file.rename(file.with_name(file.name.replace("p1_a", "p0_b")))
    (root / "participants.tsv").write_text("participant_id\tgroup\np0\tA\n")
    dataset = open_dataset(root)
    splits = [{"train": ["p0_a", "p2_a", "p9"], "val": ["p0_b", "p3_a"]}]
    result = check_dataset(dataset, splits)
    assert {(f.case_id, f.kind) for f in result.refused} == {
        ("p0_b", "patient on both sides"),
        ("p9", "unknown case in splits"),
    }
    assert len(result.good) == 5


def test_result_is_json_and_progress_is_told(tmp_path):
    root = make_dataset(tmp_path)
    (root / IMAGE).unlink()
    told = []
    result = check_dataset(
        open_dataset(root), progress=lambda done, total: told.append((done, total))
    )
    assert told == [(i, 5) for i in range(1, 6)]
    content = json.loads(json.dumps(result.to_json()))
    assert content["good"] == ["p0_a", "p1_a", "p3_a", "p4_a"]
    assert content["faults"][0]["kind"] == "missing file"


def test_every_kind_is_tested():
    """A new kind of fault needs a case above."""
    here = Path(__file__).read_text()
    assert not [kind for kind in KINDS if f'"{kind}"' not in here]


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint64, np.float32, np.float64]
)
def test_label_values_are_numpys(dtype):
    rng = np.random.default_rng(0)
    for size in (1, 7, 100, (1 << 20) + 3):
        array = rng.integers(0, 120, size).astype(dtype)
        if np.dtype(dtype).kind in "if":
            array -= 50
        np.testing.assert_array_equal(label_values(array), np.unique(array))


@pytest.mark.parametrize(
    ("name", "n_cases", "n_channels"),
    [
        ("Task04_Hippocampus", 200, 1),
        ("Dataset027_ACDC", 150, 1),
        ("spinal_gm", 7, 1),
        ("open_ms/mni", 2, 3),
    ],
)
def test_real_data_is_good(data_root, name, n_cases, n_channels):
    if not (data_root / name).is_dir():
        pytest.skip(f"no {data_root / name}")
    dataset = open_dataset(data_root / name)
    result = check_dataset(dataset)
    assert not result.faults
    assert len(result.good) == n_cases and len(dataset.channel_names) == n_channels
