"""Segmentation from few labels and many images: the average of the weights teaches the rest."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.data.cache import CachedCase
from qinjing.data.patches import batch_of_patches, draw_cases
from qinjing.data.transforms import augmentation_from_config, strong_intensity
from qinjing.engine import parallel
from qinjing.engine.plan import Plan
from qinjing.nets.pretrainer import first_of
from qinjing.tasks.segment import SegmentTask

_RAMP = 0.3  # share of the schedule over which the teacher's word gains its full weight
_SURE = 0.6  # probability of its class from which the teacher is believed


class MeanTeacherTask(SegmentTask):
    """Learn to label voxels, from a teacher too where there is no label.

    A batch has as many unlabelled patches as labelled ones. The teacher, the moving average
    of the weights, sees them as they lie, the student changed in grey values and with blocks
    hidden. The student learns the class that the teacher is sure of.

    Args:
        net: as for `SegmentTask`.
        plan: as for `SegmentTask`; its `unlabelled_weight` is that of the teacher's word.
        train: labelled cases.
        unlabelled: cases whose images alone are looked at; the labelled ones join them.
        validation: cases to measure on.
        seed: with a step and a rank it decides every draw.

    Source: arXiv:1703.01780 (Mean Teacher), arXiv:2001.07685 (FixMatch: sure classes as targets,
        weak and strong views).
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
        """Return labelled patches, then unlabelled ones weakly and strongly changed; their labels.

        Shapes: (3·B, C, D, H, W) float32; (B, D, H, W) int64.
        """
        images, labels = super().batch(step, rank)
        size, device = self.plan.batch_size, self.plan.execution.device
        across = step * parallel.world_size() + rank
        picks = draw_cases(len(self.images), size, across, self.seed + 1)
        rng = np.random.default_rng((self.seed, 4, step, rank))
        # Without its places a label cannot steer where patches are cut; the map is thrown away.
        cases = [replace(self.images[pick], foreground=()) for pick in picks]
        weak, unused = batch_of_patches(rng, cases, self.plan.patch_size, 0.0, self.spatial.margin)
        weak, unused = weak.to(device), unused.to(device)
        weak, unused = self.spatial.apply(weak, unused, self.spatial.draw(rng, size))
        strong, _ = self.strong.apply(weak, unused, self.strong.draw(rng, size))
        strong = hide_block(strong.clone(), rng)
        return torch.cat([images, weak, strong]), labels

    def loss(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """Return the plan's loss on what is labelled, and the teacher's on the rest."""
        labelled, weak, strong = inputs.split(self.plan.batch_size)
        supervised = super().loss(labelled, targets, share)
        with torch.no_grad():
            told = first_of(self.teacher(weak)).float().softmax(1)
        sure, classes = told.max(1)
        scores = first_of(self.net(strong)).float()
        believed = (sure > _SURE).float()
        entropy = F.cross_entropy(scores, classes, reduction="none")
        part = (entropy * believed).sum() / believed.sum().clamp_min(1)
        part = part + soft_overlap_loss(scores.softmax(1), told)
        return supervised + self.plan.unlabelled_weight * min(1.0, share / _RAMP) * part


def soft_overlap_loss(found: Tensor, told: Tensor) -> Tensor:
    """One minus the mean Dice of probabilities (B, K, D, H, W) over the foreground's classes."""
    space = (0, *range(2, found.ndim))
    overlap = (found * told).sum(space)[1:]
    total = (found.square() + told.square()).sum(space)[1:]
    return 1 - (2 * overlap / total.clamp_min(1e-6)).mean()


def hide_block(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Set a block of a third to a half of each axis to the image's mean, in place.

    Source: arXiv:1708.04552 (Cutout).
    """
    for image in images:
        box = []
        for n in image.shape[1:]:
            length = max(1, int(n * rng.uniform(0.33, 0.5)))
            start = int(rng.integers(n - length + 1))
            box.append(slice(start, start + length))
        image[(slice(None), *box)] = image.mean()
    return images


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
