"""Rows of a report's tables, from metrics.json content to what a cell says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from qinjing.metrics import METRICS

SUMMARY = (
    "dice", "hd95_mm", "nsd", "sensitivity", "specificity", "volume_error_ml", "ece", "betti_error",
)  # fmt: skip
_DIGITS = {"hd95_mm": 2, "assd_mm": 2, "volume_error_ml": 2, "volume_ml": 2, "betti_error": 2,
           "specificity": 4}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """One summary cell: the mean over cases and its confidence interval, ready to print."""

    mean: str
    low: str
    high: str
    n: int | None
    infinite: int = 0  # cases whose distance is infinite and is not in the mean

    @property
    def range(self) -> str:
        """The interval in words, "" where there is none."""
        return f"{self.low} to {self.high}" if self.low and self.high else ""


@dataclass(frozen=True)
class CaseRow:
    """One case of the table, worst first.

    Attributes:
        case_id: as in metrics.json.
        mean_dice: over the labels that could be measured, or None.
        dice: one cell a label.
        others: one cell for each further column of the table.
        share: mean Dice in per cent, for a bar.
    """

    case_id: str
    mean_dice: float | None
    dice: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def share(self) -> str:
        """Width of the row's bar in per cent."""
        return f"{100 * (self.mean_dice or 0):.1f}"


def number(value: Any) -> float | None:
    """Return a finite float, or None for what is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def text(value: Any, metric: str = "dice") -> str:
    """Print one value with the digits that suit its metric; "–" where it was not defined."""
    found = number(value)
    return "–" if found is None else f"{found:.{_DIGITS.get(metric, 3)}f}"


def title(metric: str, tolerance_mm: Any = None) -> str:
    """Return a column's heading with its unit, and NSD's tolerance."""
    known = METRICS.get(metric)
    if known is None:
        return metric
    if metric == "nsd" and number(tolerance_mm) is not None:
        return f"{known.title} at {tolerance_mm:g} mm"
    return f"{known.title} ({known.unit})" if known.unit else known.title


def arrow(metric: str) -> str:
    """Say in one sign which way is better."""
    better = METRICS[metric].better if metric in METRICS else None
    return {"higher": "↑", "lower": "↓", "zero": "→ 0", None: ""}[better]


def interval(entry: Any, metric: str, *, signed: bool = False) -> Interval:
    """Read {"mean", "low", "high", "n"}; `signed` prints the plus of positive values."""
    entry = entry if isinstance(entry, Mapping) else {}
    mean, low, high = (text(entry.get(k), metric) for k in ("mean", "low", "high"))
    if signed:
        mean, low, high = (v if v[0] in "–-" else f"+{v}" for v in (mean, low, high))
    bounded = "–" not in (low, high)
    n = number(entry.get("n"))
    return Interval(
        mean,
        low if bounded else "",
        high if bounded else "",
        int(n) if n is not None else None,
        int(number(entry.get("infinite")) or 0),
    )


def label_names(metrics: Mapping[str, Any]) -> dict[int, str]:
    """Return foreground value → name."""
    labels = metrics.get("labels")
    pairs = labels.items() if isinstance(labels, Mapping) else ()
    return {int(v): str(n) for v, n in pairs if str(v).isdigit() and int(v) > 0}


def summary_rows(
    metrics: Mapping[str, Any],
) -> tuple[list[str], list[tuple[str, int | None, list[Interval]]]]:
    """Return the metrics that were measured, and a row for each label and for their mean."""
    mean = metrics.get("mean")
    mean = mean if isinstance(mean, Mapping) else {}
    entries = {str(k): v for k, v in mean.items() if isinstance(v, Mapping)}
    columns = [m for m in SUMMARY if any(m in entry for entry in entries.values())]
    rows: list[tuple[str, int | None, list[Interval]]] = []
    for value, name in label_names(metrics).items():
        entry = entries.get(str(value), {})
        rows.append((name, value, [interval(entry.get(m), m) for m in columns]))
    foreground = entries.get("foreground")
    if foreground is not None:
        rows.append(("all labels", None, [interval(foreground.get(m), m) for m in columns]))
    return columns, rows


def case_rows(metrics: Mapping[str, Any]) -> tuple[list[str], list[CaseRow]]:
    """Return the further columns of the per-case table and its rows, worst mean Dice first."""
    values = list(label_names(metrics))
    further = [m for m in ("hd95_mm", "nsd", "volume_error_ml", "betti_error")
               if any(m in e for c in metrics["cases"] for e in c["labels"].values())]  # fmt: skip
    calibrated = any(number(case.get("ece")) is not None for case in metrics["cases"])
    rows = []
    for case in metrics["cases"]:
        labels: Mapping[str, Any] = case["labels"]
        dice = [number(labels.get(str(v), {}).get("dice")) for v in values]
        others = []
        for metric in further:
            measured = [number(labels.get(str(v), {}).get(metric)) for v in values]
            others.append(text(_worst([m for m in measured if m is not None], metric), metric))
        if calibrated:
            others.append(text(case.get("ece"), "ece"))
        known = [d for d in dice if d is not None]
        mean = sum(known) / len(known) if known else None
        foreground = case.get("foreground")
        if isinstance(foreground, Mapping):
            mean = number(foreground.get("dice"))
        cells = tuple(text(d) for d in dice)
        rows.append(CaseRow(str(case.get("case_id")), mean, cells, tuple(others)))
    rows.sort(key=lambda row: (row.mean_dice is not None, row.mean_dice or 0.0, row.case_id))
    return further + ["ece"] * calibrated, rows


def _worst(values: Sequence[float], metric: str) -> float | None:
    """Return the worst of a case's labels."""
    if not values:
        return None
    if metric == "nsd":
        return min(values)
    return max(values, key=abs)


def flat(content: Any, prefix: str = "", limit: int = 80) -> list[tuple[str, str]]:
    """Flatten JSON to dotted names and short values; a path is cut to its last part."""
    if isinstance(content, Mapping):
        rows = []
        for key, value in content.items():
            rows += flat(value, f"{prefix}.{key}" if prefix else str(key), limit)
        return rows[:limit]
    if isinstance(content, list) and any(isinstance(item, dict | list) for item in content):
        return [(prefix, f"{len(content)} entries")]
    if isinstance(content, list):
        shown = ", ".join(_short(item) for item in content[:12])
        return [(prefix, shown + (", …" if len(content) > 12 else ""))]
    return [(prefix, _short(content))]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "–"
    words = str(value)
    if words.startswith(("/", "~")) and " " not in words:
        words = PurePath(words).name
    return words if len(words) <= 200 else words[:199] + "…"
