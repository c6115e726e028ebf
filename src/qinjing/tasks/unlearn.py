"""Make a run forget a case: train again, without it, what had learnt from it, and nothing else."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinjing.config import from_json, read_config, read_json, write_json
from qinjing.data.consent.lineage import handed_to
from qinjing.data.splits import Split, read_splits, write_splits
from qinjing.engine.fit import heeds_scores
from qinjing.engine.plan import Plan
from qinjing.errors import ConfigError
from qinjing.tasks.evaluate import pool, pool_tables
from qinjing.tasks.forgetting import journal_of
from qinjing.tasks.planning import Overrides, Tell, silent
from qinjing.tasks.train import TrainConfig, train

OUTCOME = "unlearned.json"
_SIDES = ("train", "unlabelled", "val")


@dataclass(frozen=True)
class UnlearnConfig:
    """What to forget.

    Attributes:
        run: a run folder.
        case_id: which case.
        dataset: where the data set lies now; None where the run found it.
    """

    run: Path
    case_id: str
    dataset: Path | None = None


def unlearn(config: UnlearnConfig, tell: Tell | None = None) -> dict[str, Any]:
    """Retrain the folds that learnt from a case, from their beginning, without it.

    The result is what training without the case would have come to, bit for bit, by the same plan
    and a fixed number of steps: chance is a function of seed, fold and step alone. The plan stays,
    of which the case's size and grey values were a part. A fold that was measured on the case
    forgets its figures, and is retrained as well where they may have ended its training early.
    Killed at any moment, the same command goes on.

    Args:
        config: what to forget, and where.
        tell: told of what `train` tells.

    Returns:
        "case_id", "retrained" folds, "measured" folds that had only been measured on it,
        "share" of the run's steps that were done again, "seconds".

    Raises:
        ConfigError: the run did not see the case, a fold would be left without any, or the run
            began from a trunk that saw it.
        FormatError: no run folder.
    """
    from qinjing import evidence

    start = time.monotonic()
    run, tell = config.run, tell or silent
    told: dict[str, Any] = read_json(run / "run.json")
    dataset = config.dataset or Path(told["dataset"])
    work = _work(config)
    kept = [_without(split, config.case_id) for split in read_splits(run / "splits_final.json")]
    for fold in work["measured"]:
        _forget_figures(run / f"fold_{fold}", config.case_id)
    _drop_folds(run, work)
    write_splits(run / "splits_final.json", kept)  # which say what the folds learnt from
    shutil.rmtree(run / "cache" / config.case_id, ignore_errors=True)
    read = evidence.digested({"dataset": dataset}, without=run)
    now = {"dataset": str(dataset.resolve()), "dataset_sha256": read["dataset"].sha256}
    write_json(run / "run.json", told | now)
    for fold in work["retrained"]:
        train(_training(told, dataset, run, fold), tell, forgetting=True)
    if not work["retrained"]:
        tables = sorted(run.glob("fold_*/metrics.json"))
        pool(tables, run / "metrics.json")
    outcome = {
        "case_id": config.case_id,
        "retrained": work["retrained"],
        "measured": work["measured"],
        "share": round(len(work["retrained"]) / len(kept), 4),
        "seconds": round(time.monotonic() - start, 1),
    }
    made = [_written(run, outcome), run / "splits_final.json", run / "run.json"]
    made += run.glob("**/metrics.json")
    journal_of(run).unlink()
    evidence.append(run, "unlearn", read, made, config, removed=work["removed"])
    return outcome


def _written(run: Path, outcome: dict[str, Any]) -> Path:
    """What was forgotten so far, with this one."""
    path = run / OUTCOME
    before = read_json(path)["cases"] if path.exists() else []
    write_json(path, {"cases": [*before, outcome]})
    return path


def _work(config: UnlearnConfig) -> dict[str, Any]:
    """What there is to do, written down once, so that a kill changes nothing of it."""
    journal = journal_of(config.run)
    if not journal.exists():
        _check_trunk(config)
        write_json(journal, {"case_id": config.case_id, **_affected(config)})
    work: dict[str, Any] = read_json(journal)
    if work["case_id"] != config.case_id:
        raise ConfigError(
            "case", f"{work['case_id']}, which is being forgotten", config.case_id,
            where=config.run, advice="finish that first",
        )  # fmt: skip
    return work


def _affected(config: UnlearnConfig) -> dict[str, Any]:
    """Which folds learnt from the case, and which were only measured on it."""
    splits = read_splits(config.run / "splits_final.json")
    learnt = [k for k, s in enumerate(splits) if config.case_id in _ids(s, ("train", "unlabelled"))]
    measured = [k for k, s in enumerate(splits) if config.case_id in s["val"]]
    if not learnt and not measured:
        raise ConfigError(
            "case", "one that the run saw", config.case_id, where=config.run,
            advice="`qinjing consent affected` names every model that saw it",
        )  # fmt: skip
    for number, split in enumerate(splits):
        left = _without(split, config.case_id)
        if not left["train"] or not left["val"]:
            raise ConfigError(
                f"fold {number}", "left with a case on either side", config.case_id,
                where=config.run, advice="remove the run, and train anew",
            )  # fmt: skip
    # Where a plateau of the score may end a training, what is measured on decides with.
    decided = measured if heeds_scores(read_config(config.run / "plan.json", Plan).fit) else []
    again = [k for k in sorted({*learnt, *decided}) if (config.run / f"fold_{k}").exists()]
    return {"retrained": again, "measured": measured, "dropped": [], "removed": _made_of(config)}


def _made_of(config: UnlearnConfig) -> list[str]:
    """Files of the run that are named after the case."""
    places = [p.relative_to(config.run).as_posix() for p in config.run.rglob("*") if p.is_file()]
    own = (config.case_id, f"{config.case_id}.nii", f"{config.case_id}.nii.gz")
    return sorted(place for place in places if set(place.split("/")) & set(own))


def _check_trunk(config: UnlearnConfig) -> None:
    """Refuse where what the run began from saw the case as well."""
    transfer = read_config(config.run / "plan.json", Plan).transfer
    name = read_json(config.run / "dataset.json")["name"]
    if transfer and config.case_id in handed_to(config.run, name):
        raise ConfigError(
            "trunk", "one that did not see the case", config.case_id, where=transfer.trunk,
            advice="pre-train and train again without it",
        )  # fmt: skip


def _drop_folds(run: Path, work: dict[str, Any]) -> None:
    """Remove what had learnt from the case, once: what is trained after a kill stays."""
    for fold in work["retrained"]:
        if fold not in work["dropped"]:
            shutil.rmtree(run / f"fold_{fold}", ignore_errors=True)
            work["dropped"].append(fold)
            write_json(journal_of(run), work)


def _forget_figures(fold: Path, case_id: str) -> None:
    """Take a case out of what a fold was measured on."""
    path = fold / "metrics.json"
    if path.exists():
        content = read_json(path)
        cases = [case for case in content["cases"] if case["case_id"] != case_id]
        write_json(path, pool_tables([content | {"cases": cases}]))
    for made in (fold / "validation").rglob(f"{case_id}.nii*"):
        made.unlink()


def _training(told: Mapping[str, Any], dataset: Path, run: Path, fold: int) -> TrainConfig:
    """The training that made the run, of one fold."""
    return TrainConfig(
        dataset,
        run,
        fold=fold,
        seed=int(told["seed"]),
        resume=True,
        splits=Path(told["splits"]) if told["splits"] else None,
        plan=Path(told["plan"]) if told["plan"] else None,
        overrides=from_json(told["overrides"], Overrides),
    )


def _without(split: Split, case_id: str) -> Split:
    kept = {side: [i for i in _ids(split, (side,)) if i != case_id] for side in _SIDES}
    whole = Split(train=kept["train"], val=kept["val"])
    return {**whole, "unlabelled": kept["unlabelled"]} if kept["unlabelled"] else whole


def _ids(split: Split, sides: Sequence[str]) -> list[str]:
    return [i for side in sides for i in split.get(side, [])]  # type: ignore[attr-defined]
