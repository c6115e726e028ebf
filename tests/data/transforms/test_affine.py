from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.interpolate import BSpline

from qinjing.data.transforms.affine import Affine, cubic_basis, rotation_matrices
from qinjing.errors import ConfigError

STILL = (0.0, 0.0)


def only(*angles: float, zoom: float = 1.0) -> Affine:
    return Affine(
        rotation_deg=tuple((a, a) for a in angles),
        rotation_probability=1.0,
        scale=(zoom, zoom),
        scale_probability=1.0,
    )


def moved(transform: Affine, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    drawn = transform.draw(np.random.default_rng(0), 1)
    x, y = transform.apply(
        torch.from_numpy(image)[None, None], torch.from_numpy(label)[None], drawn
    )
    return x[0, 0].numpy(), y[0].numpy()


@pytest.mark.parametrize(
    "transform",
    [
        Affine(rotation_probability=1.0, scale_probability=1.0),
        Affine(
            rotation_deg=((-180.0, 180.0), STILL, STILL),
            rotation_probability=1.0,
            scale_probability=0.5,
            in_plane=True,
        ),
    ],
    ids=["3-D", "in plane"],
)
def test_equals_scipy(transform: Affine, batch: Any) -> None:
    image, label = batch
    drawn = transform.draw(np.random.default_rng(1), 4)
    out_image, out_label = transform.apply(image, label, drawn)
    centre = (np.array(label.shape[1:]) - 1) / 2
    for row, matrix in enumerate(drawn.matrix):
        offset = centre - matrix @ centre

        def scipy(x: np.ndarray, matrix: Any = matrix, offset: Any = offset) -> np.ndarray:
            return ndimage.affine_transform(x, matrix, offset, order=1, mode="nearest")

        for channel in range(2):
            expected = scipy(image[row, channel].numpy())
            np.testing.assert_allclose(out_image[row, channel], expected, atol=5e-5)
        shares = np.stack([scipy((label[row].numpy() == k).astype(float)) for k in range(3)])
        clear = np.sort(shares, 0)[-1] - np.sort(shares, 0)[-2] > 1e-4
        assert clear.mean() > 0.99
        assert np.array_equal(out_label[row].numpy()[clear], shares.argmax(0)[clear])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turns_as_monai_does(axis: int) -> None:
    monai = pytest.importorskip("monai.transforms")
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(15, 19, 17)), 1.5).astype(
        np.float32
    )
    angles = np.zeros(3)
    angles[axis] = 20.0
    ours, _ = moved(only(*angles), image, np.zeros(image.shape, np.uint8))
    theirs = monai.Rotate(tuple(np.radians(angles)), padding_mode="border")(image[None])[0]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    assert np.abs(ours - image).max() > 0.1


@pytest.mark.parametrize("flat", [False, True])
def test_a_margin_shows_what_lies_around_the_patch(flat: bool, batch: Any) -> None:
    """The same as moving the larger patch and cutting its border off afterwards."""
    image, label = batch
    margin = (0 if flat else 2, 3, 1)
    turns = ((-180.0, 180.0), STILL, STILL) if flat else ((-30.0, 30.0),) * 3
    options = {"rotation_deg": turns, "rotation_probability": 0.5, "in_plane": flat}
    drawn = Affine(**options).draw(np.random.default_rng(3), 4)  # type: ignore[arg-type]
    assert 0 < drawn.applied.sum() < 4
    whole = Affine(**options).apply(image, label, drawn)  # type: ignore[arg-type]
    d, h, w = (slice(m, n - m) for m, n in zip(margin, image.shape[2:], strict=True))
    cut = Affine(**options, margin=margin).apply(image, label, drawn)  # type: ignore[arg-type]
    for ours, larger in zip(cut, whole, strict=True):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, larger[..., d, h, w], atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="margin"):
        Affine(margin=(1, -1, 0))


def test_turns_in_monais_order() -> None:
    monai = pytest.importorskip("monai.transforms.utils")
    angles = np.radians([[20.0, -35.0, 50.0]])
    expected = monai.create_rotate(3, angles[0])[:3, :3]
    np.testing.assert_allclose(rotation_matrices(angles)[0], expected, atol=1e-12)


def test_signs_are_as_documented() -> None:
    image = np.zeros((9, 9, 9), np.float32)
    for axis, (start, end) in enumerate([((4, 4, 7), (4, 7, 4)), ((7, 4, 4), (4, 4, 7)),
                                         ((4, 7, 4), (7, 4, 4))]):  # fmt: skip
        image[:] = 0
        image[start] = 1
        angles = [0.0, 0.0, 0.0]
        angles[axis] = 90.0
        turned, _ = moved(only(*angles), image, np.zeros(image.shape, np.uint8))
        assert np.unravel_index(turned.argmax(), turned.shape) == end


def test_a_scale_above_one_makes_things_larger() -> None:
    label = np.zeros((30, 30, 30), np.uint8)
    label[10:20, 10:20, 10:20] = 1
    _, larger = moved(only(0, 0, 0, zoom=1.3), label.astype(np.float32), label)
    assert larger.sum() == pytest.approx(label.sum() * 1.3**3, rel=0.1)


def test_label_is_truer_than_the_nearest_voxel() -> None:
    """Against the shape itself, known by its formula: what a vote is for."""
    shape = np.array((30, 34, 30))
    centre = (shape - 1) / 2
    grid = np.moveaxis(np.indices(shape), 0, -1) - centre

    def ellipsoid(at: np.ndarray) -> np.ndarray:
        return ((at / (6.0, 9.0, 5.0)) ** 2).sum(-1) < 1

    source = ellipsoid(grid).astype(np.uint8)
    ours, nearest = [], []
    for turn in (-25.0, 10.0, 30.0):
        transform = only(turn, turn / 2, -turn)
        matrix = transform.draw(np.random.default_rng(0), 1).matrix[0]
        truth = ellipsoid(grid @ matrix.T)
        _, label = moved(transform, source.astype(np.float32), source)
        ours.append((label.astype(bool) != truth).sum())
        offset = centre - matrix @ centre
        near = ndimage.affine_transform(source, matrix, offset, order=0)
        nearest.append((near.astype(bool) != truth).sum())
    assert sum(ours) < 0.9 * sum(nearest)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_label_values_survive_any_integer_type(dtype: torch.dtype, batch: Any) -> None:
    image, label = batch
    label = label.to(dtype) * 100
    transform = only(20, 20, 20)
    _, out = transform.apply(image, label, transform.draw(np.random.default_rng(0), 4))
    assert out.dtype == dtype and set(out.unique().tolist()) == {0, 100, 200}


def test_in_plane_leaves_slices_apart(batch: Any) -> None:
    image, label = batch
    image = torch.arange(14.0).reshape(1, 1, 14, 1, 1).expand(4, 2, 14, 18, 16).contiguous()
    transform = Affine(
        rotation_deg=((-180.0, 180.0), STILL, STILL),
        rotation_probability=1.0,
        scale_probability=1.0,
        elastic_probability=1.0,
        in_plane=True,
    )
    out, _ = transform.apply(image, label, transform.draw(np.random.default_rng(3), 4))
    torch.testing.assert_close(out, image, atol=1e-5, rtol=0)


def test_basis_equals_scipys_spline() -> None:
    for length, points in ((20, 4), (31, 7), (5, 6)):
        knots = np.arange(-3.0, points + 1.0)
        at = np.linspace(0, points - 3, length)
        expected = BSpline.design_matrix(at, knots, 3).toarray()[:, :points]
        np.testing.assert_allclose(cubic_basis(length, points), expected, atol=1e-12)


def test_deformation_equals_scipy(batch: Any) -> None:
    image, label = batch
    transform = Affine(
        rotation_probability=1.0, elastic_probability=1.0, elastic_std=(1.0, 2.0), control_points=5
    )
    drawn = transform.draw(np.random.default_rng(5), 4)
    out, _ = transform.apply(image, label, drawn)
    shape = label.shape[1:]
    centre = (np.array(shape) - 1) / 2
    bases = [cubic_basis(n, 5) for n in shape]
    for row in range(4):
        shift = np.einsum("xabc,da,hb,wc->xdhw", drawn.control[row], *bases)
        assert 0.3 < shift.std() < 3
        grid = np.indices(shape) - centre[:, None, None, None]
        at = np.einsum("ij,j...->i...", drawn.matrix[row], grid) + shift
        at += centre[:, None, None, None]
        expected = ndimage.map_coordinates(image[row, 0].numpy(), at, order=1, mode="nearest")
        np.testing.assert_allclose(out[row, 0], expected, atol=5e-5)


def test_draws_lie_in_their_ranges() -> None:
    transform = Affine(rotation_probability=0.4, scale_probability=0.3)
    drawn = transform.draw(np.random.default_rng(0), 4000)
    zoom = np.linalg.det(drawn.matrix) ** (-1 / 3)
    scaled = np.abs(zoom - 1) > 1e-9
    assert scaled.mean() == pytest.approx(0.3, abs=0.03)
    assert zoom.min() >= 0.7 and zoom.max() <= 1.4
    assert drawn.applied.mean() == pytest.approx(1 - 0.6 * 0.7, abs=0.03)
    again = transform.draw(np.random.default_rng(0), 4000)
    for field in dataclasses.fields(drawn):
        assert np.array_equal(getattr(drawn, field.name), getattr(again, field.name))
