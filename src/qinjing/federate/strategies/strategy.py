"""What a rule of learning together is: four verbs, two at the coordinator and two at a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qinjing.engine.rounds import Rounds
from qinjing.federate.message import Tensors

State = dict[str, Tensors]
Combine = Callable[[Sequence[Tensors], Sequence[float]], Tensors]


@dataclass(frozen=True)
class Update:
    """What a site sends back after its steps, or the mean of several sites.

    Attributes:
        tensors: group → name → tensor; "change" is of the weights, after minus before.
        cases: n_k, what it learnt from.
    """

    tensors: State
    cases: float


@dataclass
class Work:
    """A site's part of a round.

    Attributes:
        rounds: the network, its optimiser and its batches.
        first: step of the schedule to begin with.
        count: steps to take.
        kept: what the site keeps from round to round, by group; the strategy writes into it.
        losses: mean loss of each stretch of steps taken.
    """

    rounds: Rounds
    first: int
    count: int
    kept: State = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def learn_from(
        self, weights: Tensors, correct: Callable[[nn.Module], None] | None = None
    ) -> Tensors:
        """Take the steps from these weights, and return what came of them."""
        self.rounds.take(weights)
        self.losses.append(self.rounds.learn(self.first, self.count, correct))
        return self.rounds.weights()


class Strategy:
    """Federated averaging, of which the other rules change one verb or two.

    F(θ) = Σ n_k/N · L_k(θ) + λ‖θ‖₂: each site takes steps on its own part, the coordinator adds
    the mean change, sites weighted by their cases.

    Args:
        regularisation: λ, of the length of all weights.

    Attributes:
        combine: (changes, cases) → change; the coordinator may put a rule against liars there.

    Source: arXiv:1602.05629 (FedAvg); the paper's section 3.1.2 for the objective.
    """

    def __init__(self, regularisation: float = 0.0) -> None:
        self.regularisation = regularisation
        self.combine: Combine = weighted_mean

    def open(self, weights: Tensors) -> State:
        """Return the coordinator's state before the first round."""
        return {"weights": weights}

    def send(self, state: State) -> State:
        """Return what every site gets; "weights" among it."""
        return {"weights": state["weights"]}

    def learn(self, work: Work, received: State) -> State:
        """Learn at a site and return what it sends back; "change" among it."""
        before = received["weights"]
        return {"change": difference(work.learn_from(before, self.correct(work, received)), before)}

    def merge(self, state: State, updates: Sequence[Update], share: float) -> State:
        """Return the state after a round.

        Args:
            state: before it.
            updates: one at least.
            share: of all sites' cases that the updates stand for.
        """
        return {**state, "weights": added(state["weights"], self.mean(updates))}

    def sends(self, net: nn.Module) -> list[str]:
        """Return group/name of every tensor that a site sends back, in order."""
        return sorted(f"change/{n}" for n, v in net.state_dict().items() if v.is_floating_point())

    def correct(self, work: Work, received: State) -> Callable[[nn.Module], None] | None:
        """Return what changes gradients while a site learns, None where nothing does."""
        if not self.regularisation:
            return None
        return lambda net: shrink(net, self.regularisation)

    def serves(self, received: State, kept: State) -> Tensors:
        """Return the weights that a site predicts with."""
        return received["weights"]

    def mean(self, updates: Sequence[Update]) -> Tensors:
        """Return the sites' changes combined."""
        return self.combine([u.tensors["change"] for u in updates], [u.cases for u in updates])


def weighted_mean(changes: Sequence[Tensors], cases: Sequence[float]) -> Tensors:
    """Return Σ n_k/N · change_k, summed in float64: many sites, no more rounding than one."""
    whole = float(sum(cases))
    out = {}
    for name, first in changes[0].items():
        total = torch.zeros_like(first, dtype=torch.float64)
        for own, n in zip(changes, cases, strict=True):
            total.add_(own[name].double(), alpha=n / whole)
        out[name] = total.to(first.dtype)
    return out


def difference(after: Tensors, before: Tensors) -> Tensors:
    """Return after − before of what is a number with a fraction; counts do not travel."""
    return {n: after[n] - value for n, value in before.items() if value.is_floating_point()}


def added(weights: Tensors, change: Mapping[str, Tensor]) -> Tensors:
    """Return weights + change, names without a change as they are."""
    return {n: value + change[n] if n in change else value for n, value in weights.items()}


@torch.no_grad()
def shrink(net: nn.Module, strength: float) -> None:
    """Add the gradient of λ‖θ‖₂, which is λθ/‖θ‖₂ over all weights together."""
    parameters = [p for p in net.parameters() if p.grad is not None]
    length = torch.stack([p.square().sum() for p in parameters]).sum().sqrt().clamp_min(1e-12)
    for p in parameters:
        p.grad.add_(p / length, alpha=strength)  # type: ignore[union-attr]


def pulled_to(net: nn.Module, centre: Tensors, strength: float) -> None:
    """Add the gradient of μ/2 · ‖θ − centre‖²."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.grad is not None:
                p.grad.add_(p - centre[name].to(p.device), alpha=strength)
