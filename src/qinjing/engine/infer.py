"""Predict a whole volume in bounded memory: cut, run, blend and arg-max slab by slab.

Windows are walked in order of their first slice. A ring of as many slices as a window is deep holds
the blended class scores; slices that no later window touches are final: they are interpolated to
the target grid, arg-maxed (`label_writer.py`) and dropped. Class scores of the whole volume never
exist, on neither grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qinjing.data.resample import resample_volume
from qinjing.engine.label_writer import LabelWriter, Shape
from qinjing.errors import ConfigError
from qinjing.volume import Volume

Net = Callable[[Tensor], Tensor]

_SIGMA = 0.125  # of the patch length, as MONAI and nnU-Net
_LEAST_WEIGHT = 1e-3  # MONAI's floor, so that corners count for something


@dataclass(frozen=True)
class Window:
    """How a volume is cut into overlapping windows and put together again.

    Attributes:
        patch_size: voxels along (D, H, W), on the network's grid.
        overlap: share of a window that the next one covers again, 0 ≤ overlap < 1.
        blend: "gaussian" weighs a window's centre more, "constant" weighs all alike.
        flips: for each pass of test-time augmentation, the axes (0 = D, 1 = H, 2 = W) mirrored in
            it; ``((),)`` is one plain pass.
        batch_size: windows run at once.

    Raises:
        ConfigError: a value out of its range.
    """

    patch_size: Shape
    overlap: float = 0.5
    blend: Literal["gaussian", "constant"] = "gaussian"
    flips: tuple[tuple[int, ...], ...] = ((),)
    batch_size: int = 1

    def __post_init__(self) -> None:
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise ConfigError("patch_size", "three positive lengths", self.patch_size)
        if not 0 <= self.overlap < 1:
            raise ConfigError("overlap", "at least 0 and below 1", self.overlap)
        if self.blend not in ("gaussian", "constant"):
            raise ConfigError("blend", "gaussian or constant", self.blend)
        if not self.flips or any(set(f) - {0, 1, 2} for f in self.flips):
            raise ConfigError("flips", "tuples of axes out of 0, 1 and 2", self.flips)
        if self.batch_size < 1:
            raise ConfigError("batch_size", "at least 1", self.batch_size)


@dataclass(frozen=True)
class Prediction:
    """What `predict_volume` found.

    Attributes:
        labels: (D', H', W') uint8, or uint16 above 256 classes: the class of each voxel.
        confidence: (D', H', W') uint8 where asked for: that class's probability, 255 is certain.
    """

    labels: np.ndarray
    confidence: np.ndarray | None = None


def window_starts(length: int, patch: int, overlap: float) -> list[int]:
    """Return where windows start along one axis of at least `patch` voxels.

    Steps of int(patch · (1 − overlap)) voxels, the last window moved back to fit.

    Source: MONAI 1.6 `dense_patch_slices` and `_get_scan_interval`.
    """
    if length == patch:
        return [0]
    step = max(1, int(patch * (1 - overlap)))
    starts = list(range(0, length - patch, step))
    return [*starts, length - patch]


def window_weight(patch_size: Shape, blend: str) -> Tensor:
    """Return how much each voxel of a window counts, (D, H, W) float32 in (0, 1].

    Source: MONAI 1.6 `compute_importance_map`, sigma_scale 0.125.
    """
    if blend == "constant":
        return torch.ones(patch_size)
    weight = torch.ones(())
    for n in patch_size:
        x = torch.arange(-(n - 1) / 2.0, (n - 1) / 2.0 + 1, dtype=torch.float32)
        weight = weight.unsqueeze(-1) * torch.exp(x**2 / (-2 * (_SIGMA * n) ** 2))
    return weight.clamp_(min=max(float(weight.min()), _LEAST_WEIGHT))


@torch.inference_mode()
def predict_volume(
    nets: Sequence[Net],
    image: Tensor,
    window: Window,
    n_classes: int,
    *,
    target_shape: Shape | None = None,
    target_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    precision: Literal["fp32", "bf16"] = "fp32",
    confidence: bool = False,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Predict every voxel's class.

    One net without flips: windows' logits are blended and interpolated. Several nets or flips: the
    mean of their softmax probabilities in each window is. Memory beside the image and the result:
    n_classes · patch depth · H · W floats, and what the nets take for one batch.

    Args:
        nets: each takes (B, C, *patch_size) float32 and returns logits (B, n_classes, *patch_size);
            in evaluation mode, on `device`.
        image: (C, D, H, W) float32 on the network's grid, normalised.
        window: how to cut and blend.
        n_classes: background included.
        target_shape: (D', H', W') of the grid wanted; the image's own where None.
        target_scale: source steps in one target step (target spacing / network spacing).
        precision: "bf16" runs the nets under autocast; blending stays in float32.
        confidence: return the probability map as well.
        device: where windows run and scores are blended; the image's where None.
        progress: called with windows done and windows in all.

    Raises:
        ConfigError: no net, an image that is not 4-D, or a net's output of another shape.
        QinjingError: a net returned values that are not finite.
    """
    if not nets:
        raise ConfigError("nets", "at least one", "none")
    if image.ndim != 4 or 0 in image.shape:
        raise ConfigError("image", "(C, D, H, W), none of them 0", tuple(image.shape))
    device = device or image.device
    shape: Shape = (image.shape[1], image.shape[2], image.shape[3])
    as_probabilities = len(nets) * len(window.flips) > 1
    writer = LabelWriter(
        shape, target_shape or shape, target_scale, n_classes, as_probabilities, confidence, device
    )
    missing = [max(p - n, 0) for p, n in zip(window.patch_size, shape, strict=True)]
    before = [m // 2 for m in missing]
    if any(missing):
        pads = [(b, m - b) for b, m in zip(before, missing, strict=True)]
        image = F.pad(image, [side for pad in reversed(pads) for side in pad])
    starts = [
        window_starts(n, p, window.overlap)
        for n, p in zip(image.shape[1:], window.patch_size, strict=True)
    ]
    weight = window_weight(window.patch_size, window.blend).to(device)
    slab = _Slab(n_classes, window.patch_size[0], (image.shape[2], image.shape[3]), device)
    inside = (slice(before[1], before[1] + shape[1]), slice(before[2], before[2] + shape[2]))
    done, total = 0, len(starts[0]) * len(starts[1]) * len(starts[2])
    for row, d in enumerate(starts[0]):
        for corners in _batches(list(product(starts[1], starts[2])), window.batch_size):
            patches = torch.stack([_cut(image, (d, *c), window.patch_size) for c in corners])
            scores = _run(nets, patches.to(device), window.flips, precision, as_probabilities)
            if scores.shape != (len(corners), n_classes, *window.patch_size):
                wanted = (len(corners), n_classes, *window.patch_size)
                raise ConfigError("net output", f"of shape {wanted}", tuple(scores.shape))
            for score, corner in zip(scores, corners, strict=True):
                slab.add(score, weight, (d, *corner))
            done += len(corners)
            if progress:
                progress(done, total)
            del patches, scores
        last = row + 1 == len(starts[0])
        end = before[0] + shape[0] if last else starts[0][row + 1]
        for z in range(max(d, before[0]), end, writer.block_slices):
            stop = min(z + writer.block_slices, end)
            slab.take(z, stop, inside, out=writer.room(stop - z))
            writer.push(stop - z)
        slab.clear(d, d + window.patch_size[0] if last else end)
    return Prediction(writer.labels, writer.confidence)


def predict_labels_on_grid(
    nets: Sequence[Net],
    volume: Volume,
    window: Window,
    n_classes: int,
    *,
    spacing_mm: tuple[float, float, float],
    normalise: Callable[[Tensor], Tensor],
    order: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    confidence: bool = False,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Volume, Volume | None]:
    """Predict the labels of a scan on exactly its own grid.

    Args:
        nets: as in `predict_volume`.
        volume: the scan as read, (D, H, W) or (C, D, H, W), any axis order.
        window: how to cut and blend.
        n_classes: background included.
        spacing_mm: the network's grid along (S, P, L).
        normalise: takes and returns (C, D, H, W) float32 on the network's grid; may work in place.
        order: of interpolation to the network's grid, 0, 1 or 3.
        precision: "fp32" or "bf16".
        confidence: return the probability map as well.
        device: where the nets are; the CPU where None.
        progress: called with windows done and windows in all.

    Returns:
        The label map, and the confidence in 1/255 where asked for, with the scan's shape, axis
        order and affine.

    Raises:
        ConfigError: options that do not fit.
        QinjingError: a net returned values that are not finite.
    """
    upright = volume.canonical()
    image = torch.from_numpy(resample_volume(upright, spacing_mm, order).voxels).to(torch.float32)
    scale = [own / net for own, net in zip(upright.spacing_mm, spacing_mm, strict=True)]
    found = predict_volume(
        nets,
        normalise(image if image.ndim == 4 else image[None]),
        window,
        n_classes,
        target_shape=upright.shape,
        target_scale=(scale[0], scale[1], scale[2]),
        precision=precision,
        confidence=confidence,
        device=device,
        progress=progress,
    )
    grid = replace(upright, voxels=found.labels)
    labels = grid.restore_axes(volume)
    if found.confidence is None:
        return labels, None
    return labels, grid.with_voxels(found.confidence).restore_axes(volume)


def _batches(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _cut(image: Tensor, start: Sequence[int], patch_size: Shape) -> Tensor:
    d, h, w = (slice(s, s + n) for s, n in zip(start, patch_size, strict=True))
    return image[:, d, h, w]


def _run(
    nets: Sequence[Net],
    patches: Tensor,
    flips: tuple[tuple[int, ...], ...],
    precision: str,
    as_probabilities: bool,
) -> Tensor:
    """Scores (B, K, d, h, w) float32: one pass's logits, or the passes' mean probabilities."""
    mean: Tensor | None = None
    for net, flip in product(nets, flips):
        dims = [axis + 2 for axis in flip]
        with torch.autocast(patches.device.type, torch.bfloat16, enabled=precision == "bf16"):
            scores = net(patches.flip(dims) if dims else patches)
        scores = scores.to(torch.float32)
        if not as_probabilities:
            return scores
        scores = scores.softmax(1)
        scores = scores.flip(dims) if dims else scores
        mean = scores if mean is None else mean.add_(scores)
    assert mean is not None
    return mean.div_(len(nets) * len(flips))


class _Slab:
    """A ring of slices that holds the blended scores of the windows not yet final."""

    def __init__(self, n_classes: int, depth: int, plane: tuple[int, int], device: torch.device):
        self.depth = depth
        self.shape = (n_classes, depth, *plane)
        self.weight = torch.zeros((depth, *plane), device=device)
        self.scores: Tensor | None = None

    def _ring(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """The parts of [start, stop): where in the ring, and where in the range."""
        done = start
        while done < stop:
            slot = done % self.depth
            n = min(stop - done, self.depth - slot)
            yield slice(slot, slot + n), slice(done - start, done - start + n)
            done += n

    def add(self, score: Tensor, weight: Tensor, corner: tuple[int, int, int]) -> None:
        """Add one window's (K, d, h, w) scores, weighted."""
        if self.scores is None:  # laid out as the net's output is, so that adding is one pass
            k, *space = self.shape
            last = score.stride(0) == 1 and score.shape[0] > 1
            self.scores = (
                torch.zeros((*space, k), device=score.device).permute(3, 0, 1, 2)
                if last
                else torch.zeros(self.shape, device=score.device)
            )
        d, *start = corner
        h, w = (slice(s, s + n) for s, n in zip(start, weight.shape[1:], strict=True))
        for slots, part in self._ring(d, d + self.depth):
            self.scores[:, slots, h, w].addcmul_(score[:, part], weight[part])
            self.weight[slots, h, w] += weight[part]

    def take(self, start: int, stop: int, inside: tuple[slice, slice], out: Tensor) -> None:
        """Put the normalised scores of final slices into `out`, (n, H, W, K)."""
        assert self.scores is not None
        h, w = inside
        for slots, part in self._ring(start, stop):
            scores = self.scores[:, slots, h, w].permute(1, 2, 3, 0)
            torch.div(scores, self.weight[slots, h, w, None], out=out[part])

    def clear(self, start: int, stop: int) -> None:
        """Make the slots of final slices free for later ones."""
        assert self.scores is not None
        for slots, _ in self._ring(start, stop):
            self.scores[:, slots] = 0
            self.weight[slots] = 0
