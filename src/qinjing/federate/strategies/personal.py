"""Layers that stay at home: normalisations (FedBN), or any that are named."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qinjing.federate.message import Tensors
from qinjing.federate.strategies.strategy import (
    State,
    Strategy,
    Work,
    difference,
    pulled_to,
)


class Personal(Strategy):
    """Share all weights but some, which every site learns for itself.

    Args:
        names: beginnings of the names of weights that stay; where none is given, the weights and
            statistics of normalisations, which differ most between scanners.
        regularisation: as for `Strategy`.

    Source: arXiv:2102.07623 (FedBN); arXiv:1912.00818 (personal layers).
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        regularisation: float = 0.0,
    ) -> None:
        super().__init__(regularisation)
        self.names = tuple(names)

    def learn(self, work: Work, received: State) -> State:
        """Learn from what was sent and what was kept; keep the personal part of it."""
        before = self.serves(received, work.kept)
        after = work.learn_from(before, self.correct(work, received))
        stays = self._stays(work.rounds.net)
        work.kept["personal"] = {n: value for n, value in after.items() if n in stays}
        shared = {n: value for n, value in before.items() if n not in stays}
        return {"change": difference(after, shared)}

    def sends(self, net: nn.Module) -> list[str]:
        """Return the changes of what does not stay."""
        stays = self._stays(net)
        return [name for name in super().sends(net) if name.partition("/")[2] not in stays]

    def serves(self, received: State, kept: State) -> Tensors:
        """Return what was sent, the personal part replaced by the site's own."""
        return {**received["weights"], **kept.get("personal", {})}

    def _stays(self, net: nn.Module) -> frozenset[str]:
        names = net.state_dict()
        if self.names:
            return frozenset(name for name in names if name.startswith(self.names))
        kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
        homes = [name for name, part in net.named_modules() if isinstance(part, kinds)]
        return frozenset(n for n in names if any(n.startswith(f"{home}.") for home in homes))


class Ditto(Strategy):
    """A model of all, and one of its own for every site, which stays near it.

    A site takes its steps twice: for the common model, and for its own.

    Args:
        mu: λ of the paper, of the pull towards the common model.
        regularisation: as for `Strategy`.

    Source: arXiv:2012.04221.
    """

    def __init__(self, mu: float = 0.1, regularisation: float = 0.0) -> None:
        super().__init__(regularisation)
        self.mu = mu

    def learn(self, work: Work, received: State) -> State:
        """Learn for all, then for oneself; the latter stays here."""
        common = received["weights"]
        sent = super().learn(work, received)
        # Each of the two has the optimiser's memory of its own steps.
        shared = work.rounds.memory()
        work.rounds.recall(work.kept.get("own_memory", {}))
        own = work.kept.get("own", common)
        work.kept["own"] = work.learn_from(own, lambda net: pulled_to(net, common, self.mu))
        work.kept["own_memory"] = work.rounds.memory()
        work.rounds.recall(shared)
        return sent

    def serves(self, received: State, kept: State) -> Tensors:
        """Return the site's own model."""
        return kept.get("own", received["weights"])
