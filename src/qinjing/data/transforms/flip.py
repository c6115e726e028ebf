"""Mirroring along the patch's axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qinjing.data.transforms.transform import probability, spatial_axes


@dataclass(frozen=True)
class FlipParameters:
    """Which axes of each sample are mirrored: bool `(B, 3)`, in the order D, H, W."""

    mirrored: np.ndarray


@dataclass(frozen=True)
class Flip:
    """Mirror image and label, each axis by its own coin.

    Args:
        axes: the axes that may be mirrored, out of 0 (D), 1 (H), 2 (W).
        probability: for each of them.

    Raises:
        ConfigError: axes outside 0 to 2, or a probability outside 0 to 1.
    """

    axes: tuple[int, ...] = (0, 1, 2)
    probability: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", spatial_axes("axes", self.axes))
        object.__setattr__(self, "probability", probability("probability", self.probability))

    def draw(self, rng: np.random.Generator, batch: int) -> FlipParameters:
        """Draw three coins a sample; those of axes that stay are thrown and ignored."""
        mirrored = rng.random((batch, 3)) < self.probability
        mirrored[:, [axis for axis in range(3) if axis not in self.axes]] = False
        return FlipParameters(mirrored)

    def apply(
        self, image: Tensor, label: Tensor, parameters: FlipParameters
    ) -> tuple[Tensor, Tensor]:
        """Mirror the drawn axes of each sample."""
        if not parameters.mirrored.any():
            return image, label
        images, labels = list(image), list(label)
        for sample, axes in enumerate(parameters.mirrored):
            # Counted from the end, the axes are the same with and without channels.
            dims = [int(axis) - 3 for axis in np.flatnonzero(axes)]
            if dims:
                images[sample] = images[sample].flip(dims)
                labels[sample] = labels[sample].flip(dims)
        return torch.stack(images), torch.stack(labels)
