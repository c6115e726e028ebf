"""Overlap counts against MONAI's confusion matrix and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qinjing.errors import GeometryError, LabelError
from qinjing.metrics.overlap import Counts, count, dice, iou, sensitivity, specificity


def test_counts_equal_boolean_algebra_and_monai():
    rng = np.random.default_rng(0)
    labels = (1, 2, 5, 700)
    values = np.array([0, 1, 2, 3, 5, 700])
    reference = rng.choice(values, (9, 40, 512)).astype(np.uint16)  # more than one chunk
    prediction = np.where(rng.random(reference.shape) < 0.3, 0, reference).astype(np.int32)
    counts = count(prediction, reference, labels)
    for label in labels:
        p, r = prediction == label, reference == label
        expected = ((p & r).sum(), (p & ~r).sum(), (~p & r).sum(), (~p & ~r).sum())
        assert counts[label] == Counts(*map(int, expected))
    metrics = pytest.importorskip("monai.metrics")
    import torch

    def one_hot(voxels):
        return torch.from_numpy(np.stack([voxels == v for v in labels])[None]).float()

    pair = one_hot(prediction), one_hot(reference)
    theirs = metrics.compute_dice(*pair)[0].tolist()
    assert [dice(counts[v]) for v in labels] == pytest.approx(theirs, abs=1e-6)
    matrix = metrics.get_confusion_matrix(*pair)[0]
    for name, ours in (("sensitivity", sensitivity), ("specificity", specificity)):
        theirs = metrics.compute_confusion_matrix_metric(name, matrix).tolist()
        assert [ours(counts[v]) for v in labels] == pytest.approx(theirs, abs=1e-6)
    theirs = metrics.compute_iou(*pair)[0].tolist()
    assert [iou(counts[v]) for v in labels] == pytest.approx(theirs, abs=1e-6)


def test_empty_conventions():
    neither = Counts(0, 0, 0, 100)
    assert math.isnan(dice(neither)) and math.isnan(iou(neither))
    assert math.isnan(sensitivity(neither)) and specificity(neither) == 1
    missed, invented = Counts(0, 0, 7, 93), Counts(0, 7, 0, 93)
    assert dice(missed) == iou(missed) == sensitivity(missed) == 0
    assert dice(invented) == 0 and math.isnan(sensitivity(invented))
    assert specificity(invented) == 0.93
    assert math.isnan(specificity(Counts(100, 0, 0, 0)))


def test_by_hand():
    counts = Counts(6, 2, 4, 88)
    assert dice(counts) == 12 / 18 and iou(counts) == 0.5
    assert sensitivity(counts) == 0.6 and specificity(counts) == 88 / 90
    assert (counts.predicted, counts.reference) == (8, 10)


def test_bool_masks_and_strided_views():
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 6, 7, 8)) < 0.5
    assert count(first, second, (1,)) == count(first[::-1, :, ::-1], second[::-1, :, ::-1], (1,))
    assert count(first, second, (1,))[1].true_positive == (first & second).sum()


def test_refusals():
    zeros = np.zeros((2, 2, 2), np.uint8)
    with pytest.raises(GeometryError, match="of shape"):
        count(zeros, zeros[1:], (1,))
    with pytest.raises(LabelError, match="integers"):
        count(zeros.astype(float), zeros, (1,))
    with pytest.raises(LabelError, match="0 to 65535"):
        count(zeros - np.int16(1), zeros, (1,))
    for labels in ((0, 1), (1, 1), (70_000,)):
        with pytest.raises(LabelError, match="labels must be"):
            count(zeros, zeros, labels)
