"""Learning curves: what `log.jsonl` says of each fold, drawn for light and for dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from qinjing.engine.log import read_events
from qinjing.report.overlay import PALETTE

Theme = Literal["light", "dark"]
_INK = {"light": ("#1c2430", "#d5dae1", "#ffffff"), "dark": ("#e6e9ee", "#3a4350", "#171b21")}
# The colours of the labels in the pictures; yellow is darkened on white, where it would be lost.
_LINES = {
    "light": tuple("#B5A20C" if line == "#F0E442" else line for line in PALETTE),
    "dark": PALETTE,
}


@dataclass(frozen=True)
class TrainingLog:
    """One fold's log.

    Attributes:
        steps: rows (step, loss, learning rate, seconds since the start), ascending.
        validations: rows (step, mean Dice), ascending.
        label_dice: label value → Dice at each validation, nan where it was not measured.
    """

    steps: np.ndarray
    validations: np.ndarray
    label_dice: Mapping[int, np.ndarray]

    @property
    def seconds_a_step(self) -> np.ndarray:
        """Time that each step took, with the validation before it."""
        return np.diff(self.steps[:, 3], prepend=0.0)


def read_log(path: Path) -> TrainingLog:
    """Read `log.jsonl`, passing over what is not an event of a step or a validation."""
    steps: dict[int, tuple[float, float, float]] = {}
    validations: dict[int, Mapping[str, Any]] = {}
    for event in read_events(path):
        if not isinstance(event, dict) or not isinstance(event.get("step"), int):
            continue
        if event.get("kind") == "step":
            loss, rate, seconds = (_number(event.get(n)) for n in ("loss", "lr", "seconds"))
            steps[event["step"]] = loss, rate, seconds
        elif event.get("kind") == "validation":
            validations[event["step"]] = event
    order = sorted(validations)
    label_dice: dict[int, np.ndarray] = {}
    for name in sorted({key for entry in validations.values() for key in entry}):
        value = name.removeprefix("dice_")
        if value != name and value.isdigit():
            curve = [_number(validations[step].get(name)) for step in order]
            label_dice[int(value)] = np.array(curve)
    means = [(step, _number(validations[step].get("score"))) for step in order]
    return TrainingLog(
        np.array([(s, *steps[s]) for s in sorted(steps)], dtype=float).reshape(-1, 4),
        np.array(means, dtype=float).reshape(-1, 2),
        dict(sorted(label_dice.items())),
    )


def _number(value: Any) -> float:
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if ok else float("nan")


def curves_figure(
    logs: Mapping[str, TrainingLog], labels: Mapping[int, str], theme: Theme
) -> Figure:
    """Draw loss, validation Dice, learning rate and time of each step.

    Args:
        logs: fold's name → log. One fold shows Dice per label, several show each fold's mean.
        labels: value → name.
        theme: which page it stands on.
    """
    ink, grid, paper = _INK[theme]
    figure = Figure(figsize=(11.4, 6.0), dpi=110, facecolor=paper, layout="constrained")
    FigureCanvasAgg(figure)
    (loss, dice), (rate, seconds) = figure.subplots(2, 2)
    for index, (name, log) in enumerate(logs.items()):
        line = _LINES[theme][index % len(_LINES[theme])]
        step = log.steps[:, 0]
        loss.plot(step, log.steps[:, 1], color=line, alpha=0.25, linewidth=0.8)
        loss.plot(step, _smooth(log.steps[:, 1]), color=line, linewidth=1.8, label=name)
        rate.plot(step, log.steps[:, 2], color=line, linewidth=1.8, label=name)
        seconds.plot(step, log.seconds_a_step, color=line, linewidth=1.0, alpha=0.8, label=name)
        if len(logs) > 1:
            dice.plot(*log.validations.T, color=line, marker="o", markersize=3, label=name)
    if len(logs) == 1:
        _label_curves(dice, next(iter(logs.values())), labels, _LINES[theme], ink)
    titles = ("Training loss", "Validation Dice", "Learning rate", "Seconds a step")
    for ax, title in zip((loss, dice, rate, seconds), titles, strict=True):
        ax.set_title(title, color=ink, fontsize=11, loc="left")
        ax.set_facecolor(paper)
        ax.grid(color=grid, linewidth=0.6)
        ax.tick_params(colors=ink, labelsize=9)
        ax.set_xlabel("step", color=ink, fontsize=9)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(grid)
    _time_axis(seconds, [log.seconds_a_step for log in logs.values()])
    for ax in (dice, loss) if len(logs) > 1 else (dice,):
        if ax.get_lines():
            box = ax.legend(fontsize=8, frameon=False, labelcolor=ink)
            for text in box.get_texts():
                text.set_parse_math(False)
    return figure


def _label_curves(
    ax: Any, log: TrainingLog, labels: Mapping[int, str], lines: Sequence[str], ink: str
) -> None:
    """Draw one line a label, and their mean thicker."""
    step = log.validations[:, 0]
    for index, (value, curve) in enumerate(log.label_dice.items()):
        name = labels.get(value, f"label {value}")
        ax.plot(step, curve, color=lines[index % len(lines)], linewidth=1.2, marker="o",
                markersize=3, label=name)  # fmt: skip
    ax.plot(*log.validations.T, color=ink, linewidth=2.2, label="mean")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Average over about a thirtieth of the run, each point looking back only."""
    width = max(1, len(values) // 30)
    padded = np.concatenate([np.zeros(1), np.cumsum(np.nan_to_num(values))])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return (padded[end] - padded[start]) / (end - start)


def _time_axis(ax: Any, seconds: Sequence[np.ndarray]) -> None:
    """Keep single slow steps (a measurement, a busy machine) from hiding the rest."""
    finite = np.concatenate([s[np.isfinite(s)] for s in seconds] or [np.empty(0)])
    if finite.size:
        ax.set_ylim(0, 1.3 * float(np.percentile(finite, 98)) or 1.0)
