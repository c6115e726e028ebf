"""Losses added up with weights, and one loss applied at several resolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from qinjing import registry
from qinjing.errors import ConfigError
from qinjing.losses.betti_matching import BettiMatchingLoss
from qinjing.losses.boundary import DistanceBoundaryLoss, GradientBoundaryLoss
from qinjing.losses.centreline import CentrelineDiceLoss
from qinjing.losses.cross_entropy import CrossEntropyLoss
from qinjing.losses.dice import DiceLoss
from qinjing.losses.topology import TopologyLoss

Terms = Mapping[str, Callable[..., nn.Module]]
# What can be the terms of shape in a sum; all are losses by themselves under the same names.
BOUNDARY_TERMS: Terms = {"boundary": GradientBoundaryLoss, "distance": DistanceBoundaryLoss}
TOPOLOGY_TERMS: Terms = {
    "topology": TopologyLoss,
    "betti_matching": BettiMatchingLoss,
    "cldice": CentrelineDiceLoss,
}


class DiceCrossEntropyLoss(nn.Module):
    """α · Dice + cross-entropy.

    Shapes: logits (B, K, D, H, W), target (B, D, H, W) int64 class indices.

    Args:
        dice_weight: α, finite and at least 0.
        cross_entropy_weight: of the cross-entropy, the same.
        lesion_weighting: in the cross-entropy, count small lesions as much as large ones.
        ignored: target value of voxels that nobody labelled, which count for nothing.

    Raises:
        ConfigError: a weight is out of range.

    Source: arXiv:1809.10486 (nnU-Net).
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        lesion_weighting: bool = False,
        ignored: int | None = None,
    ) -> None:
        super().__init__()
        _check_weights((dice_weight, cross_entropy_weight), "dice_ce")
        self.dice, self.dice_weight = DiceLoss(ignored=ignored), dice_weight
        self.cross_entropy = CrossEntropyLoss(lesion_weighting=lesion_weighting, ignored=ignored)
        self.cross_entropy_weight = cross_entropy_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        dice = self.dice_weight * self.dice(logits, target)
        return dice + self.cross_entropy_weight * self.cross_entropy(logits, target)


class ShapeLoss(nn.Module):
    """α · Dice + β · boundary + γ · topology, and a cross-entropy that the paper does not have.

    The terms of shape wait: their weights are 0 until `start` of the schedule and rise in a line to
    β and γ at `full`. An untrained network's maps have thousands of components, whose pairing takes
    long and teaches little. One of weight 0 is not computed. At coarser resolutions only
    `coarse`, the loss without terms of shape, is right: thin parts vanish there.

    Shapes: logits (B, K, D, H, W), target (B, D, H, W) int64 class indices.

    Args:
        dice_weight: α.
        boundary_weight: β.
        topology_weight: γ.
        cross_entropy_weight: 0 gives the paper's sum.
        start: share of the schedule, 0 to 1, at which the terms of shape come in.
        full: share at which they have all their weight, not before `start`.
        topology: options of the topology term; of `TopologyLoss` the λ_k are `weights`.
        lesion_weighting: in the cross-entropy, count small lesions as much as large ones.
        boundary_term: what β weighs, "boundary" (`GradientBoundaryLoss`) or "distance"
            (`DistanceBoundaryLoss`).
        topology_term: what γ weighs, "topology" (`TopologyLoss`), "betti_matching"
            (`BettiMatchingLoss`) or "cldice" (`CentrelineDiceLoss`).

    Raises:
        ConfigError: a weight is out of range, start and full are out of order, there is no such
            term or it has no such option, whatever its weight, or γ is above 0, its term wants
            Numba and that is not installed (extra `qinjing[topology]`).

    Source: the paper, section 3.1.1; arXiv:1910.01877 (a topology term beside Dice).
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        boundary_weight: float = 1.0,
        topology_weight: float = 0.02,
        cross_entropy_weight: float = 1.0,
        start: float = 0.5,
        full: float = 0.75,
        topology: dict[str, Any] | None = None,
        lesion_weighting: bool = False,
        boundary_term: str = "boundary",
        topology_term: str = "topology",
    ) -> None:
        super().__init__()
        weights = (dice_weight, boundary_weight, topology_weight, cross_entropy_weight)
        _check_weights(weights, "shape")
        if not 0 <= start <= full <= 1:
            raise ConfigError("start and full", "in order from 0 to 1", (start, full))
        self.coarse = DiceCrossEntropyLoss(dice_weight, cross_entropy_weight, lesion_weighting)
        self.boundary = registry.build(BOUNDARY_TERMS, "boundary_term", boundary_term)
        self.topology = _topology(topology_term, topology_weight, topology or {})
        self.boundary_weight, self.topology_weight = boundary_weight, topology_weight
        self.start, self.full = start, full
        self.share = 1.0

    def at(self, share: float) -> None:
        """Go to a place in the schedule, 0 (begin) to 1 (end); it stands at the end when made."""
        self.share = share

    @property
    def risen(self) -> float:
        """How much of their weight the terms of shape have now, 0 to 1."""
        if self.share >= self.full:
            return 1.0
        if self.share <= self.start:
            return 0.0
        return (self.share - self.start) / (self.full - self.start)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        total = self.coarse(logits, target)
        for name in ("boundary", "topology"):
            weight = self.risen * getattr(self, f"{name}_weight")
            if weight:
                total = total + weight * getattr(self, name)(logits, target)
        return total


def _check_weights(weights: tuple[float, ...], where: str) -> None:
    if not all(0 <= weight < inf for weight in weights):
        raise ConfigError("weights", "finite and at least 0", weights, where=where)


def _topology(name: str, weight: float, options: Mapping[str, Any]) -> nn.Module | None:
    """The topology term; None where its weight is 0 and Numba, which it wants, is missing."""
    if not isinstance(options, Mapping):
        advice = "name the term itself with topology_term"
        raise ConfigError("topology", "options of its term", options, where="shape", advice=advice)
    try:
        return registry.build(TOPOLOGY_TERMS, "topology_term", name, **options)
    except ConfigError as error:
        if weight or error.name != "numba":
            raise
        return None


def deep_supervision(
    loss: nn.Module,
    outputs: Sequence[Tensor],
    target: Tensor,
    multiple: Sequence[int] | None = None,
) -> Tensor:
    """Apply `loss` at every resolution that a network returned, each with half the weight.

    A coarse voxel is held against the target's voxel nearest to its centre. A network pads n voxels
    along an axis, at the far end and with edge values, to N, the next multiple of its total stride,
    so that N/c is the stride of an output of c voxels; coarse voxels in the padding are held
    against the target's last one. Without `multiple` nothing is taken to be padded.

    Args:
        loss: (logits, target) → scalar; if it has a loss `coarse`, that one is taken at coarser
            resolutions.
        outputs: logits (B, K, D, H, W), the first at the target's resolution, then coarser ones.
        target: (B, D, H, W) int64 class indices.
        multiple: the network's total stride along D, H and W (`multiple` of ours); needed where it
            pads.

    Returns:
        A scalar; the weights sum to 1.

    Raises:
        ConfigError: an output's length does not divide N, or `multiple` is out of range.

    Source: arXiv:1409.5185 (Lee et al., Deeply-Supervised Nets); halving as in nnU-Net.
    """
    if multiple is not None and (len(multiple) != 3 or min(multiple) < 1):
        raise ConfigError("multiple", "three numbers, at least 1", multiple)
    weights = [0.5**level for level in range(len(outputs))]
    coarse = getattr(loss, "coarse", loss)
    padded = [
        _padded(target.shape[axis], [x.shape[axis + 1] for x in outputs[1:]], name, factor)
        for axis, (name, factor) in enumerate(zip("DHW", multiple or (1, 1, 1), strict=True), 1)
    ]
    total = target.new_zeros((), dtype=outputs[0].dtype).float()
    for level, (weight, logits) in enumerate(zip(weights, outputs, strict=True)):
        term, truth = (coarse, _shrink(target, logits, padded)) if level else (loss, target)
        total = total + weight / sum(weights) * term(logits.float(), truth)
    return total


def _padded(full: int, coarse: Sequence[int], axis: str, multiple: int) -> int:
    """How long an axis was after the network's padding."""
    length = -(-full // multiple) * multiple
    if any(length % one for one in coarse):
        rule = f"whole parts of {length} voxels along {axis}"
        advice = "pass the network's total strides as `multiple`"
        raise ConfigError("coarse outputs", rule, ", ".join(map(str, coarse)), advice=advice)
    return length


def _shrink(target: Tensor, logits: Tensor, padded: Sequence[int]) -> Tensor:
    """Pick the target voxel nearest to the centre of each coarse voxel."""
    for axis, length in enumerate(padded, start=1):
        full, coarse = target.shape[axis], logits.shape[axis + 1]
        if length == full == coarse:
            continue
        step = length // coarse
        places = torch.arange(coarse, device=target.device) * step + step // 2
        target = target.index_select(axis, places.clamp(max=full - 1))
    return target
