"""Contrast: stretch intensities about their mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from qinjing.data.transforms.transform import change_rows, interval, per_sample, probability


@dataclass(frozen=True)
class ContrastParameters:
    """Per sample: whether, and the factor; each `(B,)`."""

    applied: np.ndarray
    factor: np.ndarray


@dataclass(frozen=True)
class Contrast:
    """Stretch each channel about its mean, `(x − mean) · factor + mean`, within its old range.

    Args:
        factor: range of the factor, drawn uniformly; 1 changes nothing.
        probability: for each sample.

    Raises:
        ConfigError: a negative factor, or a probability outside 0 to 1.
    """

    factor: tuple[float, float] = (0.75, 1.25)
    probability: float = 0.15

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", interval("factor", self.factor, low=0.0, high=1e3))
        object.__setattr__(self, "probability", probability("probability", self.probability))

    def draw(self, rng: np.random.Generator, batch: int) -> ContrastParameters:
        """Draw whether and how much."""
        return ContrastParameters(
            applied=rng.random(batch) < self.probability,
            factor=rng.uniform(*self.factor, batch),
        )

    def apply(
        self, image: Tensor, label: Tensor, parameters: ContrastParameters
    ) -> tuple[Tensor, Tensor]:
        """Stretch the drawn samples; the label stays."""

        def stretch(x: Tensor, rows: np.ndarray) -> Tensor:
            factor = per_sample(parameters.factor[rows], x)
            mean = x.mean((2, 3, 4), keepdim=True)
            low, high = x.amin((2, 3, 4), keepdim=True), x.amax((2, 3, 4), keepdim=True)
            return (x * factor).add_(mean * (1 - factor)).clamp_(low, high)

        return change_rows(image, parameters.applied, stretch), label
