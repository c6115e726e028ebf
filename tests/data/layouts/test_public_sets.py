"""BraTS 2023, LiTS, NIH Pancreas-CT and MSD Pancreas, laid out as they are published, but small."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from qinjing.config import write_json
from qinjing.data.check import check_dataset
from qinjing.data.layouts import LAYOUTS, list_images, open_dataset
from qinjing.data.nifti import write_nifti
from qinjing.data.preprocess import read_pair
from qinjing.data.splits import make_splits
from qinjing.errors import LayoutError
from qinjing.volume import Volume

SHAPE = (4, 6, 8)
# The published BraTS grid is 240 x 240 x 155 at 1 mm, stored to the left, the back and the head.
BRATS_AFFINE = np.array([[0, 0, 1.0, 0], [0, 1, 0, -239], [1, 0, 0, 0], [0, 0, 0, 1]])
CT_AFFINE = np.array([[0, 0, 0.75, -20], [0, 0.75, 0, -30], [2.0, 0, 0, 100], [0, 0, 0, 1]])


def write(path: Path, affine: np.ndarray, seed: int, values: Mapping[int, float] | None = None):
    """An image, or with values a label map that holds each of them."""
    rng = np.random.default_rng(seed)
    if values is None:
        voxels = rng.integers(-1000, 1000, SHAPE).astype(np.int16)
    else:
        voxels = rng.choice(list(values), SHAPE, p=list(values.values())).astype(np.uint8)
    write_nifti(path, Volume(voxels, affine))


def make_scan(folder: Path, scan: str, seed: int, seg: bool = True, end: str = ".nii.gz") -> None:
    for c, channel in enumerate(("t1n", "t1c", "t2w", "t2f")):
        write(folder / scan / f"{scan}-{channel}{end}", BRATS_AFFINE, 10 * seed + c)
    if seg:
        label = {0: 0.4, 1: 0.2, 2: 0.2, 3: 0.2}
        write(folder / scan / f"{scan}-seg{end}", BRATS_AFFINE, seed, label)


TRAINING = "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"
SCANS = ["BraTS-GLI-00000-000", "BraTS-GLI-00002-000", "BraTS-GLI-00008-000", "BraTS-GLI-00008-001"]


@pytest.fixture
def brats(tmp_path):
    for seed, scan in enumerate(SCANS):
        make_scan(tmp_path / TRAINING, scan, seed)
    return tmp_path / TRAINING


def test_brats(brats):
    dataset = open_dataset(brats)
    assert dataset.layout == "brats" and dataset.name == TRAINING
    assert dataset.channel_names == ("t1n", "t1c", "t2w", "t2f") and list(dataset.labels) == [
        0, 1, 2, 3,
    ]  # fmt: skip
    assert [case.case_id for case in dataset.cases] == SCANS
    assert [case.patient_id for case in dataset.cases] == [scan[:15] for scan in SCANS]
    assert {case.group for case in dataset.cases} == {"GLI"}
    assert [f.name[20:] for f in dataset.cases[0].images] == [
        "t1n.nii.gz", "t1c.nii.gz", "t2w.nii.gz", "t2f.nii.gz",
    ]  # fmt: skip
    assert not check_dataset(dataset).faults
    for fold in make_splits(dataset.cases, folds=3):  # both scans of 00008 on one side
        assert len({"BraTS-GLI-00008-000", "BraTS-GLI-00008-001"} & set(fold["val"])) in (0, 2)


def test_brats_from_the_folder_above_with_validation_data(brats):
    above = brats.parent
    validation = above / "ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData"
    make_scan(validation, "BraTS-GLI-00001-000", 7, seg=False, end=".nii")
    (above / "BraTS2023_2017_GLI_Mapping.xlsx").write_bytes(b"")
    cases = {case.case_id: case for case in open_dataset(above).cases}
    assert sorted(cases) == sorted([*SCANS, "BraTS-GLI-00001-000"])
    assert cases["BraTS-GLI-00001-000"].label is None
    assert cases["BraTS-GLI-00000-000"].label is not None
    alone = open_dataset(validation)
    assert not check_dataset(alone).faults  # a set to predict on
    assert [case_id for case_id, _ in list_images(validation)] == ["BraTS-GLI-00001-000"]
    shutil.copytree(brats / SCANS[0], validation / SCANS[0])
    with pytest.raises(LayoutError, match="BraTS-GLI-00000-000 must be in one folder"):
        open_dataset(above)


def test_brats_of_another_year_and_a_missing_channel(brats):
    """Until 2021 the enhancing tumour was 4, and in 2024 4 is the resection cavity."""
    old = {0: 0.4, 1: 0.2, 2: 0.2, 4: 0.2}
    write(brats / SCANS[0] / f"{SCANS[0]}-seg.nii.gz", BRATS_AFFINE, 0, old)
    (brats / SCANS[1] / f"{SCANS[1]}-t2f.nii.gz").unlink()
    found = {f.case_id: f for f in check_dataset(open_dataset(brats)).refused}
    assert found[SCANS[0]].kind == "unknown label" and "got 4" in found[SCANS[0]].message
    assert found[SCANS[1]].kind == "missing file" and len(found) == 2


LITS = {0: 0.5, 1: 0.3, 2: 0.2}


def test_lits_in_one_folder_in_batches_and_apart(tmp_path):
    places = {
        "one": ("", ""), "batches": ("Training Batch {}", "Training Batch {}"),
        "apart": ("scans", "segmentations"),
    }  # fmt: skip
    for name, (volumes, segmentations) in places.items():
        root = tmp_path / name
        for n in (0, 1, 10, 130):
            batch = 1 if n < 28 else 2
            write(root / volumes.format(batch) / f"volume-{n}.nii", CT_AFFINE, n)
            folder = root / segmentations.format(batch)
            write(folder / f"segmentation-{n}.nii", CT_AFFINE, n, LITS)
        dataset = open_dataset(root)
        assert dataset.layout == "lits" and dataset.channel_names == ("CT",)
        assert dataset.labels == {0: "background", 1: "liver", 2: "tumour"}
        assert [c.case_id for c in dataset.cases] == [
            "volume-0", "volume-1", "volume-10", "volume-130",
        ]  # fmt: skip
        for case in dataset.cases:
            assert case.images[0].stem == case.case_id == case.patient_id
            assert case.label.stem == case.case_id.replace("volume", "segmentation")
        assert not check_dataset(dataset).faults


def test_lits_test_data_and_faults(tmp_path):
    write(tmp_path / "test" / "test-volume-0.nii.gz", CT_AFFINE, 0)
    assert [case.label for case in open_dataset(tmp_path / "test").cases] == [None]
    root = tmp_path / "training"
    for n in (0, 1):
        write(root / f"volume-{n}.nii.gz", CT_AFFINE, n)
        write(root / f"segmentation-{n}.nii.gz", CT_AFFINE, n, LITS)
    write(root / "segmentation-2.nii.gz", CT_AFFINE, 2, LITS)
    write(root / "segmentation-1.nii.gz", CT_AFFINE, 1, {0: 0.5, 5: 0.5})
    found = {f.case_id: f.kind for f in check_dataset(open_dataset(root)).refused}
    assert found == {"volume-1": "unknown label", "volume-2": "missing file"}
    write(root / "volume-0.nii", CT_AFFINE, 0)
    with pytest.raises(LayoutError, match="volume-0 must be one file"):
        open_dataset(root)


def test_lits_is_told_apart_from_other_volumes(tmp_path):
    for n in (0, 1):
        write(tmp_path / "images" / f"volume-{n}.nii.gz", CT_AFFINE, n)
        write(tmp_path / "labels" / f"volume-{n}.nii.gz", CT_AFFINE, n, LITS)
    assert open_dataset(tmp_path).layout == "plain"


# Pancreas-CT.


STUDY, SERIES = "11-24-2015-PANCREAS{}-Pancreas-18957", "Pancreas-99667"
LABELS = "TCIA_pancreas_labels-02-05-2017"


def organ(seed: int) -> np.ndarray:
    """A label in canonical order, all on one side, so that any flip shows."""
    label = np.zeros(SHAPE, np.uint8)
    label[0, 1:3, 2 + seed % 3] = 1
    return label


def make_pancreas(root: Path, n: int, study: str = STUDY, series: str = SERIES) -> Path:
    """One patient: the organ is 50 HU brighter than all else, wherever it is stored."""
    pytest.importorskip("pydicom")
    from tests.data.dicom.series import write_series

    number = f"{n:04d}"
    noise = np.random.default_rng(n).integers(900, 1000, SHAPE)
    folder = root / "Pancreas-CT" / f"PANCREAS_{number}" / study.format(number) / series
    write_series(
        folder, (noise + 200 * organ(n)).astype(np.int16), origin=(-20, -30, 100),
        spacing=(2.0, 0.75, 0.75), patient=f"PANCREAS_{number}",
        names=lambda d: f"1-{d + 1:03d}.dcm",
    )  # fmt: skip
    write_nifti(root / LABELS / f"label{number}.nii.gz", Volume(organ(n), CT_AFFINE))
    return folder


@pytest.fixture
def pancreas(tmp_path):
    for n in (1, 2, 3):
        make_pancreas(tmp_path, n)
    for n in (25, 70):  # their scans were taken out in 2020, the labels stayed
        write_nifti(tmp_path / LABELS / f"label{n:04d}.nii.gz", Volume(organ(n), CT_AFFINE))
    (tmp_path / "Pancreas-CT" / "LICENSE").write_text("CC BY 3.0")
    (tmp_path / "metadata.csv").write_text("")
    return tmp_path


def check_organ(dataset) -> None:
    """Exactly the bright voxels are labelled."""
    for case in dataset.cases:
        image, label = read_pair(case)
        np.testing.assert_array_equal(label.voxels == 1, image.voxels[0] > 50)
        assert label.voxels.sum() == 2


def test_nih_pancreas(pancreas):
    dataset = open_dataset(pancreas)
    assert dataset.layout == "nih_pancreas" and dataset.channel_names == ("CT",)
    assert dataset.labels == {0: "background", 1: "pancreas"}
    ids = [f"PANCREAS_000{n}" for n in (1, 2, 3)]
    assert [case.case_id for case in dataset.cases] == ids == [c.patient_id for c in dataset.cases]
    assert dataset.cases[0].images[0].name == SERIES
    assert not check_dataset(dataset).faults
    assert list_images(pancreas) == [(case.case_id, case.images) for case in dataset.cases]
    check_organ(dataset)


def test_nih_pancreas_as_retrievers_lay_it_out(tmp_path):
    """By descriptions, by UIDs, in the manifest's folder, as DOI, and by series UID alone."""
    for n in (1, 2):
        make_pancreas(tmp_path / "uids", n, "1.2.826.0.1.3680043.2.{}", "1.2.826.0.1.3680043.9")
        make_pancreas(tmp_path / "manifest", n)
        make_pancreas(tmp_path / "doi", n)
        folder = make_pancreas(tmp_path / "flat", n)
        folder.rename(tmp_path / "flat" / "Pancreas-CT" / f"1.2.826.0.1.3680043.2.1125.{n}")
        shutil.rmtree(tmp_path / "flat" / "Pancreas-CT" / f"PANCREAS_000{n}")
    manifest = tmp_path / "manifest"
    (manifest / "manifest-1599750808610").mkdir()
    (manifest / "Pancreas-CT").rename(manifest / "manifest-1599750808610" / "Pancreas-CT")
    labels = manifest / LABELS
    labels.rename(manifest / "x")
    labels.mkdir()
    (manifest / "x").rename(labels / LABELS)  # unpacked into a folder of the archive's name
    (tmp_path / "doi" / "Pancreas-CT").rename(tmp_path / "doi" / "DOI")
    for name in ("uids", "manifest", "doi", "flat"):
        dataset = open_dataset(tmp_path / name)
        assert dataset.layout == "nih_pancreas", name
        assert [c.case_id for c in dataset.cases] == ["PANCREAS_0001", "PANCREAS_0002"], name
        assert not check_dataset(dataset).faults, name
        check_organ(dataset)


def turned(affine: np.ndarray, axis: int) -> np.ndarray:
    """The affine after the axis has been turned about, with its voxels."""
    affine = affine.copy()
    affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
    affine[:3, axis] *= -1
    return affine


@pytest.mark.parametrize("axes", [(), (1,), (2,), (0, 1), (1, 2)])
def test_nih_label_in_any_order_that_its_affine_tells(pancreas, axes):
    """As published, as dcm2niix turns the rows about, as nnU-Net's script reorients to RAS."""
    voxels, affine = organ(1), CT_AFFINE
    for axis in axes:
        voxels, affine = np.flip(voxels, axis), turned(affine, axis)
    write_nifti(pancreas / LABELS / "label0001.nii.gz", Volume(voxels, affine))
    dataset = open_dataset(pancreas)
    assert not check_dataset(dataset).faults
    check_organ(dataset)


@pytest.mark.parametrize(
    "affine",
    [
        CT_AFFINE * [[1], [-1], [1], [1]],  # rows said to run to the front
        np.diag([2.0, -0.75, -0.75, 1]) @ np.eye(4)[[2, 1, 0, 3]],  # no place
        CT_AFFINE * [[1, 1, 1, 1], [1, 1, 1, 1], [-1, 1, 1, 1], [1, 1, 1, 1]],  # head first
        CT_AFFINE @ np.diag([0.5, 1, 1, 1]),  # slices of 1 mm
    ],
    ids=["rows", "place", "slices", "spacing"],
)
def test_nih_label_elsewhere_is_refused(pancreas, affine):
    write_nifti(pancreas / LABELS / "label0001.nii.gz", Volume(organ(1), affine))
    result = check_dataset(open_dataset(pancreas))
    (fault,) = result.refused
    assert (fault.case_id, fault.kind) == ("PANCREAS_0001", "affine mismatch")
    assert [case.case_id for case in result.good] == ["PANCREAS_0002", "PANCREAS_0003"]


def test_nih_faults_are_named_one_by_one(pancreas):
    scans = pancreas / "Pancreas-CT"
    next(scans.glob("PANCREAS_0001/*/*/1-002.dcm")).unlink()
    next(scans.glob("PANCREAS_0002/*/*/1-002.dcm")).write_bytes(b"damaged")
    write_nifti(pancreas / LABELS / "label0004.nii.gz", Volume(organ(4), CT_AFFINE))
    write_nifti(pancreas / LABELS / "label0003.nii.gz", Volume(2 * organ(3), CT_AFFINE))
    found = {f.case_id: f for f in check_dataset(open_dataset(pancreas)).refused}
    assert "gaps of 2 to 4 mm" in found["PANCREAS_0001"].message
    assert "1-002.dcm" in found["PANCREAS_0002"].message
    assert found["PANCREAS_0003"].kind == "unknown label"
    assert found["PANCREAS_0004"].kind == "missing file"


def test_nih_older_copies_and_two_series(pancreas):
    make_pancreas(pancreas, 25)
    cases = {case.case_id: case for case in open_dataset(pancreas).cases}
    assert cases["PANCREAS_0025"].patient_id == "PANCREAS_0002" and "PANCREAS_0070" not in cases
    make_pancreas(pancreas, 3, series="Pancreas-1")
    with pytest.raises(LayoutError, match="PANCREAS_0003 must be one series"):
        open_dataset(pancreas)


def test_nih_scans_without_labels(pancreas):
    shutil.rmtree(pancreas / LABELS)
    for root in (pancreas, pancreas / "Pancreas-CT"):
        dataset = open_dataset(root)
        assert dataset.layout == "nih_pancreas" and not check_dataset(dataset).faults
        assert [case.label for case in dataset.cases] == [None] * 3


def test_a_series_folder_is_an_image_elsewhere_too(pancreas):
    """To predict on by itself, and in a MONAI datalist beside its label."""
    series = open_dataset(pancreas).cases[0].images[0]
    assert list_images(series) == [(SERIES, (series,))]
    entry = {
        "image": series.relative_to(pancreas).as_posix(), "label": f"{LABELS}/label0001.nii.gz",
    }  # fmt: skip
    write_json(pancreas / "datalist.json", {"training": [entry]})
    dataset = open_dataset(pancreas / "datalist.json")
    assert not check_dataset(dataset).faults
    check_organ(dataset)


def test_cache_follows_the_files_of_a_series(pancreas):
    from qinjing.data.cache import _key
    from qinjing.data.preprocess import Preprocessing

    case = open_dataset(pancreas).cases[0]
    plain = Preprocessing.__new__(Preprocessing)
    before = _key(case, plain)
    assert _key(case, plain) == before
    file = case.images[0] / "1-001.dcm"
    file.write_bytes(file.read_bytes() + b"\0\0")
    assert _key(case, plain) != before


def test_msd_pancreas(tmp_path):
    training = []
    for n in (1, 4, 290):
        write(tmp_path / f"imagesTr/pancreas_{n:03d}.nii.gz", CT_AFFINE, n)
        write(tmp_path / f"labelsTr/pancreas_{n:03d}.nii.gz", CT_AFFINE, n, LITS)
        (tmp_path / f"imagesTr/._pancreas_{n:03d}.nii.gz").write_bytes(b"mac")
        training.append({
            "image": f"./imagesTr/pancreas_{n:03d}.nii.gz",
            "label": f"./labelsTr/pancreas_{n:03d}.nii.gz",
        })  # fmt: skip
    write(tmp_path / "imagesTs/pancreas_002.nii.gz", CT_AFFINE, 2)
    content = {
        "name": "Pancreas", "description": "Pancreas and cancer segmentation",
        "reference": "Memorial Sloan Kettering Cancer Center ", "licence": "CC-BY-SA 4.0",
        "release": "1.0 04/05/2018", "tensorImageSize": "3D", "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
        "numTraining": 3, "numTest": 1, "training": training,
        "test": ["./imagesTs/pancreas_002.nii.gz"],
    }  # fmt: skip
    write_json(tmp_path / "dataset.json", content)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.name, dataset.licence) == ("msd", "Pancreas", "CC-BY-SA 4.0")
    assert dataset.labels == {0: "background", 1: "pancreas", 2: "cancer"}
    assert [c.case_id for c in dataset.cases] == ["pancreas_001", "pancreas_004", "pancreas_290"]
    assert dataset.channel_names == ("CT",) and not check_dataset(dataset).faults


def test_no_layout_takes_what_is_another_s(brats, tmp_path):
    write(tmp_path / "lits/volume-0.nii", CT_AFFINE, 0)
    write(tmp_path / "lits/segmentation-0.nii", CT_AFFINE, 0, LITS)
    (tmp_path / "nih" / "Pancreas-CT" / "PANCREAS_0001").mkdir(parents=True)
    for folder, owner in ((brats, "brats"), ("lits", "lits"), ("nih", "nih_pancreas")):
        takers = [n for n, layout in LAYOUTS.items() if layout.recognise(tmp_path / folder)]
        assert takers[0] == owner and set(takers) <= {owner, "plain"}


def test_nih_slices_may_end_in_capitals(pancreas: Path) -> None:
    for file in sorted((pancreas / "Pancreas-CT").rglob("*.dcm")):
        file.rename(file.with_suffix(".DCM"))
    assert len(check_dataset(open_dataset(pancreas)).good) == 3
