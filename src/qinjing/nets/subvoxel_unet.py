"""A residual U-Net that never computes at full resolution.

Blocks of voxels enter as channels and leave as channels (sub-voxel convolution), so that nothing of
the image is lost, while the widest feature maps are a factor of eight smaller. On a CPU this gives
two to three times as many training steps per minute as a U-Net of equal width at full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.nets.blocks import (
    ConvNorm,
    Residual,
    Triple,
    channels_to_voxels,
    check_stages,
    pad_to_multiple,
    same_padding,
    total_stride,
    voxels_to_channels,
)


class SubvoxelUNet(nn.Module):
    """Residual U-Net on folded voxels.

    Shapes: (B, in_channels, D, H, W) → logits (B, classes, D, H, W), any D, H, W. While training it
    returns a tuple: full-resolution logits first, then one coarser map per decoder level.

    Args:
        in_channels: image channels.
        classes: background included.
        widths: channels of each stage, finest first.
        strides: of each stage along (D, H, W); the first is the block of voxels that is folded.
        kernels: of each stage along (D, H, W), odd.
        blocks: residual blocks of every encoder stage, or of each; the entry of the first counts as
            one. Decoders have one.

    Raises:
        ConfigError: widths, strides, kernels and blocks do not fit together.

    Source: arXiv:1505.04597 (U-Net), arXiv:1512.03385 (residual blocks), arXiv:1609.05158
        (sub-pixel convolution), arXiv:1409.5185 (deep supervision).
    """

    folds = True

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        widths: Sequence[int] = (32, 64, 128),
        strides: Sequence[Triple] = ((2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernels: Sequence[Triple] = ((3, 3, 3), (3, 3, 3), (3, 3, 3)),
        blocks: int | Sequence[int] = 2,
    ) -> None:
        super().__init__()
        check_stages(widths, strides, kernels)
        each = (blocks,) * len(widths) if isinstance(blocks, int) else tuple(blocks)
        if len(each) != len(widths) or min(each) < 0:
            raise ConfigError("blocks", f"one number, or {len(widths)} of 0 or more", blocks)
        self.fold: Triple = strides[0]
        self.multiple = total_stride(strides)
        self.widths, self.blocks = tuple(widths), each
        self._folded = folded = in_channels * prod(self.fold)

        self.encoders = nn.ModuleList()
        self.decoders = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.deep_heads = nn.ModuleList()
        for level, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
            if level == 0:
                entry, body = ConvNorm(folded, width, kernel), max(0, each[0] - 1)
            else:
                stride = strides[level]
                entry, body = ConvNorm(widths[level - 1], width, stride, stride), each[level]
            self.encoders.append(
                nn.Sequential(entry, *(Residual(width, kernel) for _ in range(body)))
            )
        for level in range(len(widths) - 1):
            width, below, stride = widths[level], widths[level + 1], strides[level + 1]
            self.ups.append(nn.ConvTranspose3d(below, width, stride, stride))
            self.decoders.append(
                nn.Sequential(
                    ConvNorm(2 * width, width, kernels[level]), Residual(width, kernels[level])
                )
            )
            self.deep_heads.append(nn.Conv3d(width, classes, 1))
        self.head = nn.Sequential(
            ConvNorm(widths[0] + folded, widths[0], kernels[0]),
            nn.Conv3d(
                widths[0], classes * prod(self.fold), kernels[0], padding=same_padding(kernels[0])
            ),
        )

    def joins(self) -> dict[str, tuple[int, ...]]:
        """Return the weights that take several maps side by side → channels of each map."""
        decoders = {f"decoders.{n}.0.0.weight": (w, w) for n, w in enumerate(self.widths[:-1])}
        return {**decoders, "head.0.0.weight": (self.widths[0], self._folded)}

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        folded, maps = self.encode(x)
        return self.decode(folded, maps, x.shape)

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the folded image and the feature map of every stage, finest first.

        Shapes: (B, in_channels, D, H, W) → (B, in_channels·fold, D', H', W'), a (B, width, …) each.
        """
        folded = voxels_to_channels(pad_to_multiple(x, self.multiple), self.fold)
        maps, y = [], folded
        for encoder in self.encoders:
            y = encoder(y)
            maps.append(y)
        return folded, maps

    def decode(
        self, folded: Tensor, maps: list[Tensor], shape: Sequence[int]
    ) -> Tensor | tuple[Tensor, ...]:
        """Return logits of an image of `shape` from what `encode` returned, as `forward` does."""
        d, h, w = shape[-3:]
        y, coarse = maps[-1], []
        for level in reversed(range(len(self.decoders))):
            y = self.decoders[level](torch.cat([maps[level], self.ups[level](y)], dim=1))
            if self.training:
                coarse.append(self.deep_heads[level](y))
        y = self.head(torch.cat([y, folded.to(y.dtype)], dim=1))
        logits = channels_to_voxels(y, self.fold)[..., :d, :h, :w]
        return (logits, *reversed(coarse)) if self.training else logits
