"""Soft Dice loss and its usual relatives."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.losses.classes import class_maps


class DiceLoss(nn.Module):
    """One minus the soft Dice coefficient, averaged over foreground classes.

    L = 1 − (2 Σ y ŷ + s) / (Σ y + Σ ŷ + s), the sums running over voxels and, with `per_batch`,
    over the samples of the batch as well, which steadies classes that some patches lack.

    Args:
        smooth: s, finite and at least 0; the paper's formula has 0. With 0 a class that is not
            there costs 1 however low its probability, and 0 where that is exactly 0.
        per_batch: sum over the batch before dividing.
        background: count class 0 as well.
        ignored: target value of voxels that nobody labelled, which count for nothing.
        squared: Σ y² + Σ ŷ² below the line, which pulls probabilities to 0 and 1.

    Raises:
        ConfigError: `smooth` is out of range; when called, no class is left beside the background.

    Source: the paper, section 3.1.1; arXiv:1606.04797 (V-Net) where squared.
    """

    def __init__(
        self,
        smooth: float = 1.0,
        per_batch: bool = True,
        background: bool = False,
        ignored: int | None = None,
        squared: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= smooth < inf:
            raise ConfigError("smooth", "finite and at least 0", smooth, where="dice")
        self.smooth = smooth
        self.per_batch = per_batch
        self.background = background
        self.ignored = ignored
        self.squared = squared

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, K, D, H, W).
            target: (B, D, H, W) int64 class indices, 0 ≤ value < K, or `ignored`.
        """
        probability, truth = class_maps(logits, target, self.background, self.ignored)
        axes = (0, 2, 3, 4) if self.per_batch else (2, 3, 4)
        shared = (probability * truth).sum(axes)
        sizes = probability.square() if self.squared else probability
        total = sizes.sum(axes) + truth.sum(axes)
        return 1 - _share(2 * shared + self.smooth, total + self.smooth).mean()


class GeneralisedDiceLoss(nn.Module):
    """Dice over all classes at once, each weighed by one over its squared volume.

    L = 1 − (2 Σₖ wₖ Σ y ŷ + s) / (Σₖ wₖ Σ (y + ŷ) + s), wₖ = 1 / (Σ y)². A class that is not there
    gets the largest weight of those that are.

    Shapes: logits (B, K, D, H, W), target (B, D, H, W) int64 class indices.

    Args:
        smooth: s, finite and above 0.
        per_batch: sum over the batch before dividing.
        background: count class 0 as well.
        ignored: target value of voxels that nobody labelled, which count for nothing.

    Raises:
        ConfigError: `smooth` is out of range; when called, no class is left beside the background.

    Source: arXiv:1707.03237 (Sudre et al.).
    """

    def __init__(
        self,
        smooth: float = 1e-5,
        per_batch: bool = True,
        background: bool = True,
        ignored: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < smooth < inf:
            raise ConfigError("smooth", "finite and above 0", smooth, where="generalised_dice")
        self.smooth, self.per_batch = smooth, per_batch
        self.background, self.ignored = background, ignored

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        probability, truth = class_maps(logits, target, self.background, self.ignored)
        axes = (0, 2, 3, 4) if self.per_batch else (2, 3, 4)
        volumes = truth.sum(axes).to(probability.dtype)
        weights = torch.where(volumes > 0, 1 / volumes.square().clamp_min(1), 0)
        largest = weights.amax(-1, keepdim=True)
        weights = torch.where(volumes > 0, weights, largest)
        shared = (weights * (probability * truth).sum(axes)).sum(-1)
        total = (weights * (probability.sum(axes) + volumes)).sum(-1)
        return (1 - (2 * shared + self.smooth) / (total + self.smooth)).mean()


class TverskyLoss(nn.Module):
    """Dice with a price of its own for what is found too much and what is missed.

    L = 1 − (Σ y ŷ + s) / (Σ y ŷ + α Σ (1 − y) ŷ + β Σ y (1 − ŷ) + s), averaged over classes;
    α = β = 1/2 is Dice, β above α favours sensitivity.

    Shapes: logits (B, K, D, H, W), target (B, D, H, W) int64 class indices.

    Args:
        alpha: α, finite and at least 0.
        beta: β, the same; one of them is above 0, or else nothing would cost anything.
        smooth: s, finite and at least 0. With 0 a class costs 0 where both lines are 0.
        per_batch: sum over the batch before dividing.
        background: count class 0 as well.
        ignored: target value of voxels that nobody labelled, which count for nothing.

    Raises:
        ConfigError: a number is out of range; when called, no class is left beside the background.

    Source: arXiv:1706.05721 (Salehi et al.).
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 1.0,
        per_batch: bool = True,
        background: bool = False,
        ignored: int | None = None,
    ) -> None:
        super().__init__()
        given = (alpha, beta, smooth)
        if not all(0 <= number < inf for number in given):
            rule = "finite and at least 0"
            raise ConfigError("alpha, beta and smooth", rule, given, where="tversky")
        if alpha == beta == 0:
            raise ConfigError("alpha or beta", "above 0", (alpha, beta), where="tversky")
        self.alpha, self.beta, self.smooth = alpha, beta, smooth
        self.per_batch, self.background, self.ignored = per_batch, background, ignored

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        probability, truth = class_maps(logits, target, self.background, self.ignored)
        axes = (0, 2, 3, 4) if self.per_batch else (2, 3, 4)
        shared = (probability * truth).sum(axes)
        wrong = probability.sum(axes) - shared
        missed = truth.sum(axes) - shared
        below = shared + self.alpha * wrong + self.beta * missed
        return 1 - _share(shared + self.smooth, below + self.smooth).mean()


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """`part` / `whole`, and 1 where both are 0: what is not there was not found either."""
    nothing = whole == 0
    # Divided by 1 there: a NaN that is not taken would still come back in the gradient.
    return torch.where(nothing, 1.0, part / torch.where(nothing, 1.0, whole))
