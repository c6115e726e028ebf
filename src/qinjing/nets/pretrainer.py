"""What pre-training puts on a trunk: heads, prototypes, a planar twin, a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.nets.blocks import Triple

HIDDEN, EMBEDDING = 256, 64


class ProjectionHead(nn.Module):
    """A perceptron onto the unit sphere, then similarities to learnt prototypes.

    Shapes: (N, channels) → embeddings (N, 64) of length 1, scores (N, prototypes) from −1 to 1.

    Args:
        channels: of the features.
        prototypes: K.

    Source: arXiv:2104.14294 (DINO's head, prototypes of length 1).
    """

    def __init__(self, channels: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, EMBEDDING),
        )
        self.prototypes = nn.Linear(EMBEDDING, prototypes, bias=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        embedding = F.normalize(self.layers(features).float(), dim=-1)
        return embedding, embedding @ F.normalize(self.prototypes.weight.float(), dim=-1).T


class Pretrainer(nn.Module):
    """A trunk in three dimensions, its planar twin, and the heads that pre-training needs.

    Shapes: `tokens` gives features of cells, (B, channels, D, H, W) → (B, N, features).

    Args:
        trunk: image (B, C, D, H, W) → features (B, features, D, H, W), or a tuple of which the
            first is that.
        planar: the same for one slice, (B, C, 1, H, W); None goes without.
        in_channels: C.
        features: channels of the trunk's output.
        prototypes: K of each head.
        cell: voxels along D, H and W whose features are averaged into one token.

    Source: arXiv:2304.07193 (DINOv2: heads for image and patches apart), arXiv:2111.09886 (SimMIM).
    """

    def __init__(
        self,
        trunk: nn.Module,
        planar: nn.Module | None,
        in_channels: int,
        features: int,
        prototypes: int,
        cell: Triple,
    ) -> None:
        super().__init__()
        self.trunk, self.planar, self.cell = trunk, planar, cell
        self.cell_head = ProjectionHead(features, prototypes)
        self.image_head = ProjectionHead(features, prototypes)
        self.reconstruct = nn.Conv3d(features, in_channels, 1)
        self.hidden = nn.Parameter(torch.zeros(1, in_channels, 1, 1, 1))

    def features(self, image: Tensor, masked: Tensor | None = None) -> Tensor:
        """Return (B, features, D, H, W) of an image, hidden where `masked` (B, 1, D, H, W) is 1."""
        if masked is not None:
            image = torch.where(masked.bool(), self.hidden.to(image.dtype), image)
        return first_of(self.trunk(image))

    def plane_features(self, image: Tensor, axis: int, index: int) -> Tensor:
        """Return features of one slice across an axis (0, 1, 2: D, H, W), its length there 1.

        Raises:
            ConfigError: it was built without a planar twin.
        """
        if self.planar is None:
            raise ConfigError(
                "planar", "a network that sees single slices", "none", where="pretrainer"
            )
        plane = image.narrow(axis + 2, index, 1).movedim(axis + 2, 2)
        return first_of(self.planar(plane)).movedim(2, axis + 2)

    def tokens(self, features: Tensor, flat_axis: int | None = None) -> Tensor:
        """Average features over cells, 1 thick on a flat axis: (B, F, D, H, W) → (B, N, F)."""
        cell = [1 if axis == flat_axis else n for axis, n in enumerate(self.cell)]
        return F.avg_pool3d(features, cell, cell).flatten(2).transpose(1, 2)

    def whole(self, features: Tensor) -> Tensor:
        """Return the mean over space, (B, F, D, H, W) → (B, F)."""
        return features.mean((2, 3, 4))


def first_of(output: Tensor | Sequence[Tensor]) -> Tensor:
    """Return a network's output at full resolution, the first where there are several.

    Source: none; the convention of deep supervision here.
    """
    return output if isinstance(output, Tensor) else output[0]
