"""Losses: logits and truth in, a scalar out; networks are never imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from qinjing.losses.betti_matching import BettiMatchingLoss
from qinjing.losses.centreline import CentrelineDiceLoss
from qinjing.losses.composite import DiceCrossEntropyLoss, deep_supervision
from qinjing.losses.cross_entropy import CrossEntropyLoss
from qinjing.losses.dice import DiceLoss
from qinjing.losses.topology import TopologyLoss

LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "dice_ce": DiceCrossEntropyLoss,
    "dice": DiceLoss,
    "cross_entropy": CrossEntropyLoss,
    "topology": TopologyLoss,
    "betti_matching": BettiMatchingLoss,
    "cldice": CentrelineDiceLoss,
}

__all__ = [
    "LOSSES",
    "BettiMatchingLoss",
    "CentrelineDiceLoss",
    "CrossEntropyLoss",
    "DiceCrossEntropyLoss",
    "DiceLoss",
    "TopologyLoss",
    "deep_supervision",
]
