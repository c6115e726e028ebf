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
        (self.index_h, self.weight_h), (self.index_w, self.weight_w) = (
            (index.to(device), weight.to(device)) for index, weight in taps[1:]
        )
        self.next_slice = 0  # of the source
        self.next_target = 0
        self.held: Tensor | None = None  # the last source slice, (1, H, W, K)

    def push(self, scores: Tensor) -> None:
        """Take the next (n, H, W, K) normalised scores and write what they complete."""
        if not torch.isfinite(scores.sum()):
            raise QinjingError("the network returned values that are not finite")
        first = self.next_slice
        self.next_slice += len(scores)
        if self.same_grid:
            best, winner = self._probabilities(scores).max(-1)
            self.labels[first : self.next_slice] = winner.cpu().numpy()
            if self.confidence is not None:
                self.confidence[first : self.next_slice] = _as_bytes(best)
            return
        if self.held is not None:
            first -= 1
            scores = torch.cat([self.held, scores])
        block = _Block(scores, first, self)
        while self.next_target < len(self.index_d):
            if int(self.index_d[self.next_target, 1]) >= self.next_slice:
                break
            block.write(self.next_target)
            self.next_target += 1
        self.held = scores[-1:].clone()

    def _probabilities(self, scores: Tensor) -> Tensor:
        wanted = self.confidence is not None and not self.as_probabilities
        return scores.softmax(-1) if wanted else scores


class _Block:
    """Some neighbouring source slices of scores, ready to be read at target slices."""

    def __init__(self, scores: Tensor, first: int, writer: LabelWriter):
        self.first, self.writer = first, writer
        self.scores = scores.flatten(0, 2)
        self.winner = scores.max(-1).indices.to(torch.int16)
        rows = torch.cat([self.winner[:, 1:], self.winner[:, -1:]], 1)
        agree = self.winner == rows
        for other in (self.winner, rows):
            agree &= self.winner == torch.cat([other[..., 1:], other[..., -1:]], 2)
        self.agree = agree  # the four neighbours at (h, h + 1) × (w, w + 1)
        self.probabilities: Tensor | None = None
        if writer.confidence is not None:
            self.probabilities = writer._probabilities(self.scores)
            flat = self.winner.flatten().long()[:, None]
            self.best = self.probabilities.gather(1, flat).view(self.winner.shape)

    def write(self, d: int) -> None:
        """Fill target slice `d`."""
        to = self.writer
        weight_d = to.weight_d[d]
        low, high = (int(i) - self.first for i in to.index_d[d])
        high = low if weight_d[1] == 0 else high
        sure = self.agree[low]
        if high != low:
            sure = sure & self.agree[high] & (self.winner[low] == self.winner[high])
        h, w = to.index_h[:, 0], to.index_w[:, 0]
        labels = self.winner[low].index_select(0, h).index_select(1, w).flatten()
        sure = sure.index_select(0, h).index_select(1, w).flatten()
        places = (~sure).nonzero().squeeze(1)
        index, weight = self._neighbours(places, (low, high), weight_d)
        scores = F.embedding_bag(index, self.scores, per_sample_weights=weight, mode="sum")
        winner = scores.max(-1).indices
        labels[places] = winner.to(labels.dtype)
        to.labels[d] = labels.view(len(h), len(w)).cpu().numpy()
        if to.confidence is None or self.probabilities is None:
            return
        best = self.best[low] * weight_d[0] + self.best[high] * weight_d[1]
        for axis, index_axis in enumerate((to.index_h, to.index_w)):
            best = resample_axis(best, axis, len(index_axis), to.target_scale[axis + 1], 1)
        chances = F.embedding_bag(index, self.probabilities, per_sample_weights=weight, mode="sum")
        best.view(-1)[places] = chances.gather(1, winner[:, None]).squeeze(1)
        to.confidence[d] = _as_bytes(best)

    def _neighbours(
        self, places: Tensor, slices: tuple[int, int], weight_d: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows of the scores around flat target places, and their weights, both (M, 8)."""
        to = self.writer
        _, height, width = self.winner.shape
        h = torch.div(places, len(to.index_w), rounding_mode="floor")
        w = places - h * len(to.index_w)
        plane = torch.tensor(slices, device=places.device) * (height * width)
        index = (
            plane[None, :, None, None]
            + to.index_h[h][:, None, :, None] * width
            + to.index_w[w][:, None, None, :]
        )
        weight = (
            weight_d.to(places.device)[None, :, None, None]
            * to.weight_h[h][:, None, :, None]
            * to.weight_w[w][:, None, None, :]
        )
        return index.flatten(1), weight.flatten(1)


def _as_bytes(probability: Tensor) -> np.ndarray:
    return (probability * 255).round().clamp_(0, 255).to(torch.uint8).cpu().numpy()
