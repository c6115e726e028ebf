"""Rotation, scaling and smooth deformation in one resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qinjing.data.transforms.sampling import sample
from qinjing.data.transforms.transform import interval, probability
from qinjing.errors import ConfigError

# The part of a matrix that moves voxels between slices, and what it is when none do.
_COUPLES_D = np.array([[1, 1, 1], [1, 0, 0], [1, 0, 0]])
_SLICES_STAY = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0]])


@dataclass(frozen=True)
class AffineParameters:
    """Where each sample is read.

    Attributes:
        applied: which samples move at all, bool `(B,)`.
        matrix: float64 `(B, 3, 3)`: the output voxel at `x` from the patch's centre takes
            the value of the input at `matrix @ x` from the centre, in voxels, in (D, H, W).
        deformed: which samples are deformed as well, bool `(B,)`.
        control: displacement of the spline's control points, voxels, float64
            `(B, 3, n, n, n)`.
    """

    applied: np.ndarray
    matrix: np.ndarray
    deformed: np.ndarray
    control: np.ndarray


@dataclass(frozen=True)
class Affine:
    """Rotate, scale and deform about the patch's centre, trilinear for the image.

    With a margin the patch comes in larger than it leaves, so that what turns or shrinks into view
    is what lies there. Beyond that it is the nearest border voxel, in image and label alike. The
    label is the arg-max of its interpolated one-hot form.

    A positive angle about D turns the picture in the (H, W) plane from W towards H; about H,
    in the (D, W) plane from D towards W; about W, in the (D, H) plane from H towards D. These
    are the signs of MONAI's `Rotate(angle=(D, H, W))`. The three turns are multiplied in this
    order, `R_D · R_H · R_W`. A scale above 1 makes things larger.

    Args:
        rotation_deg: one range for each axis that is turned about, (D, H, W), in degrees,
            drawn uniformly.
        rotation_probability: for each sample.
        scale: range of the zoom, drawn uniformly, the same for all axes.
        scale_probability: for each sample.
        elastic_std: range of the standard deviation of the control points' displacement,
            in voxels.
        elastic_probability: for each sample.
        control_points: of the cubic B-spline along each axis, at least 4.
        in_plane: leave slices (planes of D) where they are: scale and displace only
            along H and W. For patches whose voxels are much thicker than wide.
        margin: voxels along (D, H, W) that are cut off at either end.

    Raises:
        ConfigError: a range or a probability that cannot be; in-plane with a turn out of it.

    Source: cubic B-spline deformation: Rueckert 1999, doi:10.1109/42.796284.
    """

    rotation_deg: tuple[tuple[float, float], ...] = ((-30.0, 30.0),) * 3
    rotation_probability: float = 0.2
    scale: tuple[float, float] = (0.7, 1.4)
    scale_probability: float = 0.2
    elastic_std: tuple[float, float] = (0.0, 3.0)
    elastic_probability: float = 0.0
    control_points: int = 6
    in_plane: bool = False
    margin: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rotation_deg", _angles(self.rotation_deg))
        object.__setattr__(self, "scale", interval("scale", self.scale, low=0.01, high=100.0))
        elastic = interval("elastic_std", self.elastic_std, low=0.0, high=1e4)
        object.__setattr__(self, "elastic_std", elastic)
        for name in ("rotation_probability", "scale_probability", "elastic_probability"):
            object.__setattr__(self, name, probability(name, getattr(self, name)))
        if type(self.control_points) is not int or not 4 <= self.control_points <= 64:
            raise ConfigError("control_points", "an integer from 4 to 64", self.control_points)
        margin = tuple(self.margin) if isinstance(self.margin, list | tuple) else ()
        if len(margin) != 3 or any(type(m) is not int or m < 0 for m in margin):
            raise ConfigError("margin", "three whole numbers, 0 or more", self.margin)
        object.__setattr__(self, "margin", margin)
        if self.in_plane and self.rotation_deg[1:] != ((0.0, 0.0), (0.0, 0.0)):
            raise ConfigError(
                "rotation_deg", "0 to 0 about H and W where in_plane is true", self.rotation_deg
            )

    def draw(self, rng: np.random.Generator, batch: int) -> AffineParameters:
        """Draw the matrices, and control points for those samples that are deformed."""
        turned = rng.random(batch) < self.rotation_probability
        low, high = np.radians(self.rotation_deg).T
        angles = rng.uniform(low, high, (batch, 3)) * turned[:, None]
        scaled = rng.random(batch) < self.scale_probability
        zoom = np.where(scaled, rng.uniform(*self.scale, batch), 1.0)
        deformed = rng.random(batch) < self.elastic_probability
        std = rng.uniform(*self.elastic_std, batch)
        control = np.zeros((batch, 3, *(self.control_points,) * 3))
        for row in np.flatnonzero(deformed):
            control[row] = rng.normal(0.0, std[row], control.shape[1:])
        matrix = rotation_matrices(angles) / zoom[:, None, None]
        if self.in_plane:
            matrix[:, 0, 0] = 1.0
            control[:, 0] = 0.0
        return AffineParameters(turned | scaled | deformed, matrix, deformed, control)

    def apply(
        self, image: Tensor, label: Tensor, parameters: AffineParameters
    ) -> tuple[Tensor, Tensor]:
        """Resample the drawn samples, image and label with the same coordinates; cut the margin."""
        lengths = zip(self.margin, image.shape[2:], strict=True)
        d, h, w = (slice(m, n - m) for m, n in lengths)
        whole_image, whole_label = image, label
        image, label = image[..., d, h, w], label[..., d, h, w]
        if any(self.margin) or parameters.applied.any():
            dense = torch.contiguous_format
            image, label = image.clone(memory_format=dense), label.clone(memory_format=dense)
        for row in np.flatnonzero(parameters.applied):
            x, y = whole_image[row], whole_label[row][None]
            shape = image.shape[2:]
            matrix, deformed = parameters.matrix[row], parameters.deformed[row]
            if not deformed and np.array_equal(matrix * _COUPLES_D, _SLICES_STAY):
                # Slices stay: read them as channels, all by one plane of coordinates.
                x, y = x[:, d].flatten(0, 1), y[:, d].flatten(0, 1)
                shape, matrix = shape[1:], matrix[1:, 1:]
            coordinates = _coordinates(shape, matrix, x)
            if deformed:
                shifts = _displacement(parameters.control[row], shape, x)
                coordinates = [at + shift for at, shift in zip(coordinates, shifts, strict=True)]
            moved, voted = sample(x, y, coordinates)
            image[row], label[row] = moved.view_as(image[row]), voted.view_as(label[row])
        return image, label


def rotation_matrices(angles: np.ndarray) -> np.ndarray:
    """Return `R_D · R_H · R_W`, float64 `(B, 3, 3)`, for angles `(B, 3)` in radians."""
    zero, one = np.zeros(len(angles)), np.ones(len(angles))
    (cd, ch, cw), (sd, sh, sw) = np.cos(angles).T, np.sin(angles).T
    about_d = [[one, zero, zero], [zero, cd, -sd], [zero, sd, cd]]
    about_h = [[ch, zero, sh], [zero, one, zero], [-sh, zero, ch]]
    about_w = [[cw, -sw, zero], [sw, cw, zero], [zero, zero, one]]
    d, h, w = (np.moveaxis(np.array(m), -1, 0) for m in (about_d, about_h, about_w))
    return d @ h @ w


def _coordinates(shape: Sequence[int], matrix: np.ndarray, like: Tensor) -> list[Tensor]:
    """Where each voxel of `shape` is read, in voxels of `like` of the same centre; one per axis."""
    count = len(shape)
    from_centre = [
        torch.arange(n, dtype=like.dtype, device=like.device)
        .sub_((n - 1) / 2)
        .reshape([-1 if i == axis else 1 for i in range(count)])
        for axis, n in enumerate(shape)
    ]
    coordinates = []
    for row, n in zip(matrix, like.shape[1:], strict=True):
        # The sum over the first axes is small; only the last one makes it the full size.
        at = torch.full((1,) * count, (n - 1) / 2, dtype=like.dtype, device=like.device)
        for factor, x in zip(row, from_centre, strict=True):
            at = at + float(factor) * x
        coordinates.append(at)
    return coordinates


def _displacement(control: np.ndarray, shape: Sequence[int], like: Tensor) -> Tensor:
    """Evaluate the spline of control points `(3, n, n, n)` on the grid: `(3, D, H, W)` voxels."""
    field = torch.as_tensor(control, dtype=like.dtype, device=like.device)
    for length in shape:
        basis = torch.from_numpy(cubic_basis(length, control.shape[1])).to(field)
        # Each turn eats the first spatial axis and adds the new one at the end: D, H, W again.
        field = torch.tensordot(field, basis, ([1], [1]))
    return field


def cubic_basis(length: int, points: int) -> np.ndarray:
    """Return the uniform cubic B-spline's weights, float64 `(length, points)`; rows add to 1."""
    at = np.linspace(0.0, points - 3.0, length) if length > 1 else np.array([(points - 3) / 2])
    first = np.minimum(np.floor(at).astype(int), points - 4)
    t = at - first
    weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    basis = np.zeros((length, points))
    for step, weight in enumerate(weights):
        basis[np.arange(length), first + step] = weight / 6
    return basis


def _angles(value: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ConfigError("rotation_deg", "three ranges of degrees, about D, H and W", value)
    return tuple(interval("rotation_deg", limits, low=-180.0, high=180.0) for limits in value)
