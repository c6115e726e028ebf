"""Linear maps of one axis after the other, a matrix for each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def along_axes(image: Tensor, matrices: Mapping[int, Tensor]) -> Tensor:
    """Multiply every line of voxels along an axis by its sample's matrix.

    Whatever reads a line as a weighted sum of itself (blur, zoom out and in again) is such a
    matrix; patches are short, so that a product costs little more than reading them.

    Args:
        image: `(B, C, D, H, W)`.
        matrices: spatial axis (0, 1, 2) → `(B, n, n)`, rows to the new voxels.
    """
    batch, shape = image.shape[0], image.shape
    for axis, matrix in matrices.items():
        if axis == 2:
            product = torch.matmul(image.reshape(batch, -1, shape[4]), matrix.mT)
        else:
            # (B, lines before, n, voxels after), multiplied from the left.
            after = math.prod(shape[axis + 3 :])
            lines = image.reshape(batch, -1, shape[axis + 2], after)
            product = torch.matmul(matrix[:, None], lines)
        image = product.view(shape)
    return image
