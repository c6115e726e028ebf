"""The main road on a small set: refusals, folds, resuming, ensembles, evidence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from qinjing import evidence
from qinjing.config import read_config, read_json, write_json
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import read_nifti, write_nifti
from qinjing.engine.checkpoint import ModelCard
from qinjing.engine.device import Execution
from qinjing.engine.plan import Plan, make_plan, with_steps
from qinjing.errors import ConfigError, EvidenceError, FormatError, LayoutError
from qinjing.tasks.planning import Overrides, measure, plan_dataset
from qinjing.tasks.predict import predict_folder
from qinjing.tasks.segment import all_flips, window_for
from qinjing.tasks.train import TrainConfig, train
from qinjing.volume import Volume

# Sagittal voxels, so that canonical order differs from the file's; labels that are not 0, 1, 2.
AFFINE = np.array([[0, 0, -1.5, 40], [0, -1, 0, 30], [-1, 0, 0, 20], [0, 0, 0, 1.0]])


def write_case(folder: Path, name: str, seed: int, *, broken: bool = False) -> None:
    rng = np.random.default_rng(seed)
    d, h, w = np.ogrid[:16, :20, :12]
    centre = rng.uniform(6, 10, 3)
    far = (d - centre[0]) ** 2 + (h - centre[1]) ** 2 + (w - centre[2]) ** 2
    label = np.where(far < 9, 5, np.where(far < 25, 2, 0)).astype(np.uint8)
    image = 200 * (label > 0) + 150 * (label == 5) + rng.normal(0, 20, label.shape)
    image = image.astype(np.int16)
    if broken:
        image = np.full_like(image, 3)
    write_nifti(folder / "images" / f"{name}.nii.gz", Volume(image, AFFINE))
    write_nifti(folder / "labels" / f"{name}.nii.gz", Volume(label, AFFINE))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for number in range(6):
        write_case(folder, f"case{number}", number)
    write_case(folder, "flat", 9, broken=True)
    return folder


@pytest.fixture(scope="module")
def plan(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    opened = open_dataset(dataset)
    cases = [case for case in opened.cases if case.case_id != "flat"]
    made = make_plan(measure(opened, cases), device="cpu", threads=1)
    options = {**made.model.options, "widths": [8, 16, 16][: len(made.model.options["widths"])]}
    made = replace(made, model=ModelCard(made.model.net, options), augmentation=())
    made = with_steps(replace(made, batch_size=2), 120, None, 2)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    write_json(path, made)
    return path


@pytest.fixture(scope="module")
def run(dataset: Path, plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "run"
    train(TrainConfig(dataset, output, fold="all", plan=plan))
    return output


def test_every_fold_is_trained_measured_and_recorded(run: Path) -> None:
    splits = read_json(run / "splits_final.json")
    held_out = [case for split in splits for case in split["val"]]
    assert sorted(held_out) == [f"case{number}" for number in range(6)]  # "flat" was refused
    for fold, split in enumerate(splits):
        metrics = read_json(run / f"fold_{fold}" / "metrics.json")
        assert [case["case_id"] for case in metrics["cases"]] == sorted(split["val"])
        assert metrics["refused"] == []
        assert (run / f"fold_{fold}" / "summary.json").exists()
    dice = [read_json(run / f"fold_{f}" / "result.json")["dice"] for f in range(len(splits))]
    assert np.mean(dice) > 0.7
    pooled = read_json(run / "metrics.json")
    assert [len(pooled["cases"]), pooled["mean"]["2"]["dice"]["n"]] == [6, 6]
    every = [case["labels"][value]["dice"] for value in "25" for case in pooled["cases"]]
    assert pooled["mean"]["foreground"]["dice"]["mean"] == pytest.approx(np.mean(every))
    assert 0.1 < read_json(run / "measured.json")["predicting_memory_gib"] < 1.0
    assert not (run / "cache").exists()  # no second copy of patients' images
    assert not evidence.verify(run).faults


def test_refused_cases_are_listed(dataset: Path, plan: Path, tmp_path: Path) -> None:
    quick = tmp_path / "plan.json"
    write_json(quick, with_steps(read_config(plan, Plan), 2, None, 1))
    result = train(TrainConfig(dataset, tmp_path / "run", plan=quick))
    assert [one["case_id"] for one in result["refused"]] == ["flat"]
    assert "more than one value" in result["refused"][0]["reason"]
    with pytest.raises(ConfigError, match="--resume"):
        train(TrainConfig(dataset, tmp_path / "run", plan=quick))
    with pytest.raises(ConfigError, match="first command"):
        train(TrainConfig(dataset, tmp_path / "run", plan=quick, seed=5, resume=True))
    with pytest.raises(ConfigError, match="fold"):
        train(TrainConfig(dataset, tmp_path / "other", plan=quick, fold=9))
    again = train(TrainConfig(dataset, tmp_path / "run", plan=quick, resume=True))
    assert again["folds"] == result["folds"]
    (tmp_path / "run" / ".partial-7-plan.json").touch()  # as a killed process leaves it
    (tmp_path / "run" / "fold_0" / "result.json").unlink()
    once_more = train(TrainConfig(dataset, tmp_path / "run", plan=quick, resume=True))
    assert once_more["dice"] == result["dice"]
    assert not list((tmp_path / "run").rglob(".partial-*"))


def test_a_data_set_changed_during_training_is_not_signed(
    dataset: Path, plan: Path, tmp_path: Path
) -> None:
    data, output, quick = tmp_path / "data", tmp_path / "run", tmp_path / "plan.json"
    shutil.copytree(dataset, data)
    write_json(quick, with_steps(read_config(plan, Plan), 2, None, 1))
    victim = data / "labels" / "case1.nii.gz"
    whole = victim.read_bytes()

    def change(kind: str, fields: dict[str, Any]) -> None:
        if kind == "prepared":  # after the cases were read, before the first step
            victim.write_bytes((data / "labels" / "case2.nii.gz").read_bytes())

    config = TrainConfig(data, output, plan=quick)
    with pytest.raises(EvidenceError, match=r"another labels/case1\.nii\.gz"):
        train(config, change)
    assert (output / "fold_0" / "weights.safetensors").exists()
    assert not (output / "evidence.jsonl").exists()
    with pytest.raises(ConfigError, match="as it was when the run started"):
        train(replace(config, resume=True))
    victim.write_bytes(whole)
    train(replace(config, resume=True))
    assert not evidence.verify(output, sources=[data]).faults


def test_same_seed_same_bits_other_seed_other_bits(
    dataset: Path, plan: Path, tmp_path: Path
) -> None:
    quick = tmp_path / "plan.json"
    write_json(quick, with_steps(read_config(plan, Plan), 3, None, 1))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(TrainConfig(dataset, tmp_path / name, plan=quick, seed=seed))
    a, b, c = ((tmp_path / name / "fold_0" / "weights.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_predictions_lie_on_the_inputs_grid_with_declared_values(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    source = dataset / "images" / "case0.nii.gz"
    for number, model in enumerate((run, run / "fold_0")):  # an ensemble, and one fold
        output = tmp_path / str(number)
        result = predict_folder(model, source, output, confidence=True, largest=True)
        assert result["refused"] == []
        image, label = read_nifti(source), read_nifti(output / "case0.nii.gz")
        assert image.grid_difference(label, 1e-6) is None
        assert set(np.unique(label.voxels)) <= {0, 2, 5}
        truth = read_nifti(dataset / "labels" / "case0.nii.gz").voxels
        for value in (2, 5):
            ours = label.voxels == value
            dice = 2 * (ours & (truth == value)).sum() / (ours.sum() + (truth == value).sum())
            assert dice > 0.6
        sure = read_nifti(output / "confidence" / "case0.nii.gz")
        assert sure.voxels.dtype == np.uint8 and sure.voxels.min() > 255 // 4


def test_models_given_one_by_one_are_averaged_as_a_runs_folds_are(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    source = dataset / "images" / "case0.nii.gz"
    folds = sorted(path.parent for path in run.glob("fold_*/weights.safetensors"))
    assert len(folds) > 1
    for name, model in (("run", run), ("folds", folds), ("first", folds[0])):
        predict_folder(model, source, tmp_path / name, confidence=True)
    sure = {
        name: read_nifti(tmp_path / name / "confidence" / "case0.nii.gz").voxels
        for name in ("run", "folds", "first")
    }
    assert np.array_equal(sure["run"], sure["folds"])
    assert not np.array_equal(sure["run"], sure["first"])

    other = tmp_path / "other"
    shutil.copytree(run / "fold_0", other / "fold_0")
    made = read_json(run / "plan.json")
    made["preprocessing"]["spacing_mm"] = [3.0, 3.0, 3.0]
    write_json(other / "plan.json", made)
    with pytest.raises(ConfigError, match="models' preprocessing must be alike"):
        predict_folder([run, other], source, tmp_path / "out")


def test_a_bad_scan_is_refused_and_the_rest_goes_on(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    good = (dataset / "images" / "case1.nii.gz").read_bytes()
    (source / "good.nii.gz").write_bytes(good)
    (source / "cut.nii.gz").write_bytes(good[: len(good) // 2])
    write_nifti(source / "nan.nii.gz", Volume(np.full((9, 9, 9), np.nan, np.float32), AFFINE))
    result = predict_folder(run / "fold_0", source, tmp_path / "out")
    assert [Path(path).name for path in result["outputs"]] == ["good.nii.gz"]
    assert [one["case_id"] for one in result["refused"]] == ["cut", "nan"]
    assert "finite, got 729" in result["refused"][1]["reason"]
    (source / "nan.nii.gz").unlink()
    with pytest.raises(FormatError, match="qinjing train"):
        predict_folder(tmp_path, source, tmp_path / "out")
    with pytest.raises(ConfigError, match="no scan would be replaced"):
        predict_folder(run / "fold_0", source, source)
    assert (source / "good.nii.gz").read_bytes() == good
    with pytest.raises(ConfigError, match="a folder, got a file"):
        predict_folder(run / "fold_0", source, source / "good.nii.gz")
    with pytest.raises(ConfigError, match="mirrored"):
        predict_folder(run / "fold_0", source, tmp_path / "out", flips=True)


def test_what_lies_apart_is_dropped_where_the_plan_says_one_piece(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    image = read_nifti(dataset / "images" / "case2.nii.gz")
    label = read_nifti(dataset / "labels" / "case2.nii.gz").voxels > 0
    grown = np.pad(image.voxels, ((0, 0), (0, 24), (0, 0)))
    box = tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(label))
    grown[:, 26:, :][: label[box].shape[0], : label[box].shape[1], : label[box].shape[2]] = (
        image.voxels[box]
    )
    scan = tmp_path / "twice.nii.gz"
    write_nifti(scan, Volume(grown, image.affine))
    found = {}
    for one_piece in (False, True):
        model = tmp_path / str(one_piece)
        shutil.copytree(run, model)
        plan = replace(read_config(model / "plan.json", Plan), one_piece=one_piece)
        write_json(model / "plan.json", plan)
        predict_folder(model / "fold_0", scan, tmp_path / "out")
        found[one_piece] = read_nifti(tmp_path / "out" / "twice.nii.gz").voxels
    pieces = {
        one: ndimage.label(voxels > 0, np.ones((3, 3, 3)))[1] for one, voxels in found.items()
    }
    assert pieces[True] == 1 < pieces[False]  # a copy of the organ is an organ to the network
    assert np.array_equal(found[True][found[True] > 0], found[False][found[True] > 0])


def test_a_model_trained_on_another_device_runs_here(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(run, model)
    plan = read_config(model / "plan.json", Plan)
    device = "cpu" if torch.cuda.is_available() else "cuda"
    write_json(model / "plan.json", replace(plan, execution=Execution(device)))
    scan = dataset / "images" / "case0.nii.gz"
    assert predict_folder(model, scan, tmp_path / "out")["outputs"]
    with pytest.raises(ConfigError, match="plan anew"):
        train(TrainConfig(dataset, tmp_path / "run", plan=model / "plan.json"))


def test_options_that_contradict_a_plan_are_refused(
    dataset: Path, plan: Path, tmp_path: Path
) -> None:
    made = read_config(plan, Plan)
    with pytest.raises(ConfigError, match="given alone, got net, loss"):
        overrides = Overrides(net="unet", loss="dice")
        train(TrainConfig(dataset, tmp_path / "run", plan=plan, overrides=overrides))
    with pytest.raises(ConfigError, match="one at a time"):
        train(TrainConfig(dataset, tmp_path / "run", budget_s=60, overrides=Overrides(steps=3)))
    other = tmp_path / "other.json"
    write_json(other, replace(made, label_values=(0, 2)))
    with pytest.raises(ConfigError, match="labels must be those of the data set"):
        train(TrainConfig(dataset, tmp_path / "run", plan=other))
    train(TrainConfig(dataset, tmp_path / "run", plan=plan, overrides=Overrides(steps=2)))
    assert read_config(tmp_path / "run" / "plan.json", Plan).fit.steps == 2


def test_splits_of_a_refused_case_and_a_second_fold(
    dataset: Path, plan: Path, tmp_path: Path
) -> None:
    splits = tmp_path / "splits.json"
    names = [f"case{number}" for number in range(6)]
    write_json(splits, [
        {"train": [*names[2:], "flat"], "val": names[:2]},
        {"train": names[:3], "val": [*names[3:], "flat"]},
    ])  # fmt: skip
    output, few = tmp_path / "run", Overrides(steps=2)
    with pytest.raises(ConfigError, match="fold must be from 0 to 1"):
        train(TrainConfig(dataset, output, splits=splits, plan=plan, fold=7, overrides=few))
    first = TrainConfig(dataset, output, splits=splits, plan=plan, overrides=few)
    train(first)  # the folder was not taken by the command that was refused
    train(replace(first, fold=1, resume=True))
    assert len(read_json(output / "metrics.json")["cases"]) == 5  # both folds
    with pytest.raises(ConfigError, match="first command"):
        train(replace(first, splits=None, resume=True))


def test_planning_measures_this_machine(dataset: Path) -> None:
    made = plan_dataset(dataset, budget_s=60, overrides=Overrides(loss="dice"))
    assert made.loss == "dice"
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert len(made.timings) == (4 if bf16 else 2)
    fastest = min(made.timings, key=lambda timing: timing["step_s"])
    assert made.execution.precision == fastest["precision"]
    assert made.predicted is not None
    assert made.predicted.training_s <= 60 * 1.2
    assert 0.1 < made.predicted.training_memory_gib < 4


def test_one_labelled_case_is_too_few(tmp_path: Path) -> None:
    write_case(tmp_path, "only", 0)
    with pytest.raises(LayoutError, match="two sound labelled cases"):
        train(TrainConfig(tmp_path, tmp_path / "run"))


def test_windows_are_cut_as_training_cut_patches(plan: Path) -> None:
    made = read_config(plan, Plan)
    assert window_for(made).patch_size == made.patch_size
    assert sorted(all_flips((0, 2))) == [(), (0,), (0, 2), (2,)]


def test_the_log_is_json_lines_that_never_go_back(run: Path) -> None:
    lines = (run / "fold_0" / "log.jsonl").read_text().splitlines()
    steps = [e["step"] for e in map(json.loads, lines) if e["kind"] == "step"]
    assert steps == list(range(120))
    assert torch.get_num_threads() == 1
