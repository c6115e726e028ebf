"""Start a network from a trunk: whole, frozen but for its heads, or with low-rank additions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from qinjing.config import read_config
from qinjing.engine.checkpoint import ModelCard, load_tensors
from qinjing.engine.plan import Plan
from qinjing.errors import ConfigError
from qinjing.nets import NETS
from qinjing.nets.low_rank import add_low_rank
from qinjing.nets.trunk import bring_to_length, class_bound, normalised_kernels, take_over


def trunk_card(trunk: Path) -> ModelCard:
    """Read which network a trunk is.

    Raises:
        FormatError: no model.json, or a damaged one.
    """
    return read_config(trunk / "model.json", ModelCard)


def with_trunk(model: ModelCard, trunk: Path) -> ModelCard:
    """Return a planned model with the trunk's stages, its own channels and classes.

    Raises:
        ConfigError: the trunk is another network.
        FormatError: no model.json, or a damaged one.
    """
    card = trunk_card(trunk)
    if card.net != model.net:
        raise ConfigError("net", f"the trunk's, {card.net}", model.net, where=trunk)
    own = {name: model.options[name] for name in ("in_channels", "classes")}
    return replace(model, options={**card.options, **own})


def starting_net(plan: Plan) -> nn.Module:
    """Build the plan's network, with a trunk's weights where the plan names one.

    Raises:
        ConfigError: nothing of the trunk fits.
        FormatError: the trunk's files are missing or damaged.
    """
    net = plan.model.build()
    if plan.transfer is None:
        return net
    trunk = Path(plan.transfer.trunk)
    weights, _ = load_tensors(trunk / "weights.safetensors")
    heads = class_bound(NETS, plan.model.net, plan.model.options)
    own, its = (int(card.options["in_channels"]) for card in (plan.model, trunk_card(trunk)))
    kernels = normalised_kernels(net)
    lengths = [float(kernel.detach().norm()) for kernel in kernels]
    copied = set(take_over(net, weights, heads, own // its))
    if not copied:
        raise ConfigError("trunk", f"of the network {plan.model.net}", "another", where=trunk)
    if plan.transfer.tune == "full":
        bring_to_length(kernels, lengths)
    elif plan.transfer.tune == "frozen":
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name not in copied)
    else:
        fresh = frozenset(name for name, _ in net.named_parameters() if name not in copied)
        add_low_rank(net, fresh)
    return net
