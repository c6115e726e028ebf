"""A network of `NETS` as a trunk: features of every voxel, and weights that move to another task.

A trunk is the whole network with feature channels in the place of classes. So every network that
segments can be pre-trained, decoder included, with no second version of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    first weights in equal parts, so that equal images give the features that one gave.

    Args:
        net: changed in place.
        weights: of the trunk, by name.
        heads: names not to copy.
        channels: images of the new network for each one of the trunk.

    Source: none; the way of inflating weights to more channels is arXiv:1705.07750's (I3D).
    """
    own, copied = net.state_dict(), []
    for name, value in weights.items():
        if name in heads or name not in own:
            continue
        shape = own[name].shape
        fitting = value if shape == value.shape else _other_channels(value, shape, channels)
        if fitting is not None:
            own[name].copy_(fitting)
            copied.append(name)
    return copied


def normalised_kernels(net: nn.Module) -> list[nn.Parameter]:
    """Return the kernels that a normalisation follows: their length says nothing of features.

    Source: none; the convolution of every `ConvNorm`.
    """
    return [next(part.parameters()) for part in net.modules() if isinstance(part, ConvNorm)]


@torch.no_grad()
def bring_to_length(kernels: Sequence[nn.Parameter], lengths: Sequence[float]) -> None:
    """Give kernels the lengths of fresh ones, in place, so that they learn at the pace of those.

    Training had made them three to five times as long, and what a step changes of them as much less
    (docs/notes/0010). Features stay the same but for the small number in a variance.

    Args:
        kernels: as `normalised_kernels` returns them.
        lengths: of each.

    Source: arXiv:1706.05350 (van Laarhoven: the length of a normalised weight sets its pace).
    """
    for kernel, length in zip(kernels, lengths, strict=True):
        kernel.mul_(length / kernel.norm().clamp_min(1e-12))


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
