"""Segmentation: what a batch, a loss and a validation are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from qinjing import registry
from qinjing.data.cache import IGNORED, CachedCase
from qinjing.data.patches import batch_of_patches, draw_cases
from qinjing.data.transforms import augmentation_from_config
from qinjing.engine import parallel
from qinjing.engine.infer import Window, predict_volume
from qinjing.engine.plan import Plan
from qinjing.losses import LOSSES, ShapeLoss, deep_supervision, reweight_gradients
from qinjing.tasks.consented import Keep, all_of

_OVERLAP = 0.5


class SegmentTask:
    """Learn to label voxels.

    Args:
        net: maps (B, C, D, H, W) to logits (B, K, D, H, W); while training it may return a tuple,
            full resolution first.
        plan: patches, batch, augmentation and loss.
        train: cases to draw patches from.
        validation: cases to measure on.
        seed: with a step and a rank it decides every draw.
    """

    def __init__(
        self,
        net: nn.Module,
        plan: Plan,
        train: Sequence[CachedCase],
        validation: Sequence[CachedCase],
        seed: int,
    ) -> None:
        self.net = net
        self.plan = plan
        self.train = train
        self.validation = validation
        self.seed = seed
        self.keep: Keep = all_of  # of the cases those that may still be used
        self.augmentation = augmentation_from_config(plan.augmentation)
        self.criterion = registry.build(LOSSES, "loss", plan.loss, **plan.loss_options)
        if plan.gradient_weighting:
            reweight_gradients(net, plan.gradient_weighting)

    def batch(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
        """Return augmented patches (B, C, D, H, W) float32 and classes (B, D, H, W) int64."""
        size = self.plan.batch_size
        across = step * parallel.world_size() + rank  # processes share an epoch between them
        train = self.keep(self.train, step)
        picks = draw_cases(len(train), size, across, self.seed)
        rng = np.random.default_rng((self.seed, 2, step, rank))
        cases = [train[pick] for pick in picks]
        images, labels = batch_of_patches(
            rng, cases, self.plan.patch_size, self.plan.foreground, self.augmentation.margin,
            # Beside what annotators said of a few voxels, padding must not say "background".
            IGNORED if "ignored" in self.plan.loss_options else 0,
        )  # fmt: skip
        drawn = self.augmentation.draw(rng, size)
        device = self.plan.execution.device
        images, labels = self.augmentation.apply(images.to(device), labels.to(device), drawn)
        return images, labels.long()

    def loss(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """Return the plan's loss, at every resolution that the net returns."""
        if isinstance(self.criterion, ShapeLoss):
            self.criterion.at(share)
        outputs = self.net(inputs)
        if isinstance(outputs, Tensor):
            return self.criterion(outputs.float(), targets)
        multiple = getattr(self.net, "multiple", None)
        return deep_supervision(self.criterion, outputs, targets, multiple=multiple)

    def follow(self, average: Mapping[str, Tensor]) -> None:
        """Nothing is learnt from a teacher."""

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Return each class's mean Dice over the validation cases, and their mean as "score".

        Cases where a class is neither there nor predicted do not count for it.
        """
        dice = np.array([self._dice(net, case) for case in self.keep(self.validation)])
        known = ~np.isnan(dice)
        means = np.where(known, dice, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        measures = {
            f"dice_{value}": round(float(mean), 5)
            for value, mean in zip(self.plan.label_values[1:], means, strict=True)
        }
        return {**measures, "score": round(float(means.mean()), 5)}

    def _dice(self, net: nn.Module, case: CachedCase) -> list[float]:
        image = torch.from_numpy(np.array(case.image))
        execution = self.plan.execution
        found = predict_volume(
            [net],
            image,
            window_for(self.plan),
            self.plan.classes,
            precision=execution.precision,
            device=torch.device(execution.device),
        ).labels
        known = np.asarray(case.label) != IGNORED
        scores = []
        for index in range(1, self.plan.classes):
            ours, truth = (found == index) & known, case.label == index
            total = int(ours.sum()) + int(truth.sum())
            scores.append(2 * int((ours & truth).sum()) / total if total else float("nan"))
        return scores


def window_for(plan: Plan, flips: tuple[tuple[int, ...], ...] = ((),)) -> Window:
    """Return how to cut a volume on the plan's grid: as training did, half overlapping.

    One large window would be cheaper, but the network sees other statistics and borders in it than
    it was trained with: on the hippocampus Dice 0.8817 instead of 0.8851.
    """
    # torch takes the small maps of a single float32 window down a path of its own ("slow_conv3d");
    # two at once are a sixth faster each.
    how = plan.execution
    together = 2 if (how.device, how.precision) == ("cpu", "fp32") else 1
    return Window(plan.patch_size, overlap=_OVERLAP, flips=flips, batch_size=together)


def all_flips(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return every combination of mirrored axes, none first."""
    combinations: list[tuple[int, ...]] = [()]
    for axis in axes:
        combinations += [(*flip, axis) for flip in combinations]
    return tuple(combinations)
