"""Calibration: does a confidence of 0.8 mean right in eight of ten voxels?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qinjing.errors import GeometryError, InputError
from qinjing.metrics.grid import RIGHT, plane_spacing_mm

REGION_MM = 5.0


def calibration_region(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    cosines: Sequence[float] = RIGHT,
) -> np.ndarray:
    """Return where calibration is measured: both foregrounds and a box of 5 mm around each voxel.

    The far background is right with certainty and would hide every error.

    Args:
        prediction: (D, H, W) label map.
        reference: (D, H, W) label map.
        spacing_mm: along D, H and W; the 5 mm are rounded to whole voxels of each axis.
        cosines: of the angles between the axes, see `grid.axis_cosines`; where they are not right,
            the 5 mm are those across the planes of voxels, so that the box still holds the ball.

    Returns:
        (D, H, W) bool.

    Raises:
        GeometryError: the shapes differ, or the axes lie in one plane.

    Source: Mehrtash et al. 2020, doi:10.1109/TMI.2020.3006437 (calibration near the foreground,
    there by bounding boxes).
    """
    if prediction.shape != reference.shape:
        raise GeometryError("prediction", f"of shape {reference.shape}", prediction.shape)
    region = (prediction != 0) | (reference != 0)
    for axis, width_mm in enumerate(plane_spacing_mm(spacing_mm, cosines).tolist()):
        region = _spread(region, axis, round(REGION_MM / width_mm))
    return region


def _spread(mask: np.ndarray, axis: int, reach: int) -> np.ndarray:
    """Set every voxel within `reach` along one axis of a set one, by a running count."""
    size = mask.shape[axis]
    before = np.cumsum(mask, axis=axis, dtype=np.int32)
    index = np.arange(size)
    upper = before.take(np.minimum(index + reach, size - 1), axis=axis)
    lower = before.take(np.maximum(index - reach - 1, 0), axis=axis)
    shape = [size if a == axis else 1 for a in range(mask.ndim)]
    spread: np.ndarray = upper > np.where((index - reach > 0).reshape(shape), lower, 0)
    return spread


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, region: np.ndarray | None = None, bins: int = 15
) -> float:
    """Return the top-label expected calibration error, 0 to 1; NaN where there is no voxel.

    Σ over bins of (share of voxels) · |accuracy − mean confidence|, bins of equal width, closed
    above: (0, 1/15], (1/15, 2/15] and so on; 0 falls in the first.

    Args:
        confidence: probability of the predicted label, any shape; uint8 (255 is 1) or floating
            point from 0 to 1.
        correct: bool, same shape, whether the predicted label is right.
        region: bool, same shape; only there, or everywhere if None.
        bins: how many.

    Raises:
        GeometryError: the shapes differ.
        InputError: a confidence outside 0 to 1.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    shapes = {confidence.shape, correct.shape} | ({region.shape} if region is not None else set())
    if len(shapes) > 1:
        raise GeometryError("confidence, correct and region", "of one shape", shapes)
    if region is not None:
        confidence, correct = confidence[region], correct[region]
    if not confidence.size:
        return float("nan")
    if confidence.dtype == np.uint8:  # count each of the 256 values once
        sizes = np.bincount(confidence.reshape(-1), minlength=256).astype(np.float64)
        rights = np.bincount(confidence[correct], minlength=256).astype(np.float64)
        values = np.arange(256) / 255
    else:
        values = confidence.reshape(-1).astype(np.float64)
        sizes, rights = np.ones(values.size), correct.reshape(-1).astype(np.float64)
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError("confidence", "from 0 to 1", f"{values.min()} to {values.max()}")
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], values, side="left")
    right = np.bincount(place, weights=rights, minlength=bins)
    trust = np.bincount(place, weights=sizes * values, minlength=bins)
    return float(np.abs(right - trust).sum() / sizes.sum())
