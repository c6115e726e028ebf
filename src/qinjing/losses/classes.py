"""One map for each class, of prediction and truth: what losses on regions share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qinjing.errors import ConfigError


def class_maps(
    logits: Tensor, target: Tensor, background: bool = False, ignored: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the probability of each class, 0 where nobody labelled, and where it is the true one.

    Args:
        logits: (B, K, D, H, W).
        target: (B, D, H, W) int64 class indices, 0 ≤ value < K, or `ignored`.
        background: keep class 0 as well.
        ignored: target value of voxels that nobody labelled.

    Returns:
        (B, K − 1, D, H, W), or (B, K, D, H, W) with background: floats from 0 to 1, and bool.

    Raises:
        ConfigError: there is one class and it is the background, so that nothing is left.

    Source: arXiv:1606.04797 (V-Net: softmax, then each class by itself).
    """
    first = 0 if background else 1
    if logits.shape[1] <= first:
        raise ConfigError("logits", "of at least 2 classes, background first", logits.shape[1])
    classes = torch.arange(first, logits.shape[1], device=target.device)
    truth = target[:, None] == classes.view(1, -1, 1, 1, 1)
    probability = F.softmax(logits, dim=1)[:, first:]
    if ignored is not None:
        probability = probability * (target != ignored)[:, None]
    return probability, truth
