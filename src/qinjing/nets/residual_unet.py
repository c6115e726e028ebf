"""A U-Net of residual stages that is supervised at every scale, and thin where time goes.

Its small size is made for CPUs, where full resolution takes most of a step: there it has one
convolution each way in place of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from qinjing.nets.blocks import Added, ConvNorm, Triple, complete_stages, of_size
from qinjing.nets.unet import WIDTHS, UNet


@dataclass(frozen=True)
class _Size:
    """How wide the stages are.

    Shapes: maps (B, width, D, H, W).

    Attributes:
        widths: channels of each stage, finest first.
        light: one convolution in place of two in both stages at full resolution.

    Source: none; chosen by measurement, docs/notes/0008.
    """

    widths: tuple[int, ...]
    light: bool = False


SIZES = {
    "tiny": _Size(WIDTHS["tiny"]),
    "small": _Size(WIDTHS["small"], light=True),
    "paper": _Size(WIDTHS["paper"]),
}


class ResidualUNet(UNet):
    """A U-Net whose stages add their second convolution, with a loss at every scale.

    Shapes: (B, in_channels, D, H, W) → logits (B, classes, D, H, W), any D, H, W. While training it
    returns a tuple: full-resolution logits first, then a coarser map of each decoder level but the
    finest. With two stages or one there is no such level, and logits alone are returned.

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

    Source: arXiv:1512.03385 (residual stages), arXiv:1409.5185 (deep supervision),
        arXiv:2404.09556 (residual encoders in nnU-Net).
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
        chosen = of_size(SIZES, size, "residual_unet")
        widths, strides, kernels = complete_stages(
            chosen.widths, widths, strides, kernels, (1, 1, 1)
        )
        super().__init__(in_channels, classes, widths, strides, kernels)
        if chosen.light and self.decoders:
            for stages in (self.encoders, self.decoders):
                stages[0] = nn.Sequential(*list(stages[0].children())[:-1])
        # Without losses at coarser scales and sums in its stages, the first half of five minutes'
        # training goes by on a plateau.
        for level, width in enumerate(widths[1:-1], start=1):
            self.deep_heads[str(level)] = nn.Conv3d(width, classes, 1)

    @staticmethod
    def pair(before: int, width: int, kernel: Triple) -> Iterable[nn.Module]:
        """Return a stage's two convolutions, the second added to the first."""
        return ConvNorm(before, width, kernel), Added(width, kernel)
