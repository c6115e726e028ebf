"""Soft clDice: overlap of each mask with the other's centreline."""

from __future__ import annotations

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.losses.classes import class_maps


class CentrelineDiceLoss(nn.Module):
    """One minus soft clDice, for vessels and other tubes; a cheap relative of the topology loss.

    clDice = 2 P S / (P + S): P is the share of the prediction's skeleton that lies in the truth, S
    the share of the truth's skeleton that lies in the prediction, both sums over all foreground
    classes of a sample. The result is the mean over samples. It looks at centrelines alone: add it
    to a loss of regions, as `ShapeLoss(topology_term="cldice")` does.

    Args:
        iterations: how often the mask is eroded to find its skeleton: at least the radius, in
            voxels, of the widest tube.
        smooth: added to numerator and denominator of both shares, finite and above 0.

    Raises:
        ConfigError: an argument is out of range; when called, no class is left beside the
            background.

    Source: Shit et al. 2021, arXiv:2003.07311.
    """

    def __init__(self, iterations: int = 3, smooth: float = 1.0) -> None:
        super().__init__()
        if iterations < 0:
            raise ConfigError("iterations", "at least 0", iterations, where="cldice")
        if not 0 < smooth < inf:
            raise ConfigError("smooth", "finite and above 0", smooth, where="cldice")
        self.iterations, self.smooth = iterations, smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, K, D, H, W).
            target: (B, D, H, W) int64 class indices, 0 ≤ value < K.
        """
        probability, mask = class_maps(logits, target)
        truth = mask.to(probability)
        precision = self._share(soft_skeleton(probability, self.iterations), truth)
        sensitivity = self._share(soft_skeleton(truth, self.iterations), probability)
        return 1 - (2 * precision * sensitivity / (precision + sensitivity)).mean()

    def _share(self, skeleton: Tensor, mask: Tensor) -> Tensor:
        """The share of a skeleton that lies in a mask, for each sample."""
        inside = (skeleton * mask).flatten(1).sum(1)
        return (inside + self.smooth) / (skeleton.flatten(1).sum(1) + self.smooth)


def soft_skeleton(mask: Tensor, iterations: int) -> Tensor:
    """Return the centrelines of soft masks: what an opening takes away at any width.

    Args:
        mask: (B, C, D, H, W), 0 to 1; with D = 1 the skeleton is that of 2-D.
        iterations: how often to erode.

    Source: arXiv:2003.07311, algorithm 1.
    """
    skeleton = torch.zeros_like(mask)
    for _ in range(iterations + 1):
        eroded = _erode(mask)
        ridge = F.relu(mask - F.max_pool3d(eroded, 3, 1, 1))
        skeleton = skeleton + F.relu(ridge - skeleton * ridge)
        mask = eroded
    return skeleton


def _erode(mask: Tensor) -> Tensor:
    """The least of each voxel and its six neighbours."""
    z, y, x = (
        -F.max_pool3d(-mask, size, 1, [n // 2 for n in size])
        for size in ([3, 1, 1], [1, 3, 1], [1, 1, 3])
    )
    return torch.minimum(torch.minimum(z, y), x)
