"""Exact diameters of a mask on any grid, oblique, anisotropic or sheared.

The border runs half-way between a voxel's centre and its neighbour's, as a contour at one half
does: its points lie at the middles of the voxels' faces. The two points that lie farthest apart are
corners of the convex hull, and of a line of voxels only the two ends can be, so that few are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_PAIRS = 1 << 20  # distances at a time
_DIRECTIONS = 16


@dataclass(frozen=True, eq=False)
class Axes:
    """The two diameters that RECIST measures in one slice.

    Attributes:
        slice: index along D.
        long_mm: between the two points of the border that lie farthest apart.
        short_mm: the longest line at a right angle to it, between two points of the hull.
        long_ends: (2, 3) its ends in patient millimetres.
        short_ends: (2, 3).
    """

    slice: int
    long_mm: float
    short_mm: float
    long_ends: np.ndarray
    short_ends: np.ndarray


def largest_diameter(mask: np.ndarray, affine: np.ndarray) -> float:
    """Return the largest distance between two points of a mask's border, in millimetres.

    Args:
        mask: (D, H, W) booleans, not empty.
        affine: (4, 4), index → millimetres; the last column does not matter.
    """
    points = _face_points(mask) @ affine[:3, :3].T
    return _farthest(_hull(points))[0]


def recist_axes(mask: np.ndarray, affine: np.ndarray) -> Axes:
    """Measure the longest diameter in a slice, and the longest at a right angle to it.

    Args:
        mask: (D, H, W) booleans, not empty; slices lie along D.
        affine: (4, 4), index → millimetres.

    Source: Eisenhauer et al. 2009, doi:10.1016/j.ejca.2008.10.026 (RECIST 1.1).
    """
    # A plane's own millimetres: distances in it are those in the patient, under shear as well.
    basis, to_plane = np.linalg.qr(affine[:3, 1:3])
    best: tuple[float, int, np.ndarray] | None = None
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    clouds = {int(d): _face_points(mask[d]) @ to_plane.T for d in slices}
    bounds = {d: _at_most(cloud) for d, cloud in clouds.items()}
    for d in sorted(clouds, key=lambda d: (-bounds[d], d)):
        if best is not None and bounds[d] <= best[0]:
            break  # no slice that is left can hold a longer one
        hull = _hull(clouds[d])
        length = _farthest(hull)[0]
        if best is None or length > best[0] + 1e-9:
            best = length, d, hull
    assert best is not None  # a mask that is not empty has a slice
    length, d, hull = best
    _, a, b = _farthest(hull)
    width, ends = _across(hull, a, b)
    origin = affine[:3, 3] + affine[:3, 0] * d
    return Axes(d, length, width, origin + np.stack([a, b]) @ basis.T, origin + ends @ basis.T)


def _face_points(mask: np.ndarray) -> np.ndarray:
    """Ends of each line of voxels, half a voxel outside, (N, axes) in indices."""
    found = []
    for axis in range(mask.ndim):
        lines = mask.any(axis=axis)
        where = np.argwhere(lines).astype(np.float64)
        first = mask.argmax(axis=axis)[lines] - 0.5
        last = mask.shape[axis] - 0.5 - np.flip(mask, axis).argmax(axis=axis)[lines]
        found += [np.insert(where, axis, end, axis=1) for end in (first, last)]
    return np.concatenate(found)


def _hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull; in a plane in the order in which they go round."""
    from scipy.spatial import ConvexHull

    return points[ConvexHull(points).vertices]


def _at_most(cloud: np.ndarray) -> float:
    """A bound of a plane cloud's diameter, at most a half percent above it.

    One of the directions lies within half a step of the diameter's own, and the cloud is at least
    as wide along it as the diameter's shadow.
    """
    angles = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    widths = np.ptp(cloud @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
    return float(widths.max() / np.cos(np.pi / 2 / _DIRECTIONS)) * (1 + 1e-9)


def _farthest(points: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The two points that lie farthest apart, and how far."""
    centered = points - points.mean(axis=0)
    squares = (centered**2).sum(axis=1)
    # Who is in the farthest pair lies far from the middle: no other reaches beyond the farthest.
    some = centered[squares.argmax()]
    for _ in range(4):
        some = centered[((centered - some) ** 2).sum(axis=1).argmax()]
    sure = float(((centered - some) ** 2).sum(axis=1).max()) ** 0.5
    kept = np.flatnonzero(np.sqrt(squares) + squares.max() ** 0.5 >= sure * (1 - 1e-9))
    best, pair = -1.0, (0, 0)
    step = max(1, _PAIRS // len(kept))
    for start in range(0, len(kept), step):
        rows = kept[start : start + step]
        apart = squares[rows, None] + squares[kept] - 2 * centered[rows] @ centered[kept].T
        place = int(apart.argmax())
        if apart.flat[place] > best:
            best = float(apart.flat[place])
            pair = int(rows[place // len(kept)]), int(kept[place % len(kept)])
    a, b = points[pair[0]], points[pair[1]]
    return float(np.linalg.norm(a - b)), a, b


def _across(hull: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray]:
    """The longest line inside a convex polygon at a right angle to a → b.

    How wide the polygon is along a → b is a concave function with bends at its corners alone: the
    widest place is at one of them.
    """
    along = (b - a) / np.linalg.norm(b - a)
    across = np.array([-along[1], along[0]])
    t, s = (hull - a) @ along, (hull - a) @ across
    following_t, following_s = np.roll(t, -1), np.roll(s, -1)
    best, ends = -1.0, np.stack([a, a])
    for at in t:
        low, high = np.minimum(t, following_t), np.maximum(t, following_t)
        cut = (low <= at) & (at <= high)
        span = np.where(high > low, following_t - t, 1.0)
        part = np.where(high > low, (at - t) / span, 0.0)
        crossed = np.concatenate([(s + part * (following_s - s))[cut], s[cut & (high == low)],
                                  following_s[cut & (high == low)]])  # fmt: skip
        width = float(np.ptp(crossed))
        if width > best:
            best = width
            ends = np.stack(
                [a + along * at + across * end for end in (crossed.min(), crossed.max())]
            )
    return best, ends
