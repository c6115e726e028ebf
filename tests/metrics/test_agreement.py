"""Agreement between readers against scikit-learn, statsmodels and SimpleITK."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qinjing.errors import GeometryError, LabelError
from qinjing.metrics.agreement import (
    cohens_kappa,
    dice_matrix,
    fleiss_kappa,
    majority,
    multi_label_staple,
    staple,
)


def readers(seed: int, n: int = 3, values=(0, 1), wrong: float = 0.2, shape=(6, 7, 8)):
    """Readers who are wrong at a part of the voxels."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(values, shape)
    return [
        np.where(rng.random(shape) < wrong, rng.choice(values, shape), truth).astype(np.uint8)
        for _ in range(n)
    ]


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2, 3), (3, 700, -5)])
def test_kappa_equals_scikit_learn(values, weights):
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        a = rng.choice(values, 60)
        b = np.where(rng.random(60) < 0.4, rng.choice(values, 60), a)
        assert cohens_kappa(a, b, weights) == pytest.approx(
            metrics.cohen_kappa_score(a, b, weights=weights), abs=1e-12
        )


def test_kappa_by_hand():
    """The worked example of Cohen's paper in its usual form: 20, 5, 10, 15 of 50; kappa 0.4."""
    a = np.repeat([1, 1, 0, 0], (20, 5, 10, 15))
    b = np.repeat([1, 0, 1, 0], (20, 5, 10, 15))
    assert cohens_kappa(a, b) == pytest.approx(0.4)
    assert cohens_kappa(a, a) == 1 and cohens_kappa(a, 1 - a) < 0
    assert math.isnan(cohens_kappa(np.ones(5, int), np.ones(5, int)))
    assert cohens_kappa(np.ones(4, int), np.array([1, 1, 1, 0])) == 0
    with pytest.raises(ValueError, match="linear"):
        cohens_kappa(a, b, "cubic")


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("values", [(0, 1), (1, 2, 9, 40)])
def test_fleiss_equals_statsmodels(n, values):
    rated = pytest.importorskip("statsmodels.stats.inter_rater")
    for seed in range(5):
        ratings = readers(seed, n, values)
        table, _ = rated.aggregate_raters(np.stack([one.ravel() for one in ratings], axis=1))
        assert fleiss_kappa(ratings) == pytest.approx(rated.fleiss_kappa(table), abs=1e-12)


def test_fleiss_of_the_paper():
    """Wikipedia's example of ten subjects, fourteen raters, five categories: 0.210."""
    table = np.array([
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ])  # fmt: skip
    subjects = np.array([np.repeat(np.arange(5), row) for row in table])
    assert fleiss_kappa(list(subjects.T)) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([np.arange(4)] * 3) == 1
    assert math.isnan(fleiss_kappa([np.zeros(4, int)] * 3))


def test_dice_matrix():
    a, b, c = np.array([1, 1, 0, 0]), np.array([1, 0, 0, 2]), np.array([0, 0, 0, 2])
    np.testing.assert_allclose(
        dice_matrix([a, b, c], 1), [[1, 2 / 3, 0], [2 / 3, 1, 0], [0, 0, np.nan]]
    )


def both(ours, name, arrays, *arguments):
    """SimpleITK's filter on the same arrays."""
    sitk = pytest.importorskip("SimpleITK")
    made = getattr(sitk, name)([sitk.GetImageFromArray(one) for one in arrays], *arguments)
    return ours, sitk.GetArrayFromImage(made)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_majority_equals_simpleitk(n):
    arrays = readers(n, n, (0, 1, 2, 7), 0.5)
    np.testing.assert_array_equal(*both(majority(arrays, 99), "LabelVoting", arrays, 99))


@pytest.mark.parametrize("wrong", [0.02, 0.2, 0.5])
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_staple_equals_simpleitk(n, wrong):
    sitk = pytest.importorskip("SimpleITK")
    arrays = readers(n, n, (0, 0, 0, 1), wrong)
    found = staple(arrays)
    theirs = sitk.STAPLEImageFilter()
    theirs.SetForegroundValue(1)
    made = theirs.Execute([sitk.GetImageFromArray(one) for one in arrays])
    np.testing.assert_allclose(found.probability, sitk.GetArrayFromImage(made), atol=1e-5)
    np.testing.assert_allclose(found.sensitivity, theirs.GetSensitivity(), atol=1e-6)
    np.testing.assert_allclose(found.specificity, theirs.GetSpecificity(), atol=1e-6)


def test_staple_sees_who_is_careless():
    rng = np.random.default_rng(0)
    truth = rng.random((20, 20, 20)) < 0.3
    wrong = (0.02, 0.05, 0.4)
    found = staple([truth ^ (rng.random(truth.shape) < part) for part in wrong])
    for figures in (found.sensitivity, found.specificity):
        assert figures[0] > 0.85 and figures[1] > 0.85 and figures[2] < 0.65
    assert ((found.probability > 0.5) == truth).mean() > 0.95


def test_staple_of_masks_without_doubt():
    mask = np.zeros((3, 4), bool)
    mask[1] = True
    agreed = staple([mask, mask, mask])
    np.testing.assert_array_equal(agreed.probability, mask)
    np.testing.assert_array_equal(agreed.sensitivity, 1)
    nothing = staple([np.zeros((3, 4), bool)] * 2)
    assert (nothing.probability == 0).all() and np.isnan(nothing.sensitivity).all()
    np.testing.assert_array_equal(nothing.specificity, 1)
    all_of_it = staple([np.ones((3, 4), bool)] * 2)
    assert (all_of_it.probability == 1).all() and np.isnan(all_of_it.specificity).all()


@pytest.mark.parametrize(
    ("n", "values"), [(3, (0, 1)), (3, (0, 1, 2)), (4, (0, 2, 5)), (5, (0, 1, 2, 3, 4, 5))]
)
def test_multi_label_staple_equals_simpleitk(n, values):
    """Without ties, which ITK 5.4 counts into a neighbouring cell of its first table."""
    sitk = pytest.importorskip("SimpleITK")
    arrays = np.stack(readers(n, n, values, 0.3))
    arrays[:, majority(arrays, 99) == 99] = values[-1]
    found = multi_label_staple(arrays, 99)
    theirs = sitk.MultiLabelSTAPLEImageFilter()
    theirs.SetLabelForUndecidedPixels(99)
    made = theirs.Execute([sitk.GetImageFromArray(one) for one in arrays])
    np.testing.assert_array_equal(found.labels, sitk.GetArrayFromImage(made))
    size = values[-1] + 1
    table = np.reshape(theirs.GetConfusionMatrix(0), (size + 1, size))
    np.testing.assert_allclose(found.confusion[0], table[np.ix_(values, values)], atol=1e-4)
    assert found.values == values


def test_multi_label_staple_of_one_label_and_of_agreement():
    same = readers(0, 1, (0, 1, 2))[0]
    np.testing.assert_array_equal(multi_label_staple([same, same, same]).labels, same)
    one = multi_label_staple([np.full((2, 3), 4)] * 2)
    assert (one.labels == 4).all() and one.confusion.tolist() == [[[1.0]], [[1.0]]]


def test_many_columns_are_sorted_instead_of_counted():
    arrays = readers(1, 8, tuple(range(12)), 0.3, (4, 4, 4))  # 12⁸ columns are possible
    np.testing.assert_array_equal(*both(majority(arrays, 99), "LabelVoting", arrays, 99))


@pytest.mark.parametrize("of", [fleiss_kappa, majority, staple, multi_label_staple])
def test_ratings_that_cannot_be_compared(of):
    with pytest.raises(GeometryError, match="two or more"):
        of([np.zeros(3, int)])
    with pytest.raises(GeometryError, match=r"reader 2 must be of shape \(3,\)"):
        of([np.zeros(3, int), np.zeros(4, int)])
    with pytest.raises(GeometryError, match="not empty"):
        of([np.zeros(0, int), np.zeros(0, int)])
    with pytest.raises(LabelError, match=r"reader 2 must be complete.*leave out the subjects"):
        of([np.zeros(3, int), np.array([0, np.nan, 1])])
    with pytest.raises(LabelError, match="complete"):
        of([np.zeros(3, int), np.array([0, None, 1])])
    with pytest.raises(LabelError, match="whole numbers"):
        of([np.zeros(3, int), np.array([0.5, 1, 1])])


def test_values_that_do_not_fit():
    with pytest.raises(LabelError, match="0 and 1"):
        staple([np.array([0, 2]), np.array([0, 1])])
    with pytest.raises(LabelError, match="uint8"):
        majority([np.array([0, 1], np.uint8), np.array([1, 0], np.uint8)], 300)
