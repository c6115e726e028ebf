"""Overlap and volume of every label from one joint histogram.

Conventions. A label that is empty in prediction and reference has Dice and IoU NaN, which means
"not defined" and is left out of means, as nnU-Net does; empty in one of them gives 0. Sensitivity
is NaN where the reference is empty. Specificity counts every voxel of the grid that is not of the
label, so that it lies near 1 for small organs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qinjing.errors import GeometryError, LabelError

LARGEST_LABEL = 65535
_CHUNK = 1 << 17  # voxels per pass: the casts of `np.bincount` stay in the cache


@dataclass(frozen=True)
class Counts:
    """Voxels of one label: true and false, positive and negative."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def predicted(self) -> int:
        """Voxels of the label in the prediction."""
        return self.true_positive + self.false_positive

    @property
    def reference(self) -> int:
        """Voxels of the label in the reference."""
        return self.true_positive + self.false_negative


def count(
    prediction: np.ndarray, reference: np.ndarray, labels: Sequence[int]
) -> dict[int, Counts]:
    """Count true and false voxels of every label in one pass over the grid.

    Args:
        prediction: label map of any shape, integers in 0 to 65535.
        reference: label map of the same shape.
        labels: the values to count, without 0; other values count as background.

    Raises:
        GeometryError: the shapes differ.
        LabelError: a value is not an integer from 0 to 65535.

    Source: Taha and Hanbury 2015, doi:10.1186/s12880-015-0068-x, the four cardinalities.
    """
    if prediction.shape != reference.shape:
        raise GeometryError("prediction", f"of shape {reference.shape}", prediction.shape)
    histogram = _joint_histogram(prediction, reference, labels)
    total = int(histogram.sum())
    result = {}
    for position, label in enumerate(labels, start=1):
        true_positive = int(histogram[position, position])
        predicted, wanted = int(histogram[:, position].sum()), int(histogram[position].sum())
        result[label] = Counts(
            true_positive,
            predicted - true_positive,
            wanted - true_positive,
            total - predicted - wanted + true_positive,
        )
    return result


def _joint_histogram(
    prediction: np.ndarray, reference: np.ndarray, labels: Sequence[int]
) -> np.ndarray:
    """Count pairs: (K + 1, K + 1) int64, reference × prediction, position 0 for background."""
    for name, voxels in (("prediction", prediction), ("reference", reference)):
        if voxels.dtype.kind not in "uib":
            raise LabelError(f"{name} values", "integers", voxels.dtype)
        if voxels.size and (int(voxels.min()) < 0 or int(voxels.max()) > LARGEST_LABEL):
            got = f"{voxels.min()} to {voxels.max()}"
            raise LabelError(f"{name} values", f"from 0 to {LARGEST_LABEL}", got)
    if any(not 0 < label <= LARGEST_LABEL for label in labels) or len(set(labels)) < len(labels):
        raise LabelError("labels", f"different and from 1 to {LARGEST_LABEL}", list(labels))
    size = len(labels) + 1
    position = np.zeros(LARGEST_LABEL + 1, dtype=np.intp)
    position[list(labels)] = np.arange(1, size)
    row = position * size
    flat_prediction, flat_reference = prediction.reshape(-1), reference.reshape(-1)
    histogram = np.zeros(size * size, dtype=np.int64)
    for start in range(0, flat_reference.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        pairs = row[flat_reference[part].astype(np.intp)]
        pairs += position[flat_prediction[part].astype(np.intp)]
        histogram += np.bincount(pairs, minlength=size * size)
    return histogram.reshape(size, size)


def dice(counts: Counts) -> float:
    """Return Dice, 0 to 1: twice the common voxels over the sum of both.

    Source: Dice 1945, doi:10.2307/1932409.
    """
    return _ratio(2 * counts.true_positive, counts.predicted + counts.reference)


def iou(counts: Counts) -> float:
    """Return intersection over union (Jaccard), 0 to 1.

    Source: Jaccard 1912, doi:10.1111/j.1469-8137.1912.tb05611.x.
    """
    union = counts.predicted + counts.reference - counts.true_positive
    return _ratio(counts.true_positive, union)


def sensitivity(counts: Counts) -> float:
    """Return the part of the reference that was found, 0 to 1; NaN where it is empty.

    Source: Taha and Hanbury 2015, doi:10.1186/s12880-015-0068-x, section "Overlap based metrics".
    """
    return _ratio(counts.true_positive, counts.reference)


def specificity(counts: Counts) -> float:
    """Return the part of the voxels outside the reference that was left alone, 0 to 1.

    Source: Taha and Hanbury 2015, doi:10.1186/s12880-015-0068-x, section "Overlap based metrics".
    """
    return _ratio(counts.true_negative, counts.true_negative + counts.false_positive)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
