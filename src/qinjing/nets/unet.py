"""The plain U-Net, as a baseline and for those who ask for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.nets.blocks import (
    ConvNorm,
    Triple,
    complete_stages,
    of_size,
    pad_to_multiple,
    total_stride,
)

# "paper": 34.6 million parameters with four channels and four classes (the survey: 34.5).
WIDTHS = {
    "tiny": (4, 8, 16),
    "small": (16, 32, 64, 128),
    "paper": (40, 80, 160, 320, 624),
}


class UNet(nn.Module):
    """Two convolutions a level, transposed convolutions upwards, skips by concatenation.

    Shapes: (B, in_channels, D, H, W) → logits (B, classes, D, H, W), any D, H, W.

    Args:
        in_channels: image channels.
        classes: background included.
        widths: channels of each stage, finest first; those of the size where None.
        strides: of each stage along (D, H, W); the first stage is at full resolution.
        kernels: of each stage along (D, H, W), odd.
        size: "tiny", "small" or "paper".

    Raises:
        ConfigError: widths, strides and kernels do not fit together, the first stride is not 1, or
            there is no such size.

    Source: arXiv:1505.04597 (U-Net), arXiv:1606.06650 (3D U-Net).
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        widths: Sequence[int] | None = None,
        strides: Sequence[Triple] | None = None,
        kernels: Sequence[Triple] | None = None,
        size: str = "small",
    ) -> None:
        super().__init__()
        usual = of_size(WIDTHS, size, "unet")
        widths, strides, kernels = complete_stages(usual, widths, strides, kernels, (1, 1, 1))
        if max(strides[0]) > 1:
            raise ConfigError("first stride", "(1, 1, 1)", strides[0], where="unet")
        self.multiple = total_stride(strides)
        self.widths = tuple(widths)
        self.encoders = nn.ModuleList()
        self.decoders = nn.ModuleList()
        self.ups = nn.ModuleList()
        for level, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
            before = in_channels if level == 0 else widths[level - 1]
            shrink = [] if level == 0 else [nn.MaxPool3d(strides[level])]
            self.encoders.append(nn.Sequential(*shrink, *self.pair(before, width, kernel)))
        for level in range(len(widths) - 1):
            width, below, stride = widths[level], widths[level + 1], strides[level + 1]
            self.ups.append(nn.ConvTranspose3d(below, width, stride, stride))
            self.decoders.append(nn.Sequential(*self.pair(2 * width, width, kernels[level])))
        self.bottom: nn.Module = nn.Identity()
        # Of decoders by level; none here, but a network built on this one may have some.
        self.deep_heads = nn.ModuleDict()
        self.head = nn.Conv3d(widths[0], classes, 1)

    @staticmethod
    def pair(before: int, width: int, kernel: Triple) -> Iterable[nn.Module]:
        """Return the two convolutions of a stage."""
        return ConvNorm(before, width, kernel), ConvNorm(width, width, kernel)

    def joins(self) -> dict[str, tuple[int, ...]]:
        """Return the weights that take several maps side by side → channels of each map."""
        return {f"decoders.{n}.0.0.weight": (w, w) for n, w in enumerate(self.widths[:-1])}

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.decode(self.encode(x), x.shape)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the feature map of every stage, finest first.

        Shapes: (B, in_channels, D, H, W) → a (B, width, D', H', W') each.
        """
        maps, y = [], pad_to_multiple(x, self.multiple)
        for encoder in self.encoders:
            y = encoder(y)
            maps.append(y)
        return maps

    def decode(self, maps: Sequence[Tensor], shape: Sequence[int]) -> Tensor | tuple[Tensor, ...]:
        """Return logits of an image of `shape` from what `encode` returned, as `forward` does."""
        d, h, w = shape[-3:]
        y, coarse = self.bottom(maps[-1]), []
        for level in reversed(range(len(self.decoders))):
            y = self.decoders[level](torch.cat([maps[level], self.ups[level](y)], dim=1))
            if self.training and str(level) in self.deep_heads:
                coarse.append(self.deep_heads[str(level)](y))
        logits = self.head(y)[..., :d, :h, :w]
        return (logits, *reversed(coarse)) if coarse else logits


def plain_conv_names(weights: Iterable[str]) -> dict[str, str]:
    """Return each weight's name → the name of its like in nnU-Net's `PlainConvUNet`.

    Args:
        weights: names in a `UNet`'s state.

    Source: dynamic-network-architectures 0.4, `PlainConvEncoder` and `UNetDecoder`.
    """
    found = {}
    levels = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("encoders."))
    for name in weights:
        part, *rest = name.split(".")
        if part == "head":
            found[name] = f"decoder.seg_layers.{levels - 2}.{rest[0]}"
            continue
        level = int(rest[0])
        if part == "ups":
            found[name] = f"decoder.transpconvs.{levels - 2 - level}.{rest[1]}"
            continue
        place, layer, kind = int(rest[1]), rest[2], rest[3]
        # A stage below the first begins with its pooling, here as there.
        pooled = part == "encoders" and level > 0
        stage = (
            f"encoder.stages.{level}.{int(pooled)}"
            if part == "encoders"
            else f"decoder.stages.{levels - 2 - level}"
        )
        module = "conv" if layer == "0" else "norm"
        found[name] = f"{stage}.convs.{place - pooled}.{module}.{kind}"
    return found
