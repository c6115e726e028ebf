"""Closed contours of a mask, and the mask of closed contours: one gives the other back exactly.

A contour runs half way between the centres of voxels inside and outside, so that whoever asks
which centres lie inside finds the same voxels. What it encloses is the voxels' area less half a
voxel for each outline, whatever the outline's length. A hole is joined to its outline by a cut of
no width ("keyhole"): closed contours of RTSTRUCT know no other way that all readers share. The cut
runs between two rows, where no centre lies.

Source: DICOM PS3.3, C.8.8.6.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np


def outline(mask: np.ndarray) -> list[np.ndarray]:
    """Return the closed contours of a mask, holes joined to what surrounds them.

    Args:
        mask: (rows, columns), bool.

    Returns:
        (N, 2) arrays of row and column, the first point not repeated.
    """
    from contourpy import FillType, contour_generator

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    first = np.array([rows[0], columns[0]])
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    generator = contour_generator(z=np.pad(part, 1).astype(float), fill_type=FillType.OuterOffset)
    found = []
    points: np.ndarray
    for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True):
        loops = [
            points[a : b - 1, ::-1] for a, b in pairwise(offsets)
        ]  # contourpy repeats the first point, and says columns first
        found.append(_straight(_joined(loops)) + first - 1)
    return found


def _joined(loops: list[np.ndarray]) -> np.ndarray:
    """An outline and its holes as one contour."""
    outer = [tuple(point) for point in loops[0].tolist()]
    holes = []
    for loop in loops[1:]:
        hole = [tuple(point) for point in loop.tolist()]
        # Its outmost place between two rows: from there to the right lies nothing more of it.
        reach, k, place = max((at[1], k, at) for k, at in _between_rows(hole))
        hole = hole if hole[k] == place else [*hole[: k + 1], place, *hole[k + 1 :]]
        start = hole.index(place)
        holes.append((reach, hole[start:] + hole[:start]))
    for _, hole in sorted(holes, key=lambda one: -one[0]):
        row, column = hole[0]
        right = [(at[1], k, at) for k, at in _between_rows(outer) if at[0] == row]
        _, k, place = min(one for one in right if one[0] > column)
        outer = [*outer[: k + 1], place, *hole, hole[0], place, *outer[k + 1 :]]
    return np.array(outer)


def _between_rows(loop: list[tuple[float, float]]) -> Iterable[tuple[int, tuple[float, float]]]:
    """Each place of a contour half way between two rows, with the point that it is at or after."""
    for k, (row, column) in enumerate(loop):
        after = loop[(k + 1) % len(loop)]
        if row % 1 == 0.5:
            yield k, (row, column)
        elif after[0] % 1 != 0.5 and after[0] != row:
            yield k, ((row + after[0]) / 2, column)


def _straight(loop: np.ndarray) -> np.ndarray:
    """A contour without the points that lie on the way between their neighbours."""
    loop = loop[(loop != np.roll(loop, 1, axis=0)).any(axis=1)]
    into, out = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    turns = into[:, 0] * out[:, 1] != into[:, 1] * out[:, 0]
    back = (into * out).sum(axis=1) < 0
    kept: np.ndarray = loop[turns | back]
    return kept


def fill(loops: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return which voxels' centres lie inside an odd number of closed contours.

    Args:
        loops: (N, 2) arrays of row and column.
        shape: (rows, columns) of the mask.
    """
    crossed = np.zeros((shape[0], shape[1] + 1), dtype=np.uint8)
    for loop in loops:
        start, end = loop, np.roll(loop, -1, axis=0)
        low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
        first = np.clip(np.ceil(low), 0, shape[0]).astype(int)
        count = np.clip(np.ceil(high), 0, shape[0]).astype(int) - first
        edge = np.repeat(np.arange(len(loop)), count)
        row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
        share = (row - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
        column = start[edge, 1] + share * (end[edge, 1] - start[edge, 1])
        np.bitwise_xor.at(crossed, (row, np.clip(np.ceil(column), 0, shape[1]).astype(int)), 1)
    inside: np.ndarray = np.bitwise_xor.accumulate(crossed, axis=1)[:, :-1].astype(bool)
    return inside
