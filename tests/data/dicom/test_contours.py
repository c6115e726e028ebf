"""Contours against matplotlib's judgement of what lies inside, and areas known by count."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from scipy import ndimage

from qinjing.data.dicom.contours import fill, outline


def area(loop: np.ndarray) -> float:
    """Shoelace formula."""
    y, x = loop.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def masks():
    rng = np.random.default_rng(0)
    yield "one voxel", np.pad(np.ones((1, 1), bool), 2)
    yield "everything", np.ones((4, 5), bool)
    ring = np.zeros((9, 11), bool)
    ring[1:8, 1:10], ring[3:6, 3:5], ring[3:6, 6:8], ring[4, 3] = True, False, False, True
    yield "two holes and an island", ring
    onion = np.zeros((17, 17), bool)
    for k in range(8):
        onion[k : 17 - k, k : 17 - k] = k % 2 == 0
    yield "rings in rings", onion
    for k, share in enumerate((0.2, 0.5, 0.8, 0.95)):
        yield f"noise {share}", rng.random((23 + k, 31)) < share
    yield "nothing", np.zeros((3, 3), bool)


@pytest.mark.parametrize(("name", "mask"), masks(), ids=[name for name, _ in masks()])
def test_there_and_back(name, mask):
    loops = outline(mask)
    np.testing.assert_array_equal(fill(loops, mask.shape), mask)
    # An independent judge of which centres lie inside, contour by contour.
    centres = np.argwhere(np.ones_like(mask))
    inside = np.zeros(len(centres), int)
    for loop in loops:
        assert len(loop) >= 4
        inside += Polygon(loop).contains_points(centres)
    np.testing.assert_array_equal(inside.reshape(mask.shape), mask)


def test_one_contour_a_piece_and_its_area():
    mask = dict(masks())["two holes and an island"]
    (outer,) = outline(mask)
    # Half a voxel less for the outline, half a voxel more for each of its two holes.
    assert area(outer) == mask.sum() - 0.5 + 2 * 0.5
    noise = ndimage.binary_opening(np.random.default_rng(1).random((60, 60)) < 0.8)
    loops = outline(noise)
    pieces = ndimage.label(noise)[1]
    assert len(loops) >= pieces
    disc = np.hypot(*np.indices((41, 41)) - 20) < 17.3
    (circle,) = outline(disc)
    assert area(circle) == disc.sum() - 0.5


def test_points_on_straight_lines_are_left_out():
    mask = np.zeros((20, 30), bool)
    mask[2:12, 3:25] = True
    (loop,) = outline(mask)
    assert len(loop) == 8  # four sides and four cut corners


def test_contours_of_others():
    """A square drawn through corners, and one in the opposite sense inside it, as a hole."""
    outer = np.array([[1.0, 1.0], [1.0, 8.0], [8.0, 8.0], [8.0, 1.0]]) - 0.25
    hole = np.array([[3.0, 3.0], [6.0, 3.0], [6.0, 6.0], [3.0, 6.0]]) - 0.25
    found = fill([outer, hole], (10, 10))
    expected = np.zeros((10, 10), bool)
    expected[1:8, 1:8], expected[3:6, 3:6] = True, False
    np.testing.assert_array_equal(found, expected)
    beyond = fill([outer + np.array([-4.0, 5.0])], (10, 10))
    expected = np.zeros((10, 10), bool)
    expected[:4, 6:] = True
    np.testing.assert_array_equal(beyond, expected)
