"""Gamma: bend the intensity curve between the darkest and the brightest voxel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qinjing.data.transforms.transform import change_rows, interval, per_sample, probability

# Keeps a constant image, whose range is 0, from a division by zero; MONAI's value.
_EPSILON = 1e-7


@dataclass(frozen=True)
class GammaParameters:
    """Per sample: whether, the exponent, and whether on the inverted image; each `(B,)`."""

    applied: np.ndarray
    gamma: np.ndarray
    inverted: np.ndarray


@dataclass(frozen=True)
class Gamma:
    """Raise range-normalised intensities to a power: `((x − min) / range)^γ · range + min`.

    Minimum and range are those of each channel of each sample. The paper's "contrast γ" and
    MONAI's `RandAdjustContrast` with one channel.

    Args:
        gamma: range of the exponent, drawn uniformly; 1 changes nothing.
        probability: for each sample.
        invert_probability: bend the negative of the image instead, so that bright tissue
            is spread and dark tissue squeezed, for each changed sample.
        retain_stats: give each channel its former mean and standard deviation back.

    Raises:
        ConfigError: an exponent not above 0, or a probability outside 0 to 1.

    Source: nnU-Net, doi:10.1038/s41592-020-01008-z, supplement 4 (gamma correction).
    """

    gamma: tuple[float, float] = (0.7, 1.5)
    probability: float = 0.3
    invert_probability: float = 0.0
    retain_stats: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", interval("gamma", self.gamma, low=1e-3, high=1e3))
        for name in ("probability", "invert_probability"):
            object.__setattr__(self, name, probability(name, getattr(self, name)))

    def draw(self, rng: np.random.Generator, batch: int) -> GammaParameters:
        """Draw whether, how much, and on which side."""
        return GammaParameters(
            applied=rng.random(batch) < self.probability,
            gamma=rng.uniform(*self.gamma, batch),
            inverted=rng.random(batch) < self.invert_probability,
        )

    def apply(
        self, image: Tensor, label: Tensor, parameters: GammaParameters
    ) -> tuple[Tensor, Tensor]:
        """Bend the drawn samples; the label stays."""

        def bend(x: Tensor, rows: np.ndarray) -> Tensor:
            sign = per_sample(1.0 - 2.0 * parameters.inverted[rows], x)
            bent = _power(x * sign, per_sample(parameters.gamma[rows], x)) * sign
            return _with_stats_of(bent, x) if self.retain_stats else bent

        return change_rows(image, parameters.applied, bend), label


def _power(x: Tensor, gamma: Tensor) -> Tensor:
    low = x.amin((2, 3, 4), keepdim=True)
    span = x.amax((2, 3, 4), keepdim=True) - low
    return ((x - low) / (span + _EPSILON)).pow_(gamma).mul_(span).add_(low)


def _with_stats_of(x: Tensor, like: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(x, (2, 3, 4), keepdim=True)
    wanted, centre = torch.std_mean(like, (2, 3, 4), keepdim=True)
    return (x - mean).mul_(wanted / (deviation + _EPSILON)).add_(centre)
