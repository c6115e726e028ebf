"""The planes that a segmentation is written on, and the way between them and a volume's grid.

Viewers lay a segmentation over an image plane by plane, so that it is written on the planes that
the scanner measured wherever they can be told, even where our volume was resampled (a tilted
gantry sheared upright, uneven gaps): labels go back to them by nearest neighbour. Only of images
that are no stack of planes to the standard (mosaics) the volume's own grid is written.

Source: DICOM PS3.3, equation C.7.6.2.1-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.data.dicom.series import DicomVolume, Source
from qinjing.errors import FormatError, GeometryError
from qinjing.volume import Volume

SAME_PLACE_MM = 1e-2
# A plane whose voxels all lie this near to those of a slice (in voxels) is that slice.
SAME_VOXEL = 0.05


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of pixels in the patient.

    Attributes:
        origin: (3,) centre of the first pixel, LPS millimetres.
        steps: (3, 2) from one row to the next and from one column to the next, millimetres.
        shape: (rows, columns).
        sources: what it derives from; none where that is not known.
        preserved: its pixels are those of its sources, one for one.
    """

    origin: np.ndarray
    steps: np.ndarray
    shape: tuple[int, int]
    sources: tuple[Source, ...] = ()
    preserved: bool = True

    @property
    def normal(self) -> np.ndarray:
        """Unit vector at a right angle to rows and columns."""
        across = np.cross(self.steps[:, 1], self.steps[:, 0])
        return across / np.linalg.norm(across)


def source_planes(source: DicomVolume) -> tuple[Plane, ...]:
    """Return the planes that results for a volume are written on, along their normal.

    Those of its files, or where these are no stack of planes, the slices of the volume itself.

    Raises:
        FormatError: a file of the series cannot be read any more.
    """
    headers: dict[Path, Any] = {}
    planes: list[Plane] = []
    for sources in source.planes:
        for one in sources:
            geometry = _geometry(one, headers)
            if geometry is None:
                return own_planes(source)
            planes.append(geometry)
    if not planes:
        return own_planes(source)
    normal = planes[0].normal
    if max(float(np.abs(plane.normal - normal).max()) for plane in planes) > 1e-3:
        return own_planes(source)
    planes.sort(key=lambda plane: float(plane.origin @ normal))
    merged = [planes[0]]
    for plane in planes[1:]:  # time points and echoes share a place, resampling names planes twice
        last = merged[-1]
        if np.linalg.norm(plane.origin - last.origin) > SAME_PLACE_MM:
            merged.append(plane)
        elif plane.sources[0] not in last.sources:
            merged[-1] = replace(last, sources=last.sources + plane.sources)
    return tuple(merged)


def own_planes(source: DicomVolume) -> tuple[Plane, ...]:
    """Return the slices of the volume's own grid, with the files that each came from."""
    slices = grid_planes(source.volume)
    return tuple(
        replace(plane, sources=tuple(sources), preserved=False)
        for plane, sources in zip(slices, source.planes, strict=True)
    )


def grid_planes(volume: Volume) -> tuple[Plane, ...]:
    """Return the slices of a grid."""
    affine, shape = volume.affine, volume.shape
    return tuple(
        Plane(affine[:3, 3] + affine[:3, 0] * d, affine[:3, 1:3], (shape[1], shape[2]))
        for d in range(shape[0])
    )


def _geometry(one: Source, headers: dict[Path, Any]) -> Plane | None:
    """Where a file, or a frame of it, says that it lies; None where it does not."""
    if one.path not in headers:
        headers[one.path] = read_header(one.path)
    file = headers[one.path]
    if one.frame is None:
        if int(file.get("NumberOfFrames") or 1) != 1 or "MOSAIC" in (file.get("ImageType") or ()):
            return None
        place, turn, spacing = (
            file.get(name)
            for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
    else:
        place = _of_frame(file, one.frame, "PlanePositionSequence", "ImagePositionPatient")
        turn = _of_frame(file, one.frame, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = _of_frame(file, one.frame, "PixelMeasuresSequence", "PixelSpacing")
    if place is None or turn is None or spacing is None:
        return None
    along_row, along_column = np.array(turn, dtype=np.float64).reshape(2, 3)
    steps = np.stack([along_column * float(spacing[0]), along_row * float(spacing[1])], axis=1)
    origin = np.array(place, dtype=np.float64)
    if origin.shape != (3,) or not np.isfinite(origin).all() or np.linalg.matrix_rank(steps) < 2:
        return None
    return Plane(origin, steps, (int(file.Rows), int(file.Columns)), (one,))


def _of_frame(file: Any, frame: int, group: str, name: str) -> Any:
    """An element of a frame's functional group, or of the group that all frames share."""
    for groups in (
        file.get("PerFrameFunctionalGroupsSequence", [])[frame - 1 : frame],
        file.get("SharedFunctionalGroupsSequence", [])[:1],
    ):
        for item in groups:
            if item.get(group) and item.get(group)[0].get(name) is not None:
                return item.get(group)[0].get(name)
    return None


def read_header(path: Path) -> Any:
    """Read a file without its pixels.

    Raises:
        FormatError: it is gone or damaged.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return dcmread(path, stop_before_pixels=True)
    except (OSError, InvalidDicomError) as error:
        rule = "as it was when the series was read"
        raise FormatError("source", rule, error, where=path) from None


def to_planes(planes: Sequence[Plane], volume: Volume) -> np.ndarray:
    """Take voxels (D, H, W) to pixels (P, rows, columns), each from the nearest voxel.

    Planes that are slices of the volume are copied; what lies outside the volume is 0.

    Raises:
        GeometryError: planes differ in size, or no plane meets the volume.
    """
    shape = planes[0].shape
    if any(plane.shape != shape for plane in planes):
        raise GeometryError("planes", "of one size", sorted({plane.shape for plane in planes}))
    pixels = np.zeros((len(planes), *shape), dtype=volume.voxels.dtype)
    met = False
    for p, plane in enumerate(planes):
        taken = _take(pixels[p], plane, volume)
        met = met or taken
    if not met:
        raise GeometryError("segmentation", "where its source lies", "no plane in common")
    return pixels


def _take(pixels: np.ndarray, plane: Plane, volume: Volume) -> bool:
    """Fill one plane; whether it meets the volume at all."""
    inverse = np.linalg.inv(volume.affine)[:3]
    map_ = inverse @ np.vstack([np.column_stack([plane.steps, plane.origin]), [0, 0, 1]])
    rows, columns = plane.shape
    ends = np.array([[0, 0, 1], [rows - 1, 0, 1], [0, columns - 1, 1], [rows - 1, columns - 1, 1]])
    at = ends @ map_.T
    d = round(float(at[0, 0]))
    wanted = np.column_stack([np.full(4, d), ends[:, :2]])
    same = np.abs(at - wanted).max() < SAME_VOXEL and plane.shape == volume.shape[1:]
    if same and 0 <= d < volume.shape[0]:
        pixels[:] = volume.voxels[d]
        return True
    h, w = np.arange(rows)[:, None], np.arange(columns)[None]
    index = [np.rint(m[0] * h + m[1] * w + m[2]).astype(np.int64) for m in map_]
    inside = np.ones(plane.shape, dtype=bool)
    for axis, length in zip(index, volume.shape, strict=True):
        inside &= (axis >= 0) & (axis < length)
    pixels[inside] = volume.voxels[index[0][inside], index[1][inside], index[2][inside]]
    return bool(inside.any())


def from_planes(
    planes: Sequence[Plane], pixels: np.ndarray, like: Volume, reach_mm: float = np.inf
) -> np.ndarray:
    """Take pixels (P, rows, columns) to a volume's grid (D, H, W), each from the nearest plane.

    Args:
        planes: along their normal, no two at one place.
        pixels: of each plane.
        like: the grid.
        reach_mm: how far from a plane, along its normal, a voxel may still be of it.
    """
    normal = planes[0].normal
    heights = np.array([plane.origin @ normal for plane in planes])
    voxels = np.zeros(like.shape, dtype=pixels.dtype)
    into = np.linalg.pinv(planes[0].steps)
    origins = np.array([plane.origin for plane in planes])
    h, w = np.indices(like.shape[1:])
    grid = np.stack([h, w], axis=-1) @ like.affine[:3, 1:3].T + like.affine[:3, 3]
    for d in range(like.shape[0]):
        start = like.affine[:3, 3] + like.affine[:3, 0] * d
        k = int(np.abs(heights - start @ normal).argmin())
        if _is_slice(planes[k], start, like):
            voxels[d] = pixels[k]
            continue
        points = grid + like.affine[:3, 0] * d
        height = points @ normal
        if height.min() > heights[-1] + reach_mm or height.max() < heights[0] - reach_mm:
            continue
        above = np.clip(np.searchsorted(heights, height), 1, max(len(heights) - 1, 1))
        below = above - 1
        above = np.minimum(above, len(heights) - 1)
        nearer = np.abs(heights[above] - height) < np.abs(heights[below] - height)
        p = np.where(nearer, above, below)
        near = np.abs(heights[p] - height) <= reach_mm
        at = np.rint((points - origins[p]) @ into.T).astype(np.int64)
        for axis in (0, 1):
            near &= (at[..., axis] >= 0) & (at[..., axis] < pixels.shape[axis + 1])
        voxels[d][near] = pixels[p[near], at[near][:, 0], at[near][:, 1]]
    return voxels


def _is_slice(plane: Plane, start: np.ndarray, like: Volume) -> bool:
    """Whether a plane is the slice of a volume that begins at `start`."""
    if plane.shape != like.shape[1:]:
        return False
    ends = np.array([[0, 0], [plane.shape[0] - 1, 0], [0, plane.shape[1] - 1]])
    apart = (plane.origin - start) + ends @ (plane.steps - like.affine[:3, 1:3]).T
    least = float(np.linalg.norm(like.affine[:3, :3], axis=0).min())
    return float(np.linalg.norm(apart, axis=1).max()) < SAME_VOXEL * least


def as_grid(planes: Sequence[Plane], gap_mm: float | None = None) -> tuple[np.ndarray, list[int]]:
    """Return the affine that parallel planes make, and the slice that each of them is.

    Planes may be missing; a steady sideways shift (a tilted gantry) becomes a shear.

    Args:
        planes: along their normal, of one size and spacing.
        gap_mm: between slices, where it is known; else the smallest gap.

    Raises:
        GeometryError: their gaps are no multiples of one.
    """
    normal = planes[0].normal
    heights = np.array([(plane.origin - planes[0].origin) @ normal for plane in planes])
    gap = float(np.diff(heights).min()) if len(planes) > 1 else (gap_mm or 1.0)
    if gap_mm and len(planes) > 1 and abs(gap / gap_mm - round(gap / gap_mm)) < SAME_VOXEL:
        gap = gap_mm
    steps = np.rint(heights / gap).astype(int)
    if len(planes) > 1:
        # The far plane tells the gap most exactly.
        gap = float(heights[-1] / steps[-1])
    if np.abs(heights - steps * gap).max() > SAME_VOXEL * gap:
        got = f"gaps of {np.diff(heights).min():.4g} to {np.diff(heights).max():.4g} mm"
        raise GeometryError("frames", "evenly spaced", got, advice="read it onto its source's grid")
    affine = np.eye(4)
    affine[:3, 1:3], affine[:3, 3] = planes[0].steps, planes[0].origin
    affine[:3, 0] = normal * gap
    if len(planes) > 1:
        affine[:3, 0] = (planes[-1].origin - planes[0].origin) / steps[-1]
    places = planes[0].origin + np.outer(steps, affine[:3, 0])
    apart = max(
        float(np.linalg.norm(place - plane.origin))
        for place, plane in zip(places, planes, strict=True)
    )
    if apart > 0.5 * float(np.linalg.norm(planes[0].steps, axis=0).min()):
        got = f"one {apart:.3g} mm beside"
        raise GeometryError("frames", "on one line", got, advice="read it onto its source's grid")
    return affine, steps.tolist()
