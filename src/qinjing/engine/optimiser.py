"""The optimiser of a training, and its memory as tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from qinjing.engine.muon import Muon

_UPWARDS = ("ups", "decoders", "deep_heads")  # level 0 is the finest


def make_optimiser(
    net: nn.Module,
    name: Literal["adamw", "muon"],
    learning_rate: float,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """Return an optimiser of what is not frozen; biases and normalisations are not decayed.

    Args:
        net: its parameters are grouped; each group's "share" is of the learning rate.
        name: which.
        learning_rate: the peak's.
        weight_decay: on weights of two or more dimensions.
        layer_decay: each layer below the last learns this much slower than the one above it.
    """
    parts: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter_name, parameter in net.named_parameters():
        if parameter.requires_grad:
            share = _share(net, parameter_name, layer_decay)
            parts.setdefault((parameter.ndim > 1, share), []).append(parameter)
    groups = [
        {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "share": share,
        }
        for (decayed, share), parameters in sorted(parts.items(), key=lambda part: part[0])[::-1]
    ]
    if name == "muon":
        return Muon(groups, learning_rate)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), fused=True)


def _share(net: nn.Module, parameter: str, layer_decay: float) -> float:
    """What share of the learning rate a parameter learns with.

    Layers count as they stand in a U: encoders downwards, then what leads upwards, coarsest first,
    then the rest in order of registration.
    """
    if layer_decay == 1:
        return 1.0
    layers = list(dict.fromkeys(_layer(name) for name, _ in net.named_parameters()))
    upwards = [layer for layer in layers if layer.partition(".")[0] in _UPWARDS]
    if upwards:
        first = layers.index(upwards[0])
        upwards.sort(key=lambda layer: (-int(layer.partition(".")[2]), layer.startswith("deep")))
        rest = [layer for layer in layers if layer not in upwards]
        layers = rest[:first] + upwards + rest[first:]
    return layer_decay ** (len(layers) - 1 - layers.index(_layer(parameter)))


def _layer(parameter: str) -> str:
    """The part of a network that a parameter belongs to: encoders.0, encoders.1, …, head."""
    part, _, rest = parameter.partition(".")
    number = rest.partition(".")[0]
    return f"{part}.{number}" if number.isdigit() else part


def memory_of(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's moments as `remember` takes them, by "optimiser/…"."""
    state = optimiser.state_dict()["state"]
    return {f"optimiser/{i}/{key}": value for i, own in state.items() for key, value in own.items()}


def remember(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser the moments that `memory_of` returned, among other tensors."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind != "optimiser":
            continue
        index, _, key = rest.partition("/")
        like = parameters[int(index)]
        value = value.to(like.device)  # counts of steps too: torch leaves them where they are
        if value.shape == like.shape:  # laid out as its parameter: the fused step relies on it
            value = torch.empty_like(like).copy_(value)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
