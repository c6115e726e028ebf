"""What the losses on barcodes share: one map for each class, and the price of a matching.

Source: Lacombe et al. 2018, arXiv:1805.08331, section 2 (diagrams and the diagonal).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.losses.classes import class_maps
from qinjing.losses.wasserstein import diagonal_factor


class Matching(NamedTuple):
    """Where the points of a predicted diagram go; places are flat indices into the map."""

    matched: np.ndarray  # (M, 2) birth and death of points that go to one of the truth's
    goals: np.ndarray  # (M, 2) births and deaths of those
    free: np.ndarray  # (N, 2) birth and death of points that go to the diagonal
    endless: np.ndarray  # (0 or 1,) birth of the component that never dies
    heights: np.ndarray  # (0 or 1,) its value in the truth
    rest: float  # what the points of the truth cost that go to the diagonal


class BarcodeLoss(nn.Module, ABC):
    """Σ λ_k · the price of matching truth and prediction in dimension k; a base class.

    Whoever inherits says in `_match` which points go where, for components, loops and cavities, and
    in `_price` what that costs.

    Args:
        weights: λ_0, λ_1, λ_2; a dimension of weight 0 is not counted.
        where: the name of the loss in messages.

    Raises:
        ConfigError: a weight is out of range, or Numba, which compiles the pairing, is not
            installed (extra `qinjing[topology]`).
    """

    def __init__(self, weights: Sequence[float], where: str) -> None:
        super().__init__()
        if len(weights) != 3 or not all(0 <= weight < inf for weight in weights):
            rule = "three finite numbers, at least 0"
            raise ConfigError("weights", rule, weights, where=where)
        if find_spec("numba") is None:  # said now, not in the middle of a training
            advice = "pip install 'qinjing[topology]'"
            raise ConfigError("numba", "installed", "nothing", where=where, advice=advice)
        self.weights = tuple(weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, the mean over samples and classes.

        Args:
            logits: (B, K, D, H, W).
            target: (B, D, H, W) int64 class indices, 0 ≤ value < K.

        Raises:
            GeometryError: the logits hold NaN or +∞, or a map is larger than `persistence_pairs`
                takes.
            ConfigError: no class is left beside the background.
        """
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        probability, mask = class_maps(logits, target)
        probability, truth = self._prepare(probability, mask.to(probability))
        maps = list(zip(probability.flatten(0, 1), truth.flatten(0, 1), strict=True))
        count = len(maps)
        maps = self._choose(maps)
        arrays = [[x.detach().cpu().numpy() for x in pair] for pair in maps]
        with ThreadPoolExecutor(max(1, min(len(maps), torch.get_num_threads()))) as pool:
            matchings = list(pool.map(self._match, arrays))
        total = probability.sum() * 0
        for (predicted, _), dimensions in zip(maps, matchings, strict=True):
            for weight, matching in zip(self.weights, dimensions, strict=True):
                if weight:
                    total = total + weight * self._price(predicted.flatten(), matching)
        return total / count

    def _prepare(self, probability: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Change the maps (B, K − 1, D, H, W) of all classes before they are looked at."""
        return probability, truth

    def _choose(self, maps: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Leave out maps, or parts of them, that need no look."""
        return maps

    @abstractmethod
    def _match(self, maps: list[np.ndarray]) -> list[Matching]:
        """Match the diagrams of two maps, prediction and truth, in each dimension."""

    @abstractmethod
    def _price(self, values: Tensor, matching: Matching) -> Tensor:
        """What the matching of one dimension costs, differentiable in the prediction's values."""


def cost_of_matching(values: Tensor, matching: Matching, order: float, inner_norm: float) -> Tensor:
    """Return the sum of distances to the power `order`, differentiable in the values.

    Args:
        values: (N,) the map, flat.
        matching: where its points go.
        order: at least 1.
        inner_norm: p of the norm in the plane of births and deaths, at least 1; may be infinite.

    Source: Cohen-Steiner et al. 2010, doi:10.1007/s10208-010-9060-6.
    """

    def place(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(values.device)

    near = values[place(matching.matched)] - place(matching.goals)
    births, deaths = values[place(matching.free)].unbind(1)
    return (
        torch.linalg.vector_norm(near, inner_norm, dim=1).pow(order).sum()
        + (diagonal_factor(inner_norm) * (births - deaths).abs()).pow(order).sum()
        + (values[place(matching.endless)] - place(matching.heights)).abs().pow(order).sum()
        + matching.rest
    )
