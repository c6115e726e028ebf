"""Cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.losses.weighting import lesion_weights


class CrossEntropyLoss(nn.Module):
    """Mean negative log-likelihood of the true class, per voxel.

    Args:
        label_smoothing: share of the target spread over all classes, 0 ≤ value < 1.
        lesion_weighting: weigh voxels so that small lesions count as much as large ones; see
            `lesion_weights`.
        ignored: target value of voxels that nobody labelled: the mean is over the others, and 0
            where there are none.

    Raises:
        ConfigError: `label_smoothing` is out of range.

    Source: Goodfellow et al., Deep Learning (2016), ISBN 978-0-262-03561-3, section 6.2.2.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        lesion_weighting: bool = False,
        ignored: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError("label_smoothing", "at least 0 and below 1", label_smoothing)
        self.label_smoothing = label_smoothing
        self.lesion_weighting = lesion_weighting
        self.ignored = ignored

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, K, D, H, W).
            target: (B, D, H, W) int64 class indices, 0 ≤ value < K, or `ignored`.
        """
        smoothing = self.label_smoothing
        if not self.lesion_weighting and self.ignored is None:
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        known = torch.ones_like(target) if self.ignored is None else (target != self.ignored).long()
        target = target * known
        weights = known.to(logits.dtype)
        if self.lesion_weighting:
            weights = weights * lesion_weights(target).to(logits.dtype)
        each = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        return (weights * each).sum() / weights.sum().clamp_min(1e-6)
