"""Losses added up with weights, and one loss applied at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.losses.boundary import GradientBoundaryLoss
from qinjing.losses.cross_entropy import CrossEntropyLoss
from qinjing.losses.dice import DiceLoss
from qinjing.losses.topology import TopologyLoss


class DiceCrossEntropyLoss(nn.Module):
    """α · Dice + cross-entropy.

    Shapes: logits (B, K, D, H, W), target (B, D, H, W) int64 class indices.

    Args:
        dice_weight: α.
        cross_entropy_weight: of the cross-entropy.
        lesion_weighting: in the cross-entropy, count small lesions as much as large ones.
        ignored: target value of voxels that nobody labelled, which count for nothing.

    Source: arXiv:1809.10486 (nnU-Net).
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        lesion_weighting: bool = False,
        ignored: int | None = None,
    ) -> None:
        super().__init__()
        self.dice, self.dice_weight = DiceLoss(ignored=ignored), dice_weight
        self.cross_entropy = CrossEntropyLoss(lesion_weighting=lesion_weighting, ignored=ignored)
        self.cross_entropy_weight = cross_entropy_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        dice = self.dice_weight * self.dice(logits, target)
        return dice + self.cross_entropy_weight * self.cross_entropy(logits, target)


class ShapeLoss(nn.Module):
    """α · Dice + β · boundary + γ · topology, and a cross-entropy that the paper does not have.

    The terms of shape wait: their weights are 0 until `start` of the schedule and rise in a line to
    β and γ at `full`. An untrained network's maps have thousands of components, whose pairing takes
    long and teaches little. A term of weight 0 is not computed. At coarser resolutions only
    `coarse`, the loss without terms of shape, is right: thin parts vanish there.

    Shapes: logits (B, K, D, H, W), target (B, D, H, W) int64 class indices.

    Args:
        dice_weight: α.
        boundary_weight: β.
        topology_weight: γ.
        cross_entropy_weight: 0 gives the paper's sum.
        start: share of the schedule, 0 to 1, at which the terms of shape come in.
        full: share at which they have all their weight, not before `start`.
        topology: options of `TopologyLoss`; its λ_k are `weights`.
        lesion_weighting: in the cross-entropy, count small lesions as much as large ones.

    Raises:
        ConfigError: a weight is negative, start and full are out of order, or γ is above 0 and
            Numba is not installed.

    Source: the paper, section 3.1.1; arXiv:1910.01877 (a topology term beside Dice).
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        boundary_weight: float = 1.0,
        topology_weight: float = 0.02,
        cross_entropy_weight: float = 1.0,
        start: float = 0.5,
        full: float = 0.75,
        topology: dict[str, Any] | None = None,
        lesion_weighting: bool = False,
    ) -> None:
        super().__init__()
        weights = (dice_weight, boundary_weight, topology_weight, cross_entropy_weight)
        if not all(weight >= 0 for weight in weights):
            raise ConfigError("weights", "at least 0", weights, where="shape")
        if not 0 <= start <= full <= 1:
            raise ConfigError("start and full", "in order from 0 to 1", (start, full))
        self.coarse = DiceCrossEntropyLoss(dice_weight, cross_entropy_weight, lesion_weighting)
        self.boundary, self.boundary_weight = GradientBoundaryLoss(), boundary_weight
        self.topology_weight = topology_weight
        if topology_weight:  # else nobody needs Numba
            self.topology = TopologyLoss(**(topology or {}))
        self.start, self.full = start, full
        self.share = 1.0

    def at(self, share: float) -> None:
        """Go to a place in the schedule, 0 (begin) to 1 (end); it stands at the end when made."""
        self.share = share

    @property
    def risen(self) -> float:
        """How much of their weight the terms of shape have now, 0 to 1."""
        if self.share >= self.full:
            return 1.0
        if self.share <= self.start:
            return 0.0
        return (self.share - self.start) / (self.full - self.start)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        total = self.coarse(logits, target)
        for name in ("boundary", "topology"):
            weight = self.risen * getattr(self, f"{name}_weight")
            if weight:
                total = total + weight * getattr(self, name)(logits, target)
        return total


def deep_supervision(loss: nn.Module, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
    """Apply `loss` at every resolution that a network returned, each with half the weight.

    Args:
        loss: (logits, target) → scalar; if it has a loss `coarse`, that one is taken at coarser
            resolutions.
        outputs: logits (B, K, D, H, W), the first at the target's resolution, then coarser ones.
        target: (B, D, H, W) int64 class indices.

    Returns:
        A scalar; the weights sum to 1.

    Source: arXiv:1409.5185 (Lee et al., Deeply-Supervised Nets); halving as in nnU-Net.
    """
    weights = [0.5**level for level in range(len(outputs))]
    coarse = getattr(loss, "coarse", loss)
    total = target.new_zeros((), dtype=outputs[0].dtype).float()
    for level, (weight, logits) in enumerate(zip(weights, outputs, strict=True)):
        term = coarse if level else loss
        total = total + weight / sum(weights) * term(logits.float(), _shrink(target, logits))
    return total


def _shrink(target: Tensor, logits: Tensor) -> Tensor:
    """Pick the target voxel nearest to the centre of each coarse voxel."""
    for axis in range(1, 4):
        full, coarse = target.shape[axis], logits.shape[axis + 1]
        if full != coarse:
            # Networks pad odd sizes up, so that 9 voxels become 4 at a stride of 4: a stride is
            # taken for the next power of two.
            step = 1 << (-(-full // coarse) - 1).bit_length()
            places = torch.arange(coarse, device=target.device) * step + step // 2
            target = target.index_select(axis, places.clamp(max=full - 1))
    return target
