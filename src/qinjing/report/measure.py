"""What a segmentation measures: each label, and each connected piece of it.

Lengths are millimetres, volumes millilitres, places patient millimetres in LPS; all follow the
affine, under shear as well. The border of a segmentation is known to about half a voxel, and the
interval of a volume says what that does to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinjing.data.readers import read_volume
from qinjing.errors import GeometryError, LabelError
from qinjing.report.diameters import largest_diameter, recist_axes
from qinjing.volume import Volume

PERCENTILES = (5.0, 25.0, 50.0, 75.0, 95.0)
LARGEST_LABEL = 65535
MIDLINE_MM = 5.0  # how near to the middle is neither side
HOW_UNCERTAIN = {
    "border": "the border moved by half a voxel: without half of the voxels at the rim, and with "
    "half of those that touch it from outside",
    "confidence": "the model's confidence: the sum of its probability inside, and the volume with "
    "the doubt of the voxels that touch it from outside",
}


@dataclass(frozen=True)
class Interval:
    """A volume and the bounds that its method gives it, in millilitres."""

    ml: float
    low_ml: float
    high_ml: float


@dataclass(frozen=True)
class Grey:
    """Grey values inside, in `units` ("" where nobody knows them).

    Attributes:
        mean: of the finite voxels.
        sd: with n in the denominator.
        low: the least.
        high: the greatest.
        percentiles: (part in percent, value) in order.
        units: such as HU or g/ml.
    """

    mean: float
    sd: float
    low: float
    high: float
    percentiles: tuple[tuple[float, float], ...]
    units: str


@dataclass(frozen=True)
class Lesion:
    """One connected piece of a label; voxels that touch by a corner belong together.

    Attributes:
        label: value in the segmentation.
        number: 1 is the largest piece of its label.
        voxels: how many.
        volume: with its interval.
        long_axis_mm: the longest diameter in one axial slice, border to border.
        short_axis_mm: the longest at a right angle to it in the same slice.
        long_ends_mm: its two ends, LPS.
        diameter_mm: the largest in three dimensions.
        centroid_mm: LPS; of a hollow piece it may lie outside.
        grey: None without an image.
        side: "left", "right", "middle", or None where nothing tells.
    """

    label: int
    number: int
    voxels: int
    volume: Interval
    long_axis_mm: float
    short_axis_mm: float
    long_ends_mm: tuple[tuple[float, ...], ...]
    diameter_mm: float
    centroid_mm: tuple[float, ...]
    grey: Grey | None
    side: str | None


@dataclass(frozen=True)
class Structure:
    """One label with all its pieces.

    Attributes:
        label: value in the segmentation.
        name: as the labels call it.
        count: pieces.
        volume: of all pieces together.
        centroid_mm: of all of them; None where there is none.
        grey: over all of them; None where there is none, or no image.
        side: as of `Lesion`.
        lesions: the pieces, the largest first.
    """

    label: int
    name: str
    count: int
    volume: Interval
    centroid_mm: tuple[float, ...] | None
    grey: Grey | None
    side: str | None
    lesions: tuple[Lesion, ...]


@dataclass(frozen=True)
class Measured:
    """Everything measured in one segmentation, ready for `config.write_json`.

    Attributes:
        structures: one a label, in the order of the labels; those that are absent have no pieces.
        spacing_mm: of the grid, in the order nearest to (S, P, L).
        uncertainty: how the intervals of volumes were found, in words.
    """

    structures: tuple[Structure, ...]
    spacing_mm: tuple[float, ...]
    uncertainty: str


def measure(
    segmentation: Volume,
    labels: Mapping[int, str],
    image: Volume | None = None,
    *,
    units: str = "",
    confidence: Volume | None = None,
    midline_mm: float | None = None,
) -> Measured:
    """Measure every label of a segmentation and every connected piece of it.

    Axial slices are those of the grid that lie nearest to axial: on an oblique or sheared grid the
    diameters are measured in its own slices.

    Args:
        segmentation: (D, H, W) integers, 0 is background.
        labels: value → name.
        image: on the same grid; of several channels the first is measured.
        units: of the image's grey values.
        confidence: on the same grid, the probability of the label that won: uint8 (255 is 1), or 0
            to 1. It replaces the half voxel as what the intervals of volumes come from.
        midline_mm: LPS x of the body's middle, which tells left from right where no name does.

    Raises:
        GeometryError: a volume lies on another grid, or the segmentation is not 3-D.
        LabelError: the segmentation holds no integers, or a value that the labels do not name.
    """
    for name, other in (("image", image), ("confidence", confidence)):
        difference = other and segmentation.grid_difference(other)
        if difference:
            raise GeometryError(name, "on the segmentation's grid", difference)
    pieces, listed = lesion_map(segmentation, labels)
    grid = pieces.affine
    grey = _first(image)
    chance = _probability(_first(confidence))
    found: dict[int, list[Lesion]] = {value: [] for value in labels if value}
    samples: dict[int, list[np.ndarray]] = {value: [] for value in found}
    for (value, number), box, mask in _each(pieces.voxels, listed):
        if grey is not None:
            inside = grey[box][mask]
            samples[value].append(inside[np.isfinite(inside)])
        found[value].append(
            _lesion(
                (value, number), mask, box, grid,
                _volume(mask, box, pieces.voxel_volume_ml, chance),
                _grey(samples[value][-1], units) if grey is not None else None,
                labels[value], midline_mm,
            )
        )  # fmt: skip
    structures = tuple(
        _structure(value, labels[value], lesions, samples[value], units, midline_mm)
        for value, lesions in found.items()
    )
    how = HOW_UNCERTAIN["border" if confidence is None else "confidence"]
    return Measured(structures, pieces.spacing_mm, how)


def read_label_map(path: str | Path) -> Volume:
    """Read a label map as whole numbers, whatever type it was stored as.

    Raises:
        InputError: it cannot be read.
        LabelError: it holds values that are no whole numbers.
    """
    volume = read_volume(path)
    voxels = volume.voxels[0] if volume.voxels.ndim == 4 else volume.voxels
    if voxels.dtype.kind == "f":
        whole = np.rint(voxels)
        if not np.array_equal(whole, voxels):
            raise LabelError("label values", "whole numbers", where=path)
        voxels = whole.astype(np.int32)
    return volume.with_voxels(voxels)


def lesion_map(
    segmentation: Volume, labels: Mapping[int, str]
) -> tuple[Volume, list[tuple[int, int]]]:
    """Number the connected pieces of every label.

    Returns:
        A canonical (S, P, L) volume of int32, 0 outside and k + 1 in the piece that the list names
        at k as (label, number); the pieces of a label are numbered by size.

    Raises:
        GeometryError: the segmentation is not 3-D.
        LabelError: no integers, or a value that the labels do not name.
    """
    from scipy import ndimage

    given = segmentation.canonical()
    voxels = given.voxels
    if voxels.ndim != 3:
        raise GeometryError("segmentation", "(D, H, W)", voxels.shape)
    if voxels.dtype.kind not in "uib":
        raise LabelError("segmentation", "of integers", voxels.dtype)
    voxels = np.ascontiguousarray(voxels).astype(np.int32, copy=False)
    if voxels.size and not 0 <= int(voxels.min()) <= int(voxels.max()) <= LARGEST_LABEL:
        got = f"{voxels.min()} to {voxels.max()}"
        raise LabelError("label values", f"from 0 to {LARGEST_LABEL}", got)
    boxes = {value: box for value, box in enumerate(ndimage.find_objects(voxels), 1) if box}
    unnamed = [value for value in boxes if value not in labels]
    if unnamed:
        raise LabelError("label values", "named by the labels", unnamed[:10])
    out = np.zeros(voxels.shape, np.int32)
    listed: list[tuple[int, int]] = []
    for value in labels:
        if value not in boxes:
            continue
        box = boxes[value]
        parts, count = ndimage.label(voxels[box] == value, np.ones((3, 3, 3), bool))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        order = np.argsort(-sizes, kind="stable")
        numbers = np.zeros(count + 1, np.int32)
        numbers[order + 1] = len(listed) + 1 + np.arange(count)
        out[box] += numbers[parts]
        listed += [(value, number) for number in range(1, count + 1)]
    return given.with_voxels(out), listed


def _each(
    pieces: np.ndarray, listed: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], tuple[slice, ...], np.ndarray]]:
    """Each piece with the box around it, one voxel wider where there is room, and its mask."""
    from scipy import ndimage

    for index, box in enumerate(ndimage.find_objects(pieces, len(listed))):
        wide = tuple(
            slice(max(0, part.start - 1), min(n, part.stop + 1))
            for part, n in zip(box, pieces.shape, strict=True)
        )
        yield listed[index], wide, pieces[wide] == index + 1


def _lesion(
    which: tuple[int, int], mask: np.ndarray, box: tuple[slice, ...], grid: np.ndarray,
    volume: Interval, grey: Grey | None, name: str, midline_mm: float | None,
) -> Lesion:  # fmt: skip
    corner = np.array([part.start for part in box], dtype=np.float64)
    affine = grid.copy()
    affine[:3, 3] += grid[:3, :3] @ corner
    axes = recist_axes(mask, affine)
    center = affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]
    return Lesion(
        label=which[0],
        number=which[1],
        voxels=int(np.count_nonzero(mask)),
        volume=volume,
        long_axis_mm=axes.long_mm,
        short_axis_mm=axes.short_mm,
        long_ends_mm=tuple(tuple(map(float, end)) for end in axes.long_ends),
        diameter_mm=largest_diameter(mask, affine),
        centroid_mm=tuple(map(float, center)),
        grey=grey,
        side=_side(name, float(center[0]), midline_mm),
    )


def _volume(
    mask: np.ndarray, box: tuple[slice, ...], voxel_ml: float, chance: np.ndarray | None
) -> Interval:
    """Volume and bounds of one piece; see `HOW_UNCERTAIN`."""
    from scipy import ndimage

    faces = ndimage.generate_binary_structure(3, 1)
    padded = np.pad(mask, 1)
    outside = ndimage.binary_dilation(padded, faces) & ~padded
    count = int(np.count_nonzero(mask))
    if chance is None:
        inside = padded & ~ndimage.binary_erosion(padded, faces)
        low = count - int(np.count_nonzero(inside)) / 2
        high = count + int(np.count_nonzero(outside)) / 2
    else:
        # What touches it beyond the edge of the image is not in the map and adds nothing.
        within = outside[1:-1, 1:-1, 1:-1]
        low = float(chance[box][mask].sum(dtype=np.float64))
        high = count + float((1 - chance[box][within]).sum(dtype=np.float64))
    return Interval(count * voxel_ml, low * voxel_ml, high * voxel_ml)


def _structure(
    value: int, name: str, lesions: list[Lesion], samples: list[np.ndarray], units: str,
    midline_mm: float | None,
) -> Structure:  # fmt: skip
    volume = Interval(
        sum(one.volume.ml for one in lesions),
        sum(one.volume.low_ml for one in lesions),
        sum(one.volume.high_ml for one in lesions),
    )
    center: tuple[float, ...] | None = None
    side = None
    if lesions:
        weights = [one.voxels for one in lesions]
        center = tuple(
            float(x) for x in np.average([one.centroid_mm for one in lesions], 0, weights)
        )
        side = _side(name, center[0], midline_mm)
    grey = _grey(np.concatenate(samples), units) if samples else None
    return Structure(value, name, len(lesions), volume, center, grey, side, tuple(lesions))


def _side(name: str, x_mm: float, midline_mm: float | None) -> str | None:
    """Left or right by the label's name, else by the middle where that is known (LPS: +x left)."""
    words = re.split(r"[^a-z]+", name.lower())
    heart = "atrium" in words or ("ventricle" in words and "lateral" not in words)
    for side in ("left", "right"):
        if side in words and not heart:  # whose halves are called so wherever they lie
            return side
    if midline_mm is None:
        return None
    if abs(x_mm - midline_mm) <= MIDLINE_MM:
        return "middle"
    return "left" if x_mm > midline_mm else "right"


def _grey(values: np.ndarray, units: str) -> Grey | None:
    if not values.size:
        return None
    values = values.astype(np.float64)
    parts = np.percentile(values, PERCENTILES).tolist()
    return Grey(
        mean=float(values.mean()),
        sd=float(values.std()),
        low=float(values.min()),
        high=float(values.max()),
        percentiles=tuple(zip(PERCENTILES, parts, strict=True)),
        units=units,
    )


def _first(volume: Volume | None) -> np.ndarray | None:
    if volume is None:
        return None
    voxels = volume.canonical().voxels
    return voxels[0] if voxels.ndim == 4 else voxels


def _probability(voxels: np.ndarray | None) -> np.ndarray | None:
    if voxels is None:
        return None
    if voxels.dtype == np.uint8:
        return voxels.astype(np.float32) / 255
    if not (voxels.size and float(voxels.min()) >= 0 and float(voxels.max()) <= 1):
        got = f"{voxels.min()} to {voxels.max()}"
        raise GeometryError("confidence", "uint8, or from 0 to 1", got)
    return voxels
