"""Rules of learning together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qinjing import registry
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


def read_strategy(content: dict[str, Any]) -> Strategy:
    """Build the strategy that a message names: {"name": …, "options": {…}}.

    Raises:
        ConfigError: no such strategy or option.
    """
    return registry.build(STRATEGIES, "strategy", content["name"], **content.get("options", {}))


__all__ = ["STRATEGIES", "State", "Strategy", "Update", "Work", "read_strategy"]
