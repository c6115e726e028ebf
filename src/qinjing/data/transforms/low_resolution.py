"""Loss of resolution: fewer voxels, and back again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qinjing.data.transforms.separable import along_axes
from qinjing.data.transforms.transform import change_rows, interval, probability, spatial_axes


@dataclass(frozen=True)
class LowResolutionParameters:
    """Per sample: whether, and the part of the voxels kept along an axis; each `(B,)`."""

    applied: np.ndarray
    zoom: np.ndarray


@dataclass(frozen=True)
class LowResolution:
    """Keep every nearest voxel of a coarser grid, then interpolate linearly between them.

    Both grids span the patch edge to edge, as `torch.nn.functional.interpolate` with
    `nearest-exact` down and `trilinear` up.

    Args:
        zoom: range of the part of voxels kept along each axis, drawn uniformly.
        probability: for each sample.
        axes: the axes that lose resolution, out of 0 (D), 1 (H), 2 (W).

    Raises:
        ConfigError: a zoom not from 0.01 to 1, wrong axes, or a probability outside 0 to 1.

    Source: nnU-Net, doi:10.1038/s41592-020-01008-z, supplement 4 (simulation of low
    resolution).
    """

    zoom: tuple[float, float] = (0.5, 1.0)
    probability: float = 0.125
    axes: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "zoom", interval("zoom", self.zoom, low=0.01, high=1.0))
        object.__setattr__(self, "probability", probability("probability", self.probability))
        object.__setattr__(self, "axes", spatial_axes("axes", self.axes))

    def draw(self, rng: np.random.Generator, batch: int) -> LowResolutionParameters:
        """Draw whether and how coarse."""
        return LowResolutionParameters(
            applied=rng.random(batch) < self.probability,
            zoom=rng.uniform(*self.zoom, batch),
        )

    def apply(
        self, image: Tensor, label: Tensor, parameters: LowResolutionParameters
    ) -> tuple[Tensor, Tensor]:
        """Coarsen the drawn samples; the label stays."""

        def coarsen(x: Tensor, rows: np.ndarray) -> Tensor:
            zooms = parameters.zoom[rows]
            matrices = {
                axis: torch.from_numpy(
                    np.stack([coarsening_matrix(x.shape[axis + 2], z) for z in zooms])
                ).to(x)
                for axis in self.axes
            }
            return along_axes(x, matrices)

        return change_rows(image, parameters.applied, coarsen), label


def coarsening_matrix(length: int, zoom: float) -> np.ndarray:
    """Return the matrix that coarsens a line: float64 `(length, length)`, rows add to 1."""
    kept = max(1, round(length * zoom))
    source = np.minimum(((np.arange(kept) + 0.5) * length / kept).astype(int), length - 1)
    at = np.clip((np.arange(length) + 0.5) * kept / length - 0.5, 0, kept - 1)
    lower = np.minimum(at.astype(int), max(kept - 2, 0))
    weight = at - lower
    matrix = np.zeros((length, length))
    rows = np.arange(length)
    np.add.at(matrix, (rows, source[lower]), 1 - weight)
    np.add.at(matrix, (rows, source[np.minimum(lower + 1, kept - 1)]), weight)
    return matrix
