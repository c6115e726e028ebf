"""The demo: what it sets apart, what its thresholds are, and the whole road once (slow)."""

from itertools import pairwise

import numpy as np
import pytest

from qinjing.config import read_json, write_json
from qinjing.data.case import Case, Dataset
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import read_nifti, write_nifti
from qinjing.demo import (
    MARKER,
    _claim,
    _link,
    _set_apart,
    _threshold,
    apply_thresholds,
    learn_thresholds,
    run_demo,
    standardise,
)
from qinjing.errors import ConfigError, LayoutError
from qinjing.evidence import verify
from qinjing.physics.phantom import write_dataset
from qinjing.volume import Volume


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return open_dataset(write_dataset(tmp_path_factory.mktemp("phantoms"), cases=10, seed=1))


def overlap(guess: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (guess & truth).sum() / max(1, guess.sum() + truth.sum())


def test_the_interval_is_the_best_of_all_intervals():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (6, 20, 20))
    grey = rng.normal(label * 0.8, 0.7).astype(np.float32)
    for found in learn_thresholds([(grey[:3], label[:3]), (grey[3:], label[3:])], [1, 2]):
        truth = label == found.value
        reached = overlap((grey >= found.low) & (grey < found.high), truth)
        assert reached == pytest.approx(found.dice, abs=1e-9)
        # Every other interval on the same grid of bounds is no better.
        edges = [-np.inf, *np.linspace(-4, 4, 127), np.inf]
        best = max(
            overlap((grey >= low) & (grey < high), truth)
            for i, low in enumerate(edges[::3])
            for high in edges[::3][i + 1 :]
        )
        assert found.dice >= best - 1e-9
        assert found.dice > 0.5


def test_a_structure_that_stands_out_is_found_whole():
    label = np.zeros((8, 16, 16), dtype=int)
    label[2:6, 4:10, 4:10] = 1
    grey = np.where(label == 1, 2.0, -1.0).astype(np.float32)
    thresholds = learn_thresholds([(grey, label)], [1])
    np.testing.assert_array_equal(apply_thresholds(grey, thresholds), label)


def test_standardising_removes_a_scanners_scale():
    rng = np.random.default_rng(1)
    grey = np.where(rng.random((12, 12, 12)) < 0.5, 10.0, rng.normal(600, 50, (12, 12, 12)))
    np.testing.assert_allclose(standardise(grey), standardise(1.175 * grey), atol=1e-4)
    np.testing.assert_array_equal(standardise(np.stack([grey, grey * 0])), standardise(grey))


def test_unseen_cases_are_set_apart_by_patient_and_vendor(phantoms, tmp_path):
    known, unseen, refused = _set_apart(phantoms, tmp_path)
    names = [{case.case_id for case in part.cases} for part in (known, unseen)]
    assert names[0] | names[1] == {case.case_id for case in phantoms.cases}
    assert not names[0] & names[1] and len(names[1]) == 2 and refused == []
    assert {case.group for case in unseen.cases} == {"aurora", "borealis"}
    assert unseen.labels == phantoms.labels
    for case in unseen.cases:
        original = next(c for c in phantoms.cases if c.case_id == case.case_id)
        assert [f.resolve() for f in (*case.images, case.label)] == [
            f.resolve() for f in (*original.images, original.label)
        ]


def test_a_damaged_case_is_refused_and_the_rest_goes_on(tmp_path):
    root = write_dataset(tmp_path / "data", cases=11, seed=2)
    (root / "imagesTr" / "phantom_004.nii.gz").write_bytes(b"no image")
    known, unseen, refused = _set_apart(open_dataset(root), tmp_path / "demo")
    assert [r["case_id"] for r in refused] == ["phantom_004"]
    assert len(known.cases) + len(unseen.cases) == 10


def test_channels_and_patients_survive_linking(tmp_path):
    image = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2.0, 1, 1, 1]))
    cases = []
    for patient in ("p1", "p2"):
        for visit in ("a", "b"):
            files = [tmp_path / "raw" / f"{patient}_{visit}_{c}.nii" for c in ("t1", "t2")]
            for file in files:
                write_nifti(file, image)
            label = tmp_path / "raw" / f"{patient}_{visit}_label.nii"
            write_nifti(label, image.with_voxels((image.voxels > 30).astype(np.uint8)))
            cases.append(Case(f"{patient}_{visit}", patient, tuple(files), label, "east"))
    dataset = Dataset("two", tmp_path, "plain", ("T1", "T2"), {0: "background", 1: "x"},
                      tuple(cases))  # fmt: skip
    linked = _link(dataset, cases, tmp_path / "linked")
    assert [c.patient_id for c in linked.cases] == ["p1", "p1", "p2", "p2"]
    assert linked.channel_names == ("T1", "T2") and linked.labels == dataset.labels
    for ours, theirs in zip(linked.cases, cases, strict=True):
        assert [f.resolve() for f in ours.images] == [f.resolve() for f in theirs.images]
        assert ours.group == "east"


def test_thresholds_give_label_maps_on_the_grid_of_each_scan(phantoms, tmp_path):
    known, unseen, _ = _set_apart(phantoms, tmp_path)
    _threshold(known, unseen, tmp_path / "out")
    for case in unseen.cases:
        found = read_nifti(tmp_path / "out" / f"{case.case_id}.nii.gz")
        truth = read_nifti(case.label)
        assert truth.grid_difference(found) is None
        # Better than nothing for the large organ, and far from good: organs share their greys.
        assert 0.2 < overlap(found.voxels == 1, truth.voxels == 1) < 0.8


def test_another_folder_is_left_alone_and_an_earlier_demo_is_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    with pytest.raises(ConfigError, match="earlier demo"):
        _claim(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    old = tmp_path / "demo"
    write_json(old / MARKER, {})
    (old / "old.txt").write_text("x")
    _claim(old)
    assert not (old / "old.txt").exists() and (old / MARKER).exists()
    _claim(tmp_path / "new")
    assert (tmp_path / "new" / MARKER).exists()


def test_too_few_patients_are_refused(tmp_path):
    root = write_dataset(tmp_path / "data", cases=3)
    with pytest.raises(LayoutError, match="10 labelled patients"):
        run_demo(root, tmp_path / "demo")


@pytest.mark.slow
def test_the_whole_road(tmp_path, monkeypatch):
    monkeypatch.setenv("QINJING_EVIDENCE_KEY", str(tmp_path / "key.pem"))
    result = run_demo(None, tmp_path / "demo", 240, cases=15)
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert result["report"] == str((tmp_path / "demo" / "report.html").resolve())
    assert result["refused"] == [] and result["unseen_cases"] == 3
    assert set(result["dice"]) == {"Qinjing", "small U-Net", "thresholds"}
    assert result["dice"]["Qinjing"] > result["dice"]["thresholds"] + 0.2
    assert read_json(tmp_path / "demo" / MARKER) == result
    checked = verify(tmp_path / "demo")
    assert checked.faults == () and len(checked.statements) == 3
    places = [
        page.index(f'id="{part}"')
        for part in ("results", "comparison", "pictures", "training", "plan")
    ]
    assert all(a < b for a, b in pairwise(places))
