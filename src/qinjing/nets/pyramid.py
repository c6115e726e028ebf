"""The pyramid transformer: windows within slices, attention across slices, weights by lesion size.

The Med3D-Transformer of the survey: features of four resolutions, attention made sparse by sliding
windows, and weights of the four that adapt to the size of the lesion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qinjing.errors import ConfigError
from qinjing.nets.blocks import Triple, complete_stages, of_size, same_padding
from qinjing.nets.subvoxel_unet import SubvoxelUNet
from qinjing.nets.transformer import FeedForward, attend


@dataclass(frozen=True)
class _Size:
    """How large a pyramid is.

    Shapes: maps (B, width, D, H, W), tokens of a window (B, window², width).

    Attributes:
        widths: channels of each level, finest first.
        depth: transformer blocks a level.
        head: channels of one head, a divisor of every width.
        window: voxels along H and W that see each other within a slice.
        ratio: of the feed-forward part's hidden channels.
        recompute: the finest level's blocks are computed again for their gradients, not held.

    Source: arXiv:2103.14030 (Swin), whose options these are; arXiv:1604.06174 (recomputing).
    """

    widths: tuple[int, ...]
    depth: int
    head: int
    window: int
    ratio: int
    recompute: bool = False


# "paper": as many parameters as MONAI's SwinUNETR of feature size 48 (62 million), beside which the
# survey puts its 40 per cent less memory.
SIZES = {
    "tiny": _Size((8, 16, 16), 2, 8, 4, 2),
    "small": _Size((32, 64, 128, 256), 2, 16, 8, 2),
    "paper": _Size((96, 192, 384, 928), 2, 32, 8, 4, recompute=True),
}


class PyramidTransformer(SubvoxelUNet):
    """Levels of windowed attention within and full attention across slices, and a decoder.

    There are four levels as in the survey, or as many as `widths`, `strides` and `kernels` say,
    more than four too. A plan takes those that its patch has room for, four at the most; on the
    hippocampus they are three.

    Shapes: (B, in_channels, D, H, W) → logits (B, classes, D, H, W), any D, H, W. While training it
    returns a tuple: full-resolution logits first, then one coarser map per decoder level.

    What level l of L passes to the decoder is multiplied by α_l of `level_weights`::

        s_l = log(mean over voxels v of σ(u_l · f_l(v)))    a learnt share of the voxels
        α   = L · softmax(W₂ gelu(W₁ s + b₁) + b₂)

    Nothing but the loss of the whole tells u_l what to look for. Where it looks for lesion, a small
    one has a small share everywhere, so that the fine levels can be made to count more.

    Args:
        in_channels: image channels.
        classes: background included.
        widths: channels of each level, finest first; those of the size where None.
        strides: of each level along (D, H, W); the first is the block of voxels that is folded.
        kernels: of each level's convolutions along (D, H, W), odd.
        size: "tiny", "small" or "paper".

    Raises:
        ConfigError: widths, strides and kernels do not fit together, a width is no multiple of a
            head's channels, or there is no such size.

    Source: arXiv:2103.14030 (Swin: shifted windows), arXiv:2102.05095 (attention along one axis
        after the other), arXiv:2102.10882 (positions from a convolution), arXiv:1709.01507 (gates
        from squeezed features).
    """

    most_stages = 4  # of a plan

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        widths: Sequence[int] | None = None,
        strides: Sequence[Triple] | None = None,
        kernels: Sequence[Triple] | None = None,
        size: str = "small",
    ) -> None:
        chosen = of_size(SIZES, size, "pyramid")
        widths, strides, kernels = complete_stages(
            chosen.widths, widths, strides, kernels, (2, 2, 2)
        )
        super().__init__(in_channels, classes, widths, strides, kernels, blocks=0)
        for level, (encoder, width, kernel) in enumerate(
            zip(self.encoders, widths, kernels, strict=True)
        ):
            again = chosen.recompute and level == 0
            encoder.append(Level(width, chosen, kernel, again))  # type: ignore[operator]
        levels = len(widths)
        self.squeeze = nn.ModuleList(nn.Conv3d(width, 1, 1) for width in widths)
        self.weigh = nn.Sequential(
            nn.Linear(levels, 4 * levels), nn.GELU(), nn.Linear(4 * levels, levels)
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        folded, maps = self.encode(x)
        weights = self._weights(maps)
        maps = [y * weights[:, level, None, None, None, None] for level, y in enumerate(maps)]
        return self.decode(folded, maps, x.shape)

    def level_weights(self, x: Tensor) -> Tensor:
        """Return how much each level counts for an image: α, its mean over levels is 1.

        Shapes: (B, in_channels, D, H, W) → (B, levels), finest first.
        """
        return self._weights(self.encode(x)[1])

    def _weights(self, maps: list[Tensor]) -> Tensor:
        shares = [
            torch.sigmoid(layer(y).float()).mean(dim=(1, 2, 3, 4)).log()
            for y, layer in zip(maps, self.squeeze, strict=True)
        ]
        return len(maps) * torch.softmax(self.weigh(torch.stack(shares, dim=1)), dim=1)


class Level(nn.Module):
    """One level: positions from a convolution, then blocks whose windows lie shifted in turn.

    Shapes: (B, C, D, H, W) → the same.

    Source: arXiv:2103.14030 (Swin), arXiv:2102.10882 (conditional positional encodings).
    """

    def __init__(self, width: int, size: _Size, kernel: Triple, recompute: bool = False) -> None:
        super().__init__()
        if width % size.head:
            raise ConfigError(
                "widths", f"multiples of the {size.head} channels of a head", width, where="pyramid"
            )
        self.positions = nn.Conv3d(width, width, kernel, padding=same_padding(kernel), groups=width)
        self.blocks = nn.ModuleList(
            Block(width, size, shifted=bool(index % 2)) for index in range(size.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x + self.positions(x)).movedim(1, -1)
        again = self.recompute and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False) if again else block(tokens)
        return self.norm(tokens).movedim(-1, 1)


class Block(nn.Module):
    """Attention in windows of each slice, across slices, and a feed-forward part.

    Shapes: (B, D, H, W, C) → the same.

    Source: arXiv:2103.14030 (Swin), arXiv:2102.05095 (divided attention).
    """

    def __init__(self, width: int, size: _Size, shifted: bool) -> None:
        super().__init__()
        heads = width // size.head
        self.within = Attention(width, heads)
        self.across = Attention(width, heads)
        self.forward_part = FeedForward(width, size.ratio)
        self.window, self.shifted = size.window, shifted

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.within.in_windows(x, self.window, self.shifted)
        x = x + self.across.along_slices(x)
        return x + self.forward_part(x)


class Attention(nn.Module):
    """Attention among groups of tokens: a window of a slice, or a column of all slices.

    Shapes: (B, D, H, W, C) → the same.

    Source: arXiv:1706.03762 (Vaswani et al.), arXiv:2103.14030 (Swin).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def in_windows(self, x: Tensor, window: int, shifted: bool) -> Tensor:
        """Let tokens of a window in a slice see each other.

        A window is no longer than the slice. Shifted windows begin half a window before the first
        voxel; places outside of the slice are not seen, and nothing wraps around.
        """
        b, d, h, w, _ = x.shape
        sizes = (min(window, h), min(window, w))
        near = [
            size // 2 if shifted and size < n else 0 for size, n in zip(sizes, (h, w), strict=True)
        ]
        far = [-(n + lead) % size for n, lead, size in zip((h, w), near, sizes, strict=True)]
        packed = self.queries_keys_values(self.norm(x))
        mask = None
        if any(near) or any(far):
            packed = F.pad(packed, (0, 0, near[1], far[1], near[0], far[0]))
            inside = F.pad(x.new_ones(h, w, dtype=torch.bool), (near[1], far[1], near[0], far[0]))
            keys = windows(inside[None, :, :, None], *sizes)[0, :, :, 0]
            mask = keys.repeat_interleave(self.heads, 0)[None, :, None, :]
        full = packed.shape[2:4]
        # Windows stand beside heads, so that one mask serves every slice of every image.
        q, k, v = (
            windows(part.flatten(0, 1), *sizes)
            .unflatten(-1, (self.heads, -1))
            .transpose(2, 3)
            .flatten(1, 2)
            for part in packed.chunk(3, dim=-1)
        )
        y = attend(q, k, v, mask)
        y = y.unflatten(1, (-1, self.heads)).transpose(2, 3).flatten(3)
        y = unwindows(y, *sizes, *full).unflatten(0, (b, d))
        return self.out(y[:, :, near[0] : near[0] + h, near[1] : near[1] + w])

    def along_slices(self, x: Tensor) -> Tensor:
        """Let the tokens at one place of all slices see each other."""
        b, d, h, w, c = x.shape
        packed = self.queries_keys_values(self.norm(x))
        columns = packed.permute(0, 2, 3, 1, 4).reshape(b * h * w, d, 3, self.heads, -1)
        q, k, v = columns.permute(2, 0, 3, 1, 4)
        y = attend(q, k, v)
        y = y.transpose(1, 2).reshape(b, h, w, d, c).permute(0, 3, 1, 2, 4)
        return self.out(y)


def windows(x: Tensor, height: int, width: int) -> Tensor:
    """Cut slices into windows, row by row.

    Shapes: (N, H, W, C) → (N, windows, height·width, C).

    Source: arXiv:2103.14030 (Swin).
    """
    n, h, w, c = x.shape
    x = x.reshape(n, h // height, height, w // width, width, c).transpose(2, 3)
    return x.reshape(n, (h // height) * (w // width), height * width, c)


def unwindows(x: Tensor, height: int, width: int, h: int, w: int) -> Tensor:
    """Undo `windows`.

    Shapes: (N, windows, height·width, C) → (N, h, w, C).

    Source: arXiv:2103.14030 (Swin).
    """
    n, c = x.shape[0], x.shape[-1]
    x = x.reshape(n, h // height, w // width, height, width, c).transpose(2, 3)
    return x.reshape(n, h, w, c)
