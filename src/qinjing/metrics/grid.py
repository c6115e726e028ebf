"""Lengths on a grid whose voxel axes need not stand at right angles, as under a gantry's tilt.

Source: NIfTI-1, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h (sform: any affine, so
that the axes of an image can lie at any angle).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qinjing.errors import GeometryError

RIGHT = (0.0, 0.0, 0.0)  # the cosines of three right angles
_SMALLEST = 1e-4  # a smaller cosine is a rounded affine, and moves a distance by less than 0.01 %


def axis_cosines(affine: np.ndarray) -> tuple[float, float, float]:
    """Return the cosines of the angles between the axes (D, H), (D, W) and (H, W).

    Args:
        affine: (4, 4), index (d, h, w, 1) → mm.

    Returns:
        0 for a right angle; below 1e-4 a cosine counts as one.
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    between = axes.T @ axes
    between[np.abs(between) < _SMALLEST] = 0.0
    return float(between[0, 1]), float(between[0, 2]), float(between[1, 2])


def voxel_axes_mm(spacing_mm: Sequence[float], cosines: Sequence[float] = RIGHT) -> np.ndarray:
    """Return the (3, 3) matrix that takes a step of (d, h, w) voxels to mm, up to a rotation.

    Args:
        spacing_mm: distance between neighbours along D, H and W.
        cosines: of the angles between the axes (D, H), (D, W) and (H, W).

    Raises:
        GeometryError: the spacing is not positive, or no three axes have such angles.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise GeometryError("spacing_mm", "three positive numbers", spacing.tolist())
    return _unit_axes(cosines) * spacing


def plane_spacing_mm(spacing_mm: Sequence[float], cosines: Sequence[float] = RIGHT) -> np.ndarray:
    """Return the (3,) distances between neighbouring planes of voxels, across D, H and W.

    At right angles these are the spacings, else they are shorter.

    Raises:
        GeometryError: no three axes have such angles.
    """
    slant = np.linalg.norm(np.linalg.inv(_unit_axes(cosines)), axis=1)
    planes: np.ndarray = np.asarray(spacing_mm, dtype=np.float64) / slant
    return planes


def _unit_axes(cosines: Sequence[float]) -> np.ndarray:
    """Return the axes as columns of length 1; the unit matrix, exactly, for right angles."""
    dh, dw, hw = cosines
    try:
        lower = np.linalg.cholesky(np.array([[1.0, dh, dw], [dh, 1.0, hw], [dw, hw, 1.0]]))
    except np.linalg.LinAlgError:
        raise GeometryError("voxel axes", "in three directions", f"cosines {cosines}") from None
    return lower.T
