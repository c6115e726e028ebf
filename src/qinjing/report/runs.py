"""Read what is to be compared: tables of metrics, run folders, runs that differ by their seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from qinjing.config import read_json
from qinjing.errors import FormatError, InputError


@dataclass(frozen=True)
class Run:
    """One table of metrics, or the mean of those of several seeds.

    Attributes:
        name: short, different from the other runs' names.
        path: the file or folder that was given, the first of several seeds.
        labels: foreground value (as text) → name.
        tolerance_mm: of its NSD, None where it does not say.
        cases: case id → entry of metrics.json; over several seeds its numbers are means.
        seeds: the runs behind it, itself alone where there is one.
        lost: cases that are left out because a seed lacks them → the names of those that do.
    """

    name: str
    path: Path
    labels: Mapping[str, str]
    tolerance_mm: float | None
    cases: Mapping[str, Mapping[str, Any]]
    seeds: tuple[Run, ...] = ()
    lost: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[dict[str, str]]]:
    """Read every table; one that cannot be read is refused, and two are needed.

    Run folders of one plan and different seeds become one method, unless nothing else is there.

    Raises:
        InputError: fewer than two could be read, or the baseline could not.
    """
    if len(paths) < 2:
        raise InputError("metrics", "two or more files", len(paths))
    groups = _by_method(paths)
    places = [_place(group, groups) for group in groups]
    runs: list[Run] = []
    refused = []
    for number, group in enumerate(groups):
        try:
            seeds = [_read_run(path, _name(path, paths)) for path in group]
            runs.append(_mean(_name(places[number], places), seeds))
        except InputError as error:
            if number == 0 or len(groups) == 2:
                raise
            refused.append({"case_id": str(group[0]), "reason": str(error)})
    if len(runs) < 2:
        raise InputError("metrics", "two or more readable files", refused[0]["reason"])
    return runs, refused


def _by_method(paths: Sequence[Path]) -> list[list[Path]]:
    """Put runs together that differ by their seed only."""
    groups: dict[str, dict[Any, Path]] = {}
    for path in paths:
        key, seed = _method(path)
        if seed in groups.get(key, {}):  # trained twice alike: apart, it was asked for
            key = f"{key} {path.resolve().parent}"
        groups.setdefault(key, {})[seed] = path
    if len(groups) == 1:
        return [[path] for path in paths]
    return [list(group.values()) for group in groups.values()]


def _method(path: Path) -> tuple[str, Any]:
    """What a run has in common with its other seeds, and its seed; its own place if it has none."""
    alone = (str(path.resolve()), None)
    if not (path / "run.json").is_file() or not (path / "plan.json").is_file():
        return alone
    try:
        run, plan = read_json(path / "run.json"), read_json(path / "plan.json")
        splits = read_json(path / "splits_final.json")
        common = [plan, run["dataset_sha256"], run["fold"], splits]
        return json.dumps(common, sort_keys=True), run["seed"]
    except (FormatError, AttributeError, KeyError, TypeError):
        return alone


def _place(group: Sequence[Path], groups: Sequence[Sequence[Path]]) -> Path:
    """The folder that holds all seeds of a method and nothing else; else that of the first seed."""
    parents = {path.resolve().parent for path in group}
    others = {path.resolve().parent for other in groups if other is not group for path in other}
    if len(group) > 1 and len(parents) == 1 and not parents & others:
        return parents.pop()
    return group[0]


def _name(path: Path, paths: Sequence[Path]) -> str:
    """Return the shortest end of the path that no other has, without "metrics.json"."""

    def parts(one: Path) -> list[str]:
        whole = one.resolve()
        whole = whole.parent if whole.name == "metrics.json" else whole
        return [*whole.parts[:-1], whole.name.removesuffix(".json")]

    mine = parts(path)
    others = [parts(other) for other in paths if other is not path]
    for length in range(1, len(mine)):
        if all(other[-length:] != mine[-length:] for other in others):
            return "/".join(mine[-length:])
    raise InputError("metrics", "different files", path)


def _mean(name: str, seeds: Sequence[Run]) -> Run:
    """One run whose numbers are the means over its seeds, on the cases that all of them hold.

    A number that one seed lacks is lacking in the mean: a label that was missed once is no success.
    """
    first = seeds[0]
    if len(seeds) == 1:
        return Run(name, first.path, first.labels, first.tolerance_mm, first.cases, (first,))
    known = dict.fromkeys(case_id for seed in seeds for case_id in seed.cases)
    lacking = {c: [seed.name for seed in seeds if c not in seed.cases] for c in known}
    lost = {case_id: names for case_id, names in lacking.items() if names}
    common = [case_id for case_id in known if case_id not in lost]
    cases = {case_id: _mean_entry([seed.cases[case_id] for seed in seeds]) for case_id in common}
    tolerances = {seed.tolerance_mm for seed in seeds}
    tolerance = tolerances.pop() if len(tolerances) == 1 else None
    return Run(name, first.path, first.labels, tolerance, cases, tuple(seeds), lost)


def _mean_entry(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers averaged, objects entered, all else as the first has it."""
    merged: dict[str, Any] = {}
    for key, value in entries[0].items():
        values = [entry.get(key) for entry in entries]
        if key == "volume_error_ml":  # too much once and too little once is two errors
            values = [abs(v) if isinstance(v, int | float) else v for v in values]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if isinstance(value, Mapping):
            merged[key] = _mean_entry([v if isinstance(v, Mapping) else {} for v in values])
        elif any(isinstance(v, str) for v in values):  # what one seed has to say, such as "empty"
            merged[key] = next(v for v in values if isinstance(v, str))
        elif any(v is None for v in values):
            merged[key] = None
        elif len(numbers) == len(values):
            merged[key] = fmean(numbers)
        else:
            merged[key] = value
    for entry in entries:  # a seed that missed a label says so in a field of its own
        merged |= {key: value for key, value in entry.items() if key not in merged}
    return merged


def _read_run(path: Path, name: str) -> Run:
    """Read one table, or the folds of a run as one.

    Raises:
        FormatError: it is not in the form that evaluation writes, or names a case twice.
    """
    files = [path]
    if path.is_dir():
        folds = sorted(path.glob("fold_*/metrics.json"))
        if (path / "metrics.json").is_file():
            files = [path / "metrics.json"]
        elif folds:
            files = folds
        else:
            raise InputError(
                "folder to compare", "a run, or one with a metrics.json", "neither", where=path,
                advice="give what `qinjing train` or `qinjing evaluate` wrote",
            )  # fmt: skip
    labels: dict[str, str] = {}
    cases: dict[str, Mapping[str, Any]] = {}
    tolerances = set()
    for file in files:
        content = read_json(file)
        entries = content.get("cases") if isinstance(content, dict) else None
        named = content.get("labels") if isinstance(content, dict) else None
        if not isinstance(entries, list) or not isinstance(named, dict):
            raise FormatError("metrics", "an object with labels and cases", where=file)
        for entry in entries:
            rows = entry.get("labels") if isinstance(entry, dict) else None
            if not isinstance(rows, dict) or not all(isinstance(r, dict) for r in rows.values()):
                raise FormatError("metrics case", "an object with case_id and labels", where=file)
            case_id = entry.get("case_id")
            if not isinstance(case_id, str) or case_id in cases:
                raise FormatError("case_id", "a text, once in the table", case_id, where=file)
            cases[case_id] = entry
        labels.update({str(value): str(text) for value, text in named.items()})
        tolerance = content.get("tolerance_mm")
        known = type(tolerance) in (int, float) and abs(tolerance) < 1e100
        tolerances.add(float(tolerance) if known else None)
    return Run(name, path, labels, tolerances.pop() if len(tolerances) == 1 else None, cases)
