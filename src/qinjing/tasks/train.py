"""Train: check, measure, plan, prepare, fit, predict what was held out, measure again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from qinjing.config import plain, read_config, read_json, write_json
from qinjing.data import cache
from qinjing.data.case import Case, Dataset
from qinjing.data.splits import Split, write_splits
from qinjing.engine import parallel
from qinjing.engine.checkpoint import save_model
from qinjing.engine.device import environment, forget_peak_memory
from qinjing.engine.fit import FitResult, Progress, fit
from qinjing.engine.plan import Plan
from qinjing.errors import ConfigError
from qinjing.nets.low_rank import merged_weights
from qinjing.tasks.consented import Admitted, admitted, keeper
from qinjing.tasks.forgetting import refuse_half_forgotten
from qinjing.tasks.mean_teacher import learning_task
from qinjing.tasks.planning import (
    DEFAULT_BUDGET_S,
    Overrides,
    Tell,
    always_unlabelled,
    given_plan,
    labelled_ones,
    measure,
    plan_training,
    silent,
    sound_cases,
    sound_splits,
    warn_of_seen,
)
from qinjing.tasks.predict import Segmenter, segment_cases
from qinjing.tasks.probe import prediction_memory_gib
from qinjing.tasks.transfer import starting_net

if TYPE_CHECKING:
    from qinjing.evidence import Digested

_PROBING_S = 30.0  # what timing the ways of running takes itself
_FINISHING_S = 5.0  # what a fold's last files and the peak of predicting take


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


def train(
    config: TrainConfig, tell: Tell | None = None, *, forgetting: bool = False
) -> dict[str, Any]:
    """Train one fold or all, and measure each on what it never saw.

    Args:
        config: what to train on and how.
        tell: told of what happens: ("checked" | "plan" | "warning" | "prepared" | "step" |
            "validation" | "measured", fields).
        forgetting: whether `unlearn` asks, which alone goes on with a run that is half-way.

    Returns:
        "folds" with what each reached, "dice" over all their held-out cases, "refused" cases,
        "seconds".

    Raises:
        InputError: the data set cannot be used, or the run folder holds another run or one
            that is being made to forget a case.
    """
    if not forgetting:
        refuse_half_forgotten(config.output)
    with parallel.group():
        return _train(config, tell or silent)


def _train(config: TrainConfig, tell: Tell) -> dict[str, Any]:
    start = time.monotonic()
    _check(config)
    read = _digest(config) if parallel.is_first() else {}
    opened, cases, refused = sound_cases(
        config.dataset, tell, always_unlabelled(_splits_path(config))
    )
    behind = admitted(opened)
    splits = sound_splits(_splits_path(config), opened, cases)
    folds = list(range(len(splits))) if config.fold == "all" else [int(config.fold)]
    if not all(0 <= fold < len(splits) for fold in folds):
        raise ConfigError("fold", f"from 0 to {len(splits) - 1}, or all", config.fold)
    if parallel.is_first():
        _claim(config, splits, read["dataset"].sha256)
    plan = _plan(config, opened, cases, splits, len(folds), start)
    tell("plan", {"plan": plan})
    if plan.transfer:
        warn_of_seen(Path(plan.transfer.trunk), opened.name, [splits[k] for k in folds], tell)
    torch.set_num_threads(plan.threads)
    named = {i for k in folds for ids in splits[k].values() for i in cast(list[str], ids)}
    wanted = [case for case in cases if case.case_id in named]
    _prepare(config, wanted, plan, opened.ignored)
    tell("prepared", {"cases": len(wanted)})
    results: list[dict[str, Any]] = []
    for fold in folds:
        left = None
        if plan.fit.budget_s and config.budget_s:
            left = (start + config.budget_s - time.monotonic()) / (len(folds) - len(results))
        results.append(_one_fold(config, plan, behind, splits[fold], fold, left, tell))
    seconds = round(time.monotonic() - start, 1)
    dice = None
    if parallel.is_first():
        first = config.output / f"fold_{folds[0]}"
        memory = prediction_memory_gib(plan, first, behind.still(cases))
        dice = _finish(config, behind.basis, read, seconds, memory)
    return {
        "output": str(config.output),
        "folds": results,
        "dice": dice,
        "refused": refused,
        "seconds": seconds,
    }


def _one_fold(
    config: TrainConfig,
    plan: Plan,
    behind: Admitted,
    split: Split,
    fold: int,
    budget_s: float | None,
    tell: Tell,
) -> dict[str, Any]:
    folder = config.output / f"fold_{fold}"
    if config.resume and (folder / "result.json").exists():
        return dict(read_json(folder / "result.json"))
    torch.manual_seed(config.seed * 1000 + fold)  # first weights; draws have their own generators
    unlabelled = split.get("unlabelled", [])
    names = (*split["train"], *unlabelled, *split["val"])
    cached = {i: cache.load(config.output / "cache", i) for i in names}
    forget_peak_memory(plan.execution.device)
    net = starting_net(plan)
    task = learning_task(
        net,
        plan,
        [cached[i] for i in split["train"]],
        [cached[i] for i in unlabelled],
        [cached[i] for i in split["val"]],
        seed=config.seed * 1000 + fold,
    )
    task.keep = keeper([(behind, [*cached.values()])], folder / "log.jsonl", tell)
    settings = plan.fit
    if budget_s is not None:
        # The held-out cases are predicted and measured afterwards, from the budget too.
        a_case_s = plan.predicted.predicting_s if plan.predicted else 0.0
        reserve = _FINISHING_S + 1.5 * len(split["val"]) * a_case_s
        settings = replace(settings, budget_s=max(1.0, budget_s - reserve))

    def report(progress: Progress, event: dict[str, Any]) -> None:
        tell(event["kind"], {**event, "fold": fold, "steps": progress.steps})

    result = fit(task, settings, plan.execution, folder, config.resume, report)
    if not parallel.is_first():
        return {}
    save_model(folder, plan.model, merged_weights(net, result.weights))
    return _measure_fold(config, plan, behind, split, fold, result, tell)


def _measure_fold(
    config: TrainConfig,
    plan: Plan,
    behind: Admitted,
    split: Split,
    fold: int,
    result: FitResult,
    tell: Tell,
) -> dict[str, Any]:
    """Predict the held-out cases from their files, as a user would, and measure them."""
    from qinjing.tasks.evaluate import evaluate_files

    folder = config.output / f"fold_{fold}"
    held_out = behind.still([c for c in behind.dataset.cases if c.case_id in set(split["val"])])
    segmenter = Segmenter.load(folder)
    done = segment_cases(segmenter, held_out, folder / "validation", confidence=True)
    metrics = evaluate_files(
        folder / "validation",
        config.dataset,
        folder / "metrics.json",
        cases=[case.case_id for case in held_out],
    )
    in_part = sum("unlabelled_voxels" in case for case in metrics["cases"])
    if in_part:
        tell("warning", {"message": f"{in_part} of {len(held_out)} held-out cases are labelled in "
                         "part, and what is found elsewhere counts for nothing: measure on cases "
                         "that are labelled in full"})  # fmt: skip
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
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # nothing is left to resume
    tell("measured", summary)
    return summary


def _check(config: TrainConfig) -> None:
    """Refuse options that contradict each other, and a folder that holds another run."""
    chosen = [name for name, value in asdict(config.overrides).items() if value is not None]
    if config.plan and set(chosen) - {"steps"}:
        advice = "change the plan's file, or leave out --plan"
        raise ConfigError(
            "plan", "given alone", ", ".join(chosen), where=config.plan, advice=advice
        )
    if config.budget_s and config.overrides.steps:
        raise ConfigError("steps and budget", "given one at a time", "both")
    path = config.output / "run.json"
    if config.resume and path.exists():
        before, wanted = read_json(path), _wanted(config)
        if any(plain(before.get(name)) != plain(value) for name, value in wanted.items()):
            raise ConfigError(
                "resumed run", "given the data set, seed and options that it started with",
                where=path, advice="choose another output folder or repeat the first command",
            )  # fmt: skip
    elif (config.output / "plan.json").exists():
        raise ConfigError(
            "output", "a new folder", "a run", where=config.output,
            advice="add --resume to go on with it, or choose another folder",
        )  # fmt: skip


def _wanted(config: TrainConfig) -> dict[str, Any]:
    """What a resumed run must have in common with the first; folds and budget may change."""
    return {
        "dataset": str(config.dataset.resolve()),
        "seed": config.seed,
        "splits": str(config.splits.resolve()) if config.splits else None,
        "plan": str(config.plan.resolve()) if config.plan else None,
        "overrides": asdict(config.overrides),
    }


def _digest(config: TrainConfig) -> dict[str, Digested]:
    """Digest the data set before anything is read of it; a resumed run must find it unchanged."""
    from qinjing import evidence

    trunk = {"trunk": Path(config.overrides.trunk)} if config.overrides.trunk else {}
    read = evidence.digested({"dataset": config.dataset, **trunk}, without=config.output)
    path = config.output / "run.json"
    before = read_json(path) if config.resume and path.exists() else {}
    if before.get("dataset_sha256", read["dataset"].sha256) != read["dataset"].sha256:
        raise ConfigError(
            "data set", "as it was when the run started", "other bytes", where=config.dataset,
            advice="put back what changed, or choose another output folder to train anew",
        )  # fmt: skip
    return read


def _claim(config: TrainConfig, splits: Sequence[Split], dataset_sha256: str) -> None:
    """Write down what this run is, if it is not a resumed one."""
    if not (config.resume and (config.output / "run.json").exists()):
        run = {**_wanted(config), "dataset_sha256": dataset_sha256, "fold": config.fold}
        write_json(config.output / "run.json", run)
    # A resumed run's own splits stay: they name what it saw, though consent was withdrawn since.
    if not (config.resume and (config.output / "splits_final.json").exists()):
        write_splits(config.output / "splits_final.json", splits)


def _splits_path(config: TrainConfig) -> Path | None:
    """The run's own splits, or those given."""
    kept = config.output / "splits_final.json"
    return kept if config.resume and kept.exists() else config.splits


def _plan(
    config: TrainConfig,
    dataset: Dataset,
    cases: Sequence[Case],
    splits: Sequence[Split],
    folds: int,
    start: float,
) -> Plan:
    """Take the run's plan or the one given; make one where there is none.

    It is read back from its file in any case: so a resumed run, and every process of a parallel
    one, goes by the very same numbers.
    """
    path = config.output / "plan.json"
    if parallel.is_first() and not (config.resume and path.exists()):
        _write_plan(config, dataset, cases, splits, folds, start)
    parallel.wait()
    return read_config(path, Plan)


def _write_plan(
    config: TrainConfig,
    dataset: Dataset,
    cases: Sequence[Case],
    splits: Sequence[Split],
    folds: int,
    start: float,
) -> None:
    if config.plan:
        plan = given_plan(config.plan, config.overrides.steps, dataset)
    else:
        fingerprint = measure(dataset, labelled_ones(cases, splits))
        write_json(config.output / "fingerprint.json", fingerprint)
        budget = (config.budget_s or DEFAULT_BUDGET_S * folds) / folds
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
    write_json(config.output / "plan.json", plan)


def _prepare(config: TrainConfig, cases: Sequence[Case], plan: Plan, ignored: int | None) -> None:
    if parallel.is_first():
        folder = config.output / "cache"
        cache.prepare(cases, folder, plan.preprocessing, plan.label_values, ignored)
    parallel.wait()


def _finish(
    config: TrainConfig,
    basis: str | None,
    read: Mapping[str, Digested],
    seconds: float,
    predicting_memory_gib: float | None,
) -> float | None:
    """Write what was measured, leave evidence, drop the copies; the mean Dice over all folds."""
    from qinjing import evidence
    from qinjing.tasks.evaluate import pool

    # Folds that an earlier command trained count as well: predicting averages over them all.
    folds = sorted(path.parent for path in config.output.glob("fold_*/result.json"))
    results = [read_json(fold / "result.json") for fold in folds]
    pooled = pool([fold / "metrics.json" for fold in folds], config.output / "metrics.json")
    measured = {
        "training_s": max(result["training_s"] for result in results),
        "step_s": results[-1]["training_s"] / max(1, results[-1]["steps"]),
        "training_memory_gib": max(result["training_memory_gib"] for result in results),
        "predicting_s": max(result["predicting_s"] for result in results),
        "predicting_memory_gib": predicting_memory_gib,
        "seconds": seconds,
    }
    write_json(config.output / "measured.json", {**measured, "environment": environment()})
    # Prepared cases are a second copy of patients' images: nothing needs them any more.
    shutil.rmtree(config.output / "cache", ignore_errors=True)
    for left in config.output.rglob(".partial-*"):  # of a process that was killed
        left.unlink()
    made = [p for p in sorted(config.output.rglob("*")) if p.is_file() and not _is_record(p)]
    evidence.append(config.output, "train", read, made, asdict(config), basis=basis)
    mean: float | None = pooled["mean"]["foreground"]["dice"]["mean"]
    return mean


def _is_record(path: Path) -> bool:
    return path.name.startswith("evidence.") or "checkpoint" in path.parts
