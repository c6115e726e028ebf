"""Pictures of a comparison: cases side by side, and what each method gains or loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from qinjing.config import read_json
from qinjing.data.layouts import open_dataset
from qinjing.data.readers import read_volume
from qinjing.errors import InputError
from qinjing.metrics import METRICS
from qinjing.report.overlay import declared, focus, overlay_figure, to_png, where_labelled
from qinjing.report.runs import Run

DRAWN = ("dice", "hd95_mm")
_MOST_COLUMNS = 8  # methods beside the image and the truth
BETTER, WORSE, NEITHER = "#0072b2", "#d55e00", "#8a94a3"  # told apart by every colour vision


@dataclass(frozen=True)
class Shown:
    """One case, truth and predictions side by side.

    Attributes:
        case_id: of the case.
        caption: why it was chosen, where it was cut and what each method reached there.
        png: the picture.
    """

    case_id: str
    caption: str
    png: bytes


def side_by_side(
    runs: Sequence[Run], labels: Mapping[str, str], dataset: Path | None = None
) -> tuple[list[Shown], list[str]]:
    """Draw the baseline's worst, middle and best case as every method segmented it.

    Of several seeds the first is drawn, and told of. The choice is by the baseline's Dice alone, so
    that no method picks its own picture.

    Args:
        runs: baseline first.
        labels: foreground value (as text) → name.
        dataset: where images and truth lie, where the runs do not say so any more.

    Returns:
        The pictures, and what is missing for them, in one sentence each.
    """
    seen = [run for run in runs if _predictions(run)]
    drawn = seen[:_MOST_COLUMNS]
    if len(drawn) < 2 or drawn[0] is not runs[0]:
        return [], ["No pictures of cases: fewer than two run folders hold predictions."]
    place = dataset or _dataset(drawn[0])
    try:
        cases = {case.case_id: case for case in open_dataset(place).cases} if place else {}
    except InputError as error:
        return [], [f"No pictures of cases: {error}"]
    values = {0: "background"} | {int(value): name for value, name in labels.items()}
    predicted = set.intersection(*(set(_predictions(run)) for run in drawn))
    both = [c for c in drawn[0].cases if c in predicted and c in cases and cases[c].label]
    notes = [f"Not drawn beside the others: {run.name}." for run in seen[_MOST_COLUMNS:]]
    shown = []
    notes += [] if both else ["No pictures of cases: no case's files are all there."]
    for word, case_id in _choose(drawn[0], both, labels):
        try:
            shown.append(_draw(word, cases[case_id], drawn, values, labels))
        except InputError as error:
            notes.append(f"No picture of {case_id}: {error}")
    return shown, notes


def _choose(
    baseline: Run, case_ids: Sequence[str], labels: Mapping[str, str]
) -> list[tuple[str, str]]:
    """The baseline's worst, middle and best case by Dice over the labels, fewer if there are."""
    scored = sorted((dice, c) for c in case_ids if (dice := _dice(baseline, c, labels)) is not None)
    words = {0: "worst", len(scored) - 1: "best"}
    if len(scored) > 2:
        words[len(scored) // 2] = "middle"
    return [(words[place], scored[place][1]) for place in sorted(words) if scored]


def _dice(run: Run, case_id: str, labels: Mapping[str, str]) -> float | None:
    """Mean Dice of the seed that is drawn, over the labels that all methods share."""
    entry = _drawn(run).cases[case_id]["labels"]
    rows = [entry[label].get("dice") for label in labels if label in entry]
    known = [dice for dice in rows if isinstance(dice, int | float)]
    return sum(known) / len(known) if known else None


def _drawn(run: Run) -> Run:
    """The first of a method's seeds."""
    return run.seeds[0] if run.seeds else run


def _draw(
    word: str,
    case: Any,
    runs: Sequence[Run],
    values: Mapping[int, str],
    labels: Mapping[str, str],
) -> Shown:
    """Draw one case.

    Raises:
        InputError: a file cannot be read, or lies on another grid.
    """
    image, label = read_volume(case.images[0]), read_volume(case.label)
    truth = declared(label, values)
    maps = {run.name: read_volume(_predictions(run)[case.case_id]) for run in runs}
    judged = where_labelled(maps[runs[0].name], label, values)
    center, where = focus(truth, judged, values)
    figure = overlay_figure(image, {"truth": truth, **maps}, values, center)
    reached = ", ".join(f"{r.name} {_words(_dice(r, case.case_id, labels))}" for r in runs)
    caption = f"{case.case_id}, the baseline's {word} case, through {where}; Dice: {reached}."
    if any(len(run.seeds) > 1 for run in runs):
        caption += " The first seed of each method."
    return Shown(case.case_id, caption, to_png(figure))


def _words(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _predictions(run: Run) -> dict[str, Path]:
    """Case id → predicted label map, of a run folder."""
    folder = _drawn(run).path
    if not folder.is_dir():
        return {}
    found = sorted(folder.glob("fold_*/validation/*.nii.gz"))
    return {path.name.removesuffix(".nii.gz"): path for path in found}


def _dataset(run: Run) -> Path | None:
    try:
        return Path(read_json(run.path / "run.json")["dataset"])
    except (InputError, KeyError, TypeError):
        return None


def contributions(result: Mapping[str, Any]) -> bytes:
    """Draw what each method gains or loses against the baseline: a bar each, with its interval.

    Args:
        result: what `compare` returned.

    Returns:
        PNG; left is lower. Blue is better and orange worse beyond the test, grey is every other
        verdict.
    """
    names = [run["name"] for run in result["runs"][1:]]
    rows = {(r["run"], r["metric"]): r for r in result["rows"] if r["label"] == "foreground"}
    figure = Figure(figsize=(11, 1.2 + 0.5 * len(names)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for ax, metric in zip(figure.subplots(1, 2), DRAWN, strict=True):
        for place, name in enumerate(names):
            row = rows.get((name, metric))
            if row is None or row["difference"]["mean"] is None:
                ax.annotate("not measured", (0, place), va="center", fontsize=8)
                continue
            _bar(ax, place, row)
        ax.axvline(0, color="#1c2430", linewidth=1)
        ax.set_yticks(range(len(names)), names if metric == "dice" else [], parse_math=False)
        ax.set_ylim(len(names) - 0.4, -0.6)
        unit = f", {METRICS[metric].unit}" if METRICS[metric].unit else ""
        ax.set_xlabel(f"{METRICS[metric].title}: difference to {result['baseline']}{unit}",
                      parse_math=False)  # fmt: skip
        ax.locator_params(axis="x", nbins=6)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.grid(axis="x", color="#e3e7ed", zorder=-1)
    return to_png(figure)


def _bar(ax: Any, place: int, row: Mapping[str, Any]) -> None:
    color = {"better": BETTER, "worse": WORSE}.get(row["verdict"], NEITHER)
    found = row["difference"]
    ax.barh(place, found["mean"], color=color, height=0.6, zorder=1)
    if found["low"] is not None and found["high"] is not None:
        ax.plot([found["low"], found["high"]], [place, place], color="#1c2430", linewidth=1.4,
                marker="|", markersize=9, zorder=2)  # fmt: skip
    digits = 4 if not row["unit"] else 2
    text = f"{found['mean']:+.{digits}f}".replace("-", "−")
    ax.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), ha="left", va="center",
                fontsize=9, annotation_clip=False)  # fmt: skip
