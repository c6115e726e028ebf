"""Resampling against MONAI's Spacing and scipy's map_coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from qinjing.data import resample
from qinjing.data.resample import (
    axis_taps,
    resample_axis,
    resample_labels,
    resample_volume,
    resampled_shape,
)
from qinjing.errors import ConfigError
from qinjing.volume import Volume

GRIDS = [
    ((9, 13, 11), (3.0, 0.8, 0.8), (1.5, 1.1, 0.5)),
    ((9, 13, 11), (1.0, 1.0, 1.0), (1.0, 2.0, 1.0)),
    ((1, 13, 1), (3.0, 0.8, 0.8), (1.5, 1.1, 0.5)),
    ((2, 5, 30), (1.0, 0.7, 0.7), (4.0, 0.35, 2.1)),
]


def make_volume(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], dtype: type = np.float32, seed: int = 0
) -> Volume:
    values = np.random.default_rng(seed).normal(0, 300, shape).astype(dtype)
    return Volume(values, np.diag([*spacing_mm, 1.0]))


def at(volume: np.ndarray, shape: tuple[int, ...], scale: list[float], order: int) -> np.ndarray:
    """scipy's answer on the same grid, the border repeated."""
    grid = np.meshgrid(
        *[
            np.minimum(np.arange(n) * s, m - 1)
            for n, s, m in zip(shape, scale, volume.shape, strict=True)
        ],
        indexing="ij",
    )
    return ndimage.map_coordinates(volume.astype(np.float64), grid, order=order, mode="nearest")


def test_shape_equals_monai() -> None:
    utils = pytest.importorskip("monai.data.utils")
    rng = np.random.default_rng(0)
    for _ in range(100):
        shape = tuple(int(n) for n in rng.integers(1, 400, 3))
        old, new = rng.choice([0.5, 0.7, 0.8, 1.0, 1.25, 1.5, 3.0, 5.0], (2, 3))
        expected, _ = utils.compute_shape_offset(shape, np.diag([*old, 1]), np.diag([*new, 1]))
        found = resampled_shape(shape, old, new)
        for n, a, b, ours, theirs in zip(shape, old, new, found, expected, strict=True):
            # Half a voxel, but for rounding: MONAI's own answer depends on the solver's last bit.
            tie = abs((n - 1) * (a / b) % 1 - 0.5) < 1e-9 and (a / b) % 0.125 != 0
            assert ours == theirs or (tie and abs(ours - theirs) == 1)


@pytest.mark.parametrize(("shape", "old", "new"), GRIDS)
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint16])
def test_linear_equals_monai_spacing(
    shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...], dtype: type
) -> None:
    transforms = pytest.importorskip("monai.transforms")
    from monai.data import MetaTensor

    volume = make_volume((2, *shape), old)
    volume = volume.with_voxels(np.abs(volume.voxels).astype(dtype))
    tensor = torch.from_numpy(volume.voxels.astype(np.float32))
    spacing = transforms.Spacing(new, mode="bilinear", padding_mode="border")
    expected = spacing(MetaTensor(tensor, affine=volume.affine))
    found = resample_volume(volume, new, 1)
    assert found.voxels.dtype == np.float32
    np.testing.assert_allclose(found.voxels, expected.numpy(), atol=1e-4 * 300, rtol=1e-5)
    np.testing.assert_allclose(found.voxels, expected.numpy(), atol=2e-3)
    np.testing.assert_allclose(found.affine, expected.affine.numpy(), atol=1e-6)


def test_an_oblique_grid_keeps_its_direction_as_monai_does() -> None:
    transforms = pytest.importorskip("monai.transforms")
    from monai.data import MetaTensor

    volume = make_volume((7, 9, 8), (2.0, 1.0, 1.0))
    a, b = np.cos(0.3), np.sin(0.3)
    turn = np.array([[a, -b, 0, 4], [-b, -a, 0, -7], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    volume = Volume(volume.voxels, turn @ volume.affine)
    spacing = transforms.Spacing((1.0, 1.0, 1.3), mode="bilinear", padding_mode="border")
    tensor = MetaTensor(torch.from_numpy(volume.voxels[None]), affine=volume.affine)
    expected = spacing(tensor)
    found = resample_volume(volume, (1.0, 1.0, 1.3), 1)
    np.testing.assert_allclose(found.voxels, expected[0].numpy(), atol=2e-3)
    np.testing.assert_allclose(found.affine, expected.affine.numpy(), atol=1e-6)


@pytest.mark.parametrize(("shape", "old", "new"), GRIDS)
@pytest.mark.parametrize("order", [0, 1])
def test_orders_0_and_1_equal_scipy(
    shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...], order: int
) -> None:
    volume = make_volume(shape, old)
    found = resample_volume(volume, new, order).voxels
    # Half-way samples round differently; move the grid by a hair for scipy.
    scale = [n / o * (1 + (1e-9 if order == 0 else 0)) for n, o in zip(new, old, strict=True)]
    expected = at(volume.voxels, found.shape, scale, order)
    if order == 0:
        assert (found == expected).mean() > 0.6  # ties aside
        assert np.isin(found, volume.voxels).all()
    else:
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_cubic_passes_through_the_samples_and_keeps_quadratics() -> None:
    x = torch.arange(12, dtype=torch.float64)
    y = (0.3 * x**2 - 2 * x + 1).to(torch.float32)
    found = resample_axis(y, 0, 45, 0.25, 3)
    np.testing.assert_allclose(found[::4].numpy(), y.numpy(), atol=1e-5)
    position = np.arange(45) * 0.25
    inside = (position >= 1) & (position <= 10)
    expected = 0.3 * position**2 - 2 * position + 1
    np.testing.assert_allclose(found.numpy()[inside], expected[inside], atol=1e-4)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_weights_sum_to_one_and_stay_inside(order: int) -> None:
    for length, out_length, scale in [(1, 5, 0.3), (2, 1, 4.0), (50, 77, 0.65), (9, 4, 3.1)]:
        index, weight = axis_taps(length, out_length, scale, order)
        assert index.min() >= 0
        assert index.max() < length
        np.testing.assert_allclose(weight.sum(1).numpy(), 1.0, atol=1e-6)


def test_small_blocks_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = make_volume((2, 9, 13, 11), (2.0, 0.8, 0.8))
    whole = resample_volume(volume, (1.3, 1.0, 0.5), 3).voxels
    monkeypatch.setattr(resample, "_BLOCK_ELEMENTS", 50)
    np.testing.assert_array_equal(resample_volume(volume, (1.3, 1.0, 0.5), 3).voxels, whole)


def test_nearest_keeps_type_and_the_same_grid_keeps_values() -> None:
    volume = make_volume((4, 5, 6), (1.0, 1.0, 2.0), np.int16)
    nearest = resample_volume(volume, (0.5, 1.0, 1.0), 0)
    assert nearest.voxels.dtype == np.int16
    same = resample_volume(volume, volume.spacing_mm, 1)
    np.testing.assert_array_equal(same.voxels, volume.voxels)


def test_first_voxel_centre_stays() -> None:
    affine = np.array([[0, 0, -2, 10], [0, 3, 0, -4], [1, 0, 0, 7], [0, 0, 0, 1.0]])
    volume = Volume(np.zeros((4, 5, 6), np.float32), affine)
    found = resample_volume(volume, (0.5, 1.5, 4.0), 1)
    np.testing.assert_allclose(found.affine[:, 3], affine[:, 3])
    np.testing.assert_allclose(found.spacing_mm, (0.5, 1.5, 4.0))


@pytest.mark.parametrize(("shape", "old", "new"), GRIDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_labels_equal_the_arg_max_of_every_class_interpolated(
    shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...], dtype: type
) -> None:
    values = np.array([0, 1, 4, 200])
    labels = np.random.default_rng(1).choice(values, shape).astype(dtype)
    found = resample_labels(Volume(labels, np.diag([*old, 1.0])), new)
    scale = [n / o for n, o in zip(new, old, strict=True)]
    scores = np.stack([at(labels == v, found.shape, scale, 1) for v in values])
    ranked = np.sort(scores, 0)
    clear = ranked[-1] - ranked[-2] > 1e-5
    expected = values[scores.argmax(0)]
    assert found.voxels.dtype == dtype
    np.testing.assert_array_equal(found.voxels[clear], expected[clear])
    tied = np.isin(found.voxels, values)
    assert tied.all()


def test_a_tie_goes_to_the_lower_label() -> None:
    for pair in ([5, 3], [3, 5]):
        volume = Volume(np.array(pair, np.uint8).reshape(1, 1, 2), np.eye(4))
        np.testing.assert_array_equal(
            resample_labels(volume, (1, 1, 0.5)).voxels.ravel(), [pair[0], 3, pair[1]]
        )


def test_smooth_labels_are_nearer_the_truth_than_nearest_ones() -> None:
    def ball(spacing_mm: float) -> np.ndarray:
        x = np.arange(0, 40.001, spacing_mm) - 20
        return (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2 < 13.3**2).astype(np.uint8)

    for new in (1.0, 3.0):
        volume, truth = Volume(ball(2.0), np.diag([2.0, 2, 2, 1])), ball(new)
        smooth = resample_labels(volume, (new,) * 3).voxels
        nearest = resample_volume(volume, (new,) * 3, 0).voxels
        n = min(len(truth), len(smooth))
        box = (slice(n),) * 3
        wrong = [(found[box] != truth[box]).sum() for found in (smooth, nearest)]
        assert wrong[0] <= wrong[1]
        if new == 1.0:
            assert wrong[0] < 0.75 * wrong[1]


def test_what_cannot_be_resampled_is_refused() -> None:
    volume = make_volume((2, 2, 2), (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="new_spacing_mm must be positive"):
        resample_volume(volume, (1.0, 0.0, 1.0), 1)
    with pytest.raises(ConfigError, match="new_spacing_mm must be positive"):
        resample_labels(volume.with_voxels(np.zeros((2, 2, 2), np.uint8)), (1.0, np.nan, 1.0))
    with pytest.raises(ConfigError, match="order must be 0"):
        resample_volume(volume, (1.0, 2.0, 1.0), 2)
