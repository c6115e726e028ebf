"""What the loop asks of a task; the loop knows nothing else of medicine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn


class Task(Protocol):
    """One thing to learn: where batches come from, what a prediction costs, how good it is."""

    @property
    def net(self) -> nn.Module:
        """What learns."""

    def batch(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
        """Return inputs (B, C, D, H, W) and targets of a step, the same for the same arguments."""

    def loss(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """Return a scalar for the net as it is now, `share` (0 to 1) of the schedule being done."""

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Return measures of a net in evaluation mode; "score" (higher: better) steers the fit."""

    def follow(self, average: Mapping[str, Tensor]) -> None:
        """Be shown the averaged weights, once; the loop keeps them up to date in place.

        They are the momentum teacher of those that learn from one, which costs them no state.
        """
