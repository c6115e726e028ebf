"""Small parts that several networks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.errors import ConfigError

Triple = tuple[int, int, int]
Stages = tuple[tuple[int, ...], tuple[Triple, ...], tuple[Triple, ...]]
T = TypeVar("T")


def norm(channels: int) -> nn.Module:
    """Group normalisation in groups of four channels.

    It keeps no running statistics, so that batches of two train as they predict, and it is several
    times cheaper on a CPU than instance normalisation, whose groups of one it generalises.

    Source: arXiv:1803.08494 (Wu and He, Group Normalization).
    """
    return nn.GroupNorm(_groups(channels), channels)


def _groups(channels: int) -> int:
    return max(1, channels // 4)


def same_padding(kernel: Triple) -> Triple:
    """Return the padding that keeps the size under an odd kernel.

    Source: none; the plain way.
    """
    d, h, w = (k // 2 for k in kernel)
    return d, h, w


class ConvNorm(nn.Sequential):
    """Convolution, normalisation, optional ReLU.

    Without a stride an odd kernel keeps the size. With one nothing is padded: a kernel as long as
    the stride takes the image block by block, any other loses voxels at the far ends.

    Shapes: (B, in, D, H, W) → (B, out, D, H, W) without a stride and with an odd kernel,
    (B, out, D/stride, H/stride, W/stride) where kernel and stride are equal and divide D, H and W,
    else along each axis ⌊(n − kernel)/stride⌋ + 1 of n voxels.

    Source: arXiv:1606.06650 (3D U-Net).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple = (3, 3, 3),
        stride: Triple = (1, 1, 1),
        relu: bool = True,
    ) -> None:
        padding = same_padding(kernel) if prod(stride) == 1 else (0, 0, 0)
        layers: list[nn.Module] = [
            nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=False),
            norm(out_channels),
        ]
        if relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Residual(nn.Module):
    """Two convolutions added to their input.

    Shapes: (B, C, D, H, W) → the same.

    Source: arXiv:1512.03385 (He et al., Deep Residual Learning).
    """

    def __init__(self, channels: int, kernel: Triple = (3, 3, 3)) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, kernel)
        self.second = ConvNorm(channels, channels, kernel, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)), inplace=True)


class Added(nn.Module):
    """One convolution added to its input.

    Shapes: (B, C, D, H, W) → the same.

    Source: arXiv:1512.03385 (He et al., Deep Residual Learning).
    """

    def __init__(self, channels: int, kernel: Triple = (3, 3, 3)) -> None:
        super().__init__()
        self.body = ConvNorm(channels, channels, kernel, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x), inplace=True)


def voxels_to_channels(x: Tensor, factor: Triple) -> Tensor:
    """Fold blocks of `factor` voxels into channels, without loss.

    Shapes: (B, C, D, H, W) → (B, C·fd·fh·fw, D/fd, H/fh, W/fw).

    Source: arXiv:1609.05158 (Shi et al., sub-pixel convolution), run backwards.
    """
    b, c, d, h, w = x.shape
    fd, fh, fw = factor
    x = x.reshape(b, c, d // fd, fd, h // fh, fh, w // fw, fw)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * fd * fh * fw, d // fd, h // fh, w // fw)


def channels_to_voxels(x: Tensor, factor: Triple) -> Tensor:
    """Undo `voxels_to_channels`.

    Shapes: (B, C·fd·fh·fw, D, H, W) → (B, C, D·fd, H·fh, W·fw).

    Source: arXiv:1609.05158 (Shi et al., sub-pixel convolution).
    """
    b, c, d, h, w = x.shape
    fd, fh, fw = factor
    x = x.reshape(b, c // (fd * fh * fw), fd, fh, fw, d, h, w)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // (fd * fh * fw), d * fd, h * fh, w * fw)


def pad_to_multiple(x: Tensor, multiple: Triple) -> Tensor:
    """Pad D, H and W at their far ends with edge values up to a multiple.

    Shapes: (B, C, D, H, W) → (B, C, D', H', W').

    Source: none; the plain way.
    """
    lengths = x.shape[-3:]
    missing = [-length % m for length, m in zip(lengths, multiple, strict=True)]
    if not any(missing):
        return x
    d, h, w = missing
    return F.pad(x, (0, w, 0, h, 0, d), mode="replicate")


def of_size(sizes: Mapping[str, T], size: str, where: str) -> T:
    """Return what a network's table of sizes holds under a name.

    Raises:
        ConfigError: no such size.
    """
    if size not in sizes:
        raise ConfigError("size", f"one of {', '.join(sizes)}", size, where=where)
    return sizes[size]


def complete_stages(
    usual: Sequence[int],
    widths: Sequence[int] | None,
    strides: Sequence[Triple] | None,
    kernels: Sequence[Triple] | None,
    first: Triple,
) -> Stages:
    """Fill in what a caller left out of the stages of a network.

    Args:
        usual: widths of the chosen size; cut, or its last one repeated, to fit given strides.
        widths: channels of each stage, finest first, or None.
        strides: along (D, H, W), or None for `first`, then 2 along every axis.
        kernels: along (D, H, W), or None for 3 along every axis.
        first: stride of the first stage where none is given.

    Raises:
        ConfigError: the three do not fit together.
    """
    given = next((len(option) for option in (widths, strides, kernels) if option), len(usual))
    widths = tuple(widths or [*usual, *[usual[-1]] * given][:given])
    strides = tuple(strides or [first, *[(2, 2, 2)] * (given - 1)])
    kernels = tuple(kernels or [(3, 3, 3)] * given)
    check_stages(widths, strides, kernels)
    return widths, strides, kernels


def check_stages(
    widths: Sequence[int], strides: Sequence[Triple], kernels: Sequence[Triple]
) -> None:
    """Check that a network's per-stage options fit together.

    Raises:
        ConfigError: lengths differ, a value is not positive, a kernel is even, or a width cannot be
            normalised in groups of four channels.
    """
    if not len(widths) == len(strides) == len(kernels) >= 1:
        lengths = f"{len(widths)}, {len(strides)} and {len(kernels)} entries"
        raise ConfigError("widths, strides and kernels", "equally many, one a stage", lengths)
    if min(widths) < 1 or min(map(min, strides)) < 1:
        raise ConfigError("widths and strides", "positive", f"{widths}, {strides}")
    if any(width % _groups(width) for width in widths):
        raise ConfigError(
            "widths", "multiples of four from eight on", tuple(widths),
            advice="channels are normalised in groups of four",
        )  # fmt: skip
    if any(k < 1 or k % 2 == 0 for kernel in kernels for k in kernel):
        raise ConfigError("kernels", "odd and positive", kernels)


def total_stride(strides: Sequence[Triple]) -> Triple:
    """Return the product of strides along D, H and W."""
    d, h, w = (prod(stride[axis] for stride in strides) for axis in range(3))
    return d, h, w
