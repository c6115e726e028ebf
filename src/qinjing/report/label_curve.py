"""Draw what `tasks.label_curve` measured: Dice over labelled patients, a line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from qinjing.config import atomic_path, write_json
from qinjing.report.overlay import color, to_png

TITLES = {
    "random": "from chance",
    "pretrained": "pre-trained",
    "mean_teacher": "mean teacher",
    "both": "pre-trained and mean teacher",
}
CHOICES = {"random": "", "coreset": ", core-set", "uncertainty": ", least sure"}


def write_label_curve(result: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Write `label_curve.png`, `label_curve.md` and `label_curve_table.json`.

    Args:
        result: as `label_curve` returned it.
        output: folder.

    Returns:
        "rows": {"method", "choice", "count", "mean", "low", "high", "seeds", "share_of_all",
        "gain", "p", "gain_over_teacher", "p_over_teacher"} of each method, choice and count; low
        and high are the smallest and largest of the seeds. The gain is over patients drawn by
        chance where others were chosen, else over the method "random"; that over the teacher is
        of "both" over "mean_teacher". p is the paired t-test's over seeds, two-sided.
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
    """Return a row for each method, choice and count, beside what it must be better than.

    Args:
        points: trainings.
        patients: how many there are in all; a row of so many stands for all labels.
    """
    dice: dict[tuple[str, str, int], dict[int, float]] = {}
    for p in points:
        dice.setdefault((p["method"], p["choice"], p["count"]), {})[p["seed"]] = float(p["dice"])
    complete = list(dice.get(("random", "random", patients), {}).values())
    rows = []
    for (method, choice, count), own in dice.items():
        values = np.array(list(own.values()))
        plain = ("random" if choice == "random" else method, "random", count)
        gain, chance = _gain(own, {} if plain == (method, choice, count) else dice.get(plain, {}))
        alone = dice.get(("mean_teacher", choice, count), {}) if method == "both" else {}
        over_teacher, p_over_teacher = _gain(own, alone)
        rows.append(
            {
                "method": method,
                "choice": choice,
                "count": count,
                "mean": round(float(values.mean()), 4),
                "low": round(float(values.min()), 4),
                "high": round(float(values.max()), 4),
                "seeds": len(values),
                "share_of_all": _share(float(values.mean()), complete),
                "gain": gain,
                "p": chance,
                "gain_over_teacher": over_teacher,
                "p_over_teacher": p_over_teacher,
            }
        )
    return rows


def _gain(
    own: Mapping[int, float], other: Mapping[int, float]
) -> tuple[float | None, float | None]:
    """Mean difference over the seeds that both have, and its p; None where nothing can be said."""
    gains = np.array([own[seed] - other[seed] for seed in own if seed in other])
    if not len(gains):
        return None, None
    tested = len(gains) > 2 and len(set(gains)) > 1
    p = round(float(ttest_1samp(gains, 0).pvalue), 5) if tested else None
    return round(float(gains.mean()), 4), p


def _share(mean: float, complete: Sequence[float]) -> float | None:
    """Of the Dice that all labels give from chance; None where that is unknown or nothing."""
    whole = float(np.mean(complete)) if complete else 0.0
    return round(mean / whole, 4) if whole else None


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return the curve: the mean over seeds, a bar from the smallest to the largest."""
    drawn = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(drawn)
    ax = drawn.add_subplot()
    series = list(dict.fromkeys(title(row) for row in rows))
    for number, name in enumerate(series):
        own = sorted((row for row in rows if title(row) == name), key=lambda r: r["count"])
        tint = list(TITLES).index(own[0]["method"])
        style = ("-", "--", ":")[list(CHOICES).index(own[0]["choice"])]
        x = np.array([row["count"] for row in own]) * (1 + 0.02 * number)  # bars side by side
        mean = np.array([row["mean"] for row in own])
        low, high = (np.array([row[key] for row in own]) for key in ("low", "high"))
        ax.errorbar(
            x, mean, (mean - low, high - mean), marker="o", capsize=3, label=name,
            color="#B5A20C" if color(tint) == "#F0E442" else color(tint), linestyle=style,
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
        "| labelled patients | method | Dice | of all labels | gain | over the teacher | seeds |",
        "|---:|---|---|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: row["count"]):
        share = "" if row["share_of_all"] is None else f"{100 * row['share_of_all']:.1f} %"
        plus = _signed(row["gain"], row["p"])
        more = _signed(row["gain_over_teacher"], row["p_over_teacher"])
        lines.append(
            f"| {row['count']} | {title(row)} | {row['mean']:.4f} ({row['low']:.4f} to "
            f"{row['high']:.4f}) | {share} | {plus} | {more} | {row['seeds']} |"
        )
    return "\n".join(lines) + "\n"


def _signed(gain: float | None, p: float | None) -> str:
    if gain is None:
        return ""
    return f"{gain:+.4f}" if p is None else f"{gain:+.4f} (p {p:.3g})"


def title(row: Mapping[str, Any]) -> str:
    """Return what a line is called: how it learns, and from whom where that was chosen."""
    return TITLES[row["method"]] + CHOICES[row["choice"]]
