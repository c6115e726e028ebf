"""Gamma, noise, blur, brightness, contrast, low resolution and bias field against others'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor
from torch.nn import functional

from qinjing.data.transforms.bias_field import BiasField
from qinjing.data.transforms.blur import Blur, gaussian_matrix
from qinjing.data.transforms.brightness import Brightness
from qinjing.data.transforms.contrast import Contrast
from qinjing.data.transforms.gamma import Gamma
from qinjing.data.transforms.low_resolution import LowResolution
from qinjing.data.transforms.noise import Noise


def apply(transform: Any, batch: tuple[Tensor, Tensor], seed: int = 0) -> tuple[np.ndarray, Any]:
    drawn = transform.draw(np.random.default_rng(seed), len(batch[0]))
    image, label = transform.apply(*batch, drawn)
    assert label is batch[1]
    return image.numpy(), drawn


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("retain", [False, True])
def test_gamma_equals_monai(inverted: bool, retain: bool, batch: Any) -> None:
    monai = pytest.importorskip("monai.transforms")
    transform = Gamma((0.5, 2.0), 1.0, invert_probability=float(inverted), retain_stats=retain)
    ours, drawn = apply(transform, batch)
    assert len(set(drawn.gamma)) == 4
    for row in range(4):
        theirs = monai.AdjustContrast(drawn.gamma[row], invert_image=inverted, retain_stats=retain)
        for channel in range(2):
            expected = theirs(batch[0][row, channel : channel + 1])[0].numpy()
            np.testing.assert_allclose(ours[row, channel], expected, atol=2e-5)


def test_gamma_leaves_a_constant_image_as_it_is(batch: Any) -> None:
    constant = torch.full_like(batch[0], 3.0), batch[1]
    for retain in (False, True):
        ours, _ = apply(Gamma(probability=1.0, retain_stats=retain), constant)
        np.testing.assert_allclose(ours, 3.0, atol=1e-5)


def test_noise_is_white_gaussian_of_the_drawn_deviation() -> None:
    empty = torch.zeros(3, 1, 32, 32, 32), torch.zeros(3, 32, 32, 32, dtype=torch.uint8)
    ours, drawn = apply(Noise((0.5, 2.0), 1.0), empty)
    for row in range(3):
        field = ours[row, 0] / drawn.std[row]
        assert stats.kstest(field.ravel(), "norm").pvalue > 1e-3
        neighbours = np.corrcoef(field[:-1].ravel(), field[1:].ravel())[0, 1]
        assert abs(neighbours) < 0.03
    assert abs(np.corrcoef(ours[0].ravel(), ours[1].ravel())[0, 1]) < 0.03


def test_blur_equals_scipy(batch: Any) -> None:
    ours, drawn = apply(Blur((0.4, 2.5), 1.0), batch)
    for row in range(4):
        for channel in range(2):
            expected = ndimage.gaussian_filter(
                batch[0][row, channel].numpy(), drawn.sigma[row], mode="nearest"
            )
            np.testing.assert_allclose(ours[row, channel], expected, atol=2e-6)


def test_blur_wider_than_the_line_is_still_a_mean() -> None:
    matrix = gaussian_matrix(3, 10.0)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1.0)


def test_brightness_multiplies(batch: Any) -> None:
    ours, drawn = apply(Brightness((0.5, 1.5), 1.0), batch)
    expected = batch[0].numpy() * drawn.factor[:, None, None, None, None].astype(np.float32)
    np.testing.assert_array_equal(ours, expected)


def test_contrast_stretches_about_the_mean_within_the_range(batch: Any) -> None:
    x = batch[0].numpy().astype(np.float64)
    ours, drawn = apply(Contrast((1.5, 1.5), 1.0), batch)
    for row in range(4):
        for channel in range(2):
            old = x[row, channel]
            expected = np.clip((old - old.mean()) * 1.5 + old.mean(), old.min(), old.max())
            np.testing.assert_allclose(ours[row, channel], expected, atol=1e-5)
    assert (drawn.factor == 1.5).all()
    assert ours.max() == x.max().astype(np.float32)  # some voxels met the limit


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2)])
def test_low_resolution_equals_interpolate(axes: tuple[int, ...], batch: Any) -> None:
    ours, drawn = apply(LowResolution((0.3, 0.9), 1.0, axes), batch)
    shape = batch[0].shape[2:]
    for row in range(4):
        size = [max(1, round(n * drawn.zoom[row])) if i in axes else n for i, n in enumerate(shape)]
        small = functional.interpolate(batch[0][row : row + 1], size, mode="nearest-exact")
        expected = functional.interpolate(small, shape, mode="trilinear")[0].numpy()
        np.testing.assert_allclose(ours[row], expected, atol=1e-5)


def test_bias_field_equals_monai(batch: Any) -> None:
    monai = pytest.importorskip("monai.transforms")
    positive = batch[0] - batch[0].amin((2, 3, 4), keepdim=True), batch[1]
    transform = BiasField((-0.3, 0.3), 3, 1.0)
    ours, drawn = apply(transform, positive)
    for row in range(4):
        coefficients = drawn.coefficients[row]
        kept = np.indices(coefficients.shape).sum(0) <= 3
        assert np.count_nonzero(coefficients) == kept.sum() - 1 == 19  # all but the constant
        field = monai.RandBiasField(degree=3)._generate_random_field(
            positive[0].shape[2:], 3, coefficients[kept]
        )
        expected = positive[0][row].numpy() * np.exp(field)
        np.testing.assert_allclose(ours[row], expected, rtol=1e-4, atol=1e-5)


def test_bias_field_keeps_the_darkest_voxel(batch: Any) -> None:
    ours, _ = apply(BiasField(probability=1.0), batch)
    old = batch[0].numpy()
    np.testing.assert_array_equal(ours.min((2, 3, 4)), old.min((2, 3, 4)))
