"""The Wasserstein distance between persistence diagrams, by an exact matching."""

from __future__ import annotations

import numpy as np


def match_diagrams(
    points: np.ndarray, others: np.ndarray, order: float = 2.0, inner_norm: float = 2.0
) -> np.ndarray:
    """Match the points of two diagrams, or leave them to the diagonal, at the least cost.

    The cost is the sum of distances to the power `order`. Where all points of the second diagram
    are the same one, as with a binary image, those points win it whose gain over the diagonal is
    largest; otherwise the assignment problem is solved.

    Args:
        points: (N, 2) births and deaths, all finite.
        others: (M, 2).
        order: at least 1.
        inner_norm: p of the norm of a difference, at least 1; may be infinite.

    Returns:
        (N,) int64: the row of `others` that each point goes to, −1 for the diagonal.

    Source: Lacombe et al. 2018, arXiv:1805.08331, section 2.
    """
    matches = np.full(len(points), -1)
    if not len(points) or not len(others):
        return matches
    # What is won where a point takes the other instead of both going to the diagonal.
    alone = _diagonal(points, inner_norm) ** order
    if (others == others[0]).all():
        cost = np.linalg.norm(points - others[0], inner_norm, axis=1) ** order
        gain = alone + _diagonal(others[:1], inner_norm) ** order - cost
        best = np.argsort(-gain, kind="stable")[: len(others)]
        best = best[gain[best] > 0]
        matches[best] = np.arange(len(best))
        return matches
    from scipy.optimize import linear_sum_assignment

    cost = np.empty((len(others), len(points) + len(others)))
    for row, other in enumerate(others):
        cost[row, : len(points)] = np.linalg.norm(points - other, inner_norm, axis=1) ** order
    cost[:, : len(points)] -= alone
    cost[:, len(points) :] = (_diagonal(others, inner_norm) ** order)[:, None]
    rows, columns = linear_sum_assignment(cost)
    real = columns < len(points)
    matches[columns[real]] = rows[real]
    return matches


def wasserstein_distance(
    points: np.ndarray, others: np.ndarray, order: float = 2.0, inner_norm: float = 2.0
) -> float:
    """Return the Wasserstein distance between two diagrams of finite points.

    Args:
        points: (N, 2) births and deaths.
        others: (M, 2).
        order: at least 1.
        inner_norm: p of the norm of a difference, at least 1; may be infinite.

    Source: Cohen-Steiner et al. 2010, doi:10.1007/s10208-010-9060-6.
    """
    matches = match_diagrams(points, others, order, inner_norm)
    matched = matches >= 0
    left = np.delete(np.arange(len(others)), matches[matched])
    near = np.linalg.norm(points[matched] - others[matches[matched]], inner_norm, axis=1)
    far = np.concatenate(
        [_diagonal(points[~matched], inner_norm), _diagonal(others[left], inner_norm)]
    )
    return float(((near**order).sum() + (far**order).sum()) ** (1 / order))


def _diagonal(points: np.ndarray, inner_norm: float) -> np.ndarray:
    """Distance to the diagonal."""
    return diagonal_factor(inner_norm) * np.abs(points[:, 0] - points[:, 1])


def diagonal_factor(inner_norm: float) -> float:
    """Return the distance to the diagonal of a point whose birth and death differ by one.

    Source: Lacombe et al. 2018, arXiv:1805.08331, section 2.
    """
    return 2.0 ** (1 / inner_norm) / 2
