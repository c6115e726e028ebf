"""Plan a training: check and measure the data, decide by rule, time this machine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch

from qinjing import registry
from qinjing.config import read_config
from qinjing.data.cache import IGNORED
from qinjing.data.case import Case, Dataset
from qinjing.data.consent.lineage import seen_by
from qinjing.data.fingerprint import Fingerprint
from qinjing.data.splits import Split, make_splits, read_splits
from qinjing.engine.device import default_device
from qinjing.engine.plan import Plan, Transfer, make_plan, peak_rate, with_steps
from qinjing.errors import ConfigError, LayoutError
from qinjing.losses import LOSSES
from qinjing.tasks.consented import PURPOSE, admitted
from qinjing.tasks.probe import fastest, predict_costs
from qinjing.tasks.transfer import trunk_card, with_trunk

DEFAULT_BUDGET_S = 15 * 60.0
_VALIDATION_SHARE = 0.08  # of the budget, at the most, for validating while training
# What reaches most at full resolution in equal time (docs/concept/networks.md; measured on CPUs).
# Below so many steps the folded network is further: docs/notes/0006.
_FULL_RESOLUTION = {"cpu": "residual_unet", "cuda": "unet"}
_FULL_RESOLUTION_STEPS = 240
_QUICKEST_STEP_S = {"cpu": 0.1, "cuda": 0.01}  # below it no step was seen, nor is one timed
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
        trunk: folder of a pre-trained trunk to start from.
        tune: what of it learns: full, frozen or lora.
        layer_decay: each layer below the last learns this much slower than the one above it.
        unlabelled_weight: of what the moving average of the weights says of unlabelled images.
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
    trunk: str | None = None
    tune: Literal["full", "frozen", "lora"] | None = None
    layer_decay: float | None = None
    unlabelled_weight: float | None = None
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


def always_unlabelled(path: Path | None) -> set[str]:
    """Return the cases that a splits file calls unlabelled, in every fold that it names them in."""
    folds = read_splits(path) if path else []
    labelled = {i for fold in folds for i in (*fold["train"], *fold["val"])}
    return {i for fold in folds for i in fold.get("unlabelled", ())} - labelled


def sound_splits(path: Path | None, dataset: Dataset, cases: Sequence[Case]) -> list[Split]:
    """Return the folds of a file, or five by patient, without the cases that were refused.

    Raises:
        ConfigError: the file cannot be followed, or a fold is left with nothing on a side.
    """
    if path is None:
        return default_splits(cases)
    sound = {case.case_id for case in cases}
    splits: list[Split] = []
    for number, split in enumerate(read_splits(path, dataset.cases)):
        train = [case_id for case_id in split["train"] if case_id in sound]
        val = [case_id for case_id in split["val"] if case_id in sound]
        more = [case_id for case_id in split.get("unlabelled", ()) if case_id in sound]
        if not train or not val:
            raise ConfigError(f"fold {number}", "of a sound case on either side", where=path)
        kept: Split = {"train": train, "val": val}
        splits.append({**kept, "unlabelled": more} if more else kept)
    return splits


def labelled_ones(cases: Sequence[Case], splits: Sequence[Split]) -> Sequence[Case]:
    """Return the cases to plan by: all, or where labels are few the labelled ones that train."""
    if not any(split.get("unlabelled") for split in splits):
        return cases
    labelled = {case_id for split in splits for case_id in split["train"]}
    return [case for case in cases if case.case_id in labelled]


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

    for choice in choices(overrides, budget_s):
        plan = decide(fingerprint, choice)
        spacing = plan.preprocessing.spacing_mm
        shapes = [resampled_shape(c.shape, c.spacing_mm, spacing) for c in fingerprint.cases]
        voxels = [s[0] * s[1] * s[2] for s in shapes]
        big = voxels.index(max(voxels))
        plan = fastest(plan, shapes[big])
        best = min(plan.timings, key=lambda timing: timing["step_s"])
        # One validation is paid in any case; more of them only from a small share of the budget.
        validation_s = held_out * best["validation_s"] * sum(voxels) / len(voxels) / max(voxels)
        validations = int(min(10, max(1, _VALIDATION_SHARE * budget_s / max(validation_s, 1e-3))))
        affordable = max(10, int((budget_s - validations * validation_s) / best["step_s"]))
        steps = overrides.steps or affordable
        if steps >= _FULL_RESOLUTION_STEPS:
            break
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


def choices(overrides: Overrides, budget_s: float) -> tuple[Overrides, ...]:
    """Return the networks to choose from: the first for which there is time, else the last.

    Args:
        overrides: what the caller decides, perhaps the network.
        budget_s: wall seconds for fitting.
    """
    if overrides.net or overrides.trunk:
        return (overrides,)
    folded = replace(overrides, net="subvoxel_unet")
    steps = overrides.steps or budget_s / _QUICKEST_STEP_S[default_device()]
    if steps < _FULL_RESOLUTION_STEPS:
        return (folded,)
    return (replace(overrides, net=_FULL_RESOLUTION[default_device()]), folded)


def decide(fingerprint: Fingerprint, overrides: Overrides) -> Plan:
    """Return what the fingerprint decides for a network, and what a caller decided instead.

    Args:
        fingerprint: of the cases to learn from.
        overrides: what the caller decides, the network among it; where it does not, the trunk's or
            the folded one.

    Raises:
        ConfigError: an override fits neither the network nor the labels.
    """
    of_trunk = trunk_card(Path(overrides.trunk)).net if overrides.trunk else "subvoxel_unet"
    plan = make_plan(
        fingerprint,
        device=default_device(),
        threads=torch.get_num_threads(),
        net=overrides.net or of_trunk,
        loss=overrides.loss or "dice_ce",
        spacing_mm=overrides.spacing_mm,
    )
    model, transfer = plan.model, None
    if overrides.trunk:
        model = with_trunk(model, Path(overrides.trunk))
        transfer = Transfer(str(Path(overrides.trunk).resolve()), overrides.tune or "full")
    elif overrides.tune or overrides.layer_decay:
        raise ConfigError("tune and layer_decay", "given with a trunk", "without one")
    model = replace(model, options=model.options | (overrides.net_options or {}))
    plan = replace(
        plan,
        model=model,
        loss_options=overrides.loss_options or {},
        gradient_weighting=overrides.gradient_weighting or 0.0,
        transfer=transfer,
        unlabelled_weight=overrides.unlabelled_weight or 0.0,
        fit=replace(
            plan.fit,
            learning_rate=peak_rate(model),
            layer_decay=overrides.layer_decay or 1.0,
        ),
    )
    if fingerprint.ignored is not None:
        plan = _in_part(plan)
    if overrides.augmentation is not None:
        plan = replace(plan, augmentation=overrides.augmentation)
    return plan


def _in_part(plan: Plan) -> Plan:
    """The plan with a loss that passes over what nobody labelled.

    Raises:
        ConfigError: the loss cannot.
    """
    if "ignored" not in signature(registry.constructor(LOSSES, "loss", plan.loss)).parameters:
        can = [name for name, make in LOSSES.items() if "ignored" in signature(make).parameters]
        raise ConfigError("loss", f"one of {', '.join(can)} with an ignore label", plan.loss)
    return replace(plan, loss_options={**plan.loss_options, "ignored": IGNORED})


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
    if dataset.ignored is not None and "ignored" not in plan.loss_options:
        raise ConfigError(
            "plan", "made for labels with an ignore label, as the data set's are", "another",
            where=path, advice="plan anew with this data set",
        )  # fmt: skip
    if plan.execution.device != default_device():
        raise ConfigError(
            "plan", f"made for {default_device()}, which is here", plan.execution.device,
            where=path, advice="plan anew on this machine",
        )  # fmt: skip
    if plan.execution != plan.execution.here():
        raise ConfigError(
            "plan", "in a precision that this processor computes in", plan.execution.precision,
            where=path, advice="plan anew on this machine",
        )  # fmt: skip
    return with_steps(plan, steps, None, plan.fit.validations) if steps else plan


def sound_cases(
    path: Path,
    tell: Tell,
    unlabelled: Collection[str] = (),
    only: Collection[str] | None = None,
    purpose: str = PURPOSE,
    required: bool = False,
    least: Literal[1, 2] = 2,
) -> tuple[Dataset, list[Case], list[dict[str, str]]]:
    """Open a data set and drop the cases that cannot be trained on, or may not.

    Args:
        path: of the data set.
        tell: told of ("checked", {"cases", "refused"}).
        unlabelled: case ids whose labels are not looked at, if there are any.
        only: case ids to look at; all where None.
        purpose: that consent is asked for.
        required: refuse a data set of which nobody says on what ground it may be used.
        least: cases to find; one is enough for who holds out nobody.

    Raises:
        InputError: it cannot be read, or has fewer cases to train on.
    """
    from qinjing.data.check import check_dataset
    from qinjing.data.layouts import open_dataset

    dataset = open_dataset(path)
    allowed, excluded = admitted(dataset, purpose, required).parted()
    bare = tuple(
        replace(case, label=None) if case.case_id in unlabelled else case
        for case in allowed
        if only is None or case.case_id in only
    )
    result = check_dataset(replace(dataset, cases=bare))
    faults = [
        fault
        for fault in result.refused
        if not (fault.kind == "no label" and fault.case_id in unlabelled)
    ]
    bad = {fault.case_id for fault in faults}
    cases = [
        case
        for case in bare
        if case.case_id not in bad and (case.label is not None or case.case_id in unlabelled)
    ]
    refused = [{"case_id": fault.case_id, "reason": fault.message} for fault in faults]
    refused += [one for one in excluded if only is None or one["case_id"] in only]
    tell("checked", {"cases": len(cases), "refused": refused})
    if len(cases) < least:
        needed = {1: "one sound labelled case", 2: "two sound labelled cases"}[least]
        raise LayoutError(
            "data set", f"of {needed} at least", len(cases), where=path,
            advice=f"{len(excluded)} are left out for want of consent" if excluded
            else "`qinjing data check` names every fault",
        )  # fmt: skip
    return dataset, cases, refused


def warn_of_seen(trunk: Path, dataset: str, splits: Sequence[Split], tell: Tell) -> None:
    """Say so where a trunk saw the images that the run is measured on: the figures flatter.

    Args:
        trunk: folder of weights.
        dataset: its name.
        splits: of the folds that are trained.
        tell: told of it.
    """
    measured_on = {case_id for split in splits for case_id in split["val"]}
    seen = len(seen_by(trunk, dataset) & measured_on)
    if seen:
        tell("warning", {"message": f"the trunk saw {seen} of the {len(measured_on)} cases that "
                         "this run is measured on: what it reaches there flatters; give `pretrain` "
                         "the same --splits"})  # fmt: skip


def silent(kind: str, fields: dict[str, Any]) -> None:
    """Say nothing."""
