"""Topology loss: the distance between the persistence diagrams of truth and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qinjing.errors import ConfigError
from qinjing.losses.barcode import BarcodeLoss, Matching, cost_of_matching
from qinjing.losses.persistence import persistence_pairs
from qinjing.losses.wasserstein import diagonal_factor, match_diagrams


class TopologyLoss(BarcodeLoss):
    """Σ λ_k · Wasserstein distance between the diagrams of truth and prediction in dimension k.

    The diagrams are those of the superlevel sets of each foreground class's probability, voxels
    being closed cubes: components (k = 0), loops (1) and cavities (2). Those of the truth have
    birth 1 and death 0. The component that never dies is matched with the truth's, so that the
    highest probability of a class is drawn to 1 where the class is there and to 0 where it is not.
    The result is the mean over samples and classes. It knows how many parts there are, not where:
    add it to losses that do, as `ShapeLoss` does.

    The pairs are found on the CPU, `torch.get_num_threads()` maps at a time.

    Args:
        weights: λ_0, λ_1, λ_2; a dimension of weight 0 is not counted.
        order: of the Wasserstein distance, finite; 2, the usual one in losses, weighs the few large
            errors above the many small ones (GUDHI's own default is 1).
        inner_norm: p of the norm in the plane of births and deaths; 2 is the usual one in losses
            (GUDHI's own default is infinity).
        downsample: first average blocks of this many voxels along each axis, of both maps.
        crop_margin: look only at the box around the voxels where truth and prediction (at 1/2)
            disagree, this many voxels wider on each side. Faster, but no longer exact: parts that
            are joined outside the box count as apart. None looks at the whole map.

    Raises:
        ConfigError: an argument is out of range, or Numba is not installed (extra
            `qinjing[topology]`); when called, no class is left beside the background.

    Source: the paper, section 3.1.1; Clough et al. 2020, arXiv:1910.01877; Hu et al. 2019,
    arXiv:1906.05404.
    """

    def __init__(
        self,
        weights: Sequence[float] = (1.0, 1.0, 1.0),
        order: float = 2.0,
        inner_norm: float = 2.0,
        downsample: int = 1,
        crop_margin: int | None = None,
    ) -> None:
        super().__init__(weights, "topology")
        for name, value in (
            ("order", order), ("inner_norm", inner_norm), ("downsample", downsample),
        ):  # fmt: skip
            if not value >= 1:
                raise ConfigError(name, "at least 1", value, where="topology")
        if order == inf:
            raise ConfigError("order", "finite", order, where="topology")
        if crop_margin is not None and crop_margin < 0:
            raise ConfigError("crop_margin", "at least 0", crop_margin, where="topology")
        self.order, self.inner_norm = order, inner_norm
        self.downsample, self.crop_margin = downsample, crop_margin

    def _prepare(self, probability: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        if self.downsample == 1:
            return probability, truth
        block = [min(self.downsample, n) for n in truth.shape[2:]]
        return (
            F.avg_pool3d(probability, block, ceil_mode=True),
            F.avg_pool3d(truth, block, ceil_mode=True),
        )

    def _choose(self, maps: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        if self.crop_margin is None:
            return maps
        return [pair for pair in (_crop(*pair, self.crop_margin) for pair in maps) if pair]

    def _match(self, maps: list[np.ndarray]) -> list[Matching]:
        """Match the diagrams of two maps, prediction and truth, in each dimension."""
        predicted, true = (each.ravel() for each in maps)
        matchings = []
        for dimension, (points, others) in enumerate(
            zip(persistence_pairs(maps[0]), persistence_pairs(maps[1]), strict=True)
        ):
            endless, points = np.split(points, [int(dimension == 0)])
            endless_others, others = np.split(others, [int(dimension == 0)])
            goals = true[others]
            matches = match_diagrams(predicted[points], goals, self.order, self.inner_norm)
            taken = matches >= 0
            left = np.delete(goals, matches[taken], axis=0)
            rest = diagonal_factor(self.inner_norm) * np.abs(left[:, 0] - left[:, 1])
            matchings.append(
                Matching(
                    matched=points[taken],
                    goals=goals[matches[taken]],
                    free=points[~taken],
                    endless=endless[:, 0],
                    heights=true[endless_others[:, 0]],
                    rest=float((rest**self.order).sum()),
                )
            )
        return matchings

    def _price(self, values: Tensor, matching: Matching) -> Tensor:
        cost = cost_of_matching(values, matching, self.order, self.inner_norm)
        # The root of nothing has no slope; the distance is then least, so that 0 is one of its own.
        return torch.where(cost > 0, cost.clamp(min=1e-30), 1).pow(1 / self.order) * (cost > 0)


def _crop(predicted: Tensor, true: Tensor, margin: int) -> tuple[Tensor, Tensor] | None:
    """Both maps inside the box around where they disagree; None where they do not."""
    places = ((predicted.detach() > 0.5) != (true > 0.5)).nonzero()
    if not len(places):
        return None
    low = (places.amin(0) - margin).clamp(min=0).tolist()
    high = (places.amax(0) + 1 + margin).tolist()
    box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
    return predicted[box], true[box]
