"""One structure from clicks into it and beside it, without a model: a random walker with priors.

Each voxel asks where a walker from it arrives first, at a click inside or one outside, when edges
are hard to cross; what is known before of a voxel, from how far it lies from the clicks and from
its grey value, pulls it to one side. How large the structure is nobody says, so several sizes are
tried on a coarse grid, and the one counts whose border is the sharpest step of grey.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import dia_array
from scipy.sparse.linalg import LinearOperator, cg

from qinjing.errors import ConfigError, GeometryError
from qinjing.volume import Volume

RADIUS_MM = 40.0
_COARSE, _FINE = 70_000, 600_000  # voxels on which sizes are tried, and at most in the answer
_SIZES_MM = (4.0, 6.0, 9.0, 13.0, 18.0, 24.0, 32.0)  # radii that are tried
_FALL = 4.0  # power with which belief falls off beyond such a radius
_APART = 4.0  # power of how much nearer a click of the other kind is
_BINS, _BLUR = 64, 3.0  # of histograms of grey values
_SAMPLED_MM = 3.0  # around a click, where grey values are learnt
_EDGE = 200.0  # how hard a step of grey is to cross, of all greys squared
_PULL = 0.2  # of what is known before, against a neighbour; less with each click
_MOST_ODDS = 20.0  # that grey values alone may give
_HARD = 50.0  # weight of a click, against a neighbour
_LEAST = 1e-4  # weight of any edge
_STEPS, _RIGHT = 100, 1e-3  # at which the solver stops


@dataclass(frozen=True)
class Click:
    """A voxel that somebody pointed at.

    Attributes:
        voxel: index (d, h, w).
        inside: whether it belongs to the structure.
    """

    voxel: tuple[int, int, int]
    inside: bool = True


@dataclass(frozen=True, eq=False)
class _Scene:
    """A part of the volume on a grid of its own, with the clicks on it."""

    grey: np.ndarray  # float32, 0 to 1
    spacing_mm: tuple[float, float, float]
    inside: np.ndarray  # (N, 3) indices
    outside: np.ndarray
    known: np.ndarray | None  # a model's probability
    every: tuple[int, ...]  # which of the part's voxels are on it, along each axis
    count: int  # of clicks, those beyond it too


def segment_click(
    volume: Volume,
    points: Sequence[Click],
    radius_mm: float = RADIUS_MM,
    probability: np.ndarray | None = None,
) -> np.ndarray:
    """Segment the structure that clicks point at.

    It looks no further than `radius_mm` around the clicks inside, and takes the rim of that part
    for outside. Where that part has more voxels it is thinned out to 600,000, which bounds time to
    a second on one core, and memory to 150 MB and ten bytes for each voxel of the part. The same
    clicks give the same mask.

    Args:
        volume: (D, H, W) grey values of any range, or (C, D, H, W), of which the first channel
            is taken.
        points: one inside at least.
        radius_mm: greater than the structure.
        probability: (D, H, W), 0 to 1, of a model that knows the structure: taken instead of
            grey values.

    Returns:
        (D, H, W) booleans, of pieces that hold a click inside.

    Raises:
        ConfigError: no click is inside, the radius is not greater than 0, or the probability has
            another shape.
        GeometryError: a click lies outside the volume.

    Source: Grady 2005, doi:10.1109/CVPR.2005.239 (random walks with prior models); Grady 2006,
        doi:10.1109/TPAMI.2006.233 (edges).
    """
    _check(volume, points, radius_mm, probability)
    box = _box(volume, points, radius_mm)
    coarse = _scene(volume, points, box, _COARSE, probability)
    tried = []
    for size_mm in _SIZES_MM:
        chance = _walk(coarse, size_mm)
        tried.append((_step(coarse, chance), size_mm, chance))
    _, size_mm, chance = max(tried, key=lambda one: one[0])
    fine = _scene(volume, points, box, _FINE, probability)
    if fine.grey.shape != coarse.grey.shape:
        start = _stretched(chance, coarse.every, fine.grey.shape, fine.every)
        chance = _walk(fine, size_mm, start)
    own = _shifted([p.voxel for p in points if p.inside], box)
    other = _shifted([p.voxel for p in points if not p.inside], box)
    said = np.zeros(volume.shape, dtype=bool)
    said[box] = _pieces(_stretched(chance, fine.every, said[box].shape), own, other)
    return said


def _check(
    volume: Volume, points: Sequence[Click], radius_mm: float, probability: np.ndarray | None
) -> None:
    if not any(point.inside for point in points):
        raise ConfigError("clicks", "one inside at least", "none")
    if not 0 < radius_mm < math.inf:
        raise ConfigError("radius_mm", "greater than 0", radius_mm)
    for point in points:
        if not all(0 <= at < n for at, n in zip(point.voxel, volume.shape, strict=True)):
            raise GeometryError("click", f"in the volume of {volume.shape} voxels", point.voxel)
    if probability is not None and probability.shape != volume.shape:
        raise GeometryError("probability", f"of shape {volume.shape}", probability.shape)


def _box(volume: Volume, points: Sequence[Click], radius_mm: float) -> tuple[slice, ...]:
    """The part of a volume that lies within a radius of the clicks inside."""
    inside = np.array([point.voxel for point in points if point.inside])
    reach = np.ceil(radius_mm / np.array(volume.spacing_mm)).astype(int)
    low = np.maximum(inside.min(axis=0) - reach, 0)
    high = np.minimum(inside.max(axis=0) + reach + 1, volume.shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def _scene(
    volume: Volume,
    points: Sequence[Click],
    box: tuple[slice, ...],
    most: int,
    probability: np.ndarray | None,
) -> _Scene:
    """The part with no more voxels than `most`; axes of small voxels are thinned out first."""
    shape, every = [part.stop - part.start for part in box], [1, 1, 1]
    while math.prod(-(-n // k) for n, k in zip(shape, every, strict=True)) > most:
        lengths = [k * s if -(-n // k) > 3 else math.inf
                   for k, s, n in zip(every, volume.spacing_mm, shape, strict=True)]  # fmt: skip
        every[lengths.index(min(lengths))] += 1
    thin = tuple(slice(None, None, k) for k in every)
    channel = volume.voxels if volume.voxels.ndim == 3 else volume.voxels[0]
    grey = np.nan_to_num(channel[box][thin].astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = np.quantile(grey, [0.005, 0.995])
    grey = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    known = None if probability is None else np.clip(probability[box][thin], 0, 1)
    d, h, w = (k * s for k, s in zip(every, volume.spacing_mm, strict=True))
    inside, outside = (
        _shifted([p.voxel for p in points if p.inside == kind], box) // every
        for kind in (True, False)
    )
    within = ((outside >= 0) & (outside < grey.shape)).all(axis=1)
    return _Scene(grey, (d, h, w), inside, outside[within], known, tuple(every), len(points))


def _shifted(voxels: Sequence[tuple[int, ...]], box: tuple[slice, ...]) -> np.ndarray:
    """Indices in a part of the volume, (N, 3)."""
    return np.array(voxels, dtype=int).reshape(-1, 3) - [part.start for part in box]


def _walk(scene: _Scene, size_mm: float, start: np.ndarray | None = None) -> np.ndarray:
    """The chance that a walker from each voxel arrives inside first."""
    shape, size = scene.grey.shape, scene.grey.size
    inside, rim = np.zeros(shape, bool), np.ones(shape, bool)
    # An axis of one or two voxels, as of a single slice, is no way out.
    rim[tuple(slice(1, -1) if n > 2 else slice(None) for n in shape)] = False
    rim[tuple(scene.outside.T)] = True
    inside[tuple(scene.inside.T)] = True
    rim &= ~inside
    odds = _odds(scene, size_mm)
    believed = (odds / (1 + odds)).astype(np.float32)
    pull = np.float32(_PULL / scene.count)
    own = (pull + np.float32(_HARD) * (inside | rim)).ravel()
    rows, offsets = [], []
    for axis, step in enumerate((shape[1] * shape[2], shape[2], 1)):
        weights = _edges(scene, axis).ravel()  # to the next voxel; 0 from the last one
        before = np.concatenate([np.zeros(step, np.float32), weights[: size - step]])
        own += weights + before
        rows += [-weights, -before]
        offsets += [-step, step]
    matrix = dia_array((np.stack([own, *rows]), [0, *offsets]), shape=(size, size))
    right = (pull * believed + np.float32(_HARD) * inside).ravel()
    first = (believed if start is None else start).ravel()
    scaled = LinearOperator((size, size), matvec=lambda x: x / own, dtype=np.float32)
    found, _ = cg(matrix, right, x0=first, rtol=_RIGHT, maxiter=_STEPS, M=scaled)
    return np.asarray(found, np.float32).reshape(shape)


def _edges(scene: _Scene, axis: int) -> np.ndarray:
    """How easily a walker goes to the next voxel along an axis."""
    there = scene.grey if scene.known is None else scene.known
    weights = np.zeros(there.shape, np.float32)
    if there.shape[axis] > 1:
        nearer = min(scene.spacing_mm) / scene.spacing_mm[axis]
        from_ = tuple(slice(0, -1) if k == axis else slice(None) for k in range(3))
        steps = np.diff(there, axis=axis)
        weights[from_] = (np.exp(-_EDGE * steps**2) + _LEAST) * nearer**2
    return weights


def _odds(scene: _Scene, size_mm: float) -> np.ndarray:
    """How likely a voxel is inside rather than outside: by where it lies, and by its value."""
    near = _distance(scene, scene.inside)
    # The more clicks there are, the less it takes to guess beyond them.
    odds = np.maximum(size_mm / near, 0.01) ** (_FALL / math.sqrt(scene.count))
    if len(scene.outside):
        odds *= np.minimum(_distance(scene, scene.outside) / near, 1) ** _APART
    if scene.known is not None:
        least = 1 / (1 + _MOST_ODDS)
        sure = np.clip(scene.known, least, 1 - least)
        return np.asarray(odds * sure / (1 - sure))
    values = (scene.grey * (_BINS - 1) + 0.5).astype(np.intp)
    own = _histogram(values, near <= _SAMPLED_MM)
    other = _histogram(values, np.exp(-near / (2 * size_mm)) / (1 + odds))
    if len(scene.outside):
        told = _histogram(values, _distance(scene, scene.outside) <= _SAMPLED_MM)
        other = (other + told) / 2
    ratio = (own + 1e-3 / _BINS) / (other + 1e-3 / _BINS)
    return np.asarray(odds * np.clip(ratio, 1 / _MOST_ODDS, _MOST_ODDS)[values])


def _histogram(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Shares of grey values, blurred, as a few samples tell of those that lie between."""
    counts = np.bincount(values.ravel(), weights=weights.ravel(), minlength=_BINS)
    blurred = ndimage.gaussian_filter1d(counts, _BLUR, mode="constant")
    return np.asarray(blurred / max(blurred.sum(), 1e-9))


def _distance(scene: _Scene, clicks: np.ndarray) -> np.ndarray:
    """Millimetres to the nearest click, half a voxel at the least."""
    squares = np.full(scene.grey.shape, np.inf, np.float32)
    axes = np.ogrid[tuple(slice(0, n) for n in scene.grey.shape)]
    for click in clicks:
        d, h, w = (((axis - at) * np.float32(s)) ** 2
                   for axis, at, s in zip(axes, click, scene.spacing_mm, strict=True))  # fmt: skip
        np.minimum(squares, (d + h + w).astype(np.float32), out=squares)
    return np.maximum(np.sqrt(squares), np.float32(min(scene.spacing_mm) / 2))


def _step(scene: _Scene, chance: np.ndarray) -> float:
    """How much greyer, or less grey, it is within the border than beyond, on average."""
    mask = _pieces(chance, scene.inside, scene.outside)
    there = scene.grey if scene.known is None else scene.known
    total = area = 0.0
    for axis, spacing in enumerate(scene.spacing_mm):
        border = -np.diff(mask.astype(np.int8), axis=axis)  # 1 from inside to outside, -1 back
        total += float((border * -np.diff(there, axis=axis)).sum()) / spacing
        area += float(np.abs(border).sum()) / spacing
    return abs(total) / area if area else 0.0


def _pieces(chance: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """What is rather inside, in pieces that hold a click inside."""
    mask = chance > 0.5
    within = outside[((outside >= 0) & (outside < mask.shape)).all(axis=1)]
    mask[tuple(within.T)] = False
    mask[tuple(inside.T)] = True
    pieces, count = ndimage.label(mask)
    kept = np.zeros(count + 1, bool)
    kept[pieces[tuple(inside.T)]] = True
    return kept[pieces]


def _stretched(
    chance: np.ndarray,
    every: Sequence[int],
    shape: tuple[int, ...],
    finer: Sequence[int] = (1, 1, 1),
) -> np.ndarray:
    """A map of every so many voxels of a part on a grid of more of them."""
    if chance.shape == shape:
        return chance
    ratio = np.array(finer) / np.array(every)
    return np.asarray(
        ndimage.affine_transform(chance, ratio, output_shape=shape, order=1, mode="nearest")
    )
