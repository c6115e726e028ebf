"""Betti numbers of known shapes, and against GUDHI's cubical complex."""

from __future__ import annotations

import numpy as np
import pytest

from qinjing.errors import GeometryError
from qinjing.metrics.topology import betti_error, betti_numbers


def ball(centre, radius, shape=(24, 24, 24)):
    grid = np.indices(shape)
    return sum((grid[a] - centre[a]) ** 2 for a in range(3)) <= radius**2


def torus():
    d, h, w = np.indices((16, 30, 30)) - np.array([8, 15, 15]).reshape(3, 1, 1, 1)
    return (np.sqrt(h**2 + w**2) - 9) ** 2 + d**2 <= 3**2


SHAPES = {
    "empty": (np.zeros((4, 4, 4), bool), (0, 0, 0)),
    "full": (np.ones((4, 5, 6), bool), (1, 0, 0)),
    "voxel": (ball((12, 12, 12), 0), (1, 0, 0)),
    "ball": (ball((12, 12, 12), 8), (1, 0, 0)),
    "shell": (ball((12, 12, 12), 8) & ~ball((12, 12, 12), 5), (1, 0, 1)),
    "two balls": (ball((6, 6, 6), 4) | ball((17, 17, 17), 4), (2, 0, 0)),
    "torus": (torus(), (1, 1, 0)),
    "touching in a corner": (np.eye(4, dtype=bool)[:, :, None] & np.eye(4, dtype=bool), (1, 0, 0)),
    "ring in a slice": (np.array([[[1, 1, 1], [1, 0, 1], [1, 1, 1]]], bool), (1, 1, 0)),
    "tunnel to the border": (np.array([[[1, 1, 1], [1, 0, 1], [1, 1, 1]]] * 3, bool), (1, 1, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_known_shapes(name):
    mask, expected = SHAPES[name]
    assert betti_numbers(mask) == expected


def test_equal_to_gudhi_on_random_masks():
    gudhi = pytest.importorskip("gudhi")
    rng = np.random.default_rng(0)
    seen = np.zeros(3, int)
    for _ in range(200):
        shape = rng.integers(1, 11, 3)
        mask = rng.random(shape) < rng.uniform(0.1, 0.9)
        filtration = np.where(np.pad(mask, 1), 0.0, 1.0)
        complex_ = gudhi.CubicalComplex(top_dimensional_cells=filtration)
        complex_.persistence(homology_coeff_field=2, min_persistence=-1)
        theirs = complex_.persistent_betti_numbers(0.0, 0.5)
        theirs = [*theirs, 0, 0, 0][:3]
        assert list(betti_numbers(mask)) == theirs
        seen += np.array(theirs) > 0
    assert (seen > 20).all(), seen


def test_betti_error_sums_the_differences():
    assert betti_error(SHAPES["torus"][0], SHAPES["torus"][0]) == 0
    assert betti_error(SHAPES["shell"][0], SHAPES["two balls"][0]) == 2
    assert betti_error(SHAPES["empty"][0], SHAPES["voxel"][0]) == 1


def test_refuses_what_is_not_a_volume():
    with pytest.raises(GeometryError, match="mask must be"):
        betti_numbers(np.zeros((3, 3), bool))
