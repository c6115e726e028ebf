"""A picture of what each path of a network gives: gates of the hybrid, levels of the pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from qinjing.config import read_config
from qinjing.data.case import Case
from qinjing.data.patches import cut
from qinjing.data.preprocess import Preprocessing, read_pair, read_prepared
from qinjing.data.resample import resample_labels
from qinjing.engine.checkpoint import load_model
from qinjing.engine.plan import Plan
from qinjing.errors import InputError
from qinjing.nets import Hybrid, PyramidTransformer
from qinjing.nets.hybrid import share_of_attention

_SHOWN = 5  # cases


@dataclass(frozen=True)
class _Seen:
    """What a network made of one case's patch.

    Attributes:
        case_id: of the case.
        image: first channel (D, H, W).
        label: (D, H, W), 0 is background.
        shares: one number for each scale, finest first.
        place: share of attention in each voxel (D, H, W), None for a network without gates.
    """

    case_id: str
    image: np.ndarray
    label: np.ndarray
    shares: np.ndarray
    place: np.ndarray | None


def gates_figure(run: Path, cases: Sequence[Case]) -> tuple[Figure, str] | None:
    """Draw what the first fold's network passes on from each path, and say it in words.

    Args:
        run: a run folder.
        cases: labelled ones; the first few readable ones are shown, a patch about their labels.

    Returns:
        None where the network has neither gates nor level weights, or nothing could be read.
    """
    folds = sorted(run.glob("fold_*/model.json"))
    if not folds or not (run / "plan.json").is_file():
        return None
    plan = read_config(run / "plan.json", Plan)
    net = load_model(folds[0].parent)
    if not isinstance(net, Hybrid | PyramidTransformer):
        return None
    seen: list[_Seen] = []
    for case in cases:
        try:
            seen.append(_see(net, case, plan))
        except InputError:  # it was refused, and said so, when the run was made
            continue
        if len(seen) == _SHOWN:
            break
    if not seen:
        return None
    means = np.mean([one.shares for one in seen], axis=0)
    what = "share of attention" if isinstance(net, Hybrid) else "weight of a level"
    stages = ", ".join(f"{share:.3f}" for share in means)
    words = (
        f"Mean {what} over {len(seen)} case{'s' * (len(seen) > 1)}, finest stage first: {stages}."
    )
    first = net.joined + 1 if isinstance(net, Hybrid) else 1
    return _draw(seen, what, first), words


def _see(net: Hybrid | PyramidTransformer, case: Case, plan: Plan) -> _Seen:
    image, label = _patch(case, plan.preprocessing, plan.patch_size)
    place = None
    with torch.inference_mode():
        if isinstance(net, Hybrid):
            shares = net.gates(image[None])[0]
            place = _share(net.paths(image[None])[0], image.shape[1:])
        else:
            shares = net.level_weights(image[None])[0]
    return _Seen(case.case_id, image[0].numpy(), label, shares.numpy(), place)


def _patch(
    case: Case, preprocessing: Preprocessing, size: tuple[int, int, int]
) -> tuple[Tensor, np.ndarray]:
    """Image (C, D, H, W) and label (D, H, W) about the middle of what is labelled."""
    image = read_prepared(case, preprocessing).numpy()
    label = resample_labels(read_pair(case)[1], preprocessing.spacing_mm).voxels
    middle = [int(np.median(at)) for at in np.nonzero(label)] if label.any() else None
    corner = [
        min(max((n // 2 if middle is None else middle[axis]) - s // 2, 0), max(n - s, 0))
        for axis, (n, s) in enumerate(zip(label.shape, size, strict=True))
    ]
    d, h, w = corner
    patch = torch.from_numpy(np.ascontiguousarray(cut(image, (d, h, w), size)))
    return patch, cut(label, (d, h, w), size)


def _share(pair: tuple[Tensor, Tensor], shape: Sequence[int]) -> np.ndarray:
    """Attention's part of what goes on from each voxel of a scale, at full resolution."""
    share = share_of_attention(*pair, axes=(1,))[:, None]
    return F.interpolate(share, tuple(shape), mode="nearest")[0, 0].numpy()


def _draw(seen: Sequence[_Seen], what: str, first: int) -> Figure:
    rows = 2 if seen[0].place is None else 3
    drawn = Figure(figsize=(2.1 * len(seen), 2.0 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(rows, len(seen), squeeze=False)
    top = max(float(one.shares.max()) for one in seen)
    places = [one.place for one in seen if one.place is not None]
    brightest = max((float(np.quantile(place, 0.995)) for place in places), default=1.0)
    for column, one in enumerate(seen):
        d = int((one.label > 0).sum((1, 2)).argmax())
        pictures: list[tuple[np.ndarray, str, float | None]] = [(one.image[d], "gray", None)]
        if one.place is not None:
            pictures.append((one.place[d], "viridis", brightest))
        for row, (picture, colours, most) in enumerate(pictures):
            ax = axes[row, column]
            low = None if most is None else 0.0
            shown = ax.imshow(picture, cmap=colours, vmin=low, vmax=most)
            if (one.label[d] > 0).any():
                ax.contour(one.label[d] > 0, [0.5], colors="white", linewidths=0.7)
            ax.set_axis_off()
            if most is not None and column == len(seen) - 1:
                drawn.colorbar(shown, ax=list(axes[row]), fraction=0.02)
        axes[0, column].set_title(one.case_id, fontsize=8)
        bars = axes[-1, column]
        stages = range(first, first + len(one.shares))
        bars.bar(stages, one.shares, color="#0072b2")
        bars.set_xticks(stages)
        bars.set_xlabel("stage, the first is the finest", fontsize=7)
        bars.set_ylim(0, 1.1 * top)
        bars.tick_params(labelsize=7)
        if column == 0:
            bars.set_ylabel(what, fontsize=8)
    return drawn
