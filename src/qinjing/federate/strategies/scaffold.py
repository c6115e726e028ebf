"""SCAFFOLD: what a site's gradients have of its own is taken off them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from qinjing.federate.message import Tensors
from qinjing.federate.strategies.strategy import (
    State,
    Strategy,
    Update,
    Work,
    added,
    difference,
    shrink,
)


class Scaffold(Strategy):
    """Correct each gradient by c − c_k, the mean of all sites' gradients less the site's own.

    c_k is the mean of the site's gradients in its last round, which is right for every optimiser;
    the paper's second option reads it from the weights, which is right for plain descent alone.
    The first round, before any c is known, is federated averaging.

    Source: arXiv:1910.06378.
    """

    def open(self, weights: Tensors) -> State:
        """Return the weights and a c of nothing."""
        return {"weights": weights, "control": {}}

    def send(self, state: State) -> State:
        """Return the weights and c."""
        return {"weights": state["weights"], "control": state["control"]}

    def learn(self, work: Work, received: State) -> State:
        """Learn with corrected gradients; send the changes of the weights and of c_k."""
        seen: Tensors = {}
        correct = self._correction(received.get("control", {}), work.kept.get("control", {}), seen)
        change = difference(work.learn_from(received["weights"], correct), received["weights"])
        now = {name: total / work.count for name, total in seen.items()}
        before = work.kept.get("control", {})
        work.kept["control"] = now
        moved = {n: value - before[n] if n in before else value for n, value in now.items()}
        return {"change": change, "control": moved}

    def sends(self, net: nn.Module) -> list[str]:
        """Return the changes of the weights and of the gradients' means."""
        learnt = [f"control/{name}" for name, p in net.named_parameters() if p.requires_grad]
        return sorted([*super().sends(net), *learnt])

    def merge(self, state: State, updates: Sequence[Update], share: float) -> State:
        """Add the mean change of the weights, and of c its part of all sites' mean."""
        moved = self.combine([u.tensors["control"] for u in updates], [u.cases for u in updates])
        before = state["control"] or {n: torch.zeros_like(v) for n, v in moved.items()}
        part = {name: share * value for name, value in moved.items()}
        return {**super().merge(state, updates, share), "control": added(before, part)}

    def _correction(self, all_c: Tensors, own_c: Tensors, seen: Tensors) -> Callable[..., None]:
        @torch.no_grad()
        def correct(net: nn.Module) -> None:
            for name, p in net.named_parameters():
                if p.grad is None:
                    continue
                gradient = p.grad.detach().cpu()
                seen[name] = seen[name] + gradient if name in seen else gradient.clone()
                if name in all_c and name in own_c:
                    p.grad.add_((all_c[name] - own_c[name]).to(p.device))
            if self.regularisation:
                shrink(net, self.regularisation)

        return correct
