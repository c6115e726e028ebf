"""Strokes as an annotator draws them first, from a truth that is known: labels for a small part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

_NEAR, _FAR = 2.0, 8.0  # voxels from the nearest label between which the background gets its stroke


def draw_scribbles(
    label: np.ndarray, classes: Sequence[int], ignored: int, *, every: int = 3, seed: int = 0
) -> np.ndarray:
    """Return a label map that says something of one stroke for each class in every few slices.

    A stroke is one voxel wide and runs along the middle of the largest piece of a class, as far
    as it leads; that of the background goes round what is labelled, and across the slice where
    nothing is.

    Args:
        label: (D, H, W) truth; slices are taken along D.
        classes: foreground values that may get a stroke.
        ignored: what to write where nothing is said.
        every: slices from one that is drawn in to the next.
        seed: of where strokes begin.

    Source: arXiv:1604.05144 (ScribbleSup), arXiv:2203.01475 (scribbles of hearts along the middle
        of a class), from which the rule is taken.
    """
    rng = np.random.default_rng((seed, 7))
    out = np.full_like(label, ignored)
    for d in range(int(rng.integers(min(every, len(label)))), len(label), every):
        plane = label[d]
        anything = np.isin(plane, classes)
        around = ~anything
        if anything.any():
            distance = ndimage.distance_transform_edt(~anything)
            ring = (distance >= _NEAR) & (distance <= _FAR)
            around = ring if ring.any() else around
        for value, mask in ((0, around), *((value, plane == value) for value in classes)):
            if mask.any():
                out[d][_stroke(mask, rng)] = value
    return out


def _stroke(mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a long path through the middle of a mask (H, W)."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    pieces, _ = ndimage.label(depth >= 0.5 * depth.max(), np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel())
    core = pieces == 1 + int(sizes[1:].argmax())
    number = np.where(core, core.cumsum().reshape(core.shape) - 1, -1)
    n = int(core.sum())
    steps = []
    for dh, dw in ((0, 1), (1, 0), (1, 1), (1, -1)):
        first = number[: number.shape[0] - dh, max(0, -dw) : number.shape[1] - max(0, dw)]
        second = number[dh:, max(0, dw) : number.shape[1] - max(0, -dw)]
        joined = (first >= 0) & (second >= 0)
        length = np.full(int(joined.sum()), np.hypot(dh, dw))
        steps.append((first[joined], second[joined], length))
    one, other, lengths = (np.concatenate(part) for part in zip(*steps, strict=True))
    graph = coo_array((lengths, (one, other)), shape=(n, n)).tocsr()
    begin = int(rng.integers(n))
    begin = int(dijkstra(graph, directed=False, indices=begin).argmax())  # an end of the mask
    distance, before = dijkstra(graph, directed=False, indices=begin, return_predecessors=True)
    path = [int(distance.argmax())]
    while path[-1] != begin:
        path.append(int(before[path[-1]]))
    h, w = np.nonzero(core)
    return h[path], w[path]
