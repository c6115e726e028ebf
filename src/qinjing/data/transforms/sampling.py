"""Read an image and a label at arbitrary positions, linearly, faster than `grid_sample`.

On a CPU the 5-D `grid_sample` costs more with the nearest label, and four to five times as much
with a label as true as this one (`benchmarks/augment.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

# So many voxels at a time, that intermediate results stay in a CPU's cache.
_SLAB_VOXELS = 2**15


def sample(image: Tensor, label: Tensor, coordinates: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Read both at the coordinates; outside, the nearest border voxel is read.

    The image is interpolated linearly. The label is the one of the largest weight among the
    voxels that the image is interpolated from: the arg-max of its interpolated one-hot form,
    but worked out only where those voxels differ, so that its cost does not grow with the
    number of classes. Against the true shape it errs less than the nearest voxel does.

    Args:
        image: `(C, *spatial)`, float, with one, two or three spatial axes.
        label: `(K, *spatial)`, of any integer type.
        coordinates: one tensor of the same spatial shape for each axis, in voxels.
    """
    shape, wanted = image.shape[1:], coordinates[0].shape
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # Flat steps from a cell's lowest corner to each of its corners, the last axis fastest.
    corners = [
        sum(steps)
        for steps in itertools.product(
            *((0, stride if n > 1 else 0) for n, stride in zip(shape, strides, strict=True))
        )
    ]
    flat_image, flat_label = image.flatten(1), label.flatten(1)
    mixed = _mixed_cells(flat_label, corners)
    new_image = image.new_empty((len(image), *wanted))
    new_label = label.new_empty((len(label), *wanted))
    plane = max(1, math.prod(wanted[1:]))
    rows = wanted[0] if image.device.type != "cpu" else max(1, _SLAB_VOXELS // plane)
    for start in range(0, wanted[0], rows):
        slab = slice(start, start + rows)
        cell, weights = _cells([at[slab] for at in coordinates], shape, strides)
        values = _interpolate(flat_image, cell, weights, corners)
        votes = _vote(flat_label, mixed, cell, weights, corners)
        new_image[:, slab] = values.view_as(new_image[:, slab])
        new_label[:, slab] = votes.view_as(new_label[:, slab])
    return new_image, new_label


def _cells(
    coordinates: Sequence[Tensor], shape: Sequence[int], strides: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Return the flat position of each voxel's cell, int64, and its weights on the upper side."""
    # A sum in floats is faster than in integers, and exact: float32 holds whole numbers to 2²⁴.
    exact = torch.float32 if math.prod(shape) <= 2**24 else torch.float64
    cell = coordinates[0].new_zeros((), dtype=exact)
    weights = []
    for at, n, stride in zip(coordinates, shape, strides, strict=True):
        at = at.clamp(0, n - 1)
        lower = at.floor().clamp_max_(max(n - 2, 0))
        cell = torch.add(cell, lower.to(exact), alpha=stride)
        weights.append(at.sub_(lower).flatten())
    return cell.flatten().long(), weights


def _interpolate(
    flat: Tensor, cell: Tensor, weights: Sequence[Tensor], corners: Sequence[int]
) -> Tensor:
    # Each corner reads the same positions of a view that starts later.
    values = [flat[:, corner:].index_select(1, cell) for corner in corners]
    for weight in reversed(weights):
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [torch.lerp(a, b, weight) for a, b in pairs]
    return values[0]


def _mixed_cells(flat: Tensor, corners: Sequence[int]) -> Tensor:
    """Return where a cell's corners carry different labels, bool, at its lowest corner.

    At an axis' upper end this compares across the edge, but no cell begins there.
    """
    mixed = torch.zeros_like(flat, dtype=torch.bool)
    for corner in corners[1:]:
        first = flat[:, : flat.shape[1] - corner]
        mixed[:, : first.shape[1]] |= flat[:, corner:] != first
    return mixed


def _vote(
    flat: Tensor,
    mixed: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    corners: Sequence[int],
) -> Tensor:
    where = cell.expand(len(flat), -1)
    votes = flat.gather(1, where)
    row, voxel = mixed.gather(1, where).nonzero(as_tuple=True)
    # (corners, mixed voxels): the label of each corner, and its weight in the interpolation.
    labels = torch.stack([flat[row, cell[voxel] + corner] for corner in corners])
    sides = [torch.stack((1 - w, w)) for w in (weight[voxel] for weight in weights)]
    shares = sides[0]
    for side in sides[1:]:
        shares = (shares[:, None] * side).flatten(0, 1)
    support = torch.stack([(shares * (labels == one)).sum(0) for one in labels])
    votes[row, voxel] = labels.gather(0, support.argmax(0, keepdim=True))[0]
    return votes
