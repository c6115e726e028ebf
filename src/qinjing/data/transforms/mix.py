"""CutMix in three dimensions: a box of another sample of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from qinjing.data.transforms.transform import interval, probability


@dataclass(frozen=True)
class MixParameters:
    """Per sample: whether, who gives the box, and where it lies.

    Attributes:
        applied: bool `(B,)`.
        partner: number of the giving sample `(B,)`.
        size: the box's edge as a part of the patch's, 0 to 1, `(B, 3)`, (D, H, W).
        place: where the box lies within the room left, 0 to 1, `(B, 3)`.
    """

    applied: np.ndarray
    partner: np.ndarray
    size: np.ndarray
    place: np.ndarray


@dataclass(frozen=True)
class Mix:
    """Replace a box of image and label by the same box of another sample of the batch.

    With a batch of one there is no other sample, and nothing is changed.

    Args:
        size: range of each edge of the box as a part of the patch's, drawn uniformly.
        probability: for each sample.

    Raises:
        ConfigError: a part or a probability outside 0 to 1.

    Source: CutMix, arXiv:1905.04899, with labels cut likewise, as segmentation allows.
    """

    size: tuple[float, float] = (0.25, 0.75)
    probability: float = 0.25

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", interval("size", self.size, low=0.0, high=1.0))
        object.__setattr__(self, "probability", probability("probability", self.probability))

    def draw(self, rng: np.random.Generator, batch: int) -> MixParameters:
        """Draw whether, from whom and where."""
        applied = (rng.random(batch) < self.probability) & (batch > 1)
        others = rng.integers(1, max(batch, 2), batch)
        return MixParameters(
            applied=applied,
            partner=(np.arange(batch) + others) % batch,
            size=rng.uniform(*self.size, (batch, 3)),
            place=rng.random((batch, 3)),
        )

    def apply(
        self, image: Tensor, label: Tensor, parameters: MixParameters
    ) -> tuple[Tensor, Tensor]:
        """Copy the boxes out of the batch as it was given."""
        if not parameters.applied.any():
            return image, label
        mixed_image, mixed_label = image.clone(), label.clone()
        for row in np.flatnonzero(parameters.applied):
            edges = np.round(parameters.size[row] * np.array(label.shape[1:])).astype(int).tolist()
            starts = (
                np.round(parameters.place[row] * (np.array(label.shape[1:]) - edges))
                .astype(int)
                .tolist()
            )
            d, h, w = (slice(s, s + n) for s, n in zip(starts, edges, strict=True))
            giver = int(parameters.partner[row])
            mixed_image[row, :, d, h, w] = image[giver, :, d, h, w]
            mixed_label[row, d, h, w] = label[giver, d, h, w]
        return mixed_image, mixed_label
