"""Attention over all tokens, the feed-forward part and positions: what transformers here share."""

from __future__ import annotations

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.nets.blocks import Triple


def to_tokens(x: Tensor) -> Tensor:
    """Turn a map into a row of tokens.

    Shapes: (B, C, D, H, W) → (B, D·H·W, C).

    Source: arXiv:2010.11929 (ViT).
    """
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, shape: Triple) -> Tensor:
    """Undo `to_tokens`.

    Shapes: (B, D·H·W, C) → (B, C, D, H, W).

    Source: arXiv:2010.11929 (ViT).
    """
    b, _, c = tokens.shape
    return tokens.transpose(1, 2).reshape(b, c, *shape)


def sine_positions(shape: Triple, channels: int, device: torch.device) -> Tensor:
    """Encode where each voxel of a map lies, by sines and cosines of several wavelengths.

    Along each axis a centre's place in 0..2π is divided by 10000^(i/n), i < n = channels // 6.
    They hold no parameters and fit every size, and maps of several resolutions agree.

    Shapes: → (D·H·W, channels) float32; channels over a multiple of six are zero.

    Source: arXiv:2005.12872 (DETR), section A.4.
    """
    count = channels // 6
    steps = torch.arange(count, device=device, dtype=torch.float32) / max(1, count)
    waves = 2 * pi / 10000**steps
    parts = []
    for axis, length in enumerate(shape):
        place = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / length
        angle = place[:, None] * waves
        view = [1, 1, 1, 2 * count]
        view[axis] = length
        parts.append(torch.cat([angle.sin(), angle.cos()], dim=1).view(view).expand(*shape, -1))
    encoded = torch.cat(parts, dim=-1).flatten(0, 2)
    return F.pad(encoded, (0, channels - 6 * count))


class SelfAttention(nn.Module):
    """Attention of every token to every token.

    Shapes: queries (B, N, C), values (B, N, C) → (B, N, C). Keys are made from the queries' input.

    Args:
        channels: C.
        heads: a divisor of C.

    Raises:
        ConfigError: the heads do not divide the channels.

    Source: arXiv:1706.03762 (Vaswani et al.).
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.queries_keys = nn.Linear(channels, 2 * channels)
        self.values = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, queries: Tensor, values: Tensor) -> Tensor:
        b, n, c = queries.shape
        split = (b, n, self.heads, c // self.heads)
        q, k = (x.view(split).transpose(1, 2) for x in self.queries_keys(queries).chunk(2, dim=-1))
        v = self.values(values).view(split).transpose(1, 2)
        y = attend(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, c))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weigh values by how well queries and keys agree: softmax(q·kᵀ/√C)·v.

    What learns in bfloat16 on a CPU does this part in float32: for a few dozen tokens torch's
    bfloat16 gradient takes 3 to 10 times float32's (torch 2.13, docs/notes/0008).

    Shapes: q, k, v (..., N, C), mask (..., 1, N) bool, true where a key is seen → (..., N, C).

    Source: arXiv:1706.03762 (Vaswani et al.), arXiv:2205.14135 (without holding the weights).
    """
    if not (q.requires_grad and q.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return F.scaled_dot_product_attention(q, k, v, mask)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).to(v.dtype)


class FeedForward(nn.Sequential):
    """Two linear layers with GELU between them, normalised before.

    Shapes: (..., C) → (..., C).

    Source: arXiv:1706.03762 (Vaswani et al.), arXiv:2002.04745 (normalisation first).
    """

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__(
            nn.LayerNorm(channels),
            nn.Linear(channels, ratio * channels),
            nn.GELU(),
            nn.Linear(ratio * channels, channels),
        )


def check_heads(channels: int, heads: int) -> None:
    """Check that heads share the channels evenly.

    Raises:
        ConfigError: they do not.
    """
    if heads < 1 or channels % heads:
        raise ConfigError("heads", f"a divisor of the {channels} channels", heads)
