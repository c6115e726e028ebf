"""Measures of a segmentation: arrays in, numbers out; nothing of files or of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """How a column of `metrics.json` is to be read.

    Attributes:
        title: for tables and axes.
        unit: "" for a plain number.
        better: whether higher, lower, or nearer to zero is better; None for a mere description.
    """

    title: str
    unit: str
    better: Literal["higher", "lower", "zero"] | None


METRICS: Mapping[str, Metric] = {
    "dice": Metric("Dice", "", "higher"),
    "iou": Metric("IoU", "", "higher"),
    "hd95_mm": Metric("HD95", "mm", "lower"),
    "nsd": Metric("NSD", "", "higher"),
    "assd_mm": Metric("ASSD", "mm", "lower"),
    "sensitivity": Metric("Sensitivity", "", "higher"),
    "specificity": Metric("Specificity", "", "higher"),
    "volume_ml": Metric("Volume", "ml", None),
    "reference_ml": Metric("Reference volume", "ml", None),
    "volume_error_ml": Metric("Volume error", "ml", "zero"),
    "betti_error": Metric("Betti error", "", "lower"),
    "ece": Metric("ECE", "", "lower"),
}
