"""Gaussian blur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qinjing.data.transforms.separable import along_axes
from qinjing.data.transforms.transform import change_rows, interval, probability


@dataclass(frozen=True)
class BlurParameters:
    """Per sample: whether, and the kernel's width in voxels; each `(B,)`."""

    applied: np.ndarray
    sigma: np.ndarray


@dataclass(frozen=True)
class Blur:
    """Convolve with a Gaussian, the nearest voxel standing for what lies outside.

    Args:
        sigma: range of the standard deviation, drawn uniformly, in voxels, the same for
            all axes.
        probability: for each sample.

    Raises:
        ConfigError: a width not from 0.01 to 100 voxels, or a probability outside 0 to 1.
    """

    sigma: tuple[float, float] = (0.5, 1.0)
    probability: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", interval("sigma", self.sigma, low=0.01, high=100.0))
        object.__setattr__(self, "probability", probability("probability", self.probability))

    def draw(self, rng: np.random.Generator, batch: int) -> BlurParameters:
        """Draw whether and how wide."""
        return BlurParameters(
            applied=rng.random(batch) < self.probability,
            sigma=rng.uniform(*self.sigma, batch),
        )

    def apply(
        self, image: Tensor, label: Tensor, parameters: BlurParameters
    ) -> tuple[Tensor, Tensor]:
        """Blur the drawn samples; the label stays."""

        def blur(x: Tensor, rows: np.ndarray) -> Tensor:
            sigmas = parameters.sigma[rows]
            matrices = {
                axis: torch.from_numpy(np.stack([gaussian_matrix(n, s) for s in sigmas])).to(x)
                for axis, n in enumerate(x.shape[2:])
            }
            return along_axes(x, matrices)

        return change_rows(image, parameters.applied, blur), label


def gaussian_matrix(length: int, sigma: float) -> np.ndarray:
    """Return the matrix that blurs a line: float64 `(length, length)`, rows add to 1.

    The kernel is cut at 4 σ, and weights beyond the line's ends go to its end voxels.
    """
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    rows = np.arange(length)[:, None]
    matrix = np.zeros((length, length))
    columns = np.clip(rows + offsets, 0, length - 1)
    np.add.at(matrix, (rows, columns), kernel / kernel.sum())
    return matrix
