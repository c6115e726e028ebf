"""FedProx: sites stay near what they were sent."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from qinjing.federate.strategies.strategy import State, Strategy, Work, pulled_to, shrink


class FedProx(Strategy):
    """Add μ/2 · ‖θ − θ_sent‖² to each site's loss.

    Args:
        mu: μ.
        regularisation: as for `Strategy`.

    Source: arXiv:1812.06127.
    """

    def __init__(self, mu: float = 0.01, regularisation: float = 0.0) -> None:
        super().__init__(regularisation)
        self.mu = mu

    def correct(self, work: Work, received: State) -> Callable[[nn.Module], None]:
        """Return the pull towards the weights that were sent."""

        def pull(net: nn.Module) -> None:
            pulled_to(net, received["weights"], self.mu)
            if self.regularisation:
                shrink(net, self.regularisation)

        return pull
