"""A site's part in a search: the slice of the network that it is asked for, and no larger one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qinjing.config import from_json
from qinjing.engine.plan import Plan
from qinjing.federate.message import Message, Tensors
from qinjing.federate.policy import RefusedError
from qinjing.federate.supernet import Architecture, Supernet

MOST = 64  # that a site ranks


def sliced(plan: Plan, content: object, share: float) -> Plan:
    """Return the plan of the architecture that a message asks for.

    Args:
        plan: of the largest.
        content: the message's field; None asks for the largest, outside any search.
        share: of the largest's multiply-adds that the site takes on.

    Raises:
        ConfigError: it is no slice of the plan's network.
        RefusedError: it costs more.
    """
    if content is None:
        return plan
    return _of(Supernet(plan.model), plan, _read(content), share)


def ranked(
    plan: Plan, message: Message, share: float, score: Callable[[Plan, Tensors], float]
) -> list[float]:
    """Return the scores of the architectures that a message names, all cut from what it brings.

    Args:
        plan: of the largest.
        message: with "architectures", and "envelope", of which the weights are.
        share: as for `sliced`.
        score: (plan of one, its weights) → score.

    Raises:
        ConfigError: one is no slice of the plan's network.
        RefusedError: one costs more than the site takes on, or they are too many.
    """
    if len(message.fields["architectures"]) > MOST:
        raise RefusedError("architectures", f"{MOST} at most", len(message.fields["architectures"]))
    net = Supernet(plan.model)
    whole = net.spread(message.tensors["weights"], _read(message.fields["envelope"]))
    wanted = map(_read, message.fields["architectures"])
    return [score(_of(net, plan, one, share), net.cut(whole, one)) for one in wanted]


def remembered(plan: Plan, kept: Tensors, was: object, now: object) -> Tensors:
    """Return an optimiser's memory of the architecture trained last as that of the one to train.

    Args:
        plan: of the largest.
        kept: the site's state; what is no memory is left out where architectures differ.
        was: of the round before, as its message had it; None before the first.
        now: of this round.
    """
    if was == now or not kept:
        return kept
    return Supernet(plan.model).memory(kept, _read(was), _read(now), plan.fit)


def _of(net: Supernet, plan: Plan, one: Architecture, share: float) -> Plan:
    card = net.card(one)
    if share < 1:
        most, cost = (net.multiply_adds(a, plan.patch_size) for a in (net.largest, one))
        if cost > share * most:
            raise RefusedError(
                "multiply-adds", f"{share:g} of the largest network's at most", f"{cost / most:.2g}"
            )
    return replace(plan, model=card)


def _read(content: Any) -> Architecture:
    one: Architecture = from_json(content, Architecture, where="architecture")
    return one
