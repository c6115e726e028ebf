"""Segmentation from few labels and many images: the average of the weights teaches the rest."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.data.cache import IGNORED, CachedCase
from qinjing.data.patches import batch_of_patches, draw_cases
from qinjing.data.transforms import augmentation_from_config, strong_intensity
from qinjing.engine import parallel
from qinjing.engine.plan import Plan
from qinjing.nets.pretrainer import first_of
from qinjing.tasks.segment import SegmentTask

# Share of the schedule before which the teacher, who knows little yet, says nothing, and share over
# which its word then gains its full weight.
_START = 0.3
_RAMP = 0.3
_SURE = 0.6  # probability of its class from which the teacher is believed


class MeanTeacherTask(SegmentTask):
    """Learn to label voxels, from a teacher too where there is no label.

    A batch has as many unlabelled patches as labelled ones. The teacher, the moving average
    of the weights, sees them as they lie; the student sees them changed in grey values and with a
    block of a labelled patch in its place among them, or all but a block. There it learns the
    label, elsewhere the class that the teacher is sure of.

    Args:
        net: as for `SegmentTask`.
        plan: as for `SegmentTask`; its `unlabelled_weight` is that of the teacher's word.
        train: labelled cases.
        unlabelled: cases whose images alone are looked at; the labelled ones join them.
        validation: cases to measure on.
        seed: with a step and a rank it decides every draw.

    Source: arXiv:1703.01780 (Mean Teacher), arXiv:2001.07685 (FixMatch: sure classes as targets,
        weak and strong views), arXiv:2305.00673 (blocks of labelled images among unlabelled ones
        and the other way round).
    """

    def __init__(
        self,
        net: nn.Module,
        plan: Plan,
        train: Sequence[CachedCase],
        unlabelled: Sequence[CachedCase],
        validation: Sequence[CachedCase],
        seed: int,
    ) -> None:
        super().__init__(net, plan, train, validation, seed)
        self.images = [*unlabelled, *train]
        self.spatial = augmentation_from_config(
            [one for one in plan.augmentation if one["name"] in ("affine", "flip")]
        )
        self.strong = augmentation_from_config(strong_intensity())
        self.teacher: nn.Module = net

    def follow(self, average: Mapping[str, Tensor]) -> None:
        """Let the teacher's weights be the average that the loop keeps."""
        self.teacher = copy.deepcopy(self.net).eval()
        self.teacher.load_state_dict(dict(average), assign=True)
        self.teacher.requires_grad_(False)

    def batch(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
        """Return labelled patches, unlabelled ones as they lie, and the latter changed and mixed.

        Shapes: (3·B, C, D, H, W) float32; (2·B, D, H, W) int64, labels of the first, and of what
        was mixed into the last, `IGNORED` elsewhere.
        """
        images, labels = super().batch(step, rank)
        size, device = self.plan.batch_size, self.plan.execution.device
        across = step * parallel.world_size() + rank
        every = self.keep(self.images, step)
        picks = draw_cases(len(every), size, across, self.seed + 1)
        rng = np.random.default_rng((self.seed, 4, step, rank))
        # Without its places a label cannot steer where patches are cut; the map is thrown away.
        cases = [replace(every[pick], foreground=()) for pick in picks]
        weak, unused = batch_of_patches(rng, cases, self.plan.patch_size, 0.0, self.spatial.margin)
        weak, unused = weak.to(device), unused.to(device)
        weak, unused = self.spatial.apply(weak, unused, self.spatial.draw(rng, size))
        strong, _ = self.strong.apply(weak, unused, self.strong.draw(rng, size))
        pasted = blocks(rng, labels.shape).to(device)
        mixed = torch.where(pasted[:, None], images, strong)
        return torch.cat([images, weak, mixed]), torch.cat([labels, labels.where(pasted, IGNORED)])

    def loss(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """Return the plan's loss on what is labelled, and the teacher's on the rest."""
        labelled, weak, mixed = inputs.split(self.plan.batch_size)
        targets, pasted = targets.split(self.plan.batch_size)
        supervised = super().loss(labelled, targets, share)
        weight = self.plan.unlabelled_weight * min(1.0, max(0.0, share - _START) / _RAMP)
        if not weight:
            return supervised
        known = pasted != IGNORED
        with torch.no_grad():
            told = first_of(self.teacher(weak)).float().softmax(1)
            true = F.one_hot(pasted * known, told.shape[1]).movedim(-1, 1).float()
            told = torch.where(known[:, None], true, told)
        sure, classes = told.max(1)
        scores = first_of(self.net(mixed)).float()
        believed = (sure > _SURE).float()
        entropy = F.cross_entropy(scores, classes, reduction="none")
        part = (entropy * believed).sum() / believed.sum().clamp_min(1)
        part = part + soft_overlap_loss(scores.softmax(1), told)
        return supervised + weight * part


def soft_overlap_loss(found: Tensor, told: Tensor) -> Tensor:
    """One minus the mean Dice of probabilities (B, K, D, H, W) over the foreground's classes."""
    space = (0, *range(2, found.ndim))
    overlap = (found * told).sum(space)[1:]
    total = (found.square() + told.square()).sum(space)[1:]
    return 1 - (2 * overlap / total.clamp_min(1e-6)).mean()


def blocks(rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Return a block of half to two thirds of each axis in each patch, or all but it, as a mask.

    Shapes: → (B, D, H, W) bool for `shape` of the four.

    Source: arXiv:2305.00673 (Bidirectional Copy-Paste: blocks of two thirds).
    """
    masks = np.zeros(shape, bool)
    for mask in masks:
        box = []
        for n in mask.shape:
            length = max(1, round(n * rng.uniform(0.5, 0.67)))
            start = int(rng.integers(n - length + 1))
            box.append(slice(start, start + length))
        mask[tuple(box)] = True
    inside = rng.random(len(masks)) < 0.5
    return torch.from_numpy(masks ^ ~inside[:, None, None, None])


def learning_task(
    net: nn.Module,
    plan: Plan,
    train: Sequence[CachedCase],
    unlabelled: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    seed: int,
) -> SegmentTask:
    """Return the task that a plan asks for: with a teacher where it gives its word any weight."""
    if plan.unlabelled_weight:
        return MeanTeacherTask(net, plan, train, unlabelled, validation, seed)
    return SegmentTask(net, plan, train, validation, seed)
