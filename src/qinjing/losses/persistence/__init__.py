"""Persistence pairs of images: which voxel opens and which closes each component, loop, cavity."""

from __future__ import annotations

import numpy as np

from qinjing.errors import ConfigError, GeometryError


def persistence_pairs(image: np.ndarray, sublevel: bool = False) -> tuple[np.ndarray, ...]:
    """Return which voxels open and close every component, loop and cavity of an image's level sets.

    Voxels are closed cubes (GUDHI's `top_dimensional_cells`, cripser's T-construction): the
    foreground is 26-connected, in one slice 8-connected, the background 6- or 4-connected. What
    lies outside the image never comes in.

    Args:
        image: (D, H, W), or (H, W), finite values.
        sublevel: let voxels come in from the lowest value upwards, not from the highest down.

    Returns:
        For dimensions 0, 1 and 2 (components, loops, cavities) an (n, 2) int64 array of flat
        indices into the image, birth and death. Pairs whose two values are equal are left out. The
        first row of dimension 0 is the component that never dies; its death is −1.

    Raises:
        GeometryError: the image is empty, has another number of axes or holds NaN.
        ConfigError: Numba, which compiles the pairing, is not installed.

    Source: arXiv:2206.13932, doi:10.1109/TPAMI.2011.95; see `_stars` and `_pairing`.
    """
    try:
        from qinjing.losses.persistence import _pairing, _stars
    except ModuleNotFoundError as error:
        advice = "pip install 'qinjing[topology]'"
        raise ConfigError(
            error.name or "numba", "installed for the topology loss", advice=advice
        ) from error
    if image.ndim not in (2, 3) or not image.size or np.isnan(image).any():
        got = f"shape {image.shape}" if image.ndim not in (2, 3) or not image.size else "NaN"
        raise GeometryError("image", "(D, H, W) or (H, W) without NaN", got)
    shape = (1,) * (3 - image.ndim) + image.shape
    level = np.full([n + 2 for n in shape], _stars.OUTSIDE, np.int32)
    level[1:-1, 1:-1, 1:-1] = _levels(-image if sublevel else image).reshape(shape)
    if level.size > 1 << _pairing.PLACE_BITS:
        raise GeometryError("image", f"at most {1 << _pairing.PLACE_BITS} voxels", image.size)
    stars, remains = np.zeros(level.shape, np.uint32), np.zeros(level.shape, np.uint32)
    _stars.find_stars(level, stars, remains)
    plane, row = level.shape[1] * level.shape[2], level.shape[2]
    steps = np.array([-plane, plane, -row, row, -1, 1])
    flat, star, critical = level.ravel(), stars.ravel(), remains.ravel()
    words = np.zeros(flat.size, np.uint64)
    places = np.flatnonzero(critical)
    edges = np.sort(_pairing.keys_of(flat, critical, places, _stars.EDGES))
    squares = np.sort(_pairing.keys_of(flat, critical, places, _stars.SQUARES))
    cavities = _pairing.join_basins(flat, star, words, steps, edges)
    components, rest = _pairing.join_summits(flat, star, steps, squares)
    loops = _pairing.pair_loops(flat, star, words, steps, squares[rest])
    alive = [_alive(flat, pairs, level.shape) for pairs in (components, loops, cavities)]
    first = np.array([[int(np.argmax(flat)), -1]])
    first[:, 0] = _inner(first[:, 0], level.shape)
    return np.concatenate([first, alive[0]]), alive[1], alive[2]


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
