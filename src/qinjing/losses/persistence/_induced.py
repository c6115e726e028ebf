"""Persistence pairs of two images and of the inclusion of one's level sets in the other's.

Both images live on one discrete gradient: it joins only cells that belong to the same voxel in the
order of either, so that it is one of both filtrations. What is left of the cells makes a small
matrix that all three pairings are read from: its columns in the order of one image, its rows in
that of the same (the image's own pairs) or the other (those of the inclusion).

Source: Cohen-Steiner et al. 2009, doi:10.1137/1.9781611973068.110 (image persistence); Stucki et
al. 2024, arXiv:2407.04683 (of images in three dimensions); Scaramuccia et al. 2018,
arXiv:1811.05396 (one gradient for several filtrations).
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from qinjing.losses.persistence._pairing import (
    _key,
    _later,
    _place,
    join_basins,
    join_summits,
    keys_of,
    pair_loops,
)
from qinjing.losses.persistence._stars import EDGES, SQUARES, compiled, find_stars, remainder

Pairing = tuple[np.ndarray, np.ndarray, np.ndarray]


def pair_both(level: np.ndarray, union: np.ndarray, steps: np.ndarray) -> tuple[Pairing, ...]:
    """Pair the critical cells of an image, of one nowhere below it, and of the inclusion.

    Args:
        level: (D + 2, H + 2, W + 2) int32, `OUTSIDE` in the outermost layer.
        union: the same of an image that is at least as high everywhere, on the same scale.
        steps: six steps in the flat arrays.

    Returns:
        For dimensions 0, 1 and 2: (n, 2) birth and death in the first image; (n,) which of the
        second's pairs dies where the image bar of that birth does, −1 where that bar has no
        length; (m, 2) birth and death in the second. Pairs of no length are among them, the
        component that never dies is not.
    """
    joint, remains = _joint_stars(level, union)
    lower, upper, places = level.ravel(), union.ravel(), np.flatnonzero(remains)
    edges = np.sort(keys_of(upper, remains, places, EDGES))
    squares = np.sort(keys_of(upper, remains, places, SQUARES))
    own_edges, own_squares = (_moved(lower, steps, keys) for keys in (edges, squares))
    edge_order, square_order = np.argsort(own_edges), np.argsort(own_squares)
    own_edges, own_squares = own_edges[edge_order], own_squares[square_order]

    words, upper_words, spare = np.zeros((3, lower.size), np.uint64)
    cavities = join_basins(lower, joint, words, steps, own_edges)
    upper_cavities = join_basins(upper, joint, upper_words, steps, edges)
    components, own_rest = join_summits(lower, joint, steps, own_squares)
    upper_components, rest = join_summits(upper, joint, steps, squares)
    loops = pair_loops(lower, joint, words, steps, own_squares[own_rest])
    upper_loops = pair_loops(upper, joint, upper_words, steps, squares[rest])
    # Of the inclusion. Births are in line with the first image's pairs or deaths with the second's.
    ends_of_cavities = join_basins(upper, joint, spare, steps, edges[edge_order])[:, 1]
    births_of_components = join_summits(lower, joint, steps, squares)[0][:, 0]
    ends_of_loops = pair_loops(upper, joint, upper_words, steps, squares[square_order][own_rest])[
        :, 1
    ]

    through = np.full(lower.size, -1)
    lives = lower[births_of_components] > upper[upper_components[:, 1]]
    through[births_of_components[lives]] = np.flatnonzero(lives)
    through = through[components[:, 0]]  # a peak opens one component of some length
    through[lower[components[:, 0]] == lower[components[:, 1]]] = -1
    found = [(components, through, upper_components)]
    for pairs, ends, bars in (
        (loops, ends_of_loops, upper_loops), (cavities, ends_of_cavities, upper_cavities),
    ):  # fmt: skip
        which = np.argsort(bars[:, 1])
        found.append((pairs, which[np.searchsorted(bars[which, 1], ends)], bars))
    loops[:, 1] >>= 3
    upper_loops[:, 1] >>= 3
    for pairs, through, bars in found[1:]:
        through[lower[pairs[:, 0]] <= upper[bars[through, 1]]] = -1
    return tuple(found)


def _joint_stars(level: np.ndarray, union: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cells that a voxel has in both orders; the critical ones, with what it has in one."""
    stars = np.zeros((3, *level.shape), np.uint32)
    find_stars(level, stars[0], stars[2])
    find_stars(union, stars[1], stars[2])
    own, upper, remains = stars.reshape(3, -1)
    _intersect(own, upper, remains)
    return own, remains


@compiled
def _intersect(own, upper, remains):
    for place in range(own.size):
        both = own[place] & upper[place]
        own[place] = both
        remains[place] = remainder(both) | (upper[place] ^ both)


@compiled
def _moved(level, steps, keys):
    """Name cells by their last corner in another order.

    Args:
        level: flat int32, padded, of the other order.
        steps: six steps in the flat arrays.
        keys: of edges or squares, in any order.

    Returns:
        Their keys in the other order, in line with the first.
    """
    moved = np.empty_like(keys)
    ways = np.empty(2, np.int64)
    for n in range(keys.size):
        place, bit = _place(keys[n]), int64(keys[n] & uint64(63))
        count = 0
        for axis in range(3):
            offset = bit // (9, 3, 1)[axis] % 3
            if offset != 1:
                ways[count] = 2 * axis + (offset == 2)
                count += 1
        last, flip = place, 0
        for corner in range(1, 1 << count):
            other = place
            for k in range(count):
                if corner >> k & 1:
                    other += steps[ways[k]]
            if _later(level, other, last):
                last, flip = other, corner
        inside = 13
        for k in range(count):
            upwards = (ways[k] & 1) ^ (flip >> k & 1)
            inside += (9, 3, 1)[ways[k] >> 1] * (2 * upwards - 1)
        moved[n] = _key(level, last, inside)
    return moved
