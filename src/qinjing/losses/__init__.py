"""Losses: logits and truth in, a scalar out; networks are never imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from qinjing.losses.betti_matching import BettiMatchingLoss
from qinjing.losses.boundary import DistanceBoundaryLoss, GradientBoundaryLoss
from qinjing.losses.centreline import CentrelineDiceLoss
from qinjing.losses.composite import (
    BOUNDARY_TERMS,
    TOPOLOGY_TERMS,
    DiceCrossEntropyLoss,
    ShapeLoss,
    deep_supervision,
)
from qinjing.losses.cross_entropy import CrossEntropyLoss
from qinjing.losses.dice import DiceLoss, GeneralisedDiceLoss, TverskyLoss
from qinjing.losses.topology import TopologyLoss
from qinjing.losses.weighting import lesion_weights, reweight_gradients

LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "dice_ce": DiceCrossEntropyLoss,
    "shape": ShapeLoss,
    "dice": DiceLoss,
    "generalised_dice": GeneralisedDiceLoss,
    "tversky": TverskyLoss,
    "cross_entropy": CrossEntropyLoss,
    **BOUNDARY_TERMS,
    **TOPOLOGY_TERMS,
}

__all__ = [
    "LOSSES",
    "BettiMatchingLoss",
    "CentrelineDiceLoss",
    "CrossEntropyLoss",
    "DiceCrossEntropyLoss",
    "DiceLoss",
    "DistanceBoundaryLoss",
    "GeneralisedDiceLoss",
    "GradientBoundaryLoss",
    "ShapeLoss",
    "TopologyLoss",
    "TverskyLoss",
    "deep_supervision",
    "lesion_weights",
    "reweight_gradients",
]
