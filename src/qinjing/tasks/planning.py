"""Plan a training: check and measure the data, decide by rule, time this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qinjing.config import read_config
from qinjing.data.case import Case, Dataset
from qinjing.data.fingerprint import Fingerprint
from qinjing.data.splits import Split, make_splits
from qinjing.engine.device import default_device
from qinjing.engine.plan import Plan, make_plan, with_steps
from qinjing.errors import ConfigError, LayoutError
from qinjing.tasks.probe import fastest, predict_costs

DEFAULT_BUDGET_S = 15 * 60.0
_VALIDATION_SHARE = 0.08  # of the budget, at the most, for validating while training
Tell = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Overrides:
    """What a recipe or a caller decides instead of the plan; None leaves it to the plan.

    Attributes:
        net: name in `NETS`.
        net_options: of its constructor, above what the plan gives it.
        loss: name in `LOSSES`.
        loss_options: of its constructor.
        gradient_weighting: strength of `reweight_gradients`.
        spacing_mm: the network's grid along D, H and W.
        augmentation: `{"name": …, "options": {…}}` for each transform, in order, as
            `augmentation_from_config` takes them.
        steps: optimiser steps, instead of what a budget affords.
    """

    net: str | None = None
    net_options: dict[str, Any] | None = None
    loss: str | None = None
    loss_options: dict[str, Any] | None = None
    gradient_weighting: float | None = None
    spacing_mm: tuple[float, float, float] | None = None
    augmentation: tuple[dict[str, Any], ...] | None = None
    steps: int | None = None


def plan_dataset(
    dataset: str | Path,
    *,
    budget_s: float | None = None,
    overrides: Overrides | None = None,
    tell: Tell | None = None,
) -> Plan:
    """Measure a data set and this machine, and plan a training of one fold.

    Args:
        dataset: folder in any layout.
        budget_s: wall seconds for training one fold, 15 minutes where None.
        overrides: what is not left to the plan.
        tell: told of what happens.

    Raises:
        InputError: the folder cannot be read, or has no case to train on.
    """
    opened, cases, _ = sound_cases(Path(dataset), tell or silent)
    fingerprint = measure(opened, cases)
    held_out = len(default_splits(cases)[0]["val"])
    budget = budget_s or DEFAULT_BUDGET_S
    return plan_training(fingerprint, budget, overrides or Overrides(), held_out)


def default_splits(cases: Sequence[Case]) -> list[Split]:
    """Five folds by patient, fewer where there are fewer patients."""
    return make_splits(cases, folds=min(5, len({case.patient_id for case in cases})))


def measure(dataset: Dataset, cases: Sequence[Case]) -> Fingerprint:
    """Measure cases; see `fingerprint_dataset`."""
    from qinjing.data.fingerprint import fingerprint_dataset
    from qinjing.data.preprocess import read_pair

    return fingerprint_dataset(dataset, cases, read_pair)


def plan_training(
    fingerprint: Fingerprint, budget_s: float, overrides: Overrides, held_out: int
) -> Plan:
    """Plan one fold: decide by rule, time every precision, fill the budget with steps.

    Args:
        fingerprint: the measured data set.
        budget_s: wall seconds for fitting.
        overrides: what is not left to the plan.
        held_out: validation cases, which cost time as well.
    """
    from qinjing.data.resample import resampled_shape

    plan = make_plan(
        fingerprint,
        device=default_device(),
        threads=torch.get_num_threads(),
        net=overrides.net or "subvoxel_unet",
        loss=overrides.loss or "dice_ce",
        spacing_mm=overrides.spacing_mm,
    )
    model = replace(plan.model, options=plan.model.options | (overrides.net_options or {}))
    plan = replace(
        plan,
        model=model,
        loss_options=overrides.loss_options or {},
        gradient_weighting=overrides.gradient_weighting or 0.0,
    )
    if overrides.augmentation is not None:
        plan = replace(plan, augmentation=overrides.augmentation)
    spacing = plan.preprocessing.spacing_mm
    shapes = [resampled_shape(c.shape, c.spacing_mm, spacing) for c in fingerprint.cases]
    voxels = [s[0] * s[1] * s[2] for s in shapes]
    big = voxels.index(max(voxels))
    plan = fastest(plan, shapes[big])
    best = min(plan.timings, key=lambda timing: timing["step_s"])
    # One validation is paid in any case; more of them only from a small share of the budget.
    validation_s = held_out * best["validation_s"] * sum(voxels) / len(voxels) / max(voxels)
    validations = int(min(10, max(1, _VALIDATION_SHARE * budget_s / max(validation_s, 1e-3))))
    steps = overrides.steps or max(
        10, int((budget_s - validations * validation_s) / best["step_s"])
    )
    budget = None if overrides.steps else budget_s
    plan = with_steps(plan, steps, budget, validations)
    bytes_cached = sum(voxels) * (4 * len(fingerprint.channel_names) + 1)
    largest = fingerprint.cases[big]
    training_s = steps * best["step_s"] + validations * validation_s
    return predict_costs(
        plan,
        (largest.shape, largest.spacing_mm),
        sum(voxels) / len(voxels) / max(voxels),
        bytes_cached / 2**30,
        training_s,
    )


def given_plan(path: Path, steps: int | None, dataset: Dataset) -> Plan:
    """Read a plan that was made before and see that it fits this machine and these data.

    Args:
        path: a plan.json.
        steps: instead of the plan's.
        dataset: what will be trained on.

    Raises:
        ConfigError: other labels, channels or another device than there are here.
    """
    plan = read_config(path, Plan)
    labels = tuple(sorted(dataset.labels))
    if plan.label_values != labels:
        raise ConfigError(
            "plan's labels", f"those of the data set, {labels}", plan.label_values, where=path
        )
    channels = len(dataset.channel_names)
    if len(plan.preprocessing.normalisation) != channels:
        got = len(plan.preprocessing.normalisation)
        raise ConfigError("plan's channels", f"those of the data set, {channels}", got, where=path)
    if plan.execution.device != default_device():
        raise ConfigError(
            "plan", f"made for {default_device()}, which is here", plan.execution.device,
            where=path, advice="plan anew on this machine",
        )  # fmt: skip
    return with_steps(plan, steps, None, plan.fit.validations) if steps else plan


def sound_cases(path: Path, tell: Tell) -> tuple[Dataset, list[Case], list[dict[str, str]]]:
    """Open a data set and drop the cases that cannot be trained on."""
    from qinjing.data.check import check_dataset
    from qinjing.data.layouts import open_dataset

    dataset = open_dataset(path)
    result = check_dataset(dataset)
    cases = [case for case in result.good if case.label is not None]
    refused = [{"case_id": f.case_id or "", "reason": f.message} for f in result.refused]
    tell("checked", {"cases": len(cases), "refused": refused})
    if len(cases) < 2:
        raise LayoutError(
            "data set", "of two sound labelled cases at least", len(cases), where=path,
            advice="`qinjing data check` names every fault",
        )  # fmt: skip
    return dataset, cases, refused


def silent(kind: str, fields: dict[str, Any]) -> None:
    """Say nothing."""
