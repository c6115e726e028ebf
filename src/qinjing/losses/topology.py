"""Topology loss: the distance between the persistence diagrams of truth and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.losses.persistence import persistence_pairs
from qinjing.losses.wasserstein import diagonal_factor, match_diagrams


class TopologyLoss(nn.Module):
    """Σ λ_k · Wasserstein distance between the diagrams of truth and prediction in dimension k.

    The diagrams are those of the superlevel sets of each foreground class's probability, voxels
    being closed cubes: components (k = 0), loops (1) and cavities (2). Those of the truth have
    birth 1 and death 0. The component that never dies is matched with the truth's, so that the
    highest probability of a class is drawn to 1 where the class is there and to 0 where it is not.
    The result is the mean over samples and classes. It knows how many parts there are, not where:
    add it to a loss that does.

    The pairs are found on the CPU, `torch.get_num_threads()` maps at a time.

    Args:
        weights: λ_0, λ_1, λ_2; a dimension of weight 0 is not counted.
        order: of the Wasserstein distance; 2, the usual one in losses, weighs the few large errors
            above the many small ones (GUDHI's own default is 1).
        inner_norm: p of the norm in the plane of births and deaths; 2 is the usual one in losses
            (GUDHI's own default is infinity).
        downsample: first average blocks of this many voxels along each axis, of both maps.
        crop_margin: look only at the box around the voxels where truth and prediction (at 1/2)
            disagree, this many voxels wider on each side. Faster, but no longer exact: parts that
            are joined outside the box count as apart. None looks at the whole map.

    Raises:
        ConfigError: an argument is out of range.

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
        super().__init__()
        if len(weights) != 3 or min(weights) < 0:
            raise ConfigError("weights", "three numbers, at least 0", weights, where="topology")
        for name, value in (
            ("order", order), ("inner_norm", inner_norm), ("downsample", downsample),
        ):  # fmt: skip
            if not value >= 1:
                raise ConfigError(name, "at least 1", value, where="topology")
        if crop_margin is not None and crop_margin < 0:
            raise ConfigError("crop_margin", "at least 0", crop_margin, where="topology")
        if find_spec("numba") is None:  # said now, not in the middle of a training
            advice = "pip install 'qinjing[topology]'"
            raise ConfigError("numba", "installed for the topology loss", "nothing", advice=advice)
        self.weights = tuple(weights)
        self.order, self.inner_norm = order, inner_norm
        self.downsample, self.crop_margin = downsample, crop_margin

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, K, D, H, W).
            target: (B, D, H, W) int64 class indices, 0 ≤ value < K.

        Raises:
            ConfigError: Numba is not installed.
            GeometryError: the logits hold NaN.
        """
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        probability = F.softmax(logits, dim=1)[:, 1:]
        classes = torch.arange(1, logits.shape[1], device=target.device)
        truth = (target[:, None] == classes.view(1, -1, 1, 1, 1)).to(probability)
        if self.downsample > 1:
            block = [min(self.downsample, n) for n in target.shape[1:]]
            probability = F.avg_pool3d(probability, block, ceil_mode=True)
            truth = F.avg_pool3d(truth, block, ceil_mode=True)
        maps = list(zip(probability.flatten(0, 1), truth.flatten(0, 1), strict=True))
        count = len(maps)
        if self.crop_margin is not None:
            maps = [pair for pair in (_crop(*pair, self.crop_margin) for pair in maps) if pair]
        arrays = [[x.detach().cpu().numpy() for x in pair] for pair in maps]
        with ThreadPoolExecutor(max(1, min(len(maps), torch.get_num_threads()))) as pool:
            plans = list(pool.map(self._plan, arrays))
        total = probability.sum() * 0
        for (predicted, _), dimensions in zip(maps, plans, strict=True):
            for weight, plan in zip(self.weights, dimensions, strict=True):
                if weight:
                    total = total + weight * self._distance(predicted.flatten(), plan)
        return total / count

    def _plan(self, maps: list[np.ndarray]) -> list[_Plan]:
        """Match the diagrams of two maps, prediction and truth, in each dimension."""
        predicted, true = (each.ravel() for each in maps)
        plans = []
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
            plans.append(
                _Plan(
                    matched=points[taken],
                    goals=goals[matches[taken]],
                    free=points[~taken],
                    endless=endless[:, 0],
                    heights=true[endless_others[:, 0]],
                    rest=float((rest**self.order).sum()),
                )
            )
        return plans

    def _distance(self, values: Tensor, plan: _Plan) -> Tensor:
        """The Wasserstein distance of one dimension, differentiable in the prediction's values."""

        def place(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(values.device)

        near = values[place(plan.matched)] - place(plan.goals)
        births, deaths = values[place(plan.free)].unbind(1)
        cost = (
            torch.linalg.vector_norm(near, self.inner_norm, dim=1).pow(self.order).sum()
            + (diagonal_factor(self.inner_norm) * (births - deaths).abs()).pow(self.order).sum()
            + (values[place(plan.endless)] - place(plan.heights)).abs().pow(self.order).sum()
            + plan.rest
        )
        # The root of nothing has no slope; the distance is then least, so that 0 is one of its own.
        return torch.where(cost > 0, cost.clamp(min=1e-30), 1).pow(1 / self.order) * (cost > 0)


class _Plan(NamedTuple):
    """Where the points of a predicted diagram go; places are flat indices into the map."""

    matched: np.ndarray  # (M, 2) birth and death of points that go to one of the truth's
    goals: np.ndarray  # (M, 2) births and deaths of those
    free: np.ndarray  # (N, 2) birth and death of points that go to the diagonal
    endless: np.ndarray  # (0 or 1,) birth of the component that never dies
    heights: np.ndarray  # (0 or 1,) its value in the truth
    rest: float  # what the points of the truth cost that go to the diagonal


def _crop(predicted: Tensor, true: Tensor, margin: int) -> tuple[Tensor, Tensor] | None:
    """Both maps inside the box around where they disagree; None where they do not."""
    places = ((predicted.detach() > 0.5) != (true > 0.5)).nonzero()
    if not len(places):
        return None
    low = (places.amin(0) - margin).clamp(min=0).tolist()
    high = (places.amax(0) + 1 + margin).tolist()
    box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
    return predicted[box], true[box]
