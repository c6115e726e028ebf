"""Parallel planes as a grid: in the order of their places, or resampled onto an upright, even one.

Even, upright planes are kept as they are. A tilted gantry shifts each plane along its rows or
columns; the planes are moved back within themselves. Where gaps vary, planes are interpolated
between the two neighbours. Both are linear, and said. A missing plane is not made up: refused.

Source: DICOM PS3.3, C.7.6.2 (image plane).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qinjing.data.dicom.apart import SAME_PLACE_MM
from qinjing.data.dicom.header import Plane
from qinjing.errors import GeometryError

# How far a slice may lie from its place on the regular grid, as a part of the gap: what rounding
# of written positions explains, and far below what a missing slice does.
TOLERANCE = 0.05
# Of the gaps, how many may be whole multiples of the others before they are meant to be.
MOST_MISSING = 1 / 3
# The grid takes the narrowest gap, but for this part of them: one odd pair of slices shall not
# make four times as many.
NARROWEST = 0.1
MOST_VOXELS = 8.0  # of a resampled grid, for each voxel that there is


@dataclass(frozen=True, eq=False)
class Resampling:
    """How planes are brought onto an upright, even grid.

    Attributes:
        heights_mm: of the planes along their normal, from the first.
        shifts: of the planes on the grid, in rows and columns, (N, 2), not below 0.
        gap_mm: of the grid.
        shape: (D, H, W) of the grid.
    """

    heights_mm: np.ndarray
    shifts: np.ndarray
    gap_mm: float
    shape: tuple[int, int, int]

    def parents(self, d: int) -> list[tuple[int, float]]:
        """Return which planes slice d comes from, and the weight of each."""
        height = min(d * self.gap_mm, float(self.heights_mm[-1]))
        above = int(np.searchsorted(self.heights_mm, height))
        if above == 0:
            return [(0, 1.0)]
        below = above - 1
        part = (height - self.heights_mm[below]) / (self.heights_mm[above] - self.heights_mm[below])
        weights = [(below, 1 - float(part)), (above, float(part))]
        # A plane that lies where the slice does is taken as it is.
        return [one for one in weights if one[1] > TOLERANCE / 10] if part > 0 else weights[:1]


@dataclass(frozen=True, eq=False)
class Stack:
    """Planes in order, and the grid that they make.

    Attributes:
        planes: along their normal.
        affine: (4, 4), index (d, h, w, 1) → LPS millimetres.
        shape: (D, H, W).
        resampling: None where the planes are the grid's.
        notes: sentences that say what is done to the grid.
        fault: why the planes are no upright, even grid, "" where they are.
    """

    planes: tuple[Plane, ...]
    affine: np.ndarray
    shape: tuple[int, int, int]
    resampling: Resampling | None = None
    notes: tuple[str, ...] = ()
    fault: str = ""


def stack(planes: Sequence[Plane]) -> Stack:
    """Order parallel planes of one shape along their normal, and find their grid.

    Raises:
        GeometryError: two lie at one place, or one is missing.
    """
    if len(planes) == 1:
        return _lone(planes[0])
    along_row, along_column = planes[0].directions
    normal = np.cross(along_row, along_column)
    normal /= math.sqrt(float(normal @ normal))
    positions = np.array([plane.position for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    ordered = tuple(planes[int(i)] for i in order)
    moved = positions[order] - positions[order[0]]
    heights = moved @ normal
    gaps = np.diff(heights)
    _refuse_doubles(ordered, gaps)
    gap = float(heights[-1]) / len(gaps)
    even = bool(abs(heights - gap * np.arange(len(ordered))).max() <= TOLERANCE * gap)
    if not even:
        _refuse_missing(ordered, gaps)
    sideways = moved - np.outer(heights, normal)
    upright = bool(np.sqrt((sideways**2).sum(axis=1)).max() <= TOLERANCE * gap)
    if even and upright:
        affine = _affine(planes[0], normal * gap, ordered[0].position)
        return Stack(ordered, affine, (len(ordered), *planes[0].shape))
    return _resampled(ordered, normal, heights, sideways, even, upright)


def _lone(plane: Plane) -> Stack:
    """One slice as a volume: as thick as it says, for want of a neighbour."""
    normal = np.cross(*plane.directions)
    thick = plane.thickness_mm or 1.0
    said = f"its own {thick:g} mm" if plane.thickness_mm else "1 mm, for want of any"
    note = f"A single slice: how thick it is says no neighbour; taken are {said}."
    affine = _affine(plane, normal * thick, plane.position)
    return Stack((plane,), affine, (1, *plane.shape), None, (note,))


def _affine(plane: Plane, step: np.ndarray, origin: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = plane.directions[1] * plane.spacing_mm[0]
    affine[:3, 2] = plane.directions[0] * plane.spacing_mm[1]
    affine[:3, 3] = origin
    return affine


def _refuse_doubles(ordered: Sequence[Plane], gaps: np.ndarray) -> None:
    narrow = int(gaps.argmin())
    if gaps[narrow] < SAME_PLACE_MM:
        pair = f"{_name(ordered[narrow])} and {_name(ordered[narrow + 1])}"
        raise GeometryError("slices", "one at each place", f"two at one, {pair}",
                            advice="take the time points or echoes apart")  # fmt: skip


def _refuse_missing(ordered: Sequence[Plane], gaps: np.ndarray) -> None:
    """Refuse where few gaps are whole multiples of all the others."""
    usual = float(np.median(gaps)) if len(gaps) > 3 else float(gaps.min())
    times = gaps / usual
    odd = abs(times - 1) > 2 * TOLERANCE
    multiples = odd & (np.rint(times) > 1) & (abs(times - np.rint(times)) <= 2 * TOLERANCE * times)
    if not odd.any() or (odd & ~multiples).any() or odd.sum() > max(1, MOST_MISSING * len(gaps)):
        return
    holes = [
        f"{round(float(times[k])) - 1} between {_name(ordered[k])} and {_name(ordered[k + 1])}"
        for k in np.flatnonzero(odd).tolist()
    ]
    got = f"gaps of {gaps.min():.4g} to {gaps.max():.4g} mm: missing are " + ", ".join(holes[:5])
    raise GeometryError("slices", "evenly spaced, none missing", got)


def _name(plane: Plane) -> str:
    frame = "" if plane.single else f" frame {plane.frame + 1}"
    return plane.file.path.name + frame


def _resampled(
    ordered: tuple[Plane, ...], normal: np.ndarray, heights: np.ndarray, sideways: np.ndarray,
    even: bool, upright: bool,
) -> Stack:  # fmt: skip
    """The upright, even grid that holds all planes."""
    first = ordered[0]
    gaps = np.diff(heights)
    gap = float(heights[-1]) / len(gaps)
    notes, faults = [], []
    if not upright:
        worst = int(np.abs(sideways).max(axis=1).argmax())
        shift_mm = float(np.linalg.norm(sideways[worst]))
        tilt_deg = math.degrees(math.atan2(shift_mm, heights[worst]))
        faults.append(f"a gantry tilt of {tilt_deg:.1f} degrees")
        notes.append(
            f"The gantry was tilted by {tilt_deg:.1f} degrees: each slice was moved within its"
            f" plane, by up to {shift_mm:.4g} mm, linearly interpolated, onto an upright grid."
        )
    if not even:
        faults.append(f"gaps of {gaps.min():.4g} to {gaps.max():.4g} mm")
        gap = float(np.quantile(gaps, NARROWEST, method="lower"))
        notes.append(
            f"Gaps between slices vary from {gaps.min():.4g} to {gaps.max():.4g} mm: resampled"
            f" linearly to {gap:.4g} mm."
        )
    in_plane = sideways @ first.directions[::-1].T / first.spacing_mm  # rows down, columns right
    if upright:
        in_plane = np.zeros_like(in_plane)
    low = np.floor(np.round(in_plane.min(axis=0), 6))
    shifts = in_plane - low
    grow = np.ceil(np.round(shifts.max(axis=0), 6))
    depth = math.floor(heights[-1] / gap + TOLERANCE) + 1
    shape = (depth, first.shape[0] + int(grow[0]), first.shape[1] + int(grow[1]))
    there = len(ordered) * first.shape[0] * first.shape[1]
    if math.prod(shape) > MOST_VOXELS * there:
        raise GeometryError(
            "slices", "near enough to one another to be resampled", f"{shape} voxels to be made"
        )
    affine = _affine(first, normal * gap, first.position)
    affine[:3, 3] += affine[:3, 1] * low[0] + affine[:3, 2] * low[1]
    grid = Resampling(heights, shifts, gap, shape)
    return Stack(ordered, affine, shape, grid, tuple(notes), " and ".join(faults))


def resample(slices: np.ndarray, grid: Resampling) -> np.ndarray:
    """Bring planes onto their grid; beyond their edges stands their lowest value.

    Args:
        slices: (N, H, W) float32, in order.
        grid: where they go.

    Returns:
        (D, H', W') float32.
    """
    voxels = np.empty(grid.shape, np.float32)
    fill = float(slices.min())
    moved: dict[int, np.ndarray] = {}
    for d in range(grid.shape[0]):
        parents = grid.parents(d)
        moved = {
            i: moved[i] if i in moved else _move(slices[i], grid.shifts[i], grid.shape[1:], fill)
            for i, _ in parents
        }
        total = sum(weight for _, weight in parents)
        voxels[d] = 0
        for i, weight in parents:
            voxels[d] += moved[i] * np.float32(weight / total)
    return voxels


def _move(pixels: np.ndarray, shift: np.ndarray, shape: tuple[int, ...], fill: float) -> np.ndarray:
    """Shift a plane by a part of rows and columns, linearly, onto a larger one."""
    moved = pixels
    for axis in (0, 1):
        whole = math.floor(shift[axis] + 1e-6)
        part = max(0.0, float(shift[axis]) - whole)
        if part < 1e-5:
            part = 0.0
        before = [(0, 0), (0, 0)]
        length = shape[axis] - moved.shape[axis]
        before[axis] = (whole, max(0, length - whole))
        padded = np.pad(moved, before, constant_values=fill)
        if part:
            back = np.roll(padded, 1, axis)
            edge: list[slice | int] = [slice(None)] * 2
            edge[axis] = 0
            back[tuple(edge)] = fill
            padded = padded * np.float32(1 - part) + back * np.float32(part)
        moved = padded
    return moved
