"""Strokes say what is true, of little, in one piece, and go through the middle."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.graph import route_through_array

from qinjing.physics.phantom import draw, render
from qinjing.physics.scribbles import draw_scribbles

IGNORED = 9


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    _, label = render(draw(np.random.default_rng(3), "aurora"))
    return label.voxels


def test_strokes_are_true_few_and_of_every_class(truth: np.ndarray) -> None:
    classes = [int(value) for value in np.unique(truth) if value]
    found = draw_scribbles(truth, classes, IGNORED, every=2)
    said = found != IGNORED
    assert np.array_equal(found[said], truth[said])
    assert said.mean() < 0.02
    assert set(np.unique(found)) == {0, *classes, IGNORED}
    drawn = said.any(axis=(1, 2))
    assert drawn.sum() == pytest.approx(len(truth) / 2, abs=1)
    assert np.array_equal(found, draw_scribbles(truth, classes, IGNORED, every=2))
    assert not np.array_equal(found, draw_scribbles(truth, classes, IGNORED, every=2, seed=1))


def test_a_stroke_is_the_shortest_way_through_the_middle(truth: np.ndarray) -> None:
    classes = [int(value) for value in np.unique(truth) if value]
    found = draw_scribbles(truth, classes, IGNORED, every=1)
    checked = 0
    for d in range(0, len(truth), 2):
        for value in classes:
            stroke = found[d] == value
            if stroke.sum() < 8:
                continue
            _, pieces = ndimage.label(stroke, np.ones((3, 3)))
            assert pieces == 1
            depth = ndimage.distance_transform_edt(np.pad(truth[d] == value, 1))[1:-1, 1:-1]
            assert depth[stroke].min() >= 0.5 * depth.max()
            # Its ends are those voxels that touch one other of it; scikit-image finds no way
            # between them, within the middle, that is shorter.
            touching = ndimage.convolve(stroke.astype(int), np.ones((3, 3), int), mode="constant")
            ends = np.argwhere(stroke & (touching == 2))
            if len(ends) != 2:
                continue
            cost = np.where(depth >= 0.5 * depth.max(), 1.0, 1e6)
            way, _ = route_through_array(cost, ends[0], ends[1], geometric=True)
            length = np.hypot(*np.diff(np.array(way), axis=0).T).sum()
            own, _ = route_through_array(np.where(stroke, 1.0, 1e6), ends[0], ends[1])
            ours = np.hypot(*np.diff(np.array(own), axis=0).T).sum()
            assert ours == pytest.approx(length, abs=1e-6)
            checked += 1
    assert checked > 10


def test_a_slice_without_labels_gets_a_stroke_of_background() -> None:
    found = draw_scribbles(np.zeros((3, 20, 30), np.uint8), (1,), 255, every=1)
    assert set(np.unique(found)) == {0, 255}
    assert ((found == 0).sum(axis=(1, 2)) > 10).all()
