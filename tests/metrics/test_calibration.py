"""Expected calibration error against the textbook loop."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from qinjing.errors import GeometryError, InputError
from qinjing.metrics.calibration import calibration_region, expected_calibration_error


def textbook(confidence, correct, bins=15):
    """Guo et al.'s published loop over bins closed above."""
    edges = np.linspace(0, 1, bins + 1)
    total = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if low == 0:
            inside |= confidence == 0
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_equal_to_the_textbook(bins):
    rng = np.random.default_rng(bins)
    confidence = rng.beta(5, 1, (4, 30, 30))
    confidence[0, 0, :3] = (0, 1, 2 / 3)
    correct = rng.random(confidence.shape) < confidence**1.5
    ours = expected_calibration_error(confidence, correct, bins=bins)
    assert ours == pytest.approx(textbook(confidence.ravel(), correct.ravel(), bins), abs=1e-12)
    stored = np.rint(confidence * 255).astype(np.uint8)
    ours = expected_calibration_error(stored, correct, bins=bins)
    expected = textbook(stored.ravel() / 255, correct.ravel(), bins)
    assert ours == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    correct = np.array([True, True, True, False, False, False])
    assert expected_calibration_error(confidence, correct) == pytest.approx(
        4 / 6 * 0.15 + 2 / 6 * 0.6
    )
    region = confidence > 0.8
    assert expected_calibration_error(confidence, correct, region) == pytest.approx(0.15)
    assert math.isnan(expected_calibration_error(confidence, correct, confidence > 2))


def test_region_is_both_foregrounds_and_five_millimetres():
    prediction, reference = np.zeros((2, 20, 20, 40), np.uint8)
    prediction[10, 10, 10] = 2
    reference[10, 10, 12] = 1
    region = calibration_region(prediction, reference, (10.0, 2.5, 1.0))
    expected = np.zeros(region.shape, bool)
    expected[10, 8:13, 5:18] = True  # round(0.5) is 0 along D, 2 voxels along H, 5 along W
    np.testing.assert_array_equal(region, expected)


def test_region_equals_a_box_dilation_at_the_border():
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    for _ in range(50):
        shape = rng.integers(1, 14, 3)
        prediction = (rng.random(shape) < 0.03).astype(np.uint8)
        spacing = rng.uniform(0.8, 4, 3)
        reach = [2 * round(5 / s) + 1 for s in spacing]
        region = calibration_region(prediction, prediction, spacing)
        expected = ndimage.binary_dilation(prediction, np.ones(reach))
        np.testing.assert_array_equal(region, expected)


def test_region_holds_the_ball_of_five_millimetres_on_a_sheared_grid():
    """The slices of a tilted gantry: each lies 1 mm further along H than the one below."""
    voxels = np.zeros((21, 31, 21), np.uint8)
    voxels[10, 15, 10] = 1
    axes = np.array([[0, 0, 1.0], [1.0, 1.0, 0], [1.0, 0, 0]])  # columns: D, H, W in (x, y, z)
    cosine = math.sqrt(0.5)
    region = calibration_region(voxels, voxels, (math.sqrt(2), 1, 1), (cosine, 0.0, 0.0))
    place = np.moveaxis(np.indices(voxels.shape), 0, -1) - (10, 15, 10)
    near = np.linalg.norm(place @ axes.T, axis=-1) <= 5
    assert near.sum() > 400 and region[near].all()
    assert region.sum() == 11 * (2 * 7 + 1) * 11  # planes 1, √½ and 1 mm apart


def test_refusals():
    with pytest.raises(InputError, match="from 0 to 1"):
        expected_calibration_error(np.array([1.2]), np.array([True]))
    with pytest.raises(InputError, match="from 0 to 1"):
        expected_calibration_error(np.array([np.nan]), np.array([True]))
    with pytest.raises(GeometryError):
        expected_calibration_error(np.zeros(3), np.zeros(4, bool))
    with pytest.raises(GeometryError):
        calibration_region(np.zeros((1, 2, 3)), np.zeros((1, 2, 4)), (1, 1, 1))
