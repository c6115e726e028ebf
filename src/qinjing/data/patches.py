"""Draw training patches from prepared cases; every draw is a function of seed and step alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qinjing.data.cache import CachedCase

Shape = tuple[int, int, int]


def draw_cases(n_cases: int, batch: int, step: int, seed: int) -> list[int]:
    """Return which cases make the batch of a step: each once per epoch, in a new order each epoch.

    Nothing is remembered between steps, so that a resumed run draws what an uninterrupted one did.
    """
    picks = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, position = divmod(place, n_cases)
        order = np.random.default_rng((seed, 1, epoch)).permutation(n_cases)
        picks.append(int(order[position]))
    return picks


def draw_corner(
    rng: np.random.Generator, case: CachedCase, patch_size: Shape, foreground: float
) -> Shape:
    """Return the first voxel of a patch, which may lie outside the case where the patch is larger.

    Args:
        rng: source of chance.
        case: where to cut.
        patch_size: voxels along D, H and W.
        foreground: probability of centring on a voxel of a class drawn evenly among those present.
    """
    shape = np.array(case.label.shape)
    size = np.array(patch_size)
    low = np.minimum(0, (shape - size) // 2)  # a larger patch is centred
    high = np.maximum(shape - size, low)
    present = [places for places in case.foreground if len(places)]
    if present and rng.random() < foreground:
        places = present[rng.integers(len(present))]
        corner = places[rng.integers(len(places))] - size // 2
        corner = np.clip(corner, low, high)
    else:
        corner = rng.integers(low, high + 1)
    d, h, w = (int(c) for c in corner)
    return d, h, w


def cut(array: np.ndarray, corner: Shape, patch_size: Shape, outside: int = 0) -> np.ndarray:
    """Cut a patch out of (…, D, H, W); what lies outside has a value of its own."""
    lead = array.ndim - 3
    out = np.full((*array.shape[:lead], *patch_size), outside, dtype=array.dtype)
    source, target = [slice(None)] * lead, [slice(None)] * lead
    for start, size, length in zip(corner, patch_size, array.shape[lead:], strict=True):
        first, last = max(start, 0), min(start + size, length)
        source.append(slice(first, last))
        target.append(slice(first - start, last - start))
    out[tuple(target)] = array[tuple(source)]
    return out


def batch_of_patches(
    rng: np.random.Generator,
    cases: Sequence[CachedCase],
    patch_size: Shape,
    foreground: float,
    margin: Shape = (0, 0, 0),
    outside: int = 0,
) -> tuple[Tensor, Tensor]:
    """Cut one patch from each case, with so many voxels more at either end of each axis.

    Outside the case the image is 0 and the label `outside`.

    Returns:
        Images (B, C, D, H, W) float32 and class indices (B, D, H, W) uint8.
    """
    corners = [draw_corner(rng, case, patch_size, foreground) for case in cases]
    md, mh, mw = margin
    size = patch_size[0] + 2 * md, patch_size[1] + 2 * mh, patch_size[2] + 2 * mw
    starts = [(d - md, h - mh, w - mw) for d, h, w in corners]
    pairs = list(zip(cases, starts, strict=True))
    images = np.stack([cut(case.image, start, size) for case, start in pairs])
    labels = np.stack([cut(case.label, start, size, outside) for case, start in pairs])
    return torch.from_numpy(images), torch.from_numpy(labels)
