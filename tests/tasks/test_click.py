"""Clicks against a random walker of others, against shapes that are known, and turned about."""

from __future__ import annotations

import numpy as np
import pytest

from qinjing.errors import ConfigError, GeometryError
from qinjing.tasks import click
from qinjing.tasks.click import Click, segment_click
from qinjing.volume import Volume


def volume(voxels: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    return Volume(voxels, np.diag([*spacing, 1.0]))


def ball(
    shape: tuple[int, int, int], centre: tuple[float, float, float], radius_mm: float,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> np.ndarray:  # fmt: skip
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    parts = zip(axes, centre, spacing, strict=True)
    return np.asarray(sum(((a - c) * s) ** 2 for a, c, s in parts) <= radius_mm**2)


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey values with noise, and two bright balls of 8 mm that nearly touch."""
    rng = np.random.default_rng(seed)
    one, other = ball((40, 40, 60), (20, 20, 20), 8), ball((40, 40, 60), (20, 20, 38), 8)
    voxels = rng.normal(100, 20, one.shape) + 100 * (one | other)
    return voxels.astype(np.int16), one, other


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_one_click_finds_a_ball_and_only_the_one_clicked_at() -> None:
    voxels, one, other = scene()
    said = segment_click(volume(voxels), [Click((20, 20, 20))])
    assert said.dtype == bool and dice(said, one) > 0.93 and not (said & other).any()
    there = segment_click(volume(voxels), [Click((20, 20, 38))])
    assert dice(there, other) > 0.93 and not (there & one).any()


def test_clicks_are_what_they_say_wherever_they_are() -> None:
    voxels, one, _ = scene()
    points = [Click((20, 20, 20)), Click((20, 20, 26), False), Click((20, 31, 20)),
              Click((0, 0, 0), False)]  # fmt: skip
    said = segment_click(volume(voxels), points)
    assert all(said[p.voxel] == p.inside for p in points)
    assert 0.5 < dice(said, one) < 1


def test_it_looks_no_further_than_the_radius() -> None:
    voxels = np.full((30, 30, 30), 7, np.uint8)
    voxels[15, 15, 15] = 9
    said = segment_click(volume(voxels, (1.0, 2.0, 1.0)), [Click((15, 15, 15))], radius_mm=6)
    far = np.argwhere(said) - 15
    assert said[15, 15, 15] and np.abs(far * [1, 2, 1]).max() < 6


def test_edges_and_seeds_are_scikit_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what is known before it is Grady's random walker."""
    segmentation = pytest.importorskip("skimage.segmentation")
    monkeypatch.setattr(click, "_EDGE", 10.0)
    monkeypatch.setattr(click, "_PULL", 0.0)
    monkeypatch.setattr(click, "_HARD", 1e5)
    monkeypatch.setattr(click, "_RIGHT", 1e-7)
    monkeypatch.setattr(click, "_LEAST", 1e-6)
    monkeypatch.setattr(click, "_STEPS", 2000)
    rng = np.random.default_rng(1)
    grey = rng.random((9, 11, 10), np.float32)
    spacing = (1.0, 1.0, 1.0)
    place = np.array([[4, 5, 5]]), np.array([[2, 3, 4]])
    mine = click._walk(click._Scene(grey, spacing, *place, None, (1, 1, 1), 2), 5.0)
    seeds = np.full(grey.shape, 2)
    seeds[1:-1, 1:-1, 1:-1] = 0
    seeds[4, 5, 5], seeds[2, 3, 4] = 1, 2
    # Theirs divides beta by 10 standard deviations.
    beta = click._EDGE * 10 * float(grey.std())
    theirs = segmentation.random_walker(
        grey, seeds, beta=beta, mode="cg_j", tol=1e-8, return_full_prob=True, prob_tol=1e-2
    )[0]
    np.testing.assert_allclose(mine, theirs, atol=2e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_volume_gives_a_mirrored_mask(
    axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(click, "_COARSE", click._FINE)  # thinned from the other end it differs
    voxels, _, _ = scene()
    said = segment_click(volume(voxels), [Click((20, 21, 19)), Click((20, 20, 30), False)])
    at, other = [20, 21, 19], [20, 20, 30]
    at[axis], other[axis] = (voxels.shape[axis] - 1 - x[axis] for x in (at, other))
    points = [Click((at[0], at[1], at[2])), Click((other[0], other[1], other[2]), False)]
    turned = segment_click(volume(np.flip(voxels, axis)), points)
    assert dice(np.flip(turned, axis), said) > 0.999  # sums are taken in another order


def test_scale_and_offset_of_grey_values_do_not_matter() -> None:
    voxels, _, _ = scene()
    points = [Click((20, 20, 20))]
    said = segment_click(volume(voxels), points)
    assert dice(said, segment_click(volume(voxels * 3.5 - 1000), points)) > 0.999
    assert np.array_equal(said, segment_click(volume(voxels), points))  # bit for bit


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (1.0, 0.5, 0.5)])
def test_a_ball_is_a_ball_at_every_spacing(spacing: tuple[float, float, float]) -> None:
    shape = tuple(round(44 / s) for s in spacing)
    centre = tuple((n - 1) // 2 for n in shape)
    truth = ball(shape, centre, 10, spacing)  # type: ignore[arg-type]
    rng = np.random.default_rng(2)
    voxels = (rng.normal(0, 20, truth.shape) + 100 * truth).astype(np.float32)
    said = segment_click(volume(voxels, spacing), [Click(centre)])  # type: ignore[arg-type]
    assert dice(said, truth) > 0.9


def test_a_fine_volume_is_thinned_out_first() -> None:
    truth = ball((140, 140, 140), (70, 70, 70), 12, (0.3, 0.3, 0.3))
    rng = np.random.default_rng(3)
    voxels = (rng.normal(0, 0.1, truth.shape) + truth).astype(np.float32)
    points = [Click((70, 70, 70))]
    whole = volume(voxels, (0.3, 0.3, 0.3))
    box = click._box(whole, points, 40.0)
    assert click._scene(whole, points, box, click._FINE, None).grey.size <= click._FINE
    assert dice(segment_click(whole, points), truth) > 0.95


def test_a_models_probability_stands_in_for_grey_values() -> None:
    voxels, one, other = scene()
    flat = np.full_like(voxels, 5)
    chance = np.where(one, 0.9, np.where(other, 0.6, 0.05)).astype(np.float32)
    said = segment_click(volume(flat), [Click((20, 20, 20))], probability=chance)
    assert dice(said, one) > 0.95


def test_odd_volumes() -> None:
    """A single slice, channels, one grey value, values that are no numbers."""
    voxels, one, _ = scene()
    said = segment_click(volume(voxels[20:21]), [Click((0, 20, 20))])
    assert dice(said, one[20:21]) > 0.9
    channels = np.stack([voxels, voxels * 0])
    alone = segment_click(volume(voxels), [Click((20, 20, 20))])
    assert np.array_equal(segment_click(volume(channels), [Click((20, 20, 20))]), alone)
    empty = np.full((5, 6, 7), np.nan, np.float32)
    assert segment_click(volume(empty), [Click((2, 3, 3))])[2, 3, 3]


def test_what_cannot_be_used_is_refused() -> None:
    whole = volume(np.zeros((4, 5, 6), np.uint8))
    with pytest.raises(ConfigError, match="clicks must be one inside"):
        segment_click(whole, [Click((1, 1, 1), False)])
    for outside in ((4, 0, 0), (0, -1, 0)):
        with pytest.raises(GeometryError, match="click must be in the volume"):
            segment_click(whole, [Click(outside)])
    for radius in (0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="radius_mm"):
            segment_click(whole, [Click((1, 1, 1))], radius)
    with pytest.raises(GeometryError, match="probability"):
        segment_click(whole, [Click((1, 1, 1))], probability=np.zeros((2, 2, 2)))
