"""A comparison for people: a page, a table for a paper, a table for a spreadsheet, a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.config import atomic_path
from qinjing.metrics import METRICS
from qinjing.report.overlay import data_uri
from qinjing.report.page import render
from qinjing.report.pictures import BETTER, DRAWN, NEITHER, WORSE, Shown, contributions

COLUMNS = (
    "n",
    "baseline",
    "run",
    "difference",
    "t-test, Holm p",
    "Wilcoxon, Holm p",
    "seeds, p",
    "Cohen's dz",
    "rank-biserial",
    "verdict",
)
COST_COLUMNS = (
    "run",
    "network",
    "seeds",
    "parameters (M)",
    "Dice",
    "HD95 (mm)",
    "s a case",
    "GiB, predicting",
    "s, training",
    "GiB, training",
    "GFLOP a window",
)
_MOST_RUNS = 8  # in the picture
_MOST_LABELS = 30
Differences = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]


def write_pages(
    result: Mapping[str, Any], differences: Differences, shown: Sequence[Shown], folder: Path
) -> None:
    """Write comparison.csv, .md, .html and .png, and pictures comparison-….png.

    Args:
        result: what `compare` returned.
        differences: method → metric → label → the differences of its pairs.
        shown: cases side by side.
        folder: made where it is missing.
    """
    pictures = {"comparison.png": _picture(differences, result)}
    pictures["comparison-contributions.png"] = contributions(result)
    cases = {f"comparison-case-{number}.png": one.png for number, one in enumerate(shown, 1)}
    for stale in folder.glob("comparison-case-*.png"):  # of a comparison that had more cases
        stale.unlink()
    for name, png in {**pictures, **cases}.items():
        with atomic_path(folder / name) as path:
            path.write_bytes(png)
    for name, text in (
        ("comparison.csv", _csv(result)),
        ("comparison.md", _markdown(result)),
        ("comparison.html", _html(result, differences, pictures, shown)),
    ):
        with atomic_path(folder / name) as path:
            path.write_text(text, encoding="utf-8", newline="")


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return what a row says in each of `COLUMNS`."""
    digits = 2 if row["unit"] else 4
    return [
        pairs(row),
        _interval(row["baseline_mean"], digits),
        _interval(row["run_mean"], digits),
        _interval(row["difference"], digits, signed=True),
        _p(row["t_p_holm"]),
        _p(row["wilcoxon_p_holm"]),
        _p(row["seeds_p"]),
        _number(row["cohens_dz"], 2, signed=True),
        _number(row["rank_biserial"], 2, signed=True),
        row["verdict"],
    ]


def cost_cells(one: Mapping[str, Any]) -> list[str]:
    """Return what a method's costs say in each of `COST_COLUMNS`; "–" where they say nothing."""

    def spread(entry: Mapping[str, float | None], digits: int) -> str:
        text = _number(entry["mean"], digits)
        return text if entry["seed_sd"] is None else f"{text} ± {entry['seed_sd']:.{digits}f}"

    return [
        one["name"],
        one["net"] or "–",
        str(one["seeds"]),
        _number(one["parameters_million"], 2),
        spread(one["dice"], 4),
        spread(one["hd95_mm"], 2) + f" ({one['missed']:.3g} missed)" * bool(one["missed"]),
        _number(one["predicting_s"], 2),
        _number(one["predicting_memory_gib"], 2),
        _number(one["training_s"], 0),
        _number(one["training_memory_gib"], 2),
        _number(one["giga_flops"], 1),
    ]


def pairs(row: Mapping[str, Any]) -> str:
    """Say how many pairs a row has, and of how many something is not in it: "16 (−4, 3 partly)"."""
    lacking = [f"−{row['left_out']}"] * bool(row["left_out"])
    lacking += [f"{row['partly']} partly"] * bool(row["partly"])
    return f"{row['n']} ({', '.join(lacking)})" if lacking else str(row["n"])


def title(metric: str) -> str:
    """Return a metric's name with its unit and direction."""
    found = METRICS[metric]
    name = f"Absolute {found.title.lower()}" if found.better == "zero" else found.title
    unit = f" ({found.unit})" if found.unit else ""
    return f"{name}{unit}, {'higher' if found.better == 'higher' else 'lower'} is better"


def _number(value: float | None, digits: int, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−")


def _interval(entry: Mapping[str, Any], digits: int, *, signed: bool = False) -> str:
    text = _number(entry["mean"], digits, signed=signed)
    if entry["low"] is None or entry["high"] is None:
        return text
    low, high = (_number(entry[end], digits, signed=signed) for end in ("low", "high"))
    return f"{text} [{low}, {high}]"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _groups(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one table for each method and metric."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["run"], row["metric"]), []).append(row)
    return [
        {"run": run, "metric": title(metric), "note": _note(rows),
         "rows": [(row, cells(row)) for row in rows]}
        for (run, metric), rows in groups.items()
    ]  # fmt: skip


def _note(rows: list[Mapping[str, Any]]) -> str:
    """Say under which figures something is missing, "" where nothing is."""
    said = []
    if any(row["left_out"] for row in rows):
        said.append("−k: k pairs with an undefined or infinite value are left out.")
    if any(row["partly"] for row in rows):
        said.append("k partly: in k pairs the foreground's mean lacks a label that one method "
                    "missed or could not be measured on.")  # fmt: skip
    return " ".join(said)


def _markdown(result: Mapping[str, Any]) -> str:
    lines = [f"# {_plain(', '.join(r['name'] for r in result['runs'][1:]))} against "
             f"{_plain(result['baseline'])}", ""]  # fmt: skip
    lines += ["| " + " | ".join(COST_COLUMNS) + " |", "|---" * len(COST_COLUMNS) + "|"]
    lines += ["| " + " | ".join(map(_plain, cost_cells(one))) + " |" for one in result["costs"]]
    lines += [""]
    for group in _groups(result):
        lines += [f"## {_plain(group['run'])}: {group['metric']}", ""]
        lines += ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        for row, values in group["rows"]:
            lines.append("| " + " | ".join([_plain(row["name"]), *values]) + " |")
        lines += ["", group["note"], ""] if group["note"] else [""]
    lines += [f"- {text}" for text in result["conventions"].values()]
    lines += [f"- {_plain(text)}" for text in result["notes"]]
    for title_, found in _left_over(result):
        lines += ["", f"## {title_}", "", *(f"- {_plain(text)}" for text in found)]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return a name that cannot break a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _left_over(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    unpaired = [f"{u['case_id']}: in {u['only_in']}, not in {u['not_in']}"
                for u in result["unpaired"]]  # fmt: skip
    refused = [f"{r['case_id']}: {r['reason']}" for r in result["refused"]]
    found = [("Cases without a partner", unpaired), ("Tables that could not be read", refused)]
    return [(name, texts) for name, texts in found if texts]


def _csv(result: Mapping[str, Any]) -> str:
    """Return one line a row, numbers in full, what is not defined empty."""
    buffer = io.StringIO()
    flat = [
        {
            key if inner is None else f"{key}_{inner}": value if inner is None else value[inner]
            for key, value in row.items()
            for inner in (value if isinstance(value, Mapping) else (None,))
        }
        for row in result["rows"]
    ]
    writer = csv.DictWriter(buffer, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    for line in flat:
        # a name that a spreadsheet would take for a formula is told to be text
        writer.writerow({key: f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "@")
                         else value for key, value in line.items()})  # fmt: skip
    return buffer.getvalue()


def _html(
    result: Mapping[str, Any],
    differences: Differences,
    pictures: Mapping[str, bytes],
    shown: Sequence[Shown],
) -> str:
    return render(
        "compare.html.j2",
        {
            "result": result,
            "columns": COLUMNS,
            "groups": _groups(result),
            "left_over": _left_over(result),
            "cost_columns": COST_COLUMNS,
            "costs": [cost_cells(one) for one in result["costs"]],
            "picture": data_uri(pictures["comparison.png"]),
            "bars": data_uri(pictures["comparison-contributions.png"]),
            "cases": [(one.caption, data_uri(one.png)) for one in shown],
            "bars_alt": _bars_in_words(result),
            "picture_alt": _points_in_words(differences, result),
        },
    )


def _bars_in_words(result: Mapping[str, Any]) -> str:
    """Say what the bars show: mean differences, their intervals and verdicts."""
    said = [
        f"{row['run']}, {_named(row['metric'])}: {cells(row)[3]}, {row['verdict']}"
        for row in result["rows"]
        if row["metric"] in DRAWN and row["label"] == "foreground"
    ]
    return f"Bars of the mean difference to {result['baseline']}. " + "; ".join(said)


def _points_in_words(differences: Differences, result: Mapping[str, Any]) -> str:
    """Say what the points show: how many cases lie on which side."""
    said = []
    for run in list(differences)[:_MOST_RUNS]:
        for metric in DRAWN:
            found = differences[run][metric].get("foreground", np.empty(0))
            sign = 1 if METRICS[metric].better == "higher" else -1
            better, worse = int((sign * found > 0).sum()), int((sign * found < 0).sum())
            equal = found.size - better - worse
            said.append(f"{run}, {_named(metric)}: {better} better, {worse} worse, {equal} equal")
    return f"Each case's difference to {result['baseline']} is a point. " + "; ".join(said)


def _named(metric: str) -> str:
    found = METRICS[metric]
    return f"{found.title} in {found.unit}" if found.unit else found.title


def _picture(differences: Differences, result: Mapping[str, Any]) -> bytes:
    """Draw each pair's difference as a point over a box, a row a label; right of 0 is higher."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ["foreground", *list(result["labels"])[:_MOST_LABELS]]
    shown = list(differences)[:_MOST_RUNS]
    height = len(shown) * (0.9 + 0.42 * len(names))
    figure = Figure(figsize=(11, max(2.2, height)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 2, squeeze=False)
    rng = np.random.default_rng(0)
    for line, run in zip(axes, shown, strict=True):
        for ax, metric in zip(line, DRAWN, strict=True):
            values = [differences[run][metric].get(name, np.empty(0)) for name in names]
            _panel(ax, values, rng, higher=METRICS[metric].better == "higher")
            named = [result["labels"].get(name, name) for name in names]
            ax.set_yticks(range(len(names)), [_short(name) for name in named], parse_math=False)
            unit = f", {METRICS[metric].unit}" if METRICS[metric].unit else ""
            found = METRICS[metric].title
            ax.set_xlabel(f"{found} difference to the baseline{unit}")
        line[0].set_title(_short(run, 60), loc="left", fontsize=10, parse_math=False)
        line[1].set_yticklabels([])
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def _panel(ax: Any, values: list[np.ndarray], rng: np.random.Generator, *, higher: bool) -> None:
    ax.axvline(0, color="#566174", linewidth=1, zorder=0)
    for place, found in enumerate(values):
        if not found.size:
            ax.annotate("no pair", (0, place), ha="center", va="center", fontsize=8)
            continue
        good = found > 0 if higher else found < 0
        colors = np.where(found == 0, NEITHER, np.where(good, BETTER, WORSE))
        spread = place + rng.uniform(-0.17, 0.17, found.size)
        ax.scatter(found, spread, s=12, c=colors, alpha=0.65, linewidths=0, zorder=2)
        ax.boxplot([found], positions=[place], orientation="horizontal", widths=0.55,
                   showfliers=False, medianprops={"color": "#1c2430", "linewidth": 1.6},
                   boxprops={"color": "#566174"}, whiskerprops={"color": "#566174"},
                   capprops={"color": "#566174"})  # fmt: skip
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.locator_params(axis="x", nbins=6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", color="#e3e7ed", zorder=-1)


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
