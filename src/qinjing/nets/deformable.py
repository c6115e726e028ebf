"""Deformable attention: each query looks at a few places of every scale that it chooses itself.

Full attention compares N voxels with N voxels. Here a query predicts, for each head and scale,
where to look (offsets in voxels from its own place) and how much each place counts (weights that
sum to one); values between voxels are interpolated. Time and memory are linear in N.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.nets.blocks import Triple
from qinjing.nets.transformer import check_heads


class DeformableAttention(nn.Module):
    """Attention to learned places of maps of several scales.

    Shapes: queries (B, N, C), values (B, N, C), N the voxels of all scales, finest first
    → (B, N, C).

    Args:
        channels: C.
        heads: a divisor of C.
        scales: maps that every query looks at.
        points: places in each of them, for each head.

    Raises:
        ConfigError: the heads do not divide the channels.

    Source: arXiv:2010.04159 (Deformable DETR), equation 3, in three dimensions.
    """

    def __init__(self, channels: int, heads: int, scales: int, points: int) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.layout = (heads, scales, points)
        self.offsets = nn.Linear(channels, heads * scales * points * 3)
        self.weights = nn.Linear(channels, heads * scales * points)
        self.values = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        # At first every head looks straight in a direction of its own, and all places count alike.
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        reach = torch.arange(1, points + 1).view(1, 1, points, 1)
        start = _directions(heads).view(heads, 1, 1, 3) * reach
        with torch.no_grad():
            self.offsets.bias.copy_(start.expand(heads, scales, points, 3).flatten())

    def forward(self, queries: Tensor, values: Tensor, shapes: Sequence[Triple]) -> Tensor:
        b, n, c = queries.shape
        heads = self.layout[0]
        # Places stay in float32 under autocast: a bfloat16 holds no more than 8 bits of them.
        offsets = self.offsets(queries).float().view(b, n, *self.layout, 3)
        weights = self.weights(queries).float().view(b, n, heads, -1).softmax(dim=-1)
        extent = torch.tensor(shapes, device=queries.device, dtype=torch.float32)
        centres = voxel_centres(shapes, queries.device)
        places = centres[:, None, None, None] * extent[:, None] - 0.5 + offsets
        table = self.values(values).float().view(b, n, heads, c // heads)
        seen = sample(table, shapes, places, weights.view(b, n, *self.layout))
        return self.out(seen.reshape(b, n, c))


def voxel_centres(shapes: Sequence[Triple], device: torch.device) -> Tensor:
    """Return the centres of all maps' voxels as shares of the maps' extents.

    Shapes: → (N, 3) float32 in 0..1, N the voxels of all maps in their order.

    Source: arXiv:2010.04159 (Deformable DETR), reference points.
    """
    grids = []
    for shape in shapes:
        axes = [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in shape]
        grids.append(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2))
    return torch.cat(grids)


def sample(table: Tensor, shapes: Sequence[Triple], places: Tensor, weights: Tensor) -> Tensor:
    """Sum values at places between voxels, by trilinear interpolation and with weights.

    Beyond a map's border its nearest voxel counts, so that a map of one slice works as any other.

    Shapes: table (B, N, heads, C), N the voxels of all maps in their order; places
    (B, Q, heads, scales, points, 3) in voxels of the map of that scale, its first voxel's centre
    at 0; weights (B, Q, heads, scales, points) → (B, Q, heads, C).

    Source: arXiv:2010.04159 (Deformable DETR); interpolation as in torch's `grid_sample` with
        align_corners=False and padding_mode="border".
    """
    b, n, heads, c = table.shape
    queries = places.shape[1]
    index, shares = _corners(places, shapes)
    batch = torch.arange(b, device=table.device, dtype=torch.int32).view(b, 1, 1, 1) * n
    head = torch.arange(heads, device=table.device, dtype=torch.int32).view(1, 1, heads, 1)
    rows = (index.flatten(3) + batch) * heads + head
    shares = (shares * weights[..., None, None, None]).flatten(3)
    bags = (b * queries * heads, -1)
    flat = table.reshape(b * n * heads, c)
    return _weighted_rows(flat, rows.view(bags), shares.view(bags)).view(b, queries, heads, c)


def _corners(places: Tensor, shapes: Sequence[Triple]) -> tuple[Tensor, Tensor]:
    """Return the eight voxels around each place, and each one's share.

    Shapes: places (..., scales, points, 3) → twice (..., scales, points, 2, 2, 2), int32 rows
    counted over all maps, and float32 that sum to one.
    """
    starts = torch.tensor(
        [sum(prod(shape) for shape in shapes[:level]) for level in range(len(shapes))],
        device=places.device,
        dtype=torch.int32,
    )
    index = starts[:, None, None, None, None]
    share: Tensor | None = None
    for axis, place in enumerate(places.unbind(-1)):
        lengths = [shape[axis] for shape in shapes]
        last = torch.tensor(lengths, device=places.device, dtype=torch.int32)[:, None] - 1
        place = torch.clamp(place, torch.zeros_like(last).float(), last.float())
        low = place.detach().floor()
        part = place - low
        near = low.int()
        view = [1, 1, 1]
        view[axis] = 2
        steps = torch.stack([near, torch.minimum(near + 1, last)], dim=-1)
        steps = steps * torch.tensor(
            [prod(shape[axis + 1 :]) for shape in shapes], device=places.device, dtype=torch.int32
        ).view(-1, 1, 1)
        parts = torch.stack([1 - part, part], dim=-1).unflatten(-1, view)
        index = index + steps.unflatten(-1, view)
        share = parts if share is None else share * parts
    assert share is not None
    return index, share


def _weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sum rows of a table with weights: (R, C), (bags, P) int32, (bags, P) → (bags, C)."""
    if not torch.compiler.is_exporting():
        summed: Tensor = _WeightedRows.apply(table, rows, weights)
        return summed
    # Exported graphs hold plain gathers, which every runtime has; eight at a time, so that no
    # runtime holds all of them at once.
    total = torch.zeros(())
    for index, weight in zip(rows.split(8, dim=1), weights.split(8, dim=1), strict=True):
        gathered = table.index_select(0, index.reshape(-1)).unflatten(0, (-1, 8))
        total = total + (gathered * weight[..., None]).sum(dim=1)
    return total


class _WeightedRows(torch.autograd.Function):
    """The same by `embedding_bag`, which never holds the gathered rows, forwards and backwards.

    torch's own gradient of `embedding_bag` took a hundred times as long as its value on a CPU. The
    gradient of the table is a weighted sum of rows as well, with the roles of bag and row swapped,
    and is computed as one: sorted, so that it is summed in a fixed order on a GPU, too. That is
    said of this gradient alone: other sums of a step there come in no fixed order.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, weights)
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        table, rows, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        with torch.enable_grad():
            free = weights.detach().requires_grad_()
            value = F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=free)
            (of_weights,) = torch.autograd.grad(value, free, gradient)
        taken, order = torch.sort(rows.flatten(), stable=True)
        counts = torch.bincount(taken, minlength=len(table))
        of_table = F.embedding_bag(
            order // rows.shape[1],
            gradient,
            offsets=counts.cumsum(0) - counts,
            mode="sum",
            per_sample_weights=weights.flatten()[order],
        )
        return of_table, None, of_weights


def _directions(count: int) -> Tensor:
    """Directions spread evenly over a sphere, (count, 3), the longest part of each 1 voxel."""
    place = torch.arange(count, dtype=torch.float32) + 0.5
    height, angle = 1 - 2 * place / count, place * pi * (3 - 5**0.5)
    radius = (1 - height.square()).sqrt()
    spread = torch.stack([height, radius * angle.cos(), radius * angle.sin()], dim=1)
    return spread / spread.abs().amax(dim=1, keepdim=True)
