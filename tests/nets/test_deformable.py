"""Deformable attention against torch's grid_sample, against a plain loop, and its gradients."""

from __future__ import annotations

from itertools import product
from math import floor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qinjing.nets import deformable
from qinjing.nets.deformable import DeformableAttention, sample, voxel_centres

SHAPES = [(3, 5, 4), (1, 3, 2)]
B, QUERIES, HEADS, POINTS, C = 2, 6, 2, 3, 5


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Values, places that lie beyond every border as well, weights."""
    torch.manual_seed(0)
    n = sum(d * h * w for d, h, w in SHAPES)
    table = torch.randn(B, n, HEADS, C, dtype=dtype)
    where = (B, QUERIES, HEADS, len(SHAPES), POINTS)
    return table, 3 * torch.randn(*where, 3, dtype=dtype) + 1, torch.rand(where, dtype=dtype)


def maps(table: Tensor) -> list[Tensor]:
    """A (B, heads, C, D, H, W) per scale."""
    parts = table.split([d * h * w for d, h, w in SHAPES], dim=1)
    return [
        part.permute(0, 2, 3, 1).unflatten(-1, shape)
        for part, shape in zip(parts, SHAPES, strict=True)
    ]


def test_sampling_is_grid_samples() -> None:
    table, places, weights = problem()
    expected = torch.zeros(B, QUERIES, HEADS, C)
    for scale, values in enumerate(maps(table)):
        lengths = torch.tensor(values.shape[-3:])
        grid = (2 * places[:, :, :, scale] + 1) / lengths - 1  # in -1..1, then (x, y, z)
        grid = grid.flip(-1).transpose(1, 2).flatten(0, 1).unsqueeze(1)
        seen = F.grid_sample(
            values.flatten(0, 1), grid, padding_mode="border", align_corners=False
        )  # (B·heads, C, 1, queries, points)
        seen = seen[:, :, 0].unflatten(0, (B, HEADS)).permute(0, 3, 1, 4, 2)
        expected += (seen * weights[:, :, :, scale, :, None]).sum(3)
    torch.testing.assert_close(sample(table, SHAPES, places, weights), expected)


def test_sampling_is_a_plain_loop() -> None:
    table, places, weights = problem()
    found = sample(table, SHAPES, places, weights)
    for b, q, head in product(range(B), range(QUERIES), range(HEADS)):
        total = torch.zeros(C)
        for scale, values in enumerate(maps(table)):
            for point in range(POINTS):
                place = places[b, q, head, scale, point].tolist()
                place = [min(max(x, 0), n - 1) for x, n in zip(place, SHAPES[scale], strict=True)]
                for corner in product((0, 1), repeat=3):
                    share = float(weights[b, q, head, scale, point])
                    at = []
                    for x, n, up in zip(place, SHAPES[scale], corner, strict=True):
                        part = x - floor(x)
                        share *= part if up else 1 - part
                        at.append(min(floor(x) + up, n - 1))
                    total += share * values[b, head, :, at[0], at[1], at[2]]
        torch.testing.assert_close(found[b, q, head], total, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    table, places, weights = problem(torch.float64)
    inputs = tuple(x.requires_grad_() for x in (table, places, weights))
    # Float32 shares would drown the differences: the corners are computed in the places' type.
    assert torch.autograd.gradcheck(
        lambda t, p, w: sample(t, SHAPES, p, w), inputs, eps=1e-6, atol=1e-6, fast_mode=True
    )


def test_the_exported_way_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    table, places, weights = problem()
    eager = sample(table, SHAPES, places, weights)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    monkeypatch.setattr(deformable._WeightedRows, "apply", None)
    torch.testing.assert_close(sample(table, SHAPES, places, weights), eager)


def test_a_query_at_rest_sees_its_own_voxel() -> None:
    torch.manual_seed(0)
    shapes = [(2, 3, 4)]
    attention = DeformableAttention(8, 2, 1, 2)
    torch.nn.init.zeros_(attention.offsets.bias)
    values = torch.randn(2, 24, 8)
    own = attention.out(attention.values(values))
    torch.testing.assert_close(attention(torch.randn(2, 24, 8), values, shapes), own)


def test_centres_agree_between_scales() -> None:
    centres = voxel_centres([(2, 4, 6), (1, 2, 3)], torch.device("cpu"))
    fine = centres[:48].view(2, 4, 6, 3)
    torch.testing.assert_close(
        F.avg_pool3d(fine.permute(3, 0, 1, 2), 2).permute(1, 2, 3, 0).reshape(-1, 3), centres[48:]
    )
    assert tuple(fine[0, 0, 0]) == (0.25, 0.125, pytest.approx(1 / 12))
