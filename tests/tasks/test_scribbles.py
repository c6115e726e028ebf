"""Voxels that nobody labelled: declared as nnU-Net does, learnt around, measured around."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.tasks.test_train import AFFINE, write_case

from qinjing.config import read_json, write_json
from qinjing.data.cache import IGNORED, load, prepare
from qinjing.data.check import check_dataset
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import read_nifti, write_nifti
from qinjing.data.resample import resample_scribbles
from qinjing.engine.plan import Plan, make_plan, with_steps
from qinjing.errors import ConfigError
from qinjing.losses import CrossEntropyLoss, DiceCrossEntropyLoss, DiceLoss
from qinjing.metrics.overlap import count, dice
from qinjing.physics.scribbles import draw_scribbles
from qinjing.tasks.evaluate import evaluate
from qinjing.tasks.mean_teacher import learning_task
from qinjing.tasks.planning import Overrides, decide, measure
from qinjing.tasks.train import TrainConfig, train
from qinjing.volume import Volume

LABELS = {"background": 0, "rim": 2, "core": 5, "ignore": 7}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's layout: strokes in four cases, everything labelled in two."""
    root = tmp_path_factory.mktemp("scribbled")
    for number in range(6):
        write_case(root, f"case{number}", number)
    (root / "images").rename(root / "imagesTr")
    (root / "labels").rename(root / "labelsTr")
    for path in sorted((root / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    for path in sorted((root / "labelsTr").iterdir())[:4]:
        label = read_nifti(path)
        strokes = draw_scribbles(label.voxels, (2, 5), LABELS["ignore"], every=2)
        write_nifti(path, Volume(strokes, AFFINE))
    content = {
        "channel_names": {"0": "T1"}, "labels": LABELS, "file_ending": ".nii.gz", "numTraining": 6,
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def plan(dataset: Path) -> Plan:
    opened = open_dataset(dataset)
    fingerprint = measure(opened, opened.cases)
    made = decide(fingerprint, Overrides())
    return with_steps(made, 3, None, 1)


def test_the_ignore_label_is_no_class(dataset: Path, plan: Plan, tmp_path: Path) -> None:
    opened = open_dataset(dataset)
    assert opened.ignored == 7 and set(opened.labels) == {0, 2, 5}
    assert not check_dataset(opened).refused
    assert plan.label_values == (0, 2, 5) and plan.loss_options == {"ignored": IGNORED}
    assert not plan.one_piece
    prepare(opened.cases, tmp_path, plan.preprocessing, plan.label_values, opened.ignored)
    case = load(tmp_path, "case0")
    raw = read_nifti(dataset / "labelsTr" / "case0.nii.gz").canonical().voxels
    assert np.array_equal(case.label == IGNORED, raw == 7)
    assert np.array_equal(case.label == 2, raw == 5)
    assert sum(map(len, case.foreground)) == np.isin(raw, (2, 5)).sum()


def test_padding_says_nothing(dataset: Path, plan: Plan, tmp_path: Path) -> None:
    """A patch larger than the scan must not teach that there is background around it."""
    opened = open_dataset(dataset)
    prepare(opened.cases[:2], tmp_path, plan.preprocessing, plan.label_values, opened.ignored)
    cases = [load(tmp_path, case.case_id) for case in opened.cases[:2]]
    wide = replace(plan, patch_size=(32, 32, 32), augmentation=())
    task = learning_task(plan.model.build(), wide, cases, [], cases, seed=0)
    picked = [int((task.batch(step, 0)[1] != IGNORED).sum()) for step in range(4)]
    most = wide.batch_size * max(int((case.label != IGNORED).sum()) for case in cases)
    assert min(picked) > 0 and max(picked) <= most


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (2.25, 1.75, 1.75), (4.0, 0.8, 0.8)])
def test_strokes_survive_another_grid(dataset: Path, spacing: tuple[float, float, float]) -> None:
    label = read_nifti(dataset / "labelsTr" / "case0.nii.gz").canonical()
    found = resample_scribbles(label, spacing, 7)
    step = np.array(spacing) / np.array(label.spacing_mm)
    for value in (0, 2, 5):
        near = np.argwhere(label.voxels == value)
        there = np.argwhere(found.voxels == value)
        assert len(there) or len(near) < 3
        # Nothing is said where nothing was near.
        for place in there * step:
            assert np.abs(near - place).max(1).min() <= max(1.0, step.max() / 2) + 1e-6
    if tuple(spacing) == tuple(label.spacing_mm):
        assert np.array_equal(found.voxels, label.voxels)


def test_losses_count_what_is_labelled_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 3, (2, 4, 5, 6), generator=generator)
    known = torch.rand(2, 4, 5, 6, generator=generator) < 0.3
    partly = target.where(known, torch.tensor(IGNORED))
    ours = CrossEntropyLoss(ignored=IGNORED)(logits, partly)
    assert torch.isclose(ours, F.cross_entropy(logits, partly, ignore_index=IGNORED))
    # Dice of the labelled voxels, laid out in a row.
    row = logits.movedim(1, -1)[known].T.reshape(1, 3, 1, 1, -1)
    whole = DiceLoss()(row, target[known].reshape(1, 1, 1, -1))
    assert torch.isclose(DiceLoss(ignored=IGNORED)(logits, partly), whole)
    weighted = CrossEntropyLoss(ignored=IGNORED, lesion_weighting=True)(logits, partly)
    assert torch.isfinite(weighted)
    DiceCrossEntropyLoss(ignored=IGNORED)(logits, partly).backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(1) > 0
    assert torch.equal(moved, known)
    nothing = torch.full_like(target, IGNORED)
    assert torch.isfinite(DiceCrossEntropyLoss(ignored=IGNORED)(logits, nothing))


@pytest.mark.parametrize("teacher", [0.0, 1.0])
def test_training_with_strokes(dataset: Path, plan: Plan, tmp_path: Path, teacher: float) -> None:
    splits = tmp_path / "splits.json"
    fold = {"train": ["case0", "case1", "case2"], "val": ["case3", "case4", "case5"]}
    splits.write_text(json.dumps([fold]))
    write_json(tmp_path / "plan.json", replace(plan, unlabelled_weight=teacher))
    run = tmp_path / "run"
    told: list[str] = []
    result = train(
        TrainConfig(dataset, run, splits=splits, plan=tmp_path / "plan.json"),
        lambda kind, fields: told.append(fields["message"]) if kind == "warning" else None,
    )
    assert not result["refused"] and "1 of 3 held-out cases are labelled in part" in told[0]
    metrics = read_json(run / "metrics.json")
    assert metrics["labels"] == {"2": "rim", "5": "core"}
    # What is labelled in full keeps its calibration.
    assert [case["ece"] is None for case in metrics["cases"]] == [True, False, False]
    for case in metrics["cases"]:
        found = read_nifti(run / "fold_0" / "validation" / f"{case['case_id']}.nii.gz").voxels
        truth = read_nifti(dataset / "labelsTr" / f"{case['case_id']}.nii.gz").voxels
        counts = count(found[truth != 7], truth[truth != 7], (2, 5))
        for value in (2, 5):
            wanted = dice(counts[value])
            got = case["labels"][str(value)]["dice"]
            assert got == pytest.approx(wanted) if wanted == wanted else got is None
            assert case["labels"][str(value)]["voxels"]["FP"] == counts[value].false_positive


def test_evaluating_around_what_nobody_labelled(dataset: Path, tmp_path: Path) -> None:
    truth = read_nifti(dataset / "labelsTr" / "case0.nii.gz")
    guess = np.where(truth.voxels == 7, 2, truth.voxels)  # wrong or right, nobody knows
    write_nifti(tmp_path / "p" / "case0.nii.gz", Volume(guess, AFFINE))
    metrics = evaluate(tmp_path / "p", dataset)
    assert metrics["cases"][0]["labels"]["2"]["dice"] == 1 and metrics["cases"][0]["ece"] is None
    write_nifti(tmp_path / "q" / "case0.nii.gz", Volume(truth.voxels, AFFINE))
    assert metrics["cases"][0]["unlabelled_voxels"] == (truth.voxels == 7).sum()
    refused = evaluate(tmp_path / "q", dataset)["refused"]
    assert "7" in refused[0]["reason"]  # no prediction holds it


def test_a_loss_that_cannot_is_refused(dataset: Path, plan: Plan, tmp_path: Path) -> None:
    opened = open_dataset(dataset)
    fingerprint = measure(opened, opened.cases)
    with pytest.raises(ConfigError, match=r"one of dice_ce, dice, .*cross_entropy with an ignore"):
        decide(fingerprint, Overrides(loss="topology"))
    bare = make_plan(fingerprint, device="cpu", threads=1, net="subvoxel_unet")
    write_json(tmp_path / "plan.json", with_steps(bare, 3, None, 1))
    with pytest.raises(ConfigError, match="plan anew with this data set"):
        train(TrainConfig(dataset, tmp_path / "run", plan=tmp_path / "plan.json"))
