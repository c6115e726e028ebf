"""Every measure of one segmented case, and their means over cases: the content of metrics.json."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from qinjing.metrics import METRICS
from qinjing.metrics.calibration import calibration_region, expected_calibration_error
from qinjing.metrics.grid import RIGHT
from qinjing.metrics.overlap import Counts, count, dice, iou, sensitivity, specificity
from qinjing.metrics.statistics import Interval, bootstrap_mean
from qinjing.metrics.surface import SurfaceDistances, assd_mm, hd95_mm, nsd, surface_distances
from qinjing.metrics.topology import betti_error

CONVENTIONS = {
    "null": "A measure that is not defined is null and left out of means; n counts the rest.",
    "empty in both": "Dice, IoU, HD95, ASSD and NSD are not defined, as in nnU-Net.",
    "empty in one": "Dice, IoU and NSD are 0. HD95 and ASSD are infinite: null here, counted as "
    "`infinite` beside the mean, which is over the finite ones.",
    "surface": "Voxels with a 6-neighbour outside the label; distances between voxel centres in "
    "mm, right under shear; NSD counts voxels. As in MONAI with use_subvoxels=False.",
    "hd95": "The larger of the two directed 95th percentiles, linear interpolation.",
    "specificity": "Over every voxel of the grid outside the label.",
    "volume error": "Prediction − reference, with its sign.",
    "betti": "|Δb0| + |Δb1| + |Δb2|, foreground 26-connected, background 6-connected.",
    "ece": "Top label, 15 bins, within 5 mm of either foreground.",
    "ignored": "Voxels that nobody labelled are background in both maps; no ECE then.",
    "interval": "95 % BCa bootstrap of the mean, 10000 resamples, whole patients drawn.",
    "foreground": "The mean over labels of each label's mean over cases.",
}
_MEASURED = tuple(name for name in METRICS if name != "ece")
_NO_FOREGROUND = ("volume_ml", "reference_ml", "volume_error_ml")


def measure(
    prediction: np.ndarray,
    reference: np.ndarray,
    labels: Sequence[int],
    spacing_mm: Sequence[float],
    voxel_volume_ml: float,
    tolerance_mm: float = 1.0,
    confidence: np.ndarray | None = None,
    cosines: Sequence[float] = RIGHT,
) -> dict[str, Any]:
    """Measure one case: `{"labels": {"1": {"dice": …}}, "foreground": {"dice": …}, "ece": …}`.

    Args:
        prediction: (D, H, W) label map of integers.
        reference: (D, H, W) label map on the same grid.
        labels: the foreground values.
        spacing_mm: along D, H and W.
        voxel_volume_ml: of one voxel.
        tolerance_mm: of the normalised surface Dice.
        confidence: (D, H, W) probability of the predicted label, uint8 (255 is 1) or 0 to 1.
        cosines: of the angles between the axes, see `grid.axis_cosines`.

    Returns:
        Plain JSON content; what is not defined or infinite is None.

    Raises:
        GeometryError: shapes differ, the spacing is not positive, or the axes lie in one plane.
        LabelError: a value is not an integer from 0 to 65535.
        InputError: the tolerance is negative, or a confidence lies outside 0 to 1.

    Source: Maier-Hein et al. 2024, doi:10.1038/s41592-023-02151-z (which measures belong together).
    """
    counts = count(prediction, reference, labels)
    distances = surface_distances(prediction, reference, labels, spacing_mm, cosines)
    result: dict[str, Any] = {"labels": {}}
    for label in labels:
        row = _row(counts[label], distances[label], voxel_volume_ml, tolerance_mm)
        row["betti_error"] = betti_error(prediction == label, reference == label)
        result["labels"][str(label)] = row
    known = [r["dice"] for r in result["labels"].values() if r["dice"] is not None]
    result["foreground"] = {"dice": sum(known) / len(known) if known else None}
    result["ece"] = None
    if confidence is not None:
        region = calibration_region(prediction, reference, spacing_mm, cosines)
        ece = expected_calibration_error(confidence, prediction == reference, region)
        result["ece"] = _plain(ece)
    return result


def _row(
    counts: Counts, distances: SurfaceDistances, voxel_ml: float, tolerance_mm: float
) -> dict[str, Any]:
    measures = {
        "dice": dice(counts),
        "iou": iou(counts),
        "hd95_mm": hd95_mm(distances),
        "nsd": nsd(distances, tolerance_mm),
        "assd_mm": assd_mm(distances),
        "sensitivity": sensitivity(counts),
        "specificity": specificity(counts),
        "volume_ml": counts.predicted * voxel_ml,
        "reference_ml": counts.reference * voxel_ml,
        "volume_error_ml": (counts.predicted - counts.reference) * voxel_ml,
    }
    row: dict[str, Any] = {name: _plain(value) for name, value in measures.items()}
    empty = [name for name, size in (("prediction", counts.predicted),
                                     ("reference", counts.reference)) if not size]  # fmt: skip
    row["empty"] = None if not empty else empty[0] if len(empty) == 1 else "both"
    row["voxels"] = {
        "TP": counts.true_positive, "FP": counts.false_positive,
        "FN": counts.false_negative, "TN": counts.true_negative,
    }  # fmt: skip
    return row


def summarise(
    cases: Sequence[Mapping[str, Any]],
    labels: Sequence[int],
    patients: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the means over cases with intervals, for each label and for the foreground.

    Args:
        cases: what `measure` returned, one per case.
        labels: the foreground values.
        patients: of each case, in order; None where each case is a patient of its own.
        seed: of the bootstrap.

    Returns:
        `{"1": {"dice": {"mean", "low", "high", "n"}}, "foreground": {…}}`; distances also have
        "infinite", how many cases have the label in one map only.

    Source: Efron 1987, doi:10.1080/01621459.1987.10478410 (BCa intervals).
    """
    result: dict[str, Any] = {str(label): {} for label in labels}
    result["foreground"] = {}
    for name in _MEASURED:
        values = [[case["labels"][str(label)][name] for label in labels] for case in cases]
        table = np.array(values, dtype=np.float64).reshape(len(cases), len(labels))
        once = np.array(
            [
                [case["labels"][str(label)]["empty"] in ("prediction", "reference")
                 for label in labels]
                for case in cases
            ],
            dtype=bool,
        ).reshape(table.shape)  # fmt: skip
        for column, label in enumerate(labels):
            entry = _entry(bootstrap_mean(table[:, column], patients, seed=seed))
            if name in ("hd95_mm", "assd_mm"):
                entry["infinite"] = int(once[:, column].sum())
            result[str(label)][name] = entry
        if name not in _NO_FOREGROUND:
            entry = _entry(bootstrap_mean(table, patients, seed=seed))
            if name in ("hd95_mm", "assd_mm"):
                entry["infinite"] = int(once.any(axis=1).sum())
            result["foreground"][name] = entry
    errors = np.array([case.get("ece") for case in cases], dtype=np.float64)
    if np.isfinite(errors).any():
        result["foreground"]["ece"] = _entry(bootstrap_mean(errors, patients, seed=seed))
    return result


def _entry(interval: Interval) -> dict[str, Any]:
    return {
        "mean": _plain(interval.mean), "low": _plain(interval.low),
        "high": _plain(interval.high), "n": interval.n,
    }  # fmt: skip


def _plain(value: float) -> float | None:
    """Return a number that JSON can hold."""
    return float(value) if math.isfinite(value) else None
