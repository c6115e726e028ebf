"""Which cases to label next: those unlike what is labelled, or those that a model is unsure of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qinjing.data.case import Case
from qinjing.data.preprocess import read_image, read_standardised
from qinjing.engine.checkpoint import load_model
from qinjing.engine.device import default_device
from qinjing.errors import ConfigError, FormatError, InputError, LayoutError
from qinjing.nets.pretrainer import first_of

_POOLED = (2, 2, 2)  # parts of a volume along D, H and W that are described apart
_BLOCK = 64  # voxels along an axis that go through the trunk at once


@dataclass(frozen=True)
class SelectConfig:
    """What to choose from and how.

    Attributes:
        dataset: folder in any layout; labels are not looked at.
        count: cases to choose.
        trunk: for "coreset": what `pretrain` made.
        model: for "uncertainty": a run.
        labelled: case ids that have labels already; those with a label file where empty.
    """

    dataset: Path
    count: int
    trunk: Path | None = None
    model: Path | None = None
    labelled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError("count", "at least 1", self.count)
        if (self.trunk is None) == (self.model is None):
            raise ConfigError(
                "trunk or model", "given, one of them: a trunk chooses what is unlike the rest, a "
                "model what it is unsure of", "both" if self.trunk else "none",
            )  # fmt: skip


def select(
    config: SelectConfig, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Choose the cases to label next, the most wanted first.

    Args:
        config: from what and how.
        progress: called with cases read and cases in all.

    Returns:
        "chosen": {"case_id", "score"} in order; "by"; "refused" cases. With a trunk the score is
        the distance to what is labelled or chosen before; with a model the mean entropy where it
        sees anything, in nats.

    Raises:
        InputError: the data set, trunk or model cannot be used, or a case id is unknown.
    """
    from qinjing.data.layouts import open_dataset

    dataset = open_dataset(config.dataset)
    known = {case.case_id: case for case in dataset.cases}
    for case_id in config.labelled:
        if case_id not in known:
            raise LayoutError("case", "in the data set", case_id, where=config.dataset)
    labelled = set(config.labelled) or {case.case_id for case in dataset.cases if case.label}
    pool = [case for case in dataset.cases if case.case_id not in labelled]
    have = [known[i] for i in sorted(labelled)]
    if config.trunk:
        measure = describer(config.trunk)
    else:
        assert config.model
        measure = doubter(config.model)
        have = []
    found, refused = _measured([*have, *pool], measure, progress)
    pool = [case for case in pool if case.case_id in found]
    if not pool:
        raise LayoutError(
            "data set", "of one readable case at least that is not labelled yet", "none",
            where=config.dataset,
        )  # fmt: skip
    if config.trunk:
        start = [found[case.case_id] for case in have if case.case_id in found]
        order = k_centres([found[case.case_id] for case in pool], start, config.count)
    else:
        scores = [float(found[case.case_id][0]) for case in pool]
        ranked = sorted(range(len(pool)), key=lambda i: -scores[i])[: config.count]
        order = [(i, scores[i]) for i in ranked]
    chosen = [{"case_id": pool[i].case_id, "score": round(score, 5)} for i, score in order]
    by = "coreset" if config.trunk else "uncertainty"
    return {"chosen": chosen, "by": by, "refused": refused}


def k_centres(
    points: Sequence[np.ndarray], start: Sequence[np.ndarray], count: int
) -> list[tuple[int, float]]:
    """Choose points so that the farthest one from its nearest chosen one is near: greedily.

    Args:
        points: (F,) each.
        start: those chosen before; without any the point nearest the mean comes first.
        count: to choose, at most all.

    Returns:
        (index, distance to what was chosen before it), in the order chosen.

    Source: arXiv:1708.00489 (Sener and Savarese, core-set), Gonzalez 1985's greedy k-centre.
    """
    x = np.stack(points)
    order: list[tuple[int, float]] = []
    if start:
        distance = np.min([np.linalg.norm(x - s, axis=1) for s in start], axis=0)
    else:
        from_mean = np.linalg.norm(x - x.mean(0), axis=1)
        first = int(from_mean.argmin())
        order.append((first, float(from_mean[first])))
        distance = np.linalg.norm(x - x[first], axis=1)
    while len(order) < min(count, len(x)):
        distance[[i for i, _ in order]] = -1.0
        best = int(distance.argmax())
        order.append((best, float(distance[best])))
        distance = np.minimum(distance, np.linalg.norm(x - x[best], axis=1))
    return order


def _measured(
    cases: Sequence[Case],
    measure: Callable[[Case], np.ndarray],
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, np.ndarray], list[dict[str, str]]]:
    found, refused = {}, []
    for number, case in enumerate(cases):
        try:
            found[case.case_id] = measure(case)
        except InputError as error:
            refused.append({"case_id": case.case_id, "reason": str(error)})
        if progress:
            progress(number + 1, len(cases))
    if not found:
        raise LayoutError("data set", "of one readable case at least", "none")
    return found, refused


def describer(trunk: Path) -> Callable[[Case], np.ndarray]:
    """Return case → the mean features (F,) of the parts of its volume, all channels.

    Raises:
        FormatError: `trunk` is not what `pretrain` made.
    """
    from qinjing.config import read_json

    if not (trunk / "trunk.json").is_file():
        raise FormatError(
            "trunk", "a folder that `qinjing pretrain` made", "no trunk.json", where=trunk
        )
    device = default_device()
    net: nn.Module = load_model(trunk).to(device)
    d, h, w = read_json(trunk / "trunk.json")["saw"][0]["spacing_mm"]
    spacing = (d, h, w)

    def describe(case: Case) -> np.ndarray:
        image = read_standardised(case, spacing)[:, None]
        boxes = parts(image.shape[2:])
        means = [[part_mean(net, c[None].to(device), box) for box in boxes] for c in image]
        return np.concatenate(np.mean(means, axis=0))

    return describe


def parts(shape: Sequence[int]) -> list[tuple[slice, ...]]:
    """The boxes of a volume that are described apart, in equal number for all volumes."""
    axes = []
    for n, k in zip(shape, _POOLED, strict=True):
        starts = [min(int(i * n / k), n - 1) for i in range(k)]
        axes.append([slice(a, max(a + 1, int((i + 1) * n / k))) for i, a in enumerate(starts)])
    return list(product(*axes))


@torch.inference_mode()
def part_mean(net: nn.Module, image: Tensor, box: tuple[slice, ...]) -> np.ndarray:
    """Mean features (F,) over a box of (1, 1, D, H, W), block by block, in bounded memory."""
    total, voxels = torch.zeros(1, dtype=torch.float64), 0
    blocks = [
        [slice(a, min(a + _BLOCK, side.stop)) for a in range(side.start, side.stop, _BLOCK)]
        for side in box
    ]
    for d, h, w in product(*blocks):
        features = first_of(net(image[..., d, h, w]))[0].float().flatten(1)
        total = total + features.sum(1).cpu().double()
        voxels += features.shape[1]
    return (total / voxels).numpy()


def doubter(model: Path) -> Callable[[Case], np.ndarray]:
    """Return case → mean entropy (1,) of a model where it is not sure of the background, nats.

    Raises:
        InputError: `model` is not a run.
    """
    from qinjing.tasks.predict import Segmenter

    segmenter = Segmenter.load(model)

    def doubt(case: Case) -> np.ndarray:
        labels, certainty = segmenter.segment(read_image(case), confidence=True)
        assert certainty is not None
        sure = np.clip(certainty.voxels.astype(np.float32) / 255, 1e-3, 1 - 1e-3)
        # The entropy of a two-sided choice with the winner's probability: what of the others is
        # left is not known, and this is the least that it can be.
        entropy = -(sure * np.log(sure) + (1 - sure) * np.log(1 - sure))
        where = (labels.voxels > 0) | (sure < 0.95)
        return np.array([entropy[where].mean() if where.any() else 0.0])

    return doubt
