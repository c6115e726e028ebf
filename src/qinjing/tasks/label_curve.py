"""How good a model gets from how many labelled cases: trainings over counts, seeds and methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.config import plain, read_config, read_json, write_json
from qinjing.data.case import Case, Dataset
from qinjing.data.consent.lineage import seen_by
from qinjing.data.splits import Split, read_splits, write_splits
from qinjing.engine.plan import Plan, Transfer
from qinjing.errors import ConfigError
from qinjing.tasks.planning import Overrides, Tell, default_splits, silent, sound_cases
from qinjing.tasks.select import describer, doubter, k_centres
from qinjing.tasks.train import TrainConfig, train
from qinjing.tasks.transfer import trunk_card

UNLABELLED_WEIGHT = 1.0
METHODS = ("random", "pretrained", "mean_teacher", "both")
CHOICES = ("random", "coreset", "uncertainty")


@dataclass(frozen=True)
class LabelCurveConfig:
    """A set of trainings with few labels.

    Attributes:
        dataset: folder in any layout, every case labelled.
        output: takes a run for each count, method and seed, and `label_curve.json`.
        trunk: pre-trained folder; without it only "random" and "mean_teacher" can be asked for.
        counts: labelled patients; 0 stands for all.
        seeds: trainings of each count and method, each with patients of its own draw.
        steps: optimiser steps of each training.
        methods: of `METHODS`.
        choices: of `CHOICES`, how the labelled patients are found: "random" draws them, "coreset"
            adds to the first one drawn those whose features of the trunk are unlike the chosen
            ones', "uncertainty" adds to those of the count before what its model was least sure of.
        splits: a `splits_final.json`; its first fold's val side is measured on. Else the first of
            five folds by patient.
    """

    dataset: Path
    output: Path
    trunk: Path | None = None
    counts: tuple[int, ...] = (1, 2, 5, 10, 20, 0)
    seeds: int = 3
    steps: int = 600
    methods: tuple[str, ...] = METHODS
    choices: tuple[str, ...] = ("random",)
    splits: Path | None = None

    def __post_init__(self) -> None:
        for name, known in (("methods", METHODS), ("choices", CHOICES)):
            unknown = set(getattr(self, name)) - set(known)
            if unknown or not getattr(self, name):
                raise ConfigError(name, f"of {', '.join(known)}", ", ".join(sorted(unknown)))
        asked = {*self.methods, *self.choices}
        if self.trunk is None and {"pretrained", "both", "coreset"} & asked:
            raise ConfigError("trunk", "given for pretrained, both and coreset", "none")
        if self.seeds < 1 or self.steps < 1 or min(self.counts, default=-1) < 0:
            raise ConfigError(
                "seeds, steps and counts", "positive; a count may be 0, for all", self
            )


def label_curve(config: LabelCurveConfig, tell: Tell | None = None) -> dict[str, Any]:
    """Train every count, method and seed; what is finished is kept, what was stopped goes on.

    The same seed draws the same patients for every method, and a larger count keeps those of the
    smaller ones. Methods differ in nothing else but what their names say: network, steps, batch and
    augmentation are the same. Images of patients whose labels are not used teach where the method
    has a teacher. Where two choices come to the same patients, one training stands for both.

    Args:
        config: what to train.
        tell: told of ("variant", {"name", "seed", "number", "of"}) and of what `train` tells.

    Returns:
        "points": {"method", "choice", "count", "cases", "seed", "dice", "run"} of each training;
        "patients" to choose from; "test_cases".

    Raises:
        InputError: the data set cannot be used, or the folder holds another curve.
    """
    tell = tell or silent
    _claim(config)
    dataset, cases, _ = sound_cases(config.dataset, tell)
    splits = read_splits(config.splits, dataset.cases) if config.splits else default_splits(cases)
    split = splits[0]
    if config.trunk:
        _check_unseen(config.trunk, dataset, split["val"])
    own = {case.case_id: case for case in cases}
    pool = [own[case_id] for case_id in split["train"] if case_id in own]
    patients = sorted({case.patient_id for case in pool})
    counts = sorted({min(count, len(patients)) or len(patients) for count in config.counts})
    series = list(product(range(config.seeds), config.methods, config.choices))
    points: list[dict[str, Any]] = []
    runs: dict[tuple[str, int, frozenset[str]], Path] = {}
    orders = _Orders(config, pool)
    for number, (seed, method, choice) in enumerate(series):
        before: tuple[set[str], Path] | None = None
        for place, count in enumerate(counts):
            name = method if choice == "random" else f"{method}-{choice}"
            fields = {"name": f"{name}, {count} labelled", "seed": seed}
            at = {"number": number * len(counts) + place + 1, "of": len(series) * len(counts)}
            tell("variant", {**fields, **at})
            chosen = orders.chosen(choice, count, seed, before)
            fold = labelled_split(pool, chosen, split["val"])
            run = runs.setdefault(
                (method, seed, frozenset(chosen)),
                config.output / name / f"labelled_{count}" / f"seed_{seed}",
            )
            dice = _trained(config, run, fold, method, seed, tell)
            point = {"method": method, "choice": choice, "count": count, "seed": seed}
            points.append(point | {"cases": len(fold["train"]), "dice": dice, "run": str(run)})
            before = chosen, run
    result = {"points": points, "patients": len(patients), "test_cases": len(split["val"])}
    write_json(config.output / "label_curve.json", {**result, "config": plain(config)})
    return result


class _Orders:
    """In which order patients get their labels."""

    def __init__(self, config: LabelCurveConfig, pool: Sequence[Case]) -> None:
        self.config = config
        self.cases: dict[str, list[Case]] = {}
        for case in pool:
            self.cases.setdefault(case.patient_id, []).append(case)
        self.patients = sorted(self.cases)
        self.features: dict[str, np.ndarray] = {}

    def chosen(
        self, choice: str, count: int, seed: int, before: tuple[set[str], Path] | None
    ) -> set[str]:
        """Return the labelled patients of a count, given those of the count before and its run."""
        if choice == "random" or count == len(self.patients):
            return draw_patients(self.patients, count, seed)
        if choice == "coreset":
            start = draw_patients(self.patients, 1, seed)
            return start | set(self._farthest(start, count - 1))
        if before is None:
            return draw_patients(self.patients, count, seed)
        return before[0] | set(self._least_sure(*before, count - len(before[0])))

    def _farthest(self, start: set[str], count: int) -> list[str]:
        assert self.config.trunk
        if not self.features:
            self.features = self._of_patients(describer(self.config.trunk), self.patients)
        rest = [patient for patient in self.patients if patient not in start]
        found = k_centres(
            [self.features[p] for p in rest], [self.features[p] for p in start], count
        )
        return [rest[index] for index, _ in found]

    def _least_sure(self, labelled: set[str], run: Path, count: int) -> list[str]:
        rest = [patient for patient in self.patients if patient not in labelled]
        doubt = self._of_patients(doubter(run), rest)
        return sorted(rest, key=lambda patient: -float(doubt[patient][0]))[:count]

    def _of_patients(
        self, measure: Callable[[Case], np.ndarray], patients: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The mean over each patient's scans."""
        return {p: np.mean([measure(case) for case in self.cases[p]], axis=0) for p in patients}


def draw_patients(patients: Sequence[str], count: int, seed: int) -> set[str]:
    """Return `count` patients, those of a smaller count among them."""
    order = np.random.default_rng((seed, 5)).permutation(len(patients))
    return {patients[i] for i in order[:count]}


def labelled_split(pool: Sequence[Case], chosen: set[str], val: Sequence[str]) -> Split:
    """Return a fold whose labels are the chosen patients'; the others give their images."""
    split: Split = {
        "train": [case.case_id for case in pool if case.patient_id in chosen],
        "val": list(val),
    }
    rest = [case.case_id for case in pool if case.patient_id not in chosen]
    return {**split, "unlabelled": rest} if rest else split


def _trained(
    config: LabelCurveConfig, run: Path, fold: Split, method: str, seed: int, tell: Tell
) -> float | None:
    """Mean Dice of one training, made unless it is there."""
    base = config.output / "plans" / f"seed_{seed}.json"
    if not (run / "measured.json").is_file():
        splits = run.with_name(f"{run.name}.splits.json")
        write_splits(splits, [fold])
        training = TrainConfig(config.dataset, run, seed=seed, resume=True, splits=splits)
        if base.exists():
            plan = run.with_name(f"{run.name}.plan.json")
            write_json(plan, _as_method(config, read_config(base, Plan), method))
            train(replace(training, plan=plan), tell)
        else:
            train(replace(training, overrides=_overrides(config, method)), tell)
    if not base.exists():
        # All trainings of a seed follow its first one's plan, which saw the fewest of its labels.
        made = read_config(run / "plan.json", Plan)
        write_json(base, replace(made, transfer=None, unlabelled_weight=0.0))
    mean: float | None = read_json(run / "metrics.json")["mean"]["foreground"]["dice"]["mean"]
    return mean


def _as_method(config: LabelCurveConfig, plan: Plan, method: str) -> Plan:
    """The plan with what makes the method, and nothing else, changed."""
    wanted = _overrides(config, method)
    transfer = Transfer(str(Path(wanted.trunk).resolve())) if wanted.trunk else None
    return replace(plan, transfer=transfer, unlabelled_weight=wanted.unlabelled_weight or 0.0)


def _check_unseen(trunk: Path, dataset: Dataset, val: Sequence[str]) -> None:
    """Refuse a trunk that saw the images that it would be measured on.

    Raises:
        ConfigError: naming one of them.
    """
    seen = seen_by(trunk, dataset.name) & set(val)
    if seen:
        raise ConfigError(
            "trunk", "pre-trained without the cases that are measured on", sorted(seen)[0],
            where=trunk, advice="give `pretrain` the same --splits",
        )  # fmt: skip


def _overrides(config: LabelCurveConfig, method: str) -> Overrides:
    net: dict[str, Any] = {}
    if config.trunk:  # the same network for all
        card = trunk_card(config.trunk)
        options = {k: v for k, v in card.options.items() if k not in ("in_channels", "classes")}
        net = {"net": card.net, "net_options": options}
    made = Overrides(**net, steps=config.steps)
    if method in ("pretrained", "both"):
        made = replace(made, trunk=str(config.trunk))
    if method in ("mean_teacher", "both"):
        made = replace(made, unlabelled_weight=UNLABELLED_WEIGHT)
    return made


def _claim(config: LabelCurveConfig) -> None:
    """Write down what this curve is; seeds, methods and choices may join later."""
    path = config.output / "curve.json"
    free = ("seeds", "methods", "choices", "output")
    wanted: Mapping[str, Any] = {k: v for k, v in plain(config).items() if k not in free}
    if path.is_file() and read_json(path) != wanted:
        raise ConfigError(
            "output", "a new folder, or one of the same curve", "another", where=config.output,
            advice="repeat the first command, or choose another folder",
        )  # fmt: skip
    write_json(path, wanted)
