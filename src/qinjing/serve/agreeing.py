"""How far several readers of one image agree, in a form for a page, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from qinjing.metrics.agreement import cohens_kappa, dice_matrix, fleiss_kappa, multi_label_staple
from qinjing.volume import Volume

MARGIN_MM = 10.0


def agreement(
    readers: Sequence[str], said: Sequence[Volume], labels: Mapping[int, str], target_kappa: float
) -> dict[str, Any]:
    """Compare readers in the box around all that anyone marked.

    Kappa grows with the background that is counted, on which nobody disagrees, until it is Dice; so
    it is taken in the box of all marks and 10 mm around, where a voxel could have been marked.

    Args:
        readers: persons.
        said: their label maps, on one grid.
        labels: value → name.
        target_kappa: what is asked for.

    Returns:
        readers, cohen of every two, fleiss, dice a label as a matrix, staple of every reader and
        label, target_kappa, whether fleiss reaches it, and where it was measured. What is not
        defined, such as kappa where nobody marked anything, is None.

    Source: Zijdenbos et al. 1994, doi:10.1109/42.363096 (kappa and the background).
    """
    box = _box(said)
    cut = [one.voxels[box] for one in said]
    fleiss = _number(fleiss_kappa(cut))
    together = multi_label_staple(cut)
    return {
        "readers": list(readers),
        "cohen": [
            {"a": readers[a], "b": readers[b], "kappa": _number(cohens_kappa(cut[a], cut[b]))}
            for a, b in combinations(range(len(cut)), 2)
        ],
        "fleiss": fleiss,
        "dice": {
            name: [[_number(value) for value in row] for row in dice_matrix(cut, label)]
            for label, name in labels.items()
        },
        "staple": [
            {"reader": readers[r], "label": name, **_quality(together, r, label)}
            for r in range(len(cut))
            for label, name in labels.items()
            if label in together.values
        ],
        "target_kappa": target_kappa,
        "reached": fleiss is not None and fleiss >= target_kappa,
        "where": f"the box of all marks and {MARGIN_MM:g} mm around",
    }


def consensus(said: Sequence[Volume]) -> Volume:
    """Return what readers say together, by multi-label STAPLE in the box of all marks."""
    box = _box(said)
    voxels = np.zeros_like(said[0].voxels)
    voxels[box] = multi_label_staple([one.voxels[box] for one in said]).labels
    return said[0].with_voxels(voxels)


def _quality(together: Any, reader: int, label: int) -> dict[str, float | None]:
    """Sensitivity and specificity of one label, from how often a reader says it where it is not."""
    at = together.values.index(label)
    confusion = together.confusion[reader]
    others = [k for k in range(len(together.values)) if k != at]
    shares = np.array([(together.labels == together.values[k]).sum() for k in others], float)
    wrong = confusion[at, others] @ shares / shares.sum() if shares.sum() else math.nan
    return {"sensitivity": _number(confusion[at, at]), "specificity": _number(1 - wrong)}


def _box(said: Sequence[Volume]) -> tuple[slice, ...]:
    marked = np.zeros(said[0].shape, bool)
    for one in said:
        marked |= one.voxels > 0
    if not marked.any():
        return tuple(slice(0, n) for n in marked.shape)
    slices = []
    for axis, (n, spacing) in enumerate(zip(marked.shape, said[0].spacing_mm, strict=True)):
        along = np.flatnonzero(marked.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = math.ceil(MARGIN_MM / spacing)
        slices.append(slice(max(0, int(along[0]) - margin), min(n, int(along[-1]) + margin + 1)))
    return tuple(slices)


def _number(value: Any) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
