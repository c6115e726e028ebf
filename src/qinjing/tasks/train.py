"""Train: check, measure, plan, prepare, fit, predict what was held out, measure again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from qinjing.config import read_config, read_json, write_json
from qinjing.data import cache
from qinjing.data.case import Case, Dataset
from qinjing.data.fingerprint import Fingerprint
from qinjing.data.splits import Split, make_splits, read_splits, write_splits
from qinjing.engine import parallel
from qinjing.engine.checkpoint import save_model
from qinjing.engine.device import default_device, environment, peak_memory_gib
from qinjing.engine.fit import FitResult, Progress, fit
from qinjing.engine.plan import Plan, make_plan, with_steps
from qinjing.errors import ConfigError, LayoutError
from qinjing.tasks.predict import Segmenter, segment_cases
from qinjing.tasks.probe import fastest, predict_costs
from qinjing.tasks.segment import SegmentTask

_DEFAULT_BUDGET_S = 15 * 60.0
_PROBING_S = 30.0  # what timing the ways of running takes itself
_VALIDATION_SHARE = 0.08  # of the budget, at the most, for validating while training
Tell = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Overrides:
    """What a recipe or a caller decides instead of the plan; None leaves it to the plan.

    Attributes:
        net: name in `NETS`.
        loss: name in `LOSSES`.
        spacing_mm: the network's grid along D, H and W.
        augmentation: names and options, in order.
        steps: optimiser steps, instead of what a budget affords.
    """

    net: str | None = None
    loss: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    augmentation: tuple[dict[str, Any], ...] | None = None
    steps: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """One training, as `run.json` keeps it.

    Attributes:
        dataset: folder in any layout.
        output: the run folder.
        budget_s: wall seconds for everything, all folds together; 15 minutes a fold where None.
        fold: which fold, or all of them.
        seed: decides every draw.
        resume: go on where the run folder stands.
        splits: a `splits_final.json` to keep to; else five folds by patient.
        plan: a `plan.json` to keep to.
        overrides: what is not left to the plan.
    """

    dataset: Path
    output: Path
    budget_s: float | None = None
    fold: int | Literal["all"] = 0
    seed: int = 0
    resume: bool = False
    splits: Path | None = None
    plan: Path | None = None
    overrides: Overrides = field(default_factory=Overrides)


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
    opened, cases, _ = _checked(Path(dataset), tell or _silent)
    fingerprint = measure(opened, cases)
    held_out = len(make_splits(cases)[0]["val"]) if len(cases) > 1 else 1
    budget = budget_s or _DEFAULT_BUDGET_S
    return plan_training(fingerprint, budget, overrides or Overrides(), held_out)


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
        plan, (largest.shape, largest.spacing_mm), bytes_cached / 2**30, training_s
    )


def train(config: TrainConfig, tell: Tell | None = None) -> dict[str, Any]:
    """Train one fold or all, and measure each on what it never saw.

    Args:
        config: what to train on and how.
        tell: told of what happens: ("checked" | "plan" | "prepared" | "step" | "validation" |
            "measured", fields).

    Returns:
        "folds" with what each reached, "refused" cases, "seconds".

    Raises:
        InputError: the data set cannot be used, or the run folder holds another run.
    """
    with parallel.group():
        return _train(config, tell or _silent)


def _train(config: TrainConfig, tell: Tell) -> dict[str, Any]:
    start = time.monotonic()
    if parallel.is_first():
        _claim(config)
    opened, cases, refused = _checked(config.dataset, tell)
    splits = _splits(config, cases)
    folds = list(range(len(splits))) if config.fold == "all" else [int(config.fold)]
    if not all(0 <= fold < len(splits) for fold in folds):
        raise ConfigError("fold", f"from 0 to {len(splits) - 1}, or all", config.fold)
    plan = _plan(config, opened, cases, splits, len(folds), start)
    tell("plan", {"plan": plan})
    torch.set_num_threads(plan.threads)
    _prepare(config, cases, plan)
    tell("prepared", {"cases": len(cases)})
    results: list[dict[str, Any]] = []
    for fold in folds:
        left = None
        if plan.fit.budget_s and config.budget_s:
            left = (start + config.budget_s - time.monotonic()) / (len(folds) - len(results))
        results.append(_one_fold(config, plan, cases, splits[fold], fold, left, tell))
    seconds = round(time.monotonic() - start, 1)
    if parallel.is_first():
        _finish(config, plan, opened, results, seconds)
    return {"output": str(config.output), "folds": results, "refused": refused, "seconds": seconds}


def _one_fold(
    config: TrainConfig,
    plan: Plan,
    cases: Sequence[Case],
    split: Split,
    fold: int,
    budget_s: float | None,
    tell: Tell,
) -> dict[str, Any]:
    folder = config.output / f"fold_{fold}"
    if config.resume and (folder / "metrics.json").exists():
        return dict(read_json(folder / "result.json"))
    torch.manual_seed(config.seed * 1000 + fold)  # first weights; draws have their own generators
    cached = {i: cache.load(config.output / "cache", i) for i in (*split["train"], *split["val"])}
    task = SegmentTask(
        plan.model.build(),
        plan,
        [cached[i] for i in split["train"]],
        [cached[i] for i in split["val"]],
        seed=config.seed * 1000 + fold,
    )
    settings = plan.fit
    if budget_s is not None:
        # The held-out cases are predicted afterwards, from the budget too.
        reserve = len(split["val"]) * (plan.predicted.predicting_s if plan.predicted else 0)
        settings = replace(settings, budget_s=max(1.0, budget_s - reserve))

    def report(progress: Progress, event: dict[str, Any]) -> None:
        tell(event["kind"], {**event, "fold": fold, "steps": progress.steps})

    result = fit(task, settings, plan.execution, folder, config.resume, report)
    if not parallel.is_first():
        return {}
    save_model(folder, plan.model, result.weights)
    return _measure_fold(config, plan, cases, split, fold, result, tell)


def _measure_fold(
    config: TrainConfig,
    plan: Plan,
    cases: Sequence[Case],
    split: Split,
    fold: int,
    result: FitResult,
    tell: Tell,
) -> dict[str, Any]:
    """Predict the held-out cases from their files, as a user would, and measure them."""
    from qinjing.tasks.evaluate import evaluate_files

    folder = config.output / f"fold_{fold}"
    held_out = [case for case in cases if case.case_id in set(split["val"])]
    segmenter = Segmenter.load(folder)
    done = segment_cases(segmenter, held_out, folder / "validation", confidence=True)
    metrics = evaluate_files(
        folder / "validation",
        config.dataset,
        folder / "metrics.json",
        cases=[case.case_id for case in held_out],
    )
    summary = {
        "fold": fold,
        "steps": result.steps,
        "training_s": round(result.seconds, 1),
        "training_memory_gib": round(result.peak_memory_gib, 3),
        "predicting_s": round(done["seconds"] / max(1, len(held_out)), 3),
        "online_dice": result.score,
        "dice": metrics["mean"]["foreground"]["dice"]["mean"],
    }
    write_json(folder / "result.json", summary)
    tell("measured", summary)
    return summary


def _claim(config: TrainConfig) -> None:
    """Take the run folder, or refuse one that holds another run."""
    wanted = {**asdict(config), "dataset": str(config.dataset.resolve())}
    for name in ("output", "resume", "budget_s"):
        del wanted[name]
    wanted = {k: str(v) if isinstance(v, Path) else v for k, v in wanted.items()}
    path = config.output / "run.json"
    if path.exists() and config.resume:
        before = read_json(path)
        same = ("dataset", "seed", "overrides")
        if any(_plain(before.get(k)) != _plain(wanted.get(k)) for k in same):
            raise ConfigError(
                "resumed run", "given the data set, seed and options that it started with",
                where=path, advice="choose another output folder or repeat the first command",
            )  # fmt: skip
    elif path.exists() and not config.resume:
        raise ConfigError(
            "output", "a new folder", "a run", where=config.output,
            advice="add --resume to go on with it, or choose another folder",
        )  # fmt: skip
    write_json(path, wanted)


def _plain(value: Any) -> Any:
    """JSON's view of a value: tuples are lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _checked(path: Path, tell: Tell) -> tuple[Dataset, list[Case], list[dict[str, str]]]:
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


def _splits(config: TrainConfig, cases: Sequence[Case]) -> list[Split]:
    path = config.output / "splits_final.json"
    if config.resume and path.exists():
        return read_splits(path, cases)
    if config.splits:
        splits = read_splits(config.splits, cases)
    else:
        patients = len({case.patient_id for case in cases})
        splits = make_splits(cases, folds=min(5, patients))
    if parallel.is_first():
        write_splits(path, splits)
    return splits


def _plan(
    config: TrainConfig,
    dataset: Dataset,
    cases: Sequence[Case],
    splits: Sequence[Split],
    folds: int,
    start: float,
) -> Plan:
    """Take the run's plan or the one given; make one where there is none."""
    path = config.output / "plan.json"
    if config.resume and path.exists():
        return read_config(path, Plan)
    if not parallel.is_first():
        parallel.wait()
        return read_config(path, Plan)
    if config.plan:
        plan = read_config(config.plan, Plan)
    else:
        fingerprint = measure(dataset, cases)
        write_json(config.output / "fingerprint.json", fingerprint)
        budget = (config.budget_s or _DEFAULT_BUDGET_S * folds) / folds
        spent = (time.monotonic() - start + _PROBING_S) / folds
        held_out = max(len(split["val"]) for split in splits)
        plan = plan_training(fingerprint, max(5.0, budget - spent), config.overrides, held_out)
    write_json(
        config.output / "dataset.json",
        {
            "name": dataset.name,
            "labels": {str(value): name for value, name in dataset.labels.items()},
            "channel_names": list(dataset.channel_names),
            "licence": dataset.licence,
        },
    )
    write_json(path, plan)
    parallel.wait()
    return plan


def _prepare(config: TrainConfig, cases: Sequence[Case], plan: Plan) -> None:
    if parallel.is_first():
        cache.prepare(cases, config.output / "cache", plan.preprocessing, plan.label_values)
    parallel.wait()


def _finish(
    config: TrainConfig, plan: Plan, dataset: Dataset, results: list[dict[str, Any]], seconds: float
) -> None:
    """Write what was measured beside what was planned, leave evidence, drop the copies."""
    from qinjing import evidence

    measured = {
        "training_s": max(result["training_s"] for result in results),
        "step_s": results[-1]["training_s"] / max(1, results[-1]["steps"]),
        "training_memory_gib": max(result["training_memory_gib"] for result in results),
        "predicting_s": max(result["predicting_s"] for result in results),
        "peak_memory_gib": round(peak_memory_gib(), 3),
        "seconds": seconds,
    }
    write_json(config.output / "measured.json", {**measured, "environment": environment()})
    # Prepared cases are a second copy of patients' images: nothing needs them any more.
    shutil.rmtree(config.output / "cache", ignore_errors=True)
    made = [p for p in sorted(config.output.rglob("*")) if p.is_file() and not _is_record(p)]
    evidence.append(
        config.output,
        "train",
        {"dataset": config.dataset},
        made,
        asdict(config),
        basis=dataset.licence or None,
    )


def _is_record(path: Path) -> bool:
    return path.name.startswith("evidence.") or "checkpoint" in path.parts


def _silent(kind: str, fields: dict[str, Any]) -> None:
    """Say nothing."""
