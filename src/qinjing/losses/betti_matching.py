"""Betti matching loss: features of the prediction are held against the truth's at their place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from qinjing.losses.barcode import BarcodeLoss, Matching, cost_of_matching
from qinjing.losses.persistence import match_features


class BettiMatchingLoss(BarcodeLoss):
    """Σ λ_k · squared distances between the features of truth and prediction matched by place.

    Features are those of `TopologyLoss`: components (k = 0), loops (1) and cavities (2) of the
    superlevel sets of each foreground class's probability, voxels being closed cubes. A feature of
    the prediction belongs to the truth's that it becomes one with where both maps are laid over
    each other (`match_features`). A matched one costs its squared distance to birth 1 and death 0,
    one without a partner, in either map, its squared distance to the diagonal, (birth − death)²/2.
    The components that never die belong together: the square of how far the class's highest
    probability is from 1, or from 0 where the class is not there. The result is the mean over
    samples and classes.

    A wrong feature and a missing one do not make up for each other, as they do in `TopologyLoss`.
    What belongs together changes at once as the prediction does, and the loss with it. Between a
    feature's birth and death it looks at no voxel: add it to losses that do, as
    `ShapeLoss(topology_term="betti_matching")` does.

    The pairs are found on the CPU, `torch.get_num_threads()` maps at a time.

    Args:
        weights: λ_0, λ_1, λ_2; a dimension of weight 0 is not counted.

    Raises:
        ConfigError: a weight is out of range, or Numba is not installed (extra
            `qinjing[topology]`); when called, no class is left beside the background.

    Source: Stucki et al. 2023, arXiv:2211.15272 (half of the loss there);
    Stucki et al. 2024, arXiv:2407.04683 (three dimensions).
    """

    def __init__(self, weights: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        super().__init__(weights, "betti_matching")

    def _match(self, maps: list[np.ndarray]) -> list[Matching]:
        true = maps[1].ravel()
        matchings = []
        for dimension, (pairs, partners, missed) in enumerate(
            match_features(maps[0], maps[1] > 0.5)
        ):
            endless, pairs = np.split(pairs, [int(dimension == 0)])
            others, partners = np.split(partners, [int(dimension == 0)])
            found = partners[:, 0] >= 0
            matchings.append(
                Matching(
                    matched=pairs[found],
                    goals=true[partners[found]],
                    free=pairs[~found],
                    endless=endless[:, 0],
                    heights=true[others[:, 0]],
                    rest=len(missed) / 2,
                )
            )
        return matchings

    def _price(self, values: Tensor, matching: Matching) -> Tensor:
        return cost_of_matching(values, matching, order=2.0, inner_norm=2.0)
