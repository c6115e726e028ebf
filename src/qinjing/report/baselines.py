"""What a report says of other methods on the same cases: means, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qinjing.errors import InputError
from qinjing.report import tables
from qinjing.report.compare import LEVEL, compare, is_first
from qinjing.report.compare_page import pairs
from qinjing.report.source import Evaluated

_CAPTION = (
    "Ours minus theirs on the cases that both have, with the 95 % bootstrap interval of the mean. "
    "p-values are corrected by Holm's method over the baselines; a verdict is given where "
    f"Wilcoxon's is below {LEVEL}."
)
_FURTHER_CAPTION = (
    "These p-values are corrected by Holm's method over all rows of the comparison but those "
    "above, also the rows that only `qinjing compare` shows. Pairs in brackets: −k were left out "
    "for an undefined or infinite value; in k partly, the mean over all labels lacks a label that "
    "one method missed or could not be measured on."
)
_TURNED = {"better": "worse", "worse": "better"}


def against(
    metrics: Mapping[str, Any] | None,
    source: Path,
    baselines: Mapping[str, Path],
    others: Mapping[str, Evaluated],
    name: str,
) -> dict[str, Any]:
    """Return the comparison's part of the page.

    Args:
        metrics: ours, pooled over folds; None where nothing was evaluated.
        source: where ours were read from.
        baselines: name → metrics.json or its folder.
        others: the same names → what was read there.
        name: ours.
    """
    empty: dict[str, Any] = {"comparisons": [], "further_comparisons": [], "comparison_means": [],
                             "comparison_caption": _CAPTION, "comparison_notes": [],
                             "further_caption": _FURTHER_CAPTION}  # fmt: skip
    if metrics is None or not baselines:
        return empty
    try:
        result = compare([source, *baselines.values()])
    except InputError as error:
        notes = [f"Not compared: {error}."]
        return {**empty, "comparison_means": _means(metrics, others, name),
                "comparison_notes": notes}  # fmt: skip
    titles = {str(path): title for title, path in baselines.items()}
    of_run = {run["name"]: titles.get(run["files"][0], run["name"]) for run in result["runs"][1:]}
    rows = [
        row for row in result["rows"] if row["label"] == "foreground" or row["metric"] == "dice"
    ]
    first, further = (
        [_row(row, of_run[row["run"]], metrics.get("tolerance_mm")) for row in family]
        for family in ([r for r in rows if is_first(r)], [r for r in rows if not is_first(r)])
    )
    return {
        **empty,
        "comparisons": first,
        "further_comparisons": further,
        "comparison_means": _means(metrics, others, name),
        "comparison_notes": list(result["notes"]),
    }


def _means(
    metrics: Mapping[str, Any], others: Mapping[str, Evaluated], name: str
) -> list[dict[str, Any]]:
    """Return every method's mean Dice, ours first."""
    keys = ["foreground", *map(str, tables.label_names(metrics))]
    means = []
    for title, content in [(name, metrics), *((n, o.metrics) for n, o in others.items())]:
        mean = content.get("mean") or {}
        cells = [tables.interval((mean.get(key) or {}).get("dice"), "dice") for key in keys]
        means.append({"name": title, "cells": cells, "n": len(content["cases"])})
    return means


def _row(row: Mapping[str, Any], title: str, tolerance_mm: Any) -> dict[str, Any]:
    """Turn a row of baseline (ours) and method (theirs) round, so that it speaks of ours."""
    metric, difference = row["metric"], row["difference"]
    turned = {"mean": _minus(difference["mean"]), "low": _minus(difference["high"]),
              "high": _minus(difference["low"])}  # fmt: skip
    return {
        "name": title,
        "metric": tables.title(metric, tolerance_mm),
        "label": "all labels" if row["label"] == "foreground" else row["name"],
        "ours": tables.text(row["baseline_mean"]["mean"], metric),
        "theirs": tables.text(row["run_mean"]["mean"], metric),
        "difference": tables.interval(turned, metric, signed=True),
        "wilcoxon": _p(row["wilcoxon_p_holm"]),
        "ttest": _p(row["t_p_holm"]),
        "effect": tables.text(_minus(row["cohens_dz"])),
        "verdict": _TURNED.get(row["verdict"], row["verdict"]),
        "n": pairs(row),
    }


def _minus(value: Any) -> float | None:
    number = tables.number(value)
    return None if number is None else 0.0 - number  # never −0


def _p(value: Any) -> str:
    number = tables.number(value)
    if number is None:
        return "–"
    return "< 0.001" if number < 0.001 else f"{number:.3f}"
