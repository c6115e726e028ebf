"""Losses added up with weights, and one loss applied at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qinjing.losses.cross_entropy import CrossEntropyLoss
from qinjing.losses.dice import DiceLoss


class DiceCrossEntropyLoss(nn.Module):
    """α · Dice + β · cross-entropy.

    Shapes: logits (B, K, D, H, W), target (B, D, H, W) int64 class indices.

    Args:
        dice_weight: α.
        cross_entropy_weight: β.

    Source: arXiv:1809.10486 (nnU-Net).
    """

    def __init__(self, dice_weight: float = 1.0, cross_entropy_weight: float = 1.0) -> None:
        super().__init__()
        self.dice, self.dice_weight = DiceLoss(), dice_weight
        self.cross_entropy, self.cross_entropy_weight = CrossEntropyLoss(), cross_entropy_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        dice = self.dice_weight * self.dice(logits, target)
        return dice + self.cross_entropy_weight * self.cross_entropy(logits, target)


def deep_supervision(loss: nn.Module, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
    """Apply `loss` at every resolution that a network returned, each with half the weight.

    Args:
        loss: (logits, target) → scalar.
        outputs: logits (B, K, D, H, W), the first at the target's resolution, then coarser ones.
        target: (B, D, H, W) int64 class indices.

    Returns:
        A scalar; the weights sum to 1.

    Source: arXiv:1409.5185 (Lee et al., Deeply-Supervised Nets); halving as in nnU-Net.
    """
    weights = [0.5**level for level in range(len(outputs))]
    total = target.new_zeros((), dtype=outputs[0].dtype).float()
    for weight, logits in zip(weights, outputs, strict=True):
        total = total + weight / sum(weights) * loss(logits.float(), _shrink(target, logits))
    return total


def _shrink(target: Tensor, logits: Tensor) -> Tensor:
    """Pick the target voxel nearest to the centre of each coarse voxel."""
    for axis in range(1, 4):
        full, coarse = target.shape[axis], logits.shape[axis + 1]
        if full != coarse:
            step = -(-full // coarse)  # networks pad odd sizes up, so round up as they do
            places = torch.arange(coarse, device=target.device) * step + step // 2
            target = target.index_select(axis, places.clamp(max=full - 1))
    return target
