"""A network of `NETS` as a trunk: features of every voxel, and weights that move to another task.

A trunk is the whole network with feature channels in the place of classes. So every network that
segments can be pre-trained, decoder included, with no second version of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qinjing import registry
from qinjing.nets.blocks import ConvNorm


def class_bound(nets: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the weights that depend on the number of classes: heads.

    Args:
        nets: the table of networks.
        name: in the table.
        options: of its constructor.

    Source: none; found by building the network with two numbers of classes.
    """
    shapes = []
    for classes in (2, 3):
        net = registry.build(nets, "net", name, **{**options, "classes": classes})
        shapes.append({key: value.shape for key, value in net.state_dict().items()})
    return frozenset(key for key, shape in shapes[0].items() if shapes[1][key] != shape)


@torch.no_grad()
def take_over(
    net: nn.Module, weights: Mapping[str, Tensor], heads: frozenset[str], channels: int = 1
) -> list[str]:
    """Copy a trunk's weights into a network, all but the heads, and return the names copied.

    Where the new network takes several images and the trunk one, each channel gets the trunk's
    first weights in equal parts, so that equal images give the features that one gave. Kernels that
    a normalisation follows get the length of the fresh ones: their features stay the same, and they
    learn at the pace of fresh ones. Training had made them three to five times as long, and what
    a step changes of them as much less (docs/notes/0010).

    Args:
        net: changed in place.
        weights: of the trunk, by name.
        heads: names not to copy.
        channels: images of the new network for each one of the trunk.

    Source: none; the way of inflating weights to more channels is arXiv:1705.07750's (I3D).
    """
    normalised = [next(p.parameters()) for p in net.modules() if isinstance(p, ConvNorm)]
    lengths = [weight.norm() for weight in normalised]
    own, copied = net.state_dict(), []
    for name, value in weights.items():
        if name in heads or name not in own:
            continue
        shape = own[name].shape
        fitting = value if shape == value.shape else _other_channels(value, shape, channels)
        if fitting is not None:
            own[name].copy_(fitting)
            copied.append(name)
    for weight, length in zip(normalised, lengths, strict=True):
        weight.mul_(length / weight.norm().clamp_min(1e-12))
    return copied


def _other_channels(value: Tensor, shape: torch.Size, times: int) -> Tensor | None:
    """A convolution's weight (out, in, …) for so many times its input channels; None if it is not.

    An image of one channel is folded to the channels of its voxel blocks, channel by channel, so
    that repeating the whole is right for networks that fold, too.
    """
    if not value.ndim == len(shape) >= 4 or value.shape[2:] != shape[2:]:
        return None
    if value.shape[0] != shape[0] or shape[1] != times * value.shape[1]:
        return None
    return value.repeat(1, times, *[1] * (value.ndim - 2)) / times
