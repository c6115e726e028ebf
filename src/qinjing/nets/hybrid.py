"""The method of the survey: convolutions and deformable attention side by side, joined by gates.

A path of convolutions, the encoder of `ResidualUNet`, sees detail. A path of deformable attention
sees the whole patch: its tokens are the voxels of all scales from 1/8 downwards, and each looks at
places that it chooses in all of them. At every scale a gate decides, voxel by voxel and channel by
channel, how much of either goes on to the decoder; `gates` tells the shares. The small size is for
CPUs, where full resolution takes most of a step: there, and at half the resolution, it has no gate;
the decoder brings what coarser gates let through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.nets.blocks import Triple, complete_stages, norm, of_size
from qinjing.nets.deformable import DeformableAttention
from qinjing.nets.residual_unet import SIZES as CONVOLUTIONS
from qinjing.nets.residual_unet import ResidualUNet
from qinjing.nets.transformer import FeedForward, SelfAttention, sine_positions, to_map, to_tokens

ATTENTIONS = ("deformable", "full", "identity")


@dataclass(frozen=True)
class _Size:
    """How large a hybrid is.

    Shapes: maps (B, width, D, H, W), tokens (B, N, channels).

    Attributes:
        channels: of a token.
        depth: transformer blocks.
        heads: of each of them.
        points: places that a head looks at in each scale.
        ratio: of the feed-forward part's hidden channels.
        joined: the finest stage that has a gate; 0 is full resolution.

    Source: arXiv:2010.04159 (Deformable DETR), whose options of attention these are.
    """

    channels: int
    depth: int
    heads: int
    points: int
    ratio: int
    joined: int


# "paper": 67.5 million parameters with four channels and four classes (the survey: 67.3).
SIZES = {
    "tiny": _Size(24, 1, 2, 2, 2, 0),
    "small": _Size(96, 2, 3, 2, 2, 2),
    "paper": _Size(512, 11, 8, 4, 4, 0),
}
_FINEST = 3  # the finest stage that has tokens: 1/8, where a patch has hundreds and not thousands
_LEAD = -4.0  # of the gates' biases: what attention adds comes in as it learns


class Hybrid(ResidualUNet):
    """Convolutions and deformable attention side by side, joined by gates.

    "tiny" and "paper" have a gate at every scale, "small" from the third stage, 1/4, downwards.
    Stages from the fourth, 1/8, downwards give tokens: one scale of four stages, two of five.

    Shapes: (B, in_channels, D, H, W) → logits (B, classes, D, H, W), any D, H, W. While training it
    returns a tuple: full-resolution logits first, then a coarser map of each decoder level but the
    finest. With two stages or one there is no such level, and logits alone are returned.

    Args:
        in_channels: image channels.
        classes: background included.
        widths: channels of each stage of the convolutions, finest first; the size's where None.
        strides: of each stage along (D, H, W); the first stage is at full resolution.
        kernels: of each stage along (D, H, W), odd.
        size: "tiny", "small" or "paper"; it decides the transformer.
        attention: "deformable"; "full" compares every token with every token; "identity" leaves the
            transformer blocks out, to see what they are worth.

    Raises:
        ConfigError: widths, strides and kernels do not fit together, the first stride is not 1, or
            there is no such size or attention.

    Source: arXiv:2010.04159 (Deformable DETR), arXiv:2103.03024 (CoTr: convolutions with deformable
        attention in three dimensions), arXiv:1505.00387 (gates, Highway Networks), arXiv:1512.03385
        (residual stages), arXiv:1409.5185 (deep supervision).
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        widths: Sequence[int] | None = None,
        strides: Sequence[Triple] | None = None,
        kernels: Sequence[Triple] | None = None,
        size: str = "small",
        attention: str = "deformable",
    ) -> None:
        chosen = of_size(SIZES, size, "hybrid")
        if attention not in ATTENTIONS:
            raise ConfigError("attention", f"one of {', '.join(ATTENTIONS)}", attention)
        widths, strides, kernels = complete_stages(
            CONVOLUTIONS[size].widths, widths, strides, kernels, (1, 1, 1)
        )
        super().__init__(in_channels, classes, widths, strides, kernels, size)
        first = min(_FINEST, len(widths) - 1)
        self.joined = min(chosen.joined, first)
        self.context = ContextPath(widths[first:], chosen, attention)
        self.entries = nn.ModuleList(
            nn.Sequential(nn.Conv3d(chosen.channels, width, 1, bias=False), norm(width))
            for width in widths[first:]
        )
        # Above the tokens their finest map rises level by level, in each one's own width.
        self.rises = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose3d(
                    widths[level + 1], widths[level], strides[level + 1], strides[level + 1],
                    bias=False,
                ),
                norm(widths[level]),
            )
            for level in range(self.joined, first)
        )  # fmt: skip
        self.joints = nn.ModuleList(map(Gate, widths[self.joined :]))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        finer, meetings = self._meetings(x)
        return self.decode([*finer, *(joint(*pair) for joint, pair in meetings)], x.shape)

    def paths(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return what each path gives to each joined scale, finest first; a scale's sum goes on.

        Shapes: (B, in_channels, D, H, W) → a pair of (B, width, D', H', W') each: convolutions,
        attention.
        """
        return [joint.parts(*pair) for joint, pair in self._meetings(x)[1]]

    def gates(self, x: Tensor) -> Tensor:
        """Return the share of attention in what each joined scale passes on.

        Shapes: (B, in_channels, D, H, W) → (B, scales) in 0..1, finest first.
        """
        shares = [share_of_attention(*pair, axes=(1, 2, 3, 4)) for pair in self.paths(x)]
        return torch.stack(shares, dim=1)

    def _meetings(self, x: Tensor) -> tuple[list[Tensor], list[tuple[Any, tuple[Tensor, Tensor]]]]:
        """Maps finer than the joined ones; of each joined scale its gate and what meets there."""
        local = self.encode(x)
        pairs = zip(local[self.joined :], self._context(local), strict=True)
        return local[: self.joined], list(zip(self.joints, pairs, strict=True))

    def _context(self, local: list[Tensor]) -> list[Tensor]:
        """What the transformer path has for every joined scale, in the scale's own width."""
        found = self.context(local[-len(self.entries) :])
        context = [entry(one) for entry, one in zip(self.entries, found, strict=True)]
        for rise in reversed(self.rises):
            context.insert(0, rise(context[0]))
        return context


def share_of_attention(kept: Tensor, given: Tensor, axes: Sequence[int]) -> Tensor:
    """Return attention's share in what goes on: Σ|given| / (Σ|given| + Σ|kept|), 0 of nothing.

    Shapes: twice (B, width, D, H, W), as `Hybrid.paths` returns them → the axes that are left.

    Args:
        kept: what the convolutions give.
        given: what attention gives.
        axes: to sum over.

    Source: none; what a gate's (1 − g)·local + g·context is made of.
    """
    of_convolutions, of_attention = (part.abs().sum(tuple(axes)) for part in (kept, given))
    return of_attention / (of_attention + of_convolutions).clamp_min(1e-12)


class ContextPath(nn.Module):
    """A transformer over the voxels of several scales at once.

    Shapes: a (B, width, D, H, W) each → a (B, channels, D, H, W) each, finest first.

    Args:
        widths: of the maps.
        size: channels, depth, heads, points and ratio.
        attention: "deformable", "full" or "identity".

    Source: arXiv:2010.04159 (Deformable DETR's encoder), arXiv:2103.03024 (CoTr).
    """

    def __init__(self, widths: Sequence[int], size: _Size, attention: str) -> None:
        super().__init__()
        self.entries = nn.ModuleList(nn.Linear(width, size.channels) for width in widths)
        self.scale = nn.Parameter(0.02 * torch.randn(len(widths), size.channels))
        depth = 0 if attention == "identity" else size.depth
        self.blocks = nn.ModuleList(
            ContextBlock(size, len(widths), attention == "deformable") for _ in range(depth)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        shapes: list[Triple] = [(x.shape[2], x.shape[3], x.shape[4]) for x in maps]
        tokens = torch.cat(
            [
                entry(to_tokens(x)) + scale
                for x, entry, scale in zip(maps, self.entries, self.scale, strict=True)
            ],
            dim=1,
        )
        channels = tokens.shape[-1]
        if self.blocks:
            places = [sine_positions(shape, channels, tokens.device) for shape in shapes]
            positions = torch.cat(places)
            for block in self.blocks:
                tokens = block(tokens, positions, shapes)
        parts = tokens.split([d * h * w for d, h, w in shapes], dim=1)
        return [to_map(part, shape) for part, shape in zip(parts, shapes, strict=True)]


class ContextBlock(nn.Module):
    """Attention over the tokens of all scales, then a feed-forward part.

    Shapes: tokens (B, N, C), positions (N, C) → (B, N, C).

    Source: arXiv:2010.04159 (Deformable DETR), arXiv:2002.04745 (normalisation first).
    """

    def __init__(self, size: _Size, scales: int, deformable: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.channels)
        self.deformable = deformable
        self.attention = (
            DeformableAttention(size.channels, size.heads, scales, size.points)
            if deformable
            else SelfAttention(size.channels, size.heads)
        )
        self.forward_part = FeedForward(size.channels, size.ratio)

    def forward(self, tokens: Tensor, positions: Tensor, shapes: Sequence[Triple]) -> Tensor:
        values = self.norm(tokens)
        where = (shapes,) if self.deformable else ()
        tokens = tokens + self.attention(values + positions, values, *where)
        return tokens + self.forward_part(tokens)


class Gate(nn.Module):
    """Join two maps: (1 − g)·local + g·context, g = σ(a convolution of both).

    Shapes: (B, width, D, H, W) twice → (B, width, D, H, W).

    Args:
        width: of both maps.

    Source: arXiv:1505.00387 (Highway Networks).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Conv3d(2 * width, width, 1)
        nn.init.constant_(self.gate.bias, _LEAD)  # type: ignore[arg-type]

    def forward(self, local: Tensor, context: Tensor) -> Tensor:
        return local + self._open(local, context) * (context - local)

    def parts(self, local: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return both terms of the sum, local first."""
        gate = self._open(local, context)
        return (1 - gate) * local, gate * context

    def _open(self, local: Tensor, context: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(torch.cat([local, context], dim=1)))
