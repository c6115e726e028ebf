"""Boundary losses against NumPy, SciPy and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from qinjing.losses.boundary import DistanceBoundaryLoss, GradientBoundaryLoss, signed_distance

rng = np.random.default_rng(0)


def logits_of(probability: np.ndarray) -> torch.Tensor:
    """Logits of two classes whose softmax gives class 1 this probability, (D, H, W)."""
    p = torch.from_numpy(probability).clamp(1e-12, 1 - 1e-12)
    return torch.stack([(1 - p).log(), p.log()])[None]


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 7, 6)])
def test_gradient_boundary_equals_numpys_gradients(shape: tuple[int, int, int]) -> None:
    predicted = rng.random(shape)
    truth = rng.integers(0, 2, shape)
    axes = tuple(axis for axis, n in enumerate(shape) if n > 1)
    slopes = [np.gradient(x.astype(float), axis=axes) for x in (truth, predicted)]
    expected = np.sqrt(sum((a - b) ** 2 for a, b in zip(*slopes, strict=True))).mean()
    loss = GradientBoundaryLoss()(logits_of(predicted), torch.from_numpy(truth)[None])
    assert float(loss) == pytest.approx(expected, abs=1e-9)


def test_gradient_boundary_by_hand() -> None:
    # Truth 0 0 1 1 has slopes 0 ½ ½ 0, a prediction of 0 1 1 1 has 1 ½ 0 0.
    truth = torch.tensor([[[[0, 0, 1, 1]]]])
    predicted = np.array([[[0.0, 1, 1, 1]]])
    loss = GradientBoundaryLoss()(logits_of(predicted), truth)
    assert float(loss) == pytest.approx((1 + 0 + 0.5 + 0) / 4, abs=1e-9)


def test_one_voxel_has_no_boundary() -> None:
    logits = torch.zeros(1, 2, 1, 1, 1, requires_grad=True)
    loss = GradientBoundaryLoss()(logits, torch.ones(1, 1, 1, 1, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


def test_signed_distances_are_those_of_the_authors_code() -> None:
    mask = rng.random((6, 7, 8)) < 0.4
    # one_hot2dist of the authors: d(¬y)·¬y − (d(y) − 1)·y
    theirs = distance_transform_edt(~mask) * ~mask - (distance_transform_edt(mask) - 1) * mask
    np.testing.assert_allclose(signed_distance(mask), theirs)
    assert not signed_distance(np.ones((2, 2, 2), bool)).any()
    assert not signed_distance(np.zeros((2, 2, 2), bool)).any()


def test_a_false_voxel_costs_its_distance() -> None:
    truth = torch.tensor([[[[1, 1, 0, 0, 0]]]])
    near = np.array([[[1.0, 1, 1, 0, 0]]])
    far = np.array([[[1.0, 1, 0, 0, 1]]])
    loss = DistanceBoundaryLoss()
    assert float(loss(logits_of(near), truth)) == pytest.approx(1 / 5, abs=1e-9)
    assert float(loss(logits_of(far), truth)) == pytest.approx(3 / 5, abs=1e-9)
    assert float(loss(logits_of(truth[0].numpy().astype(float)), truth)) == pytest.approx(
        0, abs=1e-9
    )
    missing = torch.zeros_like(truth)
    assert float(loss(logits_of(far), missing)) == 0
