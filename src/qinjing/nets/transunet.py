"""TransUNet: a U-Net whose coarsest map is seen by a vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qinjing.nets.blocks import Triple, complete_stages, of_size
from qinjing.nets.transformer import FeedForward, SelfAttention, sine_positions, to_map, to_tokens
from qinjing.nets.unet import UNet

# Widths of the U-Net; channels, depth and heads of the transformer. "paper": a ViT-B as in the
# original, 121.3 million parameters in all with four channels and four classes (the survey: 121.6).
SIZES: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    "tiny": ((4, 8, 16), 24, 1, 2),
    "small": ((16, 32, 64, 128), 192, 4, 6),
    "paper": ((40, 80, 160, 320, 640), 768, 12, 12),
}


class TransUNet(UNet):
    """A U-Net with a vision transformer on its coarsest map: convolutions, attention, decoder.

    Shapes: (B, in_channels, D, H, W) → logits (B, classes, D, H, W), any D, H, W.

    Args:
        in_channels: image channels.
        classes: background included.
        widths: channels of each stage, finest first; those of the size where None.
        strides: of each stage along (D, H, W); the first stage is at full resolution.
        kernels: of each stage along (D, H, W), odd.
        size: "tiny", "small" or "paper"; it decides the transformer.

    Raises:
        ConfigError: widths, strides and kernels do not fit together, the first stride is not 1, or
            there is no such size.

    Source: arXiv:2102.04306 (TransUNet), arXiv:2310.07781 (3D TransUNet, encoder only).
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
        usual, channels, depth, heads = of_size(SIZES, size, "transunet")
        widths, strides, kernels = complete_stages(usual, widths, strides, kernels, (1, 1, 1))
        super().__init__(in_channels, classes, widths, strides, kernels)
        self.bottom = VisionTransformer(widths[-1], channels, depth, heads)


class VisionTransformer(nn.Module):
    """A transformer over the voxels of one map.

    Shapes: (B, width, D, H, W) → the same.

    Positions are sines and no table of learned ones, so that every size of image fits.

    Args:
        width: of the map.
        channels: of a token.
        depth: number of blocks.
        heads: of each block.

    Source: arXiv:2010.11929 (ViT).
    """

    def __init__(self, width: int, channels: int, depth: int, heads: int) -> None:
        super().__init__()
        self.entry = nn.Linear(width, channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(depth))
        self.attentions = nn.ModuleList(SelfAttention(channels, heads) for _ in range(depth))
        self.forwards = nn.ModuleList(FeedForward(channels, 4) for _ in range(depth))
        self.exit = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))

    def forward(self, x: Tensor) -> Tensor:
        shape: Triple = (x.shape[2], x.shape[3], x.shape[4])
        tokens = self.entry(to_tokens(x))
        tokens = tokens + sine_positions(shape, tokens.shape[-1], x.device)
        for norm, attention, forward in zip(
            self.norms, self.attentions, self.forwards, strict=True
        ):
            seen = norm(tokens)
            tokens = tokens + attention(seen, seen)
            tokens = tokens + forward(tokens)
        return to_map(self.exit(tokens), shape)
