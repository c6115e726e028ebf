"""One Volume: voxels that never travel without their affine.

Array axes are (D, H, W), with channels before them where there are any: (C, D, H, W). The affine
takes an index (d, h, w, 1) to patient millimetres in LPS, as DICOM does. A NIfTI array (i, j, k) is
the same memory read backwards, so that D is k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from qinjing.errors import GeometryError


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels with their place in the patient.

    Attributes:
        voxels: (D, H, W) or (C, D, H, W), any numeric type.
        affine: (4, 4) float64, index (d, h, w, 1) → LPS millimetres.
        frame_of_reference: DICOM FrameOfReferenceUID where one is known.

    Raises:
        GeometryError: voxels are not 3-D or 4-D, or the affine is not an invertible 4×4 matrix.
    """

    voxels: np.ndarray
    affine: np.ndarray
    frame_of_reference: str | None = None

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        if self.voxels.ndim not in (3, 4):
            raise GeometryError("voxels", "(D, H, W) or (C, D, H, W)", f"shape {self.voxels.shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError("affine", "a finite 4×4 matrix", f"{affine.tolist()}")
        if not np.allclose(affine[3], (0, 0, 0, 1)) or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise GeometryError("affine", "invertible with last row 0 0 0 1", f"{affine.tolist()}")
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Spatial shape (D, H, W)."""
        d, h, w = self.voxels.shape[-3:]
        return d, h, w

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbours along D, H and W, in millimetres."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return d, h, w

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres, right under shear as well."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def with_voxels(self, voxels: np.ndarray) -> Volume:
        """Return other voxels on this grid.

        Raises:
            GeometryError: the spatial shape differs.
        """
        if voxels.shape[-3:] != self.shape:
            raise GeometryError("voxels", f"of spatial shape {self.shape}", voxels.shape[-3:])
        return replace(self, voxels=voxels)

    def grid_difference(self, other: Volume, tolerance_mm: float = 1e-2) -> str | None:
        """Say how `other` lies on another grid, or None where it lies on the same one.

        The affines are compared at the eight corners, so that a small rotation of a large volume
        counts as much as it moves voxels.
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        corners = np.array(
            [[d, h, w, 1] for d in (0, self.shape[0] - 1) for h in (0, self.shape[1] - 1)
             for w in (0, self.shape[2] - 1)], dtype=np.float64,
        )  # fmt: skip
        moved = float(
            np.linalg.norm((corners @ (self.affine - other.affine).T)[:, :3], axis=1).max()
        )
        if moved > tolerance_mm:
            return f"affine moves a corner by {moved:.3g} mm"
        return None

    def canonical(self) -> Volume:
        """Return the same voxels with axes flipped and permuted to lie nearest to (S, P, L).

        Lossless; `restore_axes` undoes it.
        """
        order, flips = _axes_to_canonical(self.affine)
        return _reorder(self, order, flips)

    def restore_axes(self, like: Volume) -> Volume:
        """Undo `canonical`: return this volume in the axis order and direction of `like`."""
        order, flips = _axes_to_canonical(like.affine)
        inverse = tuple(int(i) for i in np.argsort(order))
        back = _reorder(self, inverse, tuple(flips[inverse[i]] for i in range(3)))
        return replace(back, affine=like.affine, frame_of_reference=like.frame_of_reference)


def _axes_to_canonical(affine: np.ndarray) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Which source axis becomes D, H, W, and whether each is flipped."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    patient = (2, 1, 0)  # D runs to S (LPS z), H to P (y), W to L (x)
    order = max(
        permutations(range(3)),
        key=lambda p: sum(abs(columns[patient[i], p[i]]) for i in range(3)),
    )
    return order, tuple(bool(columns[patient[i], order[i]] < 0) for i in range(3))


def _reorder(volume: Volume, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """Permute the spatial axes, then flip; the affine follows. A view, no copy."""
    lead = volume.voxels.ndim - 3
    voxels = volume.voxels.transpose(*range(lead), *(lead + i for i in order))
    affine = volume.affine.copy()
    affine[:, :3] = volume.affine[:, list(order)]
    for axis, flip in enumerate(flips):
        if flip:
            affine[:, 3] += affine[:, axis] * (voxels.shape[lead + axis] - 1)
            affine[:, axis] *= -1
            voxels = np.flip(voxels, lead + axis)
    return replace(volume, voxels=voxels, affine=affine)
