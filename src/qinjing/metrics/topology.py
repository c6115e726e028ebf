"""Betti numbers of a mask: how many pieces, tunnels and cavities it has."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qinjing.errors import GeometryError


class Betti(NamedTuple):
    """Counts of connected pieces (b0), tunnels (b1) and enclosed cavities (b2)."""

    pieces: int
    tunnels: int
    cavities: int


def betti_numbers(mask: np.ndarray) -> Betti:
    """Count pieces, tunnels and cavities of a mask whose voxels are closed cubes.

    Cubes that share a corner touch, so that the foreground is 26-connected and the background
    6-connected. The Euler characteristic V − E + F − C of the cubical complex gives the tunnels. A
    single slice (D = 1) is counted as a 2-D image: its holes are tunnels.

    Args:
        mask: (D, H, W) bool; the outside of the image is background.

    Raises:
        GeometryError: the mask is not 3-D.

    Source: Kaczynski, Mischaikow and Mrozek 2004, doi:10.1007/b97315 (cubical homology).
    """
    from scipy.ndimage import label

    if mask.ndim != 3:
        raise GeometryError("mask", "(D, H, W)", f"shape {mask.shape}")
    mask = mask.astype(bool, copy=False)
    places = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not places[0].size:
        return Betti(0, 0, 0)
    mask = np.pad(mask[tuple(slice(p[0], p[-1] + 1) for p in places)], 1)
    pieces = int(label(mask, np.ones((3, 3, 3), bool))[1])
    cavities = int(label(~mask)[1]) - 1  # one background component is the outside
    return Betti(pieces, pieces + cavities - _euler(mask), cavities)


def _euler(mask: np.ndarray) -> int:
    """Return V − E + F − C of the closed cubes of a mask that is padded by one."""
    total = 0
    for choice in range(8):  # along which axes the cell is a point: 0 a cube, 7 a vertex
        cells = mask
        for axis in range(3):
            if choice >> axis & 1:
                one = (slice(None),) * axis
                cells = cells[(*one, slice(None, -1))] | cells[(*one, slice(1, None))]
        dimension = 3 - choice.bit_count()
        total += (-1) ** dimension * int(np.count_nonzero(cells))
    return total


def betti_error(prediction: np.ndarray, reference: np.ndarray) -> int:
    """Return how far the topology is off: |Δb0| + |Δb1| + |Δb2|, 0 for equal counts.

    Args:
        prediction: (D, H, W) bool.
        reference: (D, H, W) bool.

    Source: Hu et al. 2019, arXiv:1906.05404 (Betti error; here on the whole volume).
    """
    pairs = zip(betti_numbers(prediction), betti_numbers(reference), strict=True)
    return sum(abs(one - other) for one, other in pairs)
