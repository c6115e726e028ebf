"""Cross-entropy."""

from __future__ import annotations

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

    Raises:
        ConfigError: `label_smoothing` is out of range.

    Source: Goodfellow et al., Deep Learning (2016), ISBN 978-0-262-03561-3, section 6.2.2.
    """

    def __init__(self, label_smoothing: float = 0.0, lesion_weighting: bool = False) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError("label_smoothing", "at least 0 and below 1", label_smoothing)
        self.label_smoothing = label_smoothing
        self.lesion_weighting = lesion_weighting

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, K, D, H, W).
            target: (B, D, H, W) int64 class indices, 0 ≤ value < K.
        """
        smoothing = self.label_smoothing
        if not self.lesion_weighting:
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        weights = lesion_weights(target).to(logits.dtype)
        each = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        return (weights * each).sum() / weights.sum()
