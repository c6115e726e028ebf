"""Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qinjing.data.transforms.transform import change_rows, interval, probability


@dataclass(frozen=True)
class NoiseParameters:
    """Per sample: whether, the standard deviation, and the seed of its field; each `(B,)`."""

    applied: np.ndarray
    std: np.ndarray
    seed: np.ndarray


@dataclass(frozen=True)
class Noise:
    """Add white Gaussian noise of zero mean.

    Args:
        std: range of the standard deviation, drawn uniformly, in the image's own unit (after
            z-score normalisation, in standard deviations of the image).
        probability: for each sample.

    Raises:
        ConfigError: a negative deviation, or a probability outside 0 to 1.
    """

    std: tuple[float, float] = (0.0, 0.1)
    probability: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "std", interval("std", self.std, low=0.0, high=1e6))
        object.__setattr__(self, "probability", probability("probability", self.probability))

    def draw(self, rng: np.random.Generator, batch: int) -> NoiseParameters:
        """Draw the strength, and a seed in place of a field as large as the image."""
        return NoiseParameters(
            applied=rng.random(batch) < self.probability,
            std=rng.uniform(*self.std, batch),
            seed=rng.integers(0, 2**62, batch),
        )

    def apply(
        self, image: Tensor, label: Tensor, parameters: NoiseParameters
    ) -> tuple[Tensor, Tensor]:
        """Add each drawn sample's field, made on the image's device; the label stays."""

        def disturb(x: Tensor, rows: np.ndarray) -> Tensor:
            disturbed = torch.empty_like(x)
            generator = torch.Generator(x.device)
            for into, sample, row in zip(disturbed, x, rows, strict=True):
                generator.manual_seed(int(parameters.seed[row]))
                into.normal_(0.0, 1.0, generator=generator)
                into.mul_(float(parameters.std[row])).add_(sample)
            return disturbed

        return change_rows(image, parameters.applied, disturb), label
