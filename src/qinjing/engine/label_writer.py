"""From slices of class scores to labels on another grid, without interpolating what is sure.

Where the arg-max agrees at all eight neighbours of a target voxel, linear interpolation (a convex
sum) keeps that class the largest, so the neighbours' label is exact and nothing is computed. All
classes are interpolated at the other voxels only.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qinjing.data.resample import axis_taps, resample_axis
from qinjing.errors import QinjingError

Shape = tuple[int, int, int]

_BLOCK_BYTES = 48 << 20  # class scores normalised and arg-maxed at a time


class LabelWriter:
    """Turns final slices of scores, given in order, into labels on the target grid."""

    def __init__(
        self,
        shape: Shape,
        target_shape: Shape,
        target_scale: tuple[float, float, float],
        n_classes: int,
        as_probabilities: bool,
        confidence: bool,
        device: torch.device,
    ):
        self.labels = np.empty(target_shape, np.uint8 if n_classes <= 256 else np.uint16)
        self.confidence = np.empty(target_shape, np.uint8) if confidence else None
        self.as_probabilities = as_probabilities
        plane_bytes = 4 * n_classes * shape[1] * shape[2]
        self.block_slices = max(1, _BLOCK_BYTES // plane_bytes)
        self.shape, self.target_scale = shape, target_scale
        self.same_grid = shape == target_shape and all(
            abs(s - 1) * n < 1e-3 for s, n in zip(target_scale, shape, strict=True)
        )
        taps = [
            axis_taps(n, m, s, 1) for n, m, s in zip(shape, target_shape, target_scale, strict=True)
        ]
        self.index_d, self.weight_d = taps[0]
        (self.index_h, weight_h), (self.index_w, weight_w) = (
            (index.to(device), weight.to(device)) for index, weight in taps[1:]
        )
        # For each target voxel of a slice: its four neighbours in the source slice, and weights.
        self.neighbours = (self.index_h[:, None, :, None] * shape[2] + self.index_w[:, None]).view(
            -1, 4
        )
        self.weights = (weight_h[:, None, :, None] * weight_w[:, None]).view(-1, 4)
        self.next_slice = 0  # of the source
        self.next_target = 0
        # The last source slice of the block before, then the block.
        self.buffer = torch.empty((1 + self.block_slices, *shape[1:], n_classes), device=device)

    def room(self, n: int) -> Tensor:
        """Return where to put the next n ≤ block_slices slices of scores, as (n, H, W, K)."""
        return self.buffer[1 : 1 + n]

    def push(self, n: int) -> None:
        """Take the n slices put into `room` and write the target slices that they complete.

        Raises:
            QinjingError: scores that are not finite.
        """
        scores, first = self.room(n), self.next_slice
        if not torch.isfinite(scores.sum()):
            raise QinjingError("the network returned values that are not finite")
        self.next_slice += n
        if self.same_grid:
            best, winner = self._probabilities(scores).max(-1)
            self.labels[first : self.next_slice] = winner.cpu().numpy()
            if self.confidence is not None:
                self.confidence[first : self.next_slice] = _as_bytes(best)
            return
        held = int(first > 0)
        block = _Block(self.buffer[1 - held : 1 + n], first - held, self)
        while self.next_target < len(self.index_d):
            if int(self.index_d[self.next_target, 1]) >= self.next_slice:
                break
            block.write(self.next_target)
            self.next_target += 1
        self.buffer[0] = scores[-1]

    def _probabilities(self, scores: Tensor) -> Tensor:
        wanted = self.confidence is not None and not self.as_probabilities
        return scores.softmax(-1) if wanted else scores


class _Block:
    """Some neighbouring source slices of scores, ready to be read at target slices."""

    def __init__(self, scores: Tensor, first: int, writer: LabelWriter):
        self.first, self.writer, self.scores = first, writer, scores
        self.winner = scores.max(-1).indices.to(torch.int16)
        rows = torch.cat([self.winner[:, 1:], self.winner[:, -1:]], 1)
        agree = self.winner == rows
        for other in (self.winner, rows):
            agree &= self.winner == torch.cat([other[..., 1:], other[..., -1:]], 2)
        self.agree = agree  # the four neighbours at (h, h + 1) × (w, w + 1)
        self.probabilities: Tensor | None = None
        if writer.confidence is not None:
            self.probabilities = writer._probabilities(self.scores)
            self.best = self.probabilities.gather(-1, self.winner.long()[..., None])[..., 0]

    def write(self, d: int) -> None:
        """Fill target slice `d`."""
        to = self.writer
        upper = float(to.weight_d[d, 1])
        low, high = (int(i) - self.first for i in to.index_d[d])
        high = high if upper else low
        sure = self.agree[low]
        if high != low:
            sure = sure & self.agree[high] & (self.winner[low] == self.winner[high])
        h, w = to.index_h[:, 0], to.index_w[:, 0]
        labels = self.winner[low].index_select(0, h).index_select(1, w).flatten()
        sure = sure.index_select(0, h).index_select(1, w).flatten()
        places = (~sure).nonzero().squeeze(1)
        index = to.neighbours.index_select(0, places)
        weight = to.weights.index_select(0, places)

        def at_places(values: Tensor) -> Tensor:
            plane = values[low] if high == low else torch.lerp(values[low], values[high], upper)
            return F.embedding_bag(
                index, plane.flatten(0, 1), per_sample_weights=weight, mode="sum"
            )

        scores = at_places(self.scores)
        winner = scores.max(-1).indices
        labels[places] = winner.to(labels.dtype)
        to.labels[d] = labels.view(len(h), len(w)).cpu().numpy()
        if to.confidence is None or self.probabilities is None:
            return
        best = torch.lerp(self.best[low], self.best[high], upper)
        for axis, index_axis in enumerate((to.index_h, to.index_w)):
            best = resample_axis(best, axis, len(index_axis), to.target_scale[axis + 1], 1)
        chances = at_places(self.probabilities)
        best.view(-1)[places] = chances.gather(1, winner[:, None]).squeeze(1)
        to.confidence[d] = _as_bytes(best)


def _as_bytes(probability: Tensor) -> np.ndarray:
    return (probability * 255).round().clamp_(0, 255).to(torch.uint8).cpu().numpy()
