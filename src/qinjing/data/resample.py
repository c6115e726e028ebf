"""Change the grid: separable resampling between axis-aligned grids that share a first voxel.

Index space only: target index i lies at source index i·scale, where scale is new spacing over old
spacing. Outside the source the border voxel is repeated. Orders: 0 nearest, 1 linear, 3 Catmull-Rom
(a cubic that passes through the samples and needs no prefilter, so four taps are enough).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qinjing.errors import ConfigError
from qinjing.volume import Volume

_BLOCK_ELEMENTS = 1 << 22  # of the output, so that temporaries stay at some 16 MiB


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> tuple[int, int, int]:
    """Return the grid's shape at a new spacing, first voxel centres shared.

    Args:
        shape: spatial lengths, in the order of the spacings.
        spacing_mm: distance between neighbours now, positive.
        new_spacing_mm: distance wanted, positive.

    Returns:
        round((n − 1)·spacing/new_spacing + 1) for each axis, halves to even, at least 1.

    Raises:
        ConfigError: a spacing is not positive and finite.

    Source: MONAI 1.6 `compute_shape_offset`, scale_extent=False.
    """
    for name, spacing in (("spacing_mm", spacing_mm), ("new_spacing_mm", new_spacing_mm)):
        if not all(np.isfinite(s) and s > 0 for s in spacing):
            raise ConfigError(name, "positive and finite", tuple(spacing))
    d, h, w = (
        max(1, int(np.round((n - 1) * (old / new) + 1.0)))
        for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )
    return d, h, w


def axis_taps(length: int, out_length: int, scale: float, order: int) -> tuple[Tensor, Tensor]:
    """Return which source samples make each target sample, and by how much.

    Args:
        length: samples along the source axis.
        out_length: samples along the target axis.
        scale: source steps in one target step.
        order: 0, 1 or 3.

    Returns:
        Index (out_length, taps) int64 within the source and weight (out_length, taps) float32 that
        sums to 1; taps is 1, 2 or 4.

    Raises:
        ConfigError: the order is none of these.

    Source: R. Keys, doi:10.1109/TASSP.1981.1163711 (order 3, a = −1/2).
    """
    position = np.clip(np.arange(out_length, dtype=np.float64) * scale, 0, length - 1)
    if order == 0:
        taps, weights = np.rint(position)[:, None], np.ones((out_length, 1))
    elif order in (1, 3):
        below = np.floor(position)
        t = position - below
        if order == 1:
            weights = np.stack([1 - t, t], 1)
        else:
            weights = np.stack(
                [
                    -0.5 * t**3 + t**2 - 0.5 * t,
                    1.5 * t**3 - 2.5 * t**2 + 1,
                    -1.5 * t**3 + 2 * t**2 + 0.5 * t,
                    0.5 * t**3 - 0.5 * t**2,
                ],
                1,
            )
        taps = below[:, None] + (np.arange(weights.shape[1]) - (weights.shape[1] // 2 - 1))
    else:
        raise ConfigError("order", "0 (nearest), 1 (linear) or 3 (cubic)", order)
    index = np.clip(taps, 0, length - 1).astype(np.int64)
    return torch.from_numpy(index), torch.from_numpy(weights.astype(np.float32))


def resample_axis(
    x: Tensor, axis: int, out_length: int, scale: float, order: int, *, out: Tensor | None = None
) -> Tensor:
    """Resample one axis.

    Args:
        x: any shape and numeric type.
        axis: which axis.
        out_length: its new length.
        scale: source steps in one target step (new spacing / old spacing).
        order: 0, 1 or 3.
        out: where to write, of the result's shape; allocated where None.

    Returns:
        float32 for orders 1 and 3, the type of `x` for order 0.

    Raises:
        ConfigError: the order is none of these.
    """
    index, weight = axis_taps(x.shape[axis], out_length, scale, order)
    index, weight = index.to(x.device), weight.to(x.device)
    shape = list(x.shape)
    shape[axis] = out_length
    if out is None:
        out = x.new_empty(shape, dtype=x.dtype if order == 0 else torch.float32)
    per_sample = max(1, out.numel() // max(out_length, 1))
    block = max(1, _BLOCK_ELEMENTS // per_sample)
    weight_shape = [1] * x.ndim
    for start in range(0, out_length, block):
        rows = slice(start, min(start + block, out_length))
        target = out.narrow(axis, rows.start, rows.stop - rows.start)
        if order == 0:
            target.copy_(x.index_select(axis, index[rows, 0]))
            continue
        weight_shape[axis] = rows.stop - rows.start
        for tap in range(index.shape[1]):
            part = x.index_select(axis, index[rows, tap]).to(torch.float32)
            w = weight[rows, tap].reshape(weight_shape)
            torch.mul(part, w, out=target) if tap == 0 else target.addcmul_(part, w)
    return out


def resample_volume(volume: Volume, spacing_mm: Sequence[float], order: int) -> Volume:
    """Resample an image to a new spacing, its first voxel's centre kept.

    Slice after slice in plane, then along D: float32 copies at the source's full resolution never
    exist, only the source itself and grids of the in-plane target.

    Args:
        volume: (D, H, W) or (C, D, H, W), any numeric type.
        spacing_mm: along (D, H, W).
        order: 0, 1 or 3.

    Returns:
        float32 (the source's type for order 0), the affine's columns scaled.

    Raises:
        ConfigError: a spacing is not positive, or the order is unknown.
    """
    shape = resampled_shape(volume.shape, volume.spacing_mm, spacing_mm)
    depth_scale, *plane_scale = (n / o for n, o in zip(spacing_mm, volume.spacing_mm, strict=True))
    stacks = volume.voxels if volume.voxels.ndim == 4 else volume.voxels[None]
    dtype = torch_dtype(stacks.dtype)
    result = torch.empty((len(stacks), *shape), dtype=dtype if order == 0 else torch.float32)
    for stack, whole in zip(stacks, result, strict=True):
        plane = torch.empty((volume.shape[0], *shape[1:]), dtype=whole.dtype)
        rows = max(1, _BLOCK_ELEMENTS // max(1, volume.shape[1] * volume.shape[2]))
        for start in range(0, volume.shape[0], rows):
            block = to_tensor(stack[start : start + rows])
            for axis, scale in enumerate(plane_scale, 1):
                block = _resample_if_needed(block, axis, shape[axis], scale, order)
            plane[start : start + rows] = block
        _resample_if_needed(plane, 0, shape[0], depth_scale, order, out=whole)
    voxels = result.numpy() if volume.voxels.ndim == 4 else result[0].numpy()
    return replace(volume, voxels=voxels, affine=_scaled(volume, spacing_mm))


def resample_labels(volume: Volume, spacing_mm: Sequence[float]) -> Volume:
    """Resample a label map smoothly: the class whose mask, interpolated linearly, is largest wins.

    Equal to interpolating every class's mask and taking the arg-max (the lower value wins a tie),
    but the cost does not grow with the number of classes: only the eight neighbours of a voxel can
    win it, and where they agree nothing is computed.

    Args:
        volume: (D, H, W) integer labels.
        spacing_mm: along (D, H, W).

    Returns:
        Labels of the same type on the new grid.

    Raises:
        ConfigError: a spacing is not positive.
    """
    shape = resampled_shape(volume.shape, volume.spacing_mm, spacing_mm)
    scales = [n / o for n, o in zip(spacing_mm, volume.spacing_mm, strict=True)]
    taps = [axis_taps(n, m, s, 1) for n, m, s in zip(volume.shape, shape, scales, strict=True)]
    (index_d, weight_d), *plane_taps = taps
    labels = np.empty(shape, dtype=volume.voxels.dtype)
    held: dict[int, Tensor] = {}
    for d in range(shape[0]):
        near = [int(i) for i in index_d[d]]
        held = {i: held[i] if i in held else to_tensor(volume.voxels[i]) for i in near}
        corners, weights = plane_corners([held[i] for i in near], weight_d[d], plane_taps)
        labels[d] = _vote(corners, weights).numpy().astype(labels.dtype)
    return replace(volume, voxels=labels, affine=_scaled(volume, spacing_mm))


def resample_scribbles(volume: Volume, spacing_mm: Sequence[float], ignored: int) -> Volume:
    """Resample labels of which most voxels say nothing, so that no stroke is outvoted by nothing.

    As `resample_labels`; then each voxel that says something goes to its nearest one on the new
    grid, where that has nothing to say.

    Args:
        volume: (D, H, W) integer labels.
        spacing_mm: along (D, H, W).
        ignored: the value that says nothing.

    Raises:
        ConfigError: a spacing is not positive.
    """
    found = resample_labels(volume, spacing_mm)
    where = np.nonzero(volume.voxels != ignored)
    target = tuple(
        np.clip(np.rint(at * (old / new)), 0, n - 1).astype(np.intp)
        for at, old, new, n in zip(where, volume.spacing_mm, spacing_mm, found.shape, strict=True)
    )
    free = found.voxels[target] == ignored
    target = tuple(at[free] for at in target)
    found.voxels[target] = volume.voxels[where][free]
    return found


def plane_corners(
    slices: Sequence[Tensor], weight_d: Tensor, plane_taps: Sequence[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the neighbours of every voxel of one target slice with their linear weights.

    Args:
        slices: the source slices (H, W) below and above.
        weight_d: (len(slices),), their weights.
        plane_taps: `axis_taps` of order 1 along H and along W.

    Returns:
        Eight (H', W') tensors of neighbours, and eight (H', W') float32 of weights.
    """
    (index_h, weight_h), (index_w, weight_w) = plane_taps
    corners, weights = [], []
    for plane, wd in zip(slices, weight_d, strict=True):
        for h in range(2):
            line = plane.index_select(0, index_h[:, h])
            for w in range(2):
                corners.append(line.index_select(1, index_w[:, w]))
                weights.append(wd * weight_h[:, h, None] * weight_w[None, :, w])
    return corners, weights


def _vote(corners: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The corner value with the largest sum of weights at each place, the lower one at a tie."""
    chosen = corners[0].clone()
    unsure = torch.zeros_like(chosen, dtype=torch.bool)
    for corner in corners[1:]:
        unsure |= corner != corners[0]
    places = unsure.flatten().nonzero().squeeze(1)
    value = torch.stack([c.flatten()[places] for c in corners])
    weight = torch.stack([w.flatten()[places] for w in weights])
    order = value.argsort(0)
    value, weight = value.gather(0, order), weight.gather(0, order)
    score = torch.zeros_like(weight)
    for i in range(len(corners)):
        score += weight[i] * (value == value[i])
    best = score.max(0, keepdim=True).values
    # Equal sums differ by rounding of their order; the first of ascending values then wins.
    first = (score >= best - 1e-6).to(torch.uint8).argmax(0, keepdim=True)
    chosen.view(-1)[places] = value.gather(0, first).squeeze(0)
    return chosen


def _resample_if_needed(
    x: Tensor, axis: int, out_length: int, scale: float, order: int, *, out: Tensor | None = None
) -> Tensor:
    if out_length == x.shape[axis] and abs(scale - 1.0) * out_length < 1e-3:
        return x if out is None else out.copy_(x)
    return resample_axis(x, axis, out_length, scale, order, out=out)


def _scaled(volume: Volume, spacing_mm: Sequence[float]) -> np.ndarray:
    """The affine with its columns set to the new spacing, the first voxel's centre kept."""
    affine = volume.affine.copy()
    affine[:3, :3] *= np.asarray(spacing_mm) / np.asarray(volume.spacing_mm)
    return affine


def to_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor of the same numbers, of the nearest type that torch computes with.

    Reversed axes and foreign byte orders are copied, uint16 and uint32 widened.
    """
    array = np.asarray(array)
    wanted = {"u2": np.int32, "u4": np.int64, "u8": np.int64, "f16": np.float64}
    kind = wanted.get(array.dtype.kind + str(array.dtype.itemsize), array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(array, dtype=kind))


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """Return the torch type that `to_tensor` gives arrays of this type."""
    return to_tensor(np.empty(0, dtype)).dtype
