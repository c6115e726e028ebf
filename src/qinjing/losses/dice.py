"""Soft Dice loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.errors import ConfigError


class DiceLoss(nn.Module):
    """One minus the soft Dice coefficient, averaged over foreground classes.

    L = 1 − (2 Σ y ŷ + s) / (Σ y + Σ ŷ + s), the sums running over voxels and, with `per_batch`,
    over the samples of the batch as well, which steadies classes that some patches lack.

    Args:
        smooth: s, at least 0.
        per_batch: sum over the batch before dividing.
        background: count class 0 as well.
        ignored: target value of voxels that nobody labelled, which count for nothing.

    Raises:
        ConfigError: `smooth` is negative.

    Source: the paper, section 3.1.1; arXiv:1606.04797 (V-Net).
    """

    def __init__(
        self,
        smooth: float = 1.0,
        per_batch: bool = True,
        background: bool = False,
        ignored: int | None = None,
    ) -> None:
        super().__init__()
        if smooth < 0:
            raise ConfigError("smooth", "at least 0", smooth, where="dice")
        self.smooth = smooth
        self.per_batch = per_batch
        self.background = background
        self.ignored = ignored

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, K, D, H, W).
            target: (B, D, H, W) int64 class indices, 0 ≤ value < K, or `ignored`.
        """
        first = 0 if self.background else 1
        probability = F.softmax(logits, dim=1)
        classes = torch.arange(first, logits.shape[1], device=target.device)
        truth = target[:, None] == classes.view(1, -1, 1, 1, 1)
        probability = probability[:, first:]
        if self.ignored is not None:
            probability = probability * (target != self.ignored)[:, None]
        axes = (0, 2, 3, 4) if self.per_batch else (2, 3, 4)
        shared = (probability * truth).sum(axes)
        total = probability.sum(axes) + truth.sum(axes)
        return 1 - ((2 * shared + self.smooth) / (total + self.smooth)).mean()
