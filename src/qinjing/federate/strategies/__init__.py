"""Rules of learning together."""

from __future__ import annotations

from collections.abc import Callable

from qinjing.federate.strategies.fedadam import FedAdam
from qinjing.federate.strategies.fedprox import FedProx
from qinjing.federate.strategies.personal import Ditto, Personal
from qinjing.federate.strategies.scaffold import Scaffold
from qinjing.federate.strategies.strategy import State, Strategy, Update, Work

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "fedavg": Strategy,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "fedadam": FedAdam,
    "fedbn": Personal,
    "ditto": Ditto,
}

__all__ = ["STRATEGIES", "State", "Strategy", "Update", "Work"]
