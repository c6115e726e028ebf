"""The table of metrics in nnU-Net v2's form, for tools that read its summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qinjing.config import write_json


def summary_path(metrics: Path) -> Path:
    """Return where the summary of a table lies: x_summary.json by x.json, else summary.json."""
    name = "summary.json" if metrics.stem == "metrics" else f"{metrics.stem}_summary.json"
    return metrics.with_name(name)


def write_nnunet_summary(metrics: Mapping[str, Any], path: str | Path) -> None:
    """Write nnU-Net v2's summary.json: counts, Dice and IoU per case, their means over cases.

    As there, a label that is empty in both maps is left out of the mean; null stands for its NaN.
    """
    labels = list(metrics["labels"])
    per_case = [
        {
            "metrics": {label: _nnunet_row(case["labels"][label]) for label in labels},
            "prediction_file": case["prediction"],
            "reference_file": case["reference"],
        }
        for case in metrics["cases"]
    ]
    names = ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref")
    mean = {
        label: {name: _mean([c["metrics"][label][name] for c in per_case]) for name in names}
        for label in labels
    }
    foreground = {name: _mean([mean[label][name] for label in labels]) for name in names}
    write_json(path, {"foreground_mean": foreground, "mean": mean, "metric_per_case": per_case})


def _nnunet_row(row: Mapping[str, Any]) -> dict[str, Any]:
    voxels = row["voxels"]
    return {
        "Dice": row["dice"], "FN": voxels["FN"], "FP": voxels["FP"], "IoU": row["iou"],
        "TN": voxels["TN"], "TP": voxels["TP"], "n_pred": voxels["TP"] + voxels["FP"],
        "n_ref": voxels["TP"] + voxels["FN"],
    }  # fmt: skip


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
