"""Compare tables of metrics on the cases that they share: paired tests, intervals, effect sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.config import write_json
from qinjing.errors import ConfigError, FormatError, InputError
from qinjing.metrics import METRICS
from qinjing.metrics.statistics import (
    FEWEST_PAIRS,
    Interval,
    PairedTest,
    bootstrap_mean,
    holm,
    paired_test,
    welch_p,
)
from qinjing.report.compare_page import write_pages
from qinjing.report.costs import cost
from qinjing.report.pictures import side_by_side
from qinjing.report.runs import Run, read_runs

COMPARED = (
    "dice", "nsd", "hd95_mm", "assd_mm", "sensitivity", "specificity", "volume_error_ml",
    "betti_error", "ece",
)  # fmt: skip
_LABEL_ONLY = ("volume_error_ml",)
_FOREGROUND_ONLY = ("ece",)
_DISTANCES = ("hd95_mm", "assd_mm")  # infinite, hence null, where a label is in one map only
LEVEL = 0.05
CONVENTIONS = {
    "pairs": "Only cases that both tables hold; the first table is the baseline.",
    "left out": "A pair with an undefined or infinite value on either side is left out of that row "
    "and counted. A method that misses a label altogether has no HD95 there: read its Dice.",
    "foreground": "For each case the mean over the labels that both tables could measure.",
    "partly": "Pairs whose foreground mean lacks a label that a table could not measure, such as "
    "the distance of a label that it missed: what was missed is not in the figure.",
    "volume error": "Its absolute value, so that lower is better.",
    "difference": "Run − baseline, with the 95 % BCa bootstrap interval of the mean, whole "
    "patients drawn.",
    "tests": "Two-sided paired t-test and Wilcoxon signed-rank test on one mean difference for "
    f"each patient; none with fewer than {FEWEST_PAIRS} patients.",
    "holm": "Holm's correction, for each of the two tests, in two families: the foreground's Dice "
    "of every method, the first question; and all other rows of this comparison.",
    "verdict": f"Better or worse where Wilcoxon's p after Holm's correction is below {LEVEL}, mean "
    "and ranks point the same way and, with two seeds or more on both sides, Welch's t-test "
    f"between the seeds' means has p below {LEVEL}, too: a lucky seed moves all cases at once. "
    "With one seed a verdict speaks of two trainings, not of two methods.",
    "effect size": "Cohen's dz; rank-biserial correlation.",
    "seeds": "Runs of one plan that differ by their seed are one method: each case's figure is the "
    "mean over them, and the spread between them is their standard deviation.",
    "quality": "In the table of quality and cost each mean is over the method's own cases. (k "
    "missed): k labels of cases are in one map only, have no HD95 and are not in that mean; with "
    "several seeds k is their mean.",
    "costs": "Seconds and memory as each run measured them on its machine while predicting its "
    "held-out cases and while training; FLOPs of one window, a multiplication and an addition "
    "counted as two, without the sampling of deformable attention.",
}


def compare(metrics: Sequence[str | Path], *, seed: int = 0) -> dict[str, Any]:
    """Compare every table with the first, on the cases that both hold.

    Args:
        metrics: two or more metrics.json, or folders that hold one, or run folders, whose folds
            are taken together. Run folders that differ by their seed only are one method.
        seed: of the bootstrap.

    Returns:
        The content of comparison.json: "rows", one for each method, label and metric; "costs", one
        for each method; and what could not be paired or read.

    Raises:
        InputError: fewer than two tables could be read, or two have no case or label in common.
    """
    return _compare(*read_runs([Path(path) for path in metrics]), seed)


def _compare(runs: Sequence[Run], refused: list[dict[str, str]], seed: int = 0) -> dict[str, Any]:
    baseline, others = runs[0], runs[1:]
    labels = {v: n for v, n in baseline.labels.items() if all(v in o.labels for o in others)}
    if not labels:
        raise InputError("tables", "of a common label", ", ".join(r.name for r in runs))
    rows: list[dict[str, Any]] = []
    unpaired: list[dict[str, str]] = []
    for other in others:
        common = [case_id for case_id in baseline.cases if case_id in other.cases]
        if not common:
            raise InputError("tables", "of a common case", f"{baseline.name} and {other.name}")
        rows += _compare_pair(baseline, other, common, labels, seed)
        for one, another in ((baseline, other), (other, baseline)):
            missing = [case_id for case_id in one.cases if case_id not in another.cases]
            unpaired += [
                {"case_id": c, "only_in": one.name, "not_in": another.name}
                for c in missing
                if c not in another.lost
            ]
    _correct(rows)
    return {
        "baseline": baseline.name,
        "runs": [{"name": r.name, "files": [str(s.path) for s in r.seeds], "cases": len(r.cases),
                  "tolerance_mm": r.tolerance_mm} for r in runs],
        "costs": [cost(run) for run in runs],
        "labels": labels,
        "conventions": CONVENTIONS,
        "rows": rows,
        "unpaired": unpaired,
        "refused": refused,
        "notes": _notes(runs, labels),
    }  # fmt: skip


def compare_files(
    metrics: Sequence[str | Path], output: str | Path, dataset: Path | None = None
) -> dict[str, Any]:
    """Compare and write comparison.json, .csv, .md, .html and pictures into a folder.

    Args:
        metrics: as for `compare`.
        output: folder.
        dataset: where the images are for pictures of cases, if not where the runs found them.

    Raises:
        ConfigError: `output` is a file; nothing is compared then.
        InputError: as `compare`; nothing is written then.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ConfigError("output", "a folder", "a file", where=output)
    runs, refused = read_runs([Path(path) for path in metrics])
    result = _compare(runs, refused)
    shown, notes = side_by_side(runs, result["labels"], dataset)
    result["notes"] += notes
    write_pages(result, _differences(runs), shown, output)
    write_json(output / "comparison.json", result)
    return result


def _differences(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Return method → metric → label → the differences of its finite pairs, for a picture."""
    baseline, found = runs[0], {}
    for other in runs[1:]:
        common = [case_id for case_id in baseline.cases if case_id in other.cases]
        labels = [value for value in baseline.labels if value in other.labels]
        found[other.name] = {
            metric: {
                label: second[np.isfinite(second - first)] - first[np.isfinite(second - first)]
                for label, first, second in _columns(baseline, other, common, labels, metric)
            }
            for metric in ("dice", "hd95_mm")
        }
    return found


def is_first(row: Mapping[str, Any]) -> bool:
    """Whether a row belongs to the first family: Dice over all labels, the question asked first.

    The rest is a family of its own, since its many rows would drown that question.
    """
    return row["metric"] == "dice" and row["label"] == "foreground"


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Add to every row its p-values after Holm's correction in its family, and the verdict."""
    for family in ([r for r in rows if is_first(r)], [r for r in rows if not is_first(r)]):
        for test in ("t_p", "wilcoxon_p"):
            for row, p in zip(family, holm([row[test] for row in family]), strict=True):
                row[f"{test}_holm"] = p
    for row in rows:
        row["verdict"] = _verdict(row)


def _compare_pair(
    baseline: Run, other: Run, common: list[str], labels: Mapping[str, str], seed: int
) -> list[dict[str, Any]]:
    """Return the rows of one method against the baseline."""
    patients = [str(baseline.cases[case_id].get("patient_id", case_id)) for case_id in common]
    rows = []
    for metric in COMPARED:
        if metric == "nsd" and not _same_tolerance(baseline, other):
            continue
        partly = _partly(baseline, other, common, list(labels), metric)
        for label, first, second in _columns(baseline, other, common, list(labels), metric):
            both = np.isfinite(first) & np.isfinite(second)
            if not both.any():
                continue
            kept = [patient for patient, keep in zip(patients, both, strict=True) if keep]
            test = paired_test(first[both], second[both], kept, seed=seed)
            rows.append({
                "run": other.name, "baseline": baseline.name, "metric": metric, "label": label,
                "name": labels.get(label, "foreground"), "unit": METRICS[metric].unit,
                "better": "higher" if METRICS[metric].better == "higher" else "lower",
                "n": test.n, "left_out": len(common) - test.n,
                "partly": partly if label == "foreground" else 0,
                "baseline_mean": _entry(bootstrap_mean(first[both], kept, seed=seed)),
                "run_mean": _entry(bootstrap_mean(second[both], kept, seed=seed)),
                **_test_entry(test),
                "seeds_p": _seeds_p(baseline, other, np.array(common)[both].tolist(),
                                    list(labels) if label == "foreground" else [label], metric),
            })  # fmt: skip
    return rows


def _columns(
    baseline: Run, other: Run, common: list[str], labels: list[str], metric: str
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return (label, baseline's values, the method's values) for the foreground and each label."""
    if metric in _FOREGROUND_ONLY:
        pair = [
            np.array([_value(run, c, None, metric) for c in common]) for run in (baseline, other)
        ]
        return [("foreground", pair[0], pair[1])]
    first, second = (_table(run, common, labels, metric) for run in (baseline, other))
    columns = [(label, first[:, k], second[:, k]) for k, label in enumerate(labels)]
    if metric in _LABEL_ONLY:
        return columns
    both = np.isfinite(first) & np.isfinite(second)
    size = both.sum(axis=1)
    means = [
        np.divide(np.where(both, table, 0).sum(axis=1), size,
                  out=np.full(len(common), np.nan), where=size > 0)
        for table in (first, second)
    ]  # fmt: skip
    return [("foreground", means[0], means[1]), *columns]


def _seeds_p(
    baseline: Run, other: Run, cases: list[str], labels: list[str], metric: str
) -> float | None:
    """Return the p of Welch's test between the means of each side's seeds.

    They are taken over what the row is taken over: of each case the labels that no seed lacks.
    """
    columns = [None] if metric in _FOREGROUND_ONLY else labels
    known = np.isfinite(_table(baseline, cases, columns, metric))
    known &= np.isfinite(_table(other, cases, columns, metric))
    size = known.sum(axis=1)
    means = [
        [
            float(np.mean(np.where(known, _table(seed, cases, columns, metric), 0).sum(1) / size))
            for seed in run.seeds
        ]
        for run in (baseline, other)
    ]
    return welch_p(*means)


def _table(run: Run, common: list[str], labels: Sequence[str | None], metric: str) -> np.ndarray:
    return np.array([[_value(run, c, label, metric) for label in labels] for c in common])


def _partly(baseline: Run, other: Run, common: list[str], labels: list[str], metric: str) -> int:
    """Count the cases whose foreground mean lacks a label though there was something to measure.

    That is a label which one table could measure, or, for a distance, one that is in one map only.
    """
    if metric in (*_FOREGROUND_ONLY, *_LABEL_ONLY):
        return 0
    first, second = (np.isfinite(_table(run, common, labels, metric)) for run in (baseline, other))
    due = first | second
    if metric in _DISTANCES:
        due |= np.array([[any(run.cases[c]["labels"].get(label, {}).get("empty")
                              in ("prediction", "reference") for run in (baseline, other))
                          for label in labels] for c in common])  # fmt: skip
    lacking = (due & ~(first & second)).any(axis=1)
    return int((lacking & (first & second).any(axis=1)).sum())


def _value(run: Run, case_id: str, label: str | None, metric: str) -> float:
    """Return one number, NaN where it is not defined; volume errors without their sign.

    Raises:
        FormatError: it is no number.
    """
    case = run.cases[case_id]
    entry = case if label is None else case["labels"].get(label, {})
    value = entry.get(metric)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e100:
        raise FormatError(f"{metric} of {case_id}", "a number or null", value, where=run.path)
    return abs(float(value)) if metric == "volume_error_ml" else float(value)


def _test_entry(test: PairedTest) -> dict[str, Any]:
    return {
        "difference": _entry(test.difference),
        "t_p": test.t_p,
        "wilcoxon_p": test.wilcoxon_p,
        "cohens_dz": _plain(test.cohens_dz),
        "rank_biserial": _plain(test.rank_biserial),
    }


def _entry(interval: Interval) -> dict[str, float | None]:
    return {
        "mean": _plain(interval.mean),
        "low": _plain(interval.low),
        "high": _plain(interval.high),
    }


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _verdict(row: Mapping[str, Any]) -> str:
    """Say in words what the row shows, and nothing more than that."""
    if row["wilcoxon_p"] is None:
        return "too few to test"
    if row["wilcoxon_p_holm"] >= LEVEL or not row["rank_biserial"]:
        return "no difference shown"
    higher = row["rank_biserial"] > 0
    if higher != ((row["difference"]["mean"] or 0) > 0):
        return "mean and ranks disagree"
    if row["seeds_p"] is not None and row["seeds_p"] >= LEVEL:
        return "within the spread of seeds"
    return "better" if higher == (row["better"] == "higher") else "worse"


def _notes(runs: Sequence[Run], labels: Mapping[str, str]) -> list[str]:
    """Say what was left out of the whole comparison."""
    notes = []
    for run in runs:
        lost = [f"{case_id} ({', '.join(names)})" for case_id, names in run.lost.items()]
        if lost:
            notes.append(f"Cases that a seed of {run.name} lacks were left out: {', '.join(lost)}.")
        extra = [f"{value} ({name})" for value, name in run.labels.items() if value not in labels]
        if extra:
            notes.append(f"Labels only some tables have were left out: {', '.join(extra)}.")
        if not _same_tolerance(runs[0], run):
            notes.append(
                f"NSD was left out for {run.name}: its tolerance is {run.tolerance_mm} mm, "
                f"the baseline's {runs[0].tolerance_mm} mm."
            )
    return list(dict.fromkeys(notes))


def _same_tolerance(one: Run, other: Run) -> bool:
    return one.tolerance_mm == other.tolerance_mm
