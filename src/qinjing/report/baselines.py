"""What a report says of other methods on the same cases: means, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qinjing.errors import InputError
from qinjing.metrics.statistics import holm
from qinjing.report import tables
from qinjing.report.compare import LEVEL, compare
from qinjing.report.source import Evaluated

_CAPTION = (
    "Ours minus theirs on the cases that both have, with the 95 % bootstrap interval of the mean. "
    "p-values are corrected by Holm's method over the baselines; a verdict is given where "
    f"Wilcoxon's is below {LEVEL}."
)


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
                             "comparison_caption": _CAPTION, "comparison_notes": []}  # fmt: skip
    if metrics is None or not baselines:
        return empty
    try:
        result = compare([source, *baselines.values()])
    except InputError as error:
        notes = [f"Not compared: {error}."]
        return {**empty, "comparison_means": _means(metrics, others, name),
                "comparison_notes": notes}  # fmt: skip
    titles = {str(path): title for title, path in baselines.items()}
    of_run = {run["name"]: titles.get(run["file"], run["name"]) for run in result["runs"][1:]}
    rows = [
        row for row in result["rows"] if row["label"] == "foreground" or row["metric"] == "dice"
    ]
    # Dice over all labels is the question asked first; the rest would drown it in one family.
    families = [r for r in rows if _is_first(r)], [r for r in rows if not _is_first(r)]
    for family in families:
        for test in ("t_p", "wilcoxon_p"):
            for row, p in zip(family, holm([row[test] for row in family]), strict=True):
                row[f"{test}_holm"] = p
    first, further = (
        [_row(row, of_run[row["run"]], metrics.get("tolerance_mm")) for row in family]
        for family in families
    )
    return {
        "comparisons": first,
        "further_comparisons": further,
        "comparison_means": _means(metrics, others, name),
        "comparison_caption": _CAPTION,
        "comparison_notes": list(result["notes"]),
    }


def _is_first(row: Mapping[str, Any]) -> bool:
    return row["metric"] == "dice" and row["label"] == "foreground"


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
        "verdict": _verdict(row),
        "n": row["n"],
    }


def _verdict(row: Mapping[str, Any]) -> str:
    """Say of ours what ranks and mean both show, and nothing more."""
    if row["wilcoxon_p_holm"] is None:
        return "too few to test"
    ranks, mean = row["rank_biserial"] or 0.0, row["difference"]["mean"] or 0.0
    if row["wilcoxon_p_holm"] >= LEVEL or ranks * mean <= 0:
        return "no difference shown"
    return "worse" if (mean > 0) == (row["better"] == "higher") else "better"


def _minus(value: Any) -> float | None:
    number = tables.number(value)
    return None if number is None else 0.0 - number  # never −0


def _p(value: Any) -> str:
    number = tables.number(value)
    if number is None:
        return "–"
    return "< 0.001" if number < 0.001 else f"{number:.3f}"
