"""Draw what `tasks.label_curve` measured: Dice over labelled patients, a line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from qinjing.config import atomic_path, write_json
from qinjing.report.overlay import PALETTE, to_png

TITLES = {
    "random": "from chance",
    "pretrained": "pre-trained",
    "mean_teacher": "mean teacher",
    "both": "pre-trained and mean teacher",
}


def write_label_curve(result: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Write `label_curve.png`, `label_curve.md` and `label_curve_table.json`.

    Args:
        result: as `label_curve` returned it.
        output: folder.

    Returns:
        "rows": {"method", "count", "mean", "low", "high", "seeds", "share_of_all",
        "against_random", "p"} of each method and count; low and high are the smallest and largest
        of the seeds, p is the paired t-test's over seeds, two-sided.
    """
    points = [point for point in result["points"] if point["dice"] is not None]
    rows = summarise(points, result["patients"])
    with atomic_path(output / "label_curve.png") as temporary:
        temporary.write_bytes(to_png(figure(rows)))
    with atomic_path(output / "label_curve.md") as temporary:
        temporary.write_text(markdown(rows, result["test_cases"]), encoding="utf-8")
    write_json(output / "label_curve_table.json", {"rows": rows, "points": points})
    return {"rows": rows}


def summarise(points: Sequence[Mapping[str, Any]], patients: int) -> list[dict[str, Any]]:
    """Return a row for each method and count, beside chance with the same seeds.

    Args:
        points: trainings.
        patients: how many there are in all; a row of so many stands for all labels.
    """
    dice = {(p["method"], p["count"], p["seed"]): float(p["dice"]) for p in points}
    complete = [value for key, value in dice.items() if key[:2] == ("random", patients)]
    rows = []
    for method, count in dict.fromkeys((p["method"], p["count"]) for p in points):
        seeds = sorted(seed for m, n, seed in dice if (m, n) == (method, count))
        values = np.array([dice[method, count, seed] for seed in seeds])
        both = [seed for seed in seeds if ("random", count, seed) in dice]
        chance = np.array([dice["random", count, seed] for seed in both])
        own = np.array([dice[method, count, seed] for seed in both])
        tested = method != "random" and len(both) > 2 and len(set(own - chance)) > 1
        p = float(ttest_rel(own, chance).pvalue) if tested else None
        rows.append(
            {
                "method": method,
                "count": count,
                "mean": round(float(values.mean()), 4),
                "low": round(float(values.min()), 4),
                "high": round(float(values.max()), 4),
                "seeds": len(seeds),
                "share_of_all": _share(float(values.mean()), complete),
                "against_random": round(float((own - chance).mean()), 4) if len(both) else None,
                "p": None if p is None else round(p, 5),
            }
        )
    return rows


def _share(mean: float, complete: Sequence[float]) -> float | None:
    """Of the Dice that all labels give from chance; None where that is unknown or nothing."""
    whole = float(np.mean(complete)) if complete else 0.0
    return round(mean / whole, 4) if whole else None


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return the curve: the mean over seeds, a bar from the smallest to the largest."""
    drawn = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(drawn)
    ax = drawn.add_subplot()
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for number, method in enumerate(methods):
        own = sorted((row for row in rows if row["method"] == method), key=lambda r: r["count"])
        x = np.array([row["count"] for row in own]) * (1 + 0.02 * number)  # bars side by side
        mean = np.array([row["mean"] for row in own])
        low, high = (np.array([row[key] for row in own]) for key in ("low", "high"))
        ax.errorbar(
            x, mean, (mean - low, high - mean), marker="o", capsize=3, label=TITLES[method],
            color="#B5A20C" if PALETTE[number] == "#F0E442" else PALETTE[number],
        )  # fmt: skip
    counts = sorted({row["count"] for row in rows})
    ax.set_xscale("log")
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.minorticks_off()
    ax.set_xlabel("labelled patients")
    ax.set_ylabel("mean foreground Dice on unseen cases")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return drawn


def markdown(rows: Sequence[Mapping[str, Any]], test_cases: int) -> str:
    """Return the table as Markdown."""
    lines = [
        f"Mean foreground Dice on {test_cases} unseen cases; smallest and largest of the seeds.",
        "",
        "| labelled patients | method | Dice | of all labels | against chance | p | seeds |",
        "|---:|---|---|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: row["count"]):
        share = "" if row["share_of_all"] is None else f"{100 * row['share_of_all']:.1f} %"
        plus = "" if row["method"] == "random" else _signed(row["against_random"])
        p = "" if row["p"] is None else f"{row['p']:.3g}"
        lines.append(
            f"| {row['count']} | {TITLES[row['method']]} | {row['mean']:.4f} ({row['low']:.4f} to "
            f"{row['high']:.4f}) | {share} | {plus} | {p} | {row['seeds']} |"
        )
    return "\n".join(lines) + "\n"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"
