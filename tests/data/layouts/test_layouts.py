"""One data set laid out in each way gives the same cases; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qinjing.config import write_json
from qinjing.data.check import check_dataset
from qinjing.data.layouts import LAYOUTS, list_images, open_dataset
from qinjing.data.nifti import write_nifti
from qinjing.errors import FormatError, InputError, LayoutError
from qinjing.volume import Volume

SHAPE = (4, 5, 6)
LABELS = {0: "background", 1: "liver", 2: "lesion"}


def image(path: Path, seed: int, channels: int = 0) -> str:
    shape = (channels, *SHAPE) if channels else SHAPE
    voxels = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    write_nifti(path, Volume(voxels, np.diag([2.0, 1, 1, 1])))
    return path.name


def label(path: Path, seed: int) -> str:
    voxels = np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)
    write_nifti(path, Volume(voxels, np.diag([2.0, 1, 1, 1])))
    return path.name


def make_msd(root: Path, channels: int = 1) -> Path:
    training = []
    for i in range(4):
        image(root / f"imagesTr/p{i}.nii.gz", i, channels if channels > 1 else 0)
        label(root / f"labelsTr/p{i}.nii.gz", i)
        training.append({"image": f"./imagesTr/p{i}.nii.gz", "label": f"./labelsTr/p{i}.nii.gz"})
    image(root / "imagesTr/._p0.nii.gz", 0)  # what a Mac leaves in an archive
    content = {
        "name": "Liver", "licence": "CC-BY-SA 4.0", "tensorImageSize": "4D",
        "modality": {str(c): f"T{c}" for c in range(channels)},
        "labels": {str(value): name for value, name in LABELS.items()}, "training": training,
    }  # fmt: skip
    write_json(root / "dataset.json", content)
    return root


def make_nnunet(root: Path, channels: int = 1) -> Path:
    for i in range(4):
        for c in range(channels):
            image(root / f"imagesTr/p{i}_{c:04d}.nii.gz", 10 * c + i)
        label(root / f"labelsTr/p{i}.nii.gz", i)
    content = {
        "channel_names": {str(c): f"T{c}" for c in range(channels)},
        "labels": {name: value for value, name in LABELS.items()},
        "numTraining": 4, "file_ending": ".nii.gz",
    }  # fmt: skip
    write_json(root / "dataset.json", content)
    return root


def make_bids(root: Path, channels: int = 1) -> Path:
    for i in range(4):
        for c in range(channels):
            image(root / f"sub-p{i}/anat/sub-p{i}_T{c}w.nii.gz", 10 * c + i)
        folder = root / f"derivatives/manual/sub-p{i}/anat"
        label(folder / f"sub-p{i}_desc-manual_dseg.nii.gz", i)
        label(folder / f"sub-p{i}_desc-brain_mask.nii.gz", 9)
    table = "index\tname\n" + "".join(f"{v}\t{n}\n" for v, n in LABELS.items())
    (root / "derivatives/manual/desc-manual_dseg.tsv").write_text(table)
    rows = "".join(f"sub-p{i}\t{'AB'[i % 2]}\n" for i in range(4))
    (root / "participants.tsv").write_text("participant_id\tgroup\n" + rows)
    return root


def make_monai(root: Path, channels: int = 1) -> Path:
    training = []
    for i in range(4):
        images = [f"p{i}/t{c}.nii.gz" for c in range(channels)]
        for c, name in enumerate(images):
            image(root / name, 10 * c + i)
        label(root / f"p{i}/seg.nii.gz", i)
        one = images if channels > 1 else images[0]
        training.append({"image": one, "label": f"p{i}/seg.nii.gz", "fold": i % 2})
    write_json(root / "datalist.json", {"training": training, "validation": []})
    return root


def make_plain(root: Path, channels: int = 1) -> Path:
    for i in range(4):
        for c in range(channels):
            ending = f"_T{c}" if channels > 1 else ""
            image(root / f"p{i}{ending}.nii.gz", 10 * c + i)
        label(root / f"p{i}_{'label' if i else 'seg'}.nii.gz", i)
    return root


def make_plain_folders(root: Path, channels: int = 1) -> Path:
    for i in range(4):
        for c in range(channels):
            ending = f"_{c:04d}" if channels > 1 else ""
            image(root / f"images/p{i}{ending}.nii.gz", 10 * c + i)
        label(root / f"labels/p{i}{'_mask' if i else ''}.nii.gz", i)
    return root


MAKERS = {
    "msd": make_msd, "nnunet": make_nnunet, "bids": make_bids, "monai": make_monai,
    "plain": make_plain, "plain folders": make_plain_folders,
}  # fmt: skip


def test_every_layout_is_made_here():
    assert set(LAYOUTS) - set(MAKERS) == {"brats", "lits", "nih_pancreas"}  # test_public_sets.py


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_layout(tmp_path, name, channels):
    root = MAKERS[name](tmp_path / "data", channels)
    dataset = open_dataset(root)
    assert dataset.layout == name.split()[0]
    assert len(dataset.channel_names) == channels
    assert list(dataset.labels) == [0, 1, 2] and dataset.labels[0] == "background"
    assert len(dataset.cases) == 4 == len({case.patient_id for case in dataset.cases})
    assert [c.case_id for c in dataset.cases] == sorted(c.case_id for c in dataset.cases)
    assert not check_dataset(dataset).faults
    assert open_dataset(root, layout=dataset.layout) == dataset
    assert list_images(root) == [(case.case_id, case.images) for case in dataset.cases]


@pytest.mark.parametrize("name", MAKERS)
def test_relative_and_roundabout_paths(tmp_path, name, monkeypatch):
    root = MAKERS[name](tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(root)
    ids = [case.case_id for case in open_dataset(root).cases]
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in ("../data", "../elsewhere/../data/", "../link"):
        dataset = open_dataset(path)
        assert [case.case_id for case in dataset.cases] == ids
        assert not check_dataset(dataset).faults
    monkeypatch.chdir(root)
    assert not check_dataset(open_dataset(".")).faults


def test_names_and_licence(tmp_path):
    dataset = open_dataset(make_msd(tmp_path))
    assert (dataset.name, dataset.licence) == ("Liver", "CC-BY-SA 4.0")
    assert dataset.labels == LABELS and dataset.channel_names == ("T0",)


def test_bids_groups_sessions_and_label_names(tmp_path):
    root = make_bids(tmp_path)
    dataset = open_dataset(root)
    assert dataset.labels == LABELS
    assert [case.group for case in dataset.cases] == ["A", "B", "A", "B"]
    assert dataset.cases[0].label.name == "sub-p0_desc-manual_dseg.nii.gz"
    for session in ("ses-1", "ses-2"):
        image(root / f"sub-q/{session}/anat/sub-q_{session}_T0w.nii.gz", 50)
        label(root / f"sub-q/{session}/anat/sub-q_{session}_dseg.nii.gz", 50)
    cases = {case.case_id: case for case in open_dataset(root).cases}
    assert cases["sub-q_ses-1"].patient_id == cases["sub-q_ses-2"].patient_id == "sub-q"
    label(root / "derivatives/other/sub-p0/anat/sub-p0_desc-other_dseg.nii.gz", 1)
    with pytest.raises(LayoutError, match=r"one file, got .*manual.*other"):
        open_dataset(root)


def test_participants_join_the_scans_of_one_patient(tmp_path):
    root = make_nnunet(tmp_path)
    for file in sorted(root.rglob("p[01]*.nii.gz")):
        file.rename(file.with_name(file.name.replace("p0", "pat1_ED").replace("p1", "pat1_ES")))
    for file in sorted(root.rglob("p2*.nii.gz")):
        file.rename(file.with_name(file.name.replace("p2", "pat11_ED")))
    (root / "participants.tsv").write_text("participant_id\tgroup\npat1\tDCM\npat11\tn/a\n")
    found = {case.case_id: (case.patient_id, case.group) for case in open_dataset(root).cases}
    assert found == {
        "pat1_ED": ("pat1", "DCM"), "pat1_ES": ("pat1", "DCM"),
        "pat11_ED": ("pat11", ""), "p3": ("p3", ""),
    }  # fmt: skip
    (root / "participants.tsv").write_text("name\tgroup\npat1\tDCM\n")
    with pytest.raises(LayoutError, match="participant_id"):
        open_dataset(root)


def test_nnunet_version_1_and_lists(tmp_path):
    root = make_msd(tmp_path / "v1", channels=2)
    for i in range(4):
        (root / f"imagesTr/p{i}.nii.gz").unlink()
        for c in range(2):
            image(root / f"imagesTr/p{i}_{c:04d}.nii.gz", 10 * c + i)
    assert not check_dataset(open_dataset(root)).faults

    root = make_nnunet(tmp_path / "v2")
    content = json.loads((root / "dataset.json").read_text())
    content["dataset"] = {
        "only": {"images": ["imagesTr/p1_0000.nii.gz"], "label": "labelsTr/p1.nii.gz"}
    }
    write_json(root / "dataset.json", content)
    assert [case.case_id for case in open_dataset(root).cases] == ["only"]


def test_rescan_on_another_grid_is_no_channel(tmp_path):
    for i in range(2):
        image(tmp_path / f"p{i}_run1.nii.gz", i)
        label(tmp_path / f"p{i}_label.nii.gz", i)
        write_nifti(tmp_path / f"p{i}_run2.nii.gz", Volume(np.ones((3, 3, 3)), np.eye(4)))
    assert [case.images[0].name for case in open_dataset(tmp_path).cases] == [
        "p0_run1.nii.gz", "p1_run1.nii.gz",
    ]  # fmt: skip


def test_declared_and_missing_is_listed_not_thrown(tmp_path):
    for name, make in MAKERS.items():
        root = make(tmp_path / name.replace(" ", "_"))
        dataset = open_dataset(root)
        if name not in ("bids", "plain folders"):  # what lies there is all that these declare
            dataset.cases[1].images[0].unlink()
            again = open_dataset(root)
            assert len(again.cases) == 4, name
            assert [f.kind for f in check_dataset(again).faults] == ["missing file"], name


def test_list_images(tmp_path):
    image(tmp_path / "one/b.nii.gz", 1)
    image(tmp_path / "one/a.nii", 2)
    (tmp_path / "one/notes.txt").write_text("")
    assert [case_id for case_id, _ in list_images(tmp_path / "one")] == ["a", "b"]
    assert list_images(tmp_path / "one/b.nii.gz") == [("b", (tmp_path / "one/b.nii.gz",))]
    for c in range(2):
        image(tmp_path / f"two/x_{c:04d}.nii.gz", c)
    (found,) = list_images(tmp_path / "two")
    assert found[0] == "x" and [f.name for f in found[1]] == ["x_0000.nii.gz", "x_0001.nii.gz"]
    for i in (1, 2, 3):
        image(tmp_path / f"numbered/scan_{i:04d}.nii.gz", i)
    assert [case_id for case_id, _ in list_images(tmp_path / "numbered")] == [
        "scan_0001", "scan_0002", "scan_0003",
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "none", tmp_path / "one/notes.txt"):
        with pytest.raises(InputError):
            list_images(nothing)


def edit(root: Path, **changes: object) -> None:
    file = next(root.glob("data*.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


ENTRY = {"image": "imagesTr/p0.nii.gz", "label": "labelsTr/p0.nii.gz"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("msd", {"training": 5}, "training must be a list"),
        ("msd", {"training": []}, "training must be a list"),
        ("msd", {"training": ["x"]}, r"training\[0\] must be an object"),
        ("msd", {"training": [{**ENTRY, "image": 7}]}, r"training\[0\].image must be text"),
        ("msd", {"training": [{"image": ENTRY["image"]}]}, r"training\[0\].label must be text"),
        ("msd", {"training": [{**ENTRY, "image": "../../etc/passwd"}]}, "inside the data set"),
        ("msd", {"training": [{**ENTRY, "label": "/etc/passwd"}]}, "inside the data set"),
        ("msd", {"training": [{**ENTRY, "label": "a/../../x.nii"}]}, "inside the data set"),
        ("msd", {"training": [{**ENTRY, "label": "."}]}, "inside the data set"),
        ("msd", {"training": [{**ENTRY, "label": "a\0b"}]}, "printable"),
        ("msd", {"training": [{**ENTRY, "label": "\ud800"}]}, "printable"),
        ("msd", {"training": [{**ENTRY, "label": "a" * 300}]}, "255 bytes"),
        ("msd", {"training": [ENTRY, ENTRY]}, "declared once"),
        ("msd", {"labels": []}, "labels must be an object"),
        ("msd", {"labels": {"0": "background"}}, "more than the background"),
        ("msd", {"labels": {"0": "background", "-1": "x"}}, "label value must be 0 to 65535"),
        ("msd", {"labels": {"0": "background", "9" * 50: "x"}}, "label value must be"),
        ("msd", {"labels": {"0": "background", "1": "a", "01": "b"}}, "declared once"),
        ("msd", {"modality": {"1": "T1"}}, "channel numbers must be 0 to 0"),
        ("msd", {"modality": "T1"}, "channels must be an object"),
        ("msd", {"modality": {"0": 3}}, "name of channel 0 must be text"),
        ("msd", {"name": [1]}, "name must be text"),
        ("nnunet", {"labels": {"background": 0, "whole": [1, 2]}}, "not a region of several"),
        ("nnunet", {"labels": {"background": 0, "a": 2, "ignore": 1}}, "the highest value, 2"),
        ("nnunet", {"labels": {"background": 0, "ignore": 1}}, "more than the background"),
        ("nnunet", {"labels": {"background": 0, "a": 1.5}}, "label value must be"),
        ("nnunet", {"labels": {"background": 0, "a": True}}, "label value must be"),
        ("nnunet", {"file_ending": ".png"}, "file_ending must be one of"),
        ("nnunet", {"file_ending": None}, "file_ending must be text"),
        ("nnunet", {"channel_names": None}, "channels must be an object"),
        ("nnunet", {"dataset": {"../x": {"images": ["a.nii"], "label": "b.nii"}}}, "file name"),
        ("nnunet", {"dataset": {"x": {"images": ["../a.nii"], "label": "b.nii"}}}, "inside"),
        ("nnunet", {"dataset": {"x": 3}}, "images and label"),
        ("monai", {"training": [{"image": []}]}, "at least one entry"),
        ("monai", {"training": [{"image": ["../x.nii"]}]}, "inside"),
        ("monai", {"training": [{"label": "x.nii"}]}, "image must be text"),
        ("monai", {"training": [{"image": "a.nii", "label": 3}]}, "label must be text"),
        ("monai", {"training": [3]}, "must be an object"),
    ],
)
def test_impossible_declarations_are_refused(tmp_path, name, changes, message):
    root = MAKERS[name](tmp_path)
    edit(root, **changes)
    with pytest.raises(LayoutError, match=message) as refusal:
        open_dataset(root)
    assert str(next(root.glob("data*.json"))) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_broken_json_and_no_layout(tmp_path):
    root = make_msd(tmp_path / "a")
    for content in ("{", "[" * 100_000, "\xff", "[1]", '{"training": 1' + "0" * 10_000 + "}"):
        (root / "dataset.json").write_bytes(content.encode("latin-1"))
        with pytest.raises((FormatError, LayoutError), match=r"dataset\.json"):
            open_dataset(root)
    for nothing in (tmp_path / "none", tmp_path / ("x" * 300), tmp_path / "a\0"):
        with pytest.raises(LayoutError):
            open_dataset(nothing)
    with pytest.raises(LayoutError, match="one of nnunet"):
        open_dataset(root, layout="dicom")
    with pytest.raises(LayoutError, match="images/"):
        (tmp_path / "empty").mkdir()
        open_dataset(tmp_path / "empty")


def test_several_labels_of_one_case(tmp_path):
    image(tmp_path / "p.nii.gz", 0)
    for name in ("p_seg_a", "p_seg_b"):
        label(tmp_path / f"{name}.nii.gz", 0)
    with pytest.raises(LayoutError, match="label of p must be one file"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(("folder", "name"), [("images", "c0"), ("", "c1"), ("", "c0_label")])
def test_a_file_twice_is_refused_by_name(tmp_path, folder, name):
    """c0.nii and c0.nii.gz are no two channels, and neither is known to be the right one."""
    image(tmp_path / folder / "c0.nii", 0)
    image(tmp_path / folder / "c0.nii.gz", 1)
    label(tmp_path / ("labels" if folder else "") / f"{name}.nii.gz", 0)
    with pytest.raises(LayoutError, match=r"c0 must be one file, got c0\.nii, c0\.nii\.gz"):
        open_dataset(tmp_path)
    with pytest.raises(LayoutError, match=r"c0\.nii, c0\.nii\.gz"):
        list_images(tmp_path)


def test_two_datalists_must_be_named(tmp_path):
    root = make_monai(tmp_path)
    write_json(root / "other.json", {"training": [{"image": "p0/t0.nii.gz"}]})
    with pytest.raises(LayoutError, match="name the JSON file"):
        open_dataset(root)
    assert len(open_dataset(root / "other.json").cases) == 1
    assert len(open_dataset(root / "datalist.json").cases) == 4


def test_monai_reads_the_same_datalist(tmp_path):
    load = pytest.importorskip("monai.data").load_decathlon_datalist
    root = make_monai(tmp_path)
    theirs = load(str(root / "datalist.json"), is_segmentation=True, base_dir=str(root))
    ours = open_dataset(root).cases
    assert [(str(case.images[0]), str(case.label)) for case in ours] == [
        (entry["image"], entry["label"]) for entry in theirs
    ]
