"""Pictures of what a trunk's features tell apart: their main directions, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from qinjing.config import atomic_path, read_json
from qinjing.data.case import Case
from qinjing.data.preprocess import read_pair, read_standardised
from qinjing.data.resample import resample_labels
from qinjing.engine.checkpoint import load_model
from qinjing.errors import InputError
from qinjing.nets.pretrainer import first_of
from qinjing.report.overlay import to_png

_MOST = 96  # voxels drawn along an axis
_SHOWN, _QUERIES, _NEIGHBOURS, _HALF = 5, 5, 5, 12  # the last: voxels about a cell in the gallery


def write_features(trunk: Path, cases: Sequence[Case]) -> list[Path]:
    """Draw `features.png` and `neighbours.png` of a trunk into its folder.

    Args:
        trunk: what `pretrain` made.
        cases: of the first data set that it saw; the first few readable ones are drawn.

    Returns:
        What was written; nothing where no case could be read.
    """
    card = read_json(trunk / "trunk.json")
    net = load_model(trunk)
    spacing = tuple(card["saw"][0]["spacing_mm"])
    shown = []
    for case in cases:
        try:
            shown.append((case.case_id, *_features(net, case, spacing)))
        except InputError:  # it was refused, and said so, when the trunk was made
            continue
        if len(shown) == _SHOWN:
            break
    if not shown:
        return []
    made = []
    cell = tuple(card["cell"])
    for name, draw in (("features", _directions), ("neighbours", _gallery)):
        path = trunk / f"{name}.png"
        with atomic_path(path) as temporary:
            temporary.write_bytes(to_png(draw(shown, cell)))
        made.append(path)
    return made


def _features(
    net: nn.Module, case: Case, spacing: tuple[float, float, float]
) -> tuple[np.ndarray, Tensor, np.ndarray | None]:
    """First channel (D, H, W), features (F, D, H, W) and labels (D, H, W) on the trunk's grid."""
    label = resample_labels(read_pair(case)[1], spacing).voxels if case.label else None
    channel = read_standardised(case, spacing)[:1]
    box = _window(channel.shape[1:], label)
    channel, label = channel[(slice(None), *box)], None if label is None else label[box]
    with torch.inference_mode():
        features = first_of(net(channel[None]))[0].float()
    return channel[0].numpy(), features, label


def _window(shape: Sequence[int], label: np.ndarray | None) -> tuple[slice, ...]:
    """At most so many voxels an axis, about the middle of what is labelled: memory is bounded."""
    middle = [n // 2 for n in shape]
    if label is not None and label.any():
        middle = [int(np.median(where)) for where in np.nonzero(label)]
    pairs = zip(middle, shape, strict=True)
    starts = [min(max(m - _MOST // 2, 0), max(n - _MOST, 0)) for m, n in pairs]
    return tuple(slice(a, a + _MOST) for a in starts)


def _directions(shown: Sequence[tuple[Any, ...]], cell: Sequence[int]) -> Figure:
    """The middle slice of each case beside its features' first three directions as colours."""
    samples = torch.cat([f.flatten(1).T[:: max(1, f[0].numel() // 20_000)] for _, _, f, _ in shown])
    mean = samples.mean(0)
    _, _, directions = torch.linalg.svd(samples - mean, full_matrices=False)
    projected = (samples - mean) @ directions[:3].T
    low, high = torch.quantile(projected, torch.tensor([0.02, 0.98]), dim=0)
    drawn = Figure(figsize=(2.1 * len(shown), 4.6), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(2, len(shown), squeeze=False)
    for column, (case_id, image, features, label) in enumerate(shown):
        d = _busiest(label) if label is not None else image.shape[0] // 2
        colours = (features[:, d].movedim(0, -1) - mean) @ directions[:3].T
        colours = ((colours - low) / (high - low)).clamp(0, 1)
        axes[0, column].imshow(image[d], cmap="gray", vmin=-2, vmax=3)
        axes[1, column].imshow(colours.numpy())
        for ax in axes[:, column]:
            if label is not None and label[d].any():
                ax.contour(label[d] > 0, [0.5], colors="white", linewidths=0.7)
            ax.set_axis_off()
        axes[0, column].set_title(case_id, fontsize=8)
    drawn.suptitle("Features: their first three directions as red, green and blue", fontsize=9)
    return drawn


def _gallery(shown: Sequence[tuple[Any, ...]], cell: Sequence[int]) -> Figure:
    """Cells of the first case and their nearest cells in the others."""
    size = (int(cell[0]), int(cell[1]), int(cell[2]))
    places: list[tuple[int, int, int, int]] = []
    tokens = []
    for number, (_, _, features, _) in enumerate(shown):
        pooled = F.avg_pool3d(features[None], size, size)[0]
        shape = pooled.shape[1:]
        tokens.append(F.normalize(pooled.flatten(1).T, dim=1))
        grid = np.indices(shape).reshape(3, -1).T * np.array(size) + np.array(size) // 2
        places += [(number, int(d), int(h), int(w)) for d, h, w in grid]
    x = torch.cat(tokens)
    owner = torch.tensor([place[0] for place in places])
    queries = _queries(shown[0], places)
    drawn = Figure(figsize=(1.3 * (_NEIGHBOURS + 1), 1.45 * len(queries)), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(len(queries), _NEIGHBOURS + 1, squeeze=False)
    for row, query in enumerate(queries):
        likeness = x @ x[query]
        likeness[owner == places[query][0]] = -2 if len(shown) > 1 else 0
        nearest = likeness.topk(min(_NEIGHBOURS, len(likeness))).indices.tolist()
        for column, place in enumerate([query, *nearest]):
            number, d, h, w = places[place]
            ax = axes[row, column]
            image = np.pad(shown[number][1][d], _HALF, constant_values=-2.0)
            ax.imshow(image[h : h + 2 * _HALF, w : w + 2 * _HALF], cmap="gray", vmin=-2, vmax=3)
            ax.plot(_HALF, _HALF, "+", color="#D55E00")
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title("asked" if column == 0 else f"{column}.", fontsize=8)
    drawn.suptitle("Cells of the first case, and the nearest in the others", fontsize=9)
    return drawn


def _queries(first: tuple[Any, ...], places: Sequence[tuple[int, int, int, int]]) -> list[int]:
    """A few cells of the first case: of each label where there are some, then spread evenly."""
    _, _, _, label = first
    own = [index for index, place in enumerate(places) if place[0] == 0]
    chosen: list[int] = []
    if label is not None:
        at = np.array([label[places[i][1:]] for i in own])
        for value in np.unique(at)[1:_QUERIES]:
            there = np.flatnonzero(at == value)
            chosen.append(own[int(there[len(there) // 2])])
    rest = [own[int(i)] for i in np.linspace(0, len(own) - 1, _QUERIES + 2)[1:-1]]
    return [*chosen, *(i for i in rest if i not in chosen)][:_QUERIES]


def _busiest(label: np.ndarray) -> int:
    """The slice with most labelled voxels."""
    return int((label > 0).sum((1, 2)).argmax())
