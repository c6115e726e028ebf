"""Persistence pairs of images: which voxel opens and which closes each component, loop, cavity."""

from __future__ import annotations

from importlib import import_module
from math import prod
from types import ModuleType
from typing import NamedTuple

import numpy as np

from qinjing.errors import ConfigError, GeometryError


def persistence_pairs(image: np.ndarray, sublevel: bool = False) -> tuple[np.ndarray, ...]:
    """Return which voxels open and close every component, loop and cavity of an image's level sets.

    Voxels are closed cubes (GUDHI's `top_dimensional_cells`, cripser's T-construction): the
    foreground is 26-connected, in one slice 8-connected, the background 6- or 4-connected. What
    lies outside the image never comes in.

    Args:
        image: (D, H, W), or (H, W), finite values. With a layer of one voxel around it, a slice
            being (1, H, W), it has at most 2²⁶ voxels: a cube of 404, a slice of 4727 squared.
        sublevel: let voxels come in from the lowest value upwards, not from the highest down.

    Returns:
        For dimensions 0, 1 and 2 (components, loops, cavities) an (n, 2) int64 array of flat
        indices into the image, birth and death. Pairs whose two values are equal are left out. The
        first row of dimension 0 is the component that never dies; its death is −1.

    Raises:
        GeometryError: the image is empty or too large, has another number of axes, or holds NaN or
            an infinity.
        ConfigError: Numba, which compiles the pairing, is not installed.

    Source: arXiv:2206.13932, doi:10.1109/TPAMI.2011.95; see `_stars` and `_pairing`.
    """
    _pairing, _stars = _compiled("_pairing", "_stars")
    _check(image)
    level = _padded(-_levels(image) if sublevel else _levels(image))
    stars, remains = np.zeros(level.shape, np.uint32), np.zeros(level.shape, np.uint32)
    _stars.find_stars(level, stars, remains)
    steps = _steps(level.shape)
    flat, star, critical = level.ravel(), stars.ravel(), remains.ravel()
    words = np.zeros(flat.size, np.uint64)
    places = np.flatnonzero(critical)
    edges = np.sort(_pairing.keys_of(flat, critical, places, _stars.EDGES))
    squares = np.sort(_pairing.keys_of(flat, critical, places, _stars.SQUARES))
    cavities = _pairing.join_basins(flat, star, words, steps, edges)
    components, rest = _pairing.join_summits(flat, star, steps, squares)
    loops = _pairing.pair_loops(flat, star, words, steps, squares[rest])
    loops[:, 1] >>= 3
    alive = [_alive(flat, pairs, level.shape) for pairs in (components, loops, cavities)]
    first = np.array([[int(np.argmax(flat)), -1]])
    first[:, 0] = _inner(first[:, 0], level.shape)
    return np.concatenate([first, alive[0]]), alive[1], alive[2]


class Matching(NamedTuple):
    """The features of one dimension in a map and in the truth; places as in `persistence_pairs`.

    Source: Stucki et al. 2023, arXiv:2211.15272.
    """

    pairs: np.ndarray  # (n, 2) the map's
    partners: np.ndarray  # (n, 2) the truth's feature that each is matched with, −1 for none
    missed: np.ndarray  # (m, 2) the truth's that are left


def match_features(probability: np.ndarray, truth: np.ndarray) -> tuple[Matching, ...]:
    """Match components, loops and cavities of a map's superlevel sets with the truth's, by place.

    The comparison image is the greater of map and truth, voxel by voxel: its superlevel sets hold
    both. A feature of the map and one of the truth are matched where what is left of them in there
    is one and the same (their image bars have some length and end at the same cell). Features of
    the truth that are born together at 1 are told apart by the map's values, then by place.

    Args:
        probability: (D, H, W), or (H, W), values from 0 to 1; no larger than `persistence_pairs`
            takes.
        truth: the same shape, bool.

    Returns:
        For dimensions 0, 1 and 2. The first rows of dimension 0, the components that never die,
        are matched with each other; their death is −1.

    Raises:
        GeometryError: the map is empty or too large, has another number of axes or shape, holds
            NaN or a value that is no probability.
        ConfigError: Numba, which compiles the pairing, is not installed.

    Source: Stucki et al. 2023, arXiv:2211.15272; Bauer and Lesnick 2015, arXiv:1311.3681.
    """
    (_induced,) = _compiled("_induced")
    _check(probability)
    if probability.shape != truth.shape:
        raise GeometryError("truth", f"of shape {probability.shape}", truth.shape)
    low, high = probability.min(), probability.max()
    if low < 0 or high > 1.001:  # a softmax may round upwards
        raise GeometryError("probability", "from 0 to 1", f"{low:g} to {high:g}")
    own = _levels(probability)
    # The truth comes in first, ties are broken by the map: an order of the comparison image's
    # values, and just as well one of the truth's. Their pairs of cells are then the same.
    span = int(own.max()) - int(own.min()) + 1
    level, union = _padded(own), _padded(own + np.int32(span) * truth.astype(np.int32))
    solid = _padded(truth.astype(np.int32)).ravel() == 1
    found = []
    for pairs, through, bars in _induced.pair_both(level, union, _steps(level.shape)):
        left = solid[bars[:, 0]] & ~solid[bars[:, 1]]  # these are the truth's
        matched = through >= 0
        matched[matched] = left[through[matched]]
        partners = np.full(pairs.shape, -1)
        partners[matched] = _inner(bars[through[matched]], level.shape)
        left[through[matched]] = False
        lives = level.flat[pairs[:, 0]] > level.flat[pairs[:, 1]]
        kept = (pairs[lives], bars[left])
        own_pairs, missed = (_inner(places, level.shape) for places in kept)
        found.append(Matching(own_pairs, partners[lives], missed))
    summits = [_inner(np.array([[np.argmax(x)]]), level.shape) for x in (level, union)]
    first, second = (np.pad(x, ((0, 0), (0, 1)), constant_values=-1) for x in summits)
    found[0] = Matching(
        np.concatenate([first, found[0].pairs]),
        np.concatenate([second, found[0].partners]),
        found[0].missed,
    )
    return tuple(found)


def _compiled(*names: str) -> list[ModuleType]:
    """The modules that Numba compiles."""
    try:
        return [import_module(f"{__name__}.{name}") for name in names]
    except ModuleNotFoundError as error:
        advice = "pip install 'qinjing[topology]'"
        raise ConfigError(
            error.name or "numba", "installed for the topology losses", advice=advice
        ) from error


def _check(image: np.ndarray) -> None:
    if image.ndim not in (2, 3) or not image.size:
        raise GeometryError("image", "(D, H, W) or (H, W) and not empty", f"shape {image.shape}")
    (_pairing,) = _compiled("_pairing")
    most = 1 << _pairing.PLACE_BITS
    if prod(n + 2 for n in (1, *image.shape)[-3:]) > most:
        rule = f"at most {most} voxels with a layer of one around it"
        raise GeometryError("image", rule, f"shape {image.shape}")
    if not np.isfinite(image).all():
        raise GeometryError("image", "of finite values", "NaN or an infinity")


def _padded(inside: np.ndarray) -> np.ndarray:
    """Levels with a layer around them that comes first."""
    (_stars,) = _compiled("_stars")
    shape = (1,) * (3 - inside.ndim) + inside.shape
    level = np.full([n + 2 for n in shape], _stars.OUTSIDE, np.int32)
    level[1:-1, 1:-1, 1:-1] = inside.reshape(shape)
    return level


def _steps(padded: tuple[int, ...]) -> np.ndarray:
    """Steps to the six neighbours in the flat array, in the order of the directions."""
    plane, row = padded[1] * padded[2], padded[2]
    return np.array([-plane, plane, -row, row, -1, 1])


def _levels(image: np.ndarray) -> np.ndarray:
    """Whole numbers of 32 bits in the order of the values, equal where they are."""
    if image.dtype == np.float32:
        bits = (image + np.float32(0)).view(np.int32)  # the sum makes one zero of -0 and 0
        return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    _, ranks = np.unique(image, return_inverse=True)
    return ranks.astype(np.int32)


def _alive(level: np.ndarray, pairs: np.ndarray, padded: tuple[int, ...]) -> np.ndarray:
    """Drop the pairs that die as they are born; name places without the padding."""
    pairs = pairs[level[pairs[:, 0]] != level[pairs[:, 1]]]
    return _inner(pairs, padded)


def _inner(places: np.ndarray, padded: tuple[int, ...]) -> np.ndarray:
    """Flat indices into the image from those into the padded one."""
    z, y, x = np.unravel_index(places, padded)
    return ((z - 1) * (padded[1] - 2) + (y - 1)) * (padded[2] - 2) + (x - 1)
