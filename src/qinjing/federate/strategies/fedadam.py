"""FedAdam: the coordinator treats the sites' mean change as a gradient of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qinjing.federate.message import Tensors
from qinjing.federate.strategies.strategy import State, Strategy, Update, added


class FedAdam(Strategy):
    """Adam at the coordinator, on the mean change.

    Args:
        rate: η, of the coordinator.
        betas: β₁, β₂.
        epsilon: τ, added to the root of the second moment: how adaptive it is.
        regularisation: as for `Strategy`.

    Source: arXiv:2003.00295 (algorithm 2; no correction of the first rounds' bias).
    """

    def __init__(
        self,
        rate: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        epsilon: float = 1e-3,
        regularisation: float = 0.0,
    ) -> None:
        super().__init__(regularisation)
        self.rate, self.betas, self.epsilon = rate, betas, epsilon

    def open(self, weights: Tensors) -> State:
        """Return the weights and moments of nothing."""
        learnt = {n: w for n, w in weights.items() if w.is_floating_point()}
        first = {n: torch.zeros_like(w) for n, w in learnt.items()}
        second = {n: torch.full_like(w, self.epsilon**2) for n, w in learnt.items()}
        return {"weights": weights, "first": first, "second": second}

    def merge(self, state: State, updates: Sequence[Update], share: float) -> State:
        """Take one step of Adam along the mean change."""
        change = self.mean(updates)
        b1, b2 = self.betas
        first = {n: b1 * state["first"][n] + (1 - b1) * d for n, d in change.items()}
        second = {n: b2 * state["second"][n] + (1 - b2) * d.square() for n, d in change.items()}
        step = {n: self.rate * m / (second[n].sqrt() + self.epsilon) for n, m in first.items()}
        return {"weights": added(state["weights"], step), "first": first, "second": second}
