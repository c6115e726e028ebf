"""Evaluation of folders: numbers of known cases, refusals that name theirs, files as promised."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from qinjing.config import write_json
from qinjing.data.nifti import write_nifti
from qinjing.errors import ConfigError, FormatError, InputError, LayoutError
from qinjing.metrics.surface import hd95_mm, nsd, surface_distances
from qinjing.tasks.evaluate import evaluate, evaluate_files, pool_tables
from qinjing.volume import Volume

SPACING = (2.0, 1.0, 0.5)
AFFINE = np.array(
    [[0, 0, 0.5, 3.0], [0, 1.0, 0, -4.0], [2.0, 0, 0, 5.0], [0, 0, 0, 1]], dtype=np.float64
)


def write(path, voxels, affine=AFFINE, dtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, Volume(voxels, affine), dtype)


def truth(seed):
    rng = np.random.default_rng(seed)
    voxels = np.zeros((10, 20, 24), np.uint8)
    d, h, w = rng.integers(2, 4, 3)
    voxels[d : d + 4, h : h + 8, w : w + rng.integers(5, 12)] = 1
    voxels[d + 1 : d + 4, h + 9 : h + 14, w : w + 8] = 2
    return voxels


@pytest.fixture
def folders(tmp_path):
    """Five references; predictions moved by one voxel along W."""
    for number in range(5):
        voxels = truth(number)
        write(tmp_path / "labels" / f"case_{number}.nii.gz", voxels)
        write(tmp_path / "predictions" / f"case_{number}.nii.gz", np.roll(voxels, 1, 2))
    return tmp_path / "predictions", tmp_path / "labels"


def test_numbers_are_those_of_the_arrays(folders):
    metrics = evaluate(*folders, tolerance_mm=0.5)
    assert [case["case_id"] for case in metrics["cases"]] == [f"case_{n}" for n in range(5)]
    assert metrics["refused"] == [] and metrics["labels"] == {"1": "label 1", "2": "label 2"}
    for number, case in enumerate(metrics["cases"]):
        reference, prediction = truth(number), np.roll(truth(number), 1, 2)
        distances = surface_distances(prediction, reference, (1, 2), SPACING)
        for label in (1, 2):
            row, p, r = case["labels"][str(label)], prediction == label, reference == label
            assert row["dice"] == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()))
            assert row["hd95_mm"] == pytest.approx(hd95_mm(distances[label])) and row["hd95_mm"] > 0
            assert row["nsd"] == pytest.approx(nsd(distances[label], 0.5))
            assert row["volume_ml"] == pytest.approx(p.sum() * 0.001)  # 2 × 1 × 0.5 mm³
            assert row["volume_error_ml"] == pytest.approx(0) and row["betti_error"] == 0
            assert row["empty"] is None
            assert sum(row["voxels"].values()) == reference.size
    dice = [case["labels"]["1"]["dice"] for case in metrics["cases"]]
    mean = metrics["mean"]["1"]["dice"]
    assert mean["mean"] == pytest.approx(np.mean(dice)) and mean["n"] == 5
    assert mean["low"] <= mean["mean"] <= mean["high"]
    both = [metrics["mean"][label]["dice"]["mean"] for label in ("1", "2")]
    assert metrics["mean"]["foreground"]["dice"]["mean"] == pytest.approx(np.mean(both))
    worst = [case["dice"] for case in metrics["worst"]]
    assert worst == sorted(worst) and len(worst) == 5


def test_every_fault_is_named_and_the_rest_goes_on(folders):
    predictions, labels = folders
    write(predictions / "case_0.nii.gz", np.zeros((10, 20, 23), np.uint8))
    moved = AFFINE.copy()
    moved[0, 3] += 1
    write(predictions / "case_1.nii.gz", truth(1), moved)
    write(predictions / "case_2.nii.gz", truth(2) * 7)
    (predictions / "case_3.nii.gz").unlink()
    write(predictions / "extra.nii.gz", truth(0))
    for name in ("torn", "half", "nan", "four"):
        write(labels / f"{name}.nii.gz", truth(9))
    (predictions / "torn.nii.gz").write_bytes((labels / "torn.nii.gz").read_bytes()[:200])
    write(predictions / "half.nii.gz", truth(9) + 0.5, dtype=np.float32)
    write(predictions / "nan.nii.gz", np.full((10, 20, 24), np.nan, np.float32))
    write(predictions / "four.nii.gz", np.stack([truth(9)] * 2))
    metrics = evaluate(predictions, labels, labels={1: "liver", 2: "spleen"})
    assert [case["case_id"] for case in metrics["cases"]] == ["case_4"]
    reasons = {entry["case_id"]: entry["reason"] for entry in metrics["refused"]}
    assert "grid" in reasons["case_0"] and "(10, 20, 23)" in reasons["case_0"]
    assert "grid" in reasons["case_1"] and "1 mm" in reasons["case_1"]
    assert "labels must be 0 or among [1, 2], got 7, 14" in reasons["case_2"]
    assert metrics["unpredicted"] == ["case_3"]
    asked = evaluate(predictions, labels, labels={1: "liver", 2: "spleen"}, cases=["case_3"])
    assert "prediction must be there" in asked["refused"][0]["reason"]
    assert "reference must be there" in reasons["extra"]
    assert "torn.nii.gz" in reasons["torn"]
    assert "whole numbers" in reasons["half"] and "whole numbers" in reasons["nan"]
    assert "3-D" in reasons["four"]
    assert len(reasons) == 8


def test_two_files_of_one_case_are_refused_by_name(folders):
    predictions, labels = folders
    write(predictions / "case_1.nii", truth(1))
    write(labels / "case_3.nii", truth(3))
    write(labels / "case_4.nii", truth(4))
    (predictions / "case_4.nii.gz").unlink()
    metrics = evaluate(predictions, labels)
    assert [case["case_id"] for case in metrics["cases"]] == ["case_0", "case_2"]
    first, second = metrics["refused"]
    assert first["case_id"] == "case_1" and second["case_id"] == "case_3"
    assert "prediction must be one file, got case_1.nii, case_1.nii.gz" in first["reason"]
    assert "reference must be one file, got case_3.nii, case_3.nii.gz" in second["reason"]
    assert metrics["unpredicted"] == ["case_4"]


def test_empty_labels_are_null_and_counted(tmp_path):
    empty, full = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
    full[1:3, 1:4, 1:4] = 1
    for name, prediction, reference in (
        ("both", empty, empty), ("missed", empty, full), ("invented", full, empty),
        ("right", full, full),
    ):  # fmt: skip
        write(tmp_path / "p" / f"{name}.nii.gz", prediction)
        write(tmp_path / "r" / f"{name}.nii.gz", reference)
    metrics = evaluate_files(tmp_path / "p", tmp_path / "r", tmp_path / "out" / "metrics.json")
    rows = {case["case_id"]: case["labels"]["1"] for case in metrics["cases"]}
    assert (rows["both"]["dice"], rows["both"]["hd95_mm"], rows["both"]["nsd"]) == (None,) * 3
    for name, side in (("missed", "prediction"), ("invented", "reference")):
        assert (rows[name]["dice"], rows[name]["hd95_mm"], rows[name]["nsd"]) == (0, None, 0)
        assert rows[name]["empty"] == side
    assert rows["both"]["empty"] == "both" and rows["right"]["empty"] is None
    assert rows["invented"]["sensitivity"] is None and rows["missed"]["sensitivity"] == 0
    mean = metrics["mean"]["1"]
    assert mean["dice"]["mean"] == pytest.approx(1 / 3) and mean["dice"]["n"] == 3
    assert (mean["hd95_mm"]["mean"], mean["hd95_mm"]["n"], mean["hd95_mm"]["infinite"]) == (0, 1, 2)
    written = (tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")
    assert "NaN" not in written and "Infinity" not in written
    assert json.loads(written) == json.loads(json.dumps(metrics))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.json", "summary.json"]


def test_summary_has_nnunets_form(folders, tmp_path):
    metrics = evaluate_files(*folders, tmp_path / "ours.json")
    summary = json.loads((tmp_path / "ours_summary.json").read_text(encoding="utf-8"))
    assert list(summary) == ["foreground_mean", "mean", "metric_per_case"]
    assert set(summary["foreground_mean"]) == {
        "Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref"}  # fmt: skip
    case = summary["metric_per_case"][0]
    assert set(case) == {"metrics", "prediction_file", "reference_file"}
    assert case["prediction_file"].endswith("predictions/case_0.nii.gz")
    row, reference, prediction = case["metrics"]["2"], truth(0) == 2, np.roll(truth(0), 1, 2) == 2
    assert row["TP"] == (reference & prediction).sum() and row["n_ref"] == reference.sum()
    assert row["FP"] == (prediction & ~reference).sum() and row["n_pred"] == prediction.sum()
    assert row["IoU"] == pytest.approx(
        (reference & prediction).sum() / (reference | prediction).sum()
    )
    dice = [c["metrics"]["2"]["Dice"] for c in summary["metric_per_case"]]
    assert summary["mean"]["2"]["Dice"] == pytest.approx(np.mean(dice))
    assert summary["foreground_mean"]["Dice"] == pytest.approx(
        metrics["mean"]["foreground"]["dice"]["mean"]
    )


def test_confidence_gives_the_calibration_error(folders):
    predictions, labels = folders
    for number in range(5):
        voxels = np.full((10, 20, 24), 255, np.uint8)
        write(predictions / "confidence" / f"case_{number}.nii.gz", voxels)
    metrics = evaluate(predictions, labels)
    for number, case in enumerate(metrics["cases"]):
        # always sure: the error is the share of wrong voxels near the foregrounds
        right = truth(number) == np.roll(truth(number), 1, 2)
        region = np.zeros(right.shape, bool)
        for d, h, w in np.argwhere((truth(number) != 0) | (np.roll(truth(number), 1, 2) != 0)):
            region[max(d - 2, 0) : d + 3, max(h - 5, 0) : h + 6, max(w - 10, 0) : w + 11] = True
        assert case["ece"] == pytest.approx(1 - right[region].mean())
    assert metrics["mean"]["foreground"]["ece"]["n"] == 5
    write(predictions / "confidence" / "case_2.nii.gz", np.full((3, 3, 3), 255, np.uint8))
    metrics = evaluate(predictions, labels)
    assert len(metrics["cases"]) == 5 and metrics["cases"][2]["ece"] is None
    assert metrics["refused"][0]["case_id"] == "case_2"
    assert "ECE not measured: confidence must be" in metrics["refused"][0]["reason"]


def test_a_volume_stored_backwards_is_the_same_volume(folders):
    predictions, labels = folders
    expected = evaluate(predictions, labels)["cases"][0]["labels"]
    flipped = Volume(np.roll(truth(0), 1, 2)[:, ::-1], AFFINE.copy())
    affine = AFFINE.copy()
    affine[:3, 3] += affine[:3, 1] * 19
    affine[:3, 1] *= -1
    write(predictions / "case_0.nii.gz", np.ascontiguousarray(flipped.voxels), affine)
    assert evaluate(predictions, labels)["cases"][0]["labels"] == expected


def test_distances_are_right_under_shear(tmp_path):
    """Slices 5 mm apart, each 4 mm further along H: two slices up is 10 mm up and 8 mm aside."""
    affine = np.array([[0, 0, 1.0, 0], [4.0, 1.0, 0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    reference, prediction = np.zeros((2, 6, 30, 6), np.uint8)
    reference[1, 12, 3] = prediction[3, 12, 3] = 1
    write(tmp_path / "r" / "a.nii.gz", reference, affine)
    write(tmp_path / "p" / "a.nii.gz", prediction, affine)
    prediction = np.zeros_like(reference)
    prediction[2, 8, 3] = 1  # one slice up and four voxels back: straight above
    write(tmp_path / "r" / "b.nii.gz", reference, affine)
    write(tmp_path / "p" / "b.nii.gz", prediction, affine)
    first, second = evaluate(tmp_path / "p", tmp_path / "r")["cases"]
    assert first["labels"]["1"]["hd95_mm"] == pytest.approx(np.hypot(10, 8))
    assert second["labels"]["1"]["hd95_mm"] == pytest.approx(5)
    assert second["labels"]["1"]["assd_mm"] == pytest.approx(5)
    assert second["labels"]["1"]["volume_ml"] == pytest.approx(0.005)
    near = evaluate(tmp_path / "p", tmp_path / "r", tolerance_mm=5)["cases"]
    assert [case["labels"]["1"]["nsd"] for case in near] == [0, 1]


def dataset(root, predictions, ids):
    """An MSD data set with two scans for each patient name in the ids."""
    for number, name in enumerate(ids):
        write(root / "imagesTr" / f"{name}.nii.gz", truth(number).astype(np.int16))
        write(root / "labelsTr" / f"{name}.nii.gz", truth(number))
        write(predictions / f"{name}.nii.gz", truth(number))
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ids]
    write_json(root / "dataset.json", {
        "name": "Toy", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver",
        "2": "spleen", "3": "kidney"}, "training": training, "test": [],
    })  # fmt: skip


@pytest.mark.parametrize("reference", [".", "labelsTr"])
def test_a_data_set_names_its_labels(tmp_path, reference):
    dataset(tmp_path / "set", tmp_path / "p", ["a_01", "a_02", "b_01"])
    metrics = evaluate(tmp_path / "p", tmp_path / "set" / reference)
    assert metrics["labels"] == {"1": "liver", "2": "spleen", "3": "kidney"}
    assert metrics["refused"] == []
    assert metrics["cases"][0]["labels"]["3"]["dice"] is None
    assert metrics["mean"]["3"]["dice"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert metrics["mean"]["foreground"]["dice"]["mean"] == 1


def test_patients_are_drawn_whole(folders):
    apart = evaluate(*folders)["mean"]["1"]["dice"]
    patients = {f"case_{n}": "one" if n < 3 else "two" for n in range(5)}
    metrics = evaluate(*folders, patients=patients)
    assert metrics["cases"][1]["patient_id"] == "one"
    assert metrics["mean"]["1"]["dice"]["mean"] == pytest.approx(apart["mean"])
    assert metrics["mean"]["1"]["dice"] != apart


def test_a_folds_validation_is_measured_against_its_own_cases(tmp_path):
    validation = tmp_path / "run" / "fold_1" / "validation"
    dataset(tmp_path / "set", validation, ["a", "b", "c", "d"])
    write_json(tmp_path / "run" / "splits_final.json", [
        {"train": ["a", "b"], "val": ["c", "d"]}, {"train": ["c", "d"], "val": ["a", "b"]},
    ])  # fmt: skip
    for name in ("c", "d"):
        (validation / f"{name}.nii.gz").unlink()
    (validation / "b.nii.gz").unlink()
    metrics = evaluate(validation, tmp_path / "set")
    assert [case["case_id"] for case in metrics["cases"]] == ["a"]
    assert [entry["case_id"] for entry in metrics["refused"]] == ["b"]
    write_json(tmp_path / "run" / "splits_final.json", [3])
    with pytest.raises(FormatError, match="splits_final"):
        evaluate(validation, tmp_path / "set")
    chosen = evaluate(validation, tmp_path / "set", cases=["a"])
    assert len(chosen["cases"]) == 1 and chosen["refused"] == []


def test_two_files_are_a_pair(folders):
    predictions, labels = folders
    metrics = evaluate(predictions / "case_0.nii.gz", labels / "case_1.nii.gz")
    assert [case["case_id"] for case in metrics["cases"]] == ["case_0"] and not metrics["refused"]
    single = metrics["mean"]["1"]["dice"]
    assert single["n"] == 1 and single["low"] is None


def test_what_cannot_be_asked(folders, tmp_path):
    predictions, labels = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match="predictions must be"):
        evaluate(tmp_path / "empty", labels)
    with pytest.raises(LayoutError, match="references must be"):
        evaluate(predictions, tmp_path / "empty" / "nowhere")
    for tolerance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="tolerance_mm"):
            evaluate(predictions, labels, tolerance_mm=tolerance)
    output = tmp_path / "metrics.json"
    with pytest.raises(LayoutError):
        evaluate_files(tmp_path / "empty", labels, output)
    assert not output.exists()


def test_a_folder_as_output_is_refused_before_anything_is_measured(folders, tmp_path):
    place = tmp_path / "adir"
    place.mkdir()
    seen = []
    with pytest.raises(ConfigError, match=r"output must be a file.*adir") as caught:
        evaluate_files(*folders, place, progress=lambda *at: seen.append(at))
    assert caught.value.where == str(place) and not seen
    assert not (tmp_path / "adir_summary.json").exists() and not list(place.iterdir())


def test_pooled_tables_are_one_table_of_all_cases(folders):
    predictions, labels = folders
    every = [f"case_{n}" for n in range(5)]
    whole = evaluate(predictions, labels)
    parts = [evaluate(predictions, labels, cases=every[:2]),
             evaluate(predictions, labels, cases=[*every[2:], "none"])]  # fmt: skip
    parts[0]["unpredicted"] = ["case_3", "case_9"]
    pooled = pool_tables(parts)
    for name in ("labels", "tolerance_mm", "conventions", "cases", "mean", "worst"):
        assert pooled[name] == whole[name], name
    assert [one["case_id"] for one in pooled["refused"]] == ["none"]
    assert pooled["unpredicted"] == ["case_9"]


def test_progress_ends_at_the_end(folders):
    seen = []
    evaluate(*folders, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 5) and seen[-1] == (5, 5)


def test_damaged_bytes_never_escape_as_another_error(folders):
    predictions, labels = folders
    good = gzip.decompress((predictions / "case_0.nii.gz").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(rng.integers(1, 6)):
            bad[rng.integers(0, 400)] = rng.integers(0, 256)
        (predictions / "case_0.nii.gz").write_bytes(gzip.compress(bytes(bad), 1))
        metrics = evaluate(predictions, labels, labels={1: "a", 2: "b"}, cases=["case_0"])
        assert len(metrics["cases"]) + len(metrics["refused"]) == 1
        json.dumps(metrics, allow_nan=False)
