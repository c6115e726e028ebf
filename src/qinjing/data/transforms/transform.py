"""What every transform is, and the checks of arguments that they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from qinjing.errors import ConfigError


class Transform(Protocol):
    """A random change of a batch, with the drawing apart from the doing.

    Image `(B, C, D, H, W)` float32, label `(B, D, H, W)` of any integer type, on any device.
    `apply` never writes into what it is given, and changes only the samples that were drawn.
    """

    def draw(self, rng: np.random.Generator, batch: int) -> Any:
        """Draw the parameters of `batch` samples, each a row of NumPy arrays."""

    def apply(self, image: Tensor, label: Tensor, parameters: Any) -> tuple[Tensor, Tensor]:
        """Apply drawn parameters; the same input and parameters give the same bits."""


def interval(
    name: str, value: Any, *, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """Return two ascending finite numbers within `[low, high]`.

    Raises:
        ConfigError: `value` is anything else.
    """
    good = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    if not (good and low <= value[0] <= value[1] <= high):
        limits = "" if low == -math.inf else f" from {low:g} to {high:g}"
        raise ConfigError(name, f"two ascending numbers{limits}", value)
    return float(value[0]), float(value[1])


def probability(name: str, value: Any) -> float:
    """Return a number from 0 to 1.

    Raises:
        ConfigError: `value` is anything else.
    """
    if not (_is_number(value) and 0 <= value <= 1):
        raise ConfigError(name, "a number from 0 to 1", value)
    return float(value)


def spatial_axes(name: str, value: Any) -> tuple[int, ...]:
    """Return distinct axes, each 0 (D), 1 (H) or 2 (W).

    Raises:
        ConfigError: `value` is anything else.
    """
    good = isinstance(value, list | tuple) and all(type(axis) is int for axis in value)
    if not (good and set(value) <= {0, 1, 2} and len(set(value)) == len(value)):
        raise ConfigError(name, "distinct axes out of 0 (D), 1 (H), 2 (W)", value)
    return tuple(value)


def change_rows(
    image: Tensor, chosen: np.ndarray, change: Callable[[Tensor, np.ndarray], Tensor]
) -> Tensor:
    """Return `image` with `change(image[rows], rows)` in the chosen rows, the others untouched.

    Args:
        image: `(B, …)`, left as it is.
        chosen: which samples, bool `(B,)`.
        change: maps the chosen samples, and their numbers, to new ones of the same shape.
    """
    rows = np.flatnonzero(chosen)
    if len(rows) == 0:
        return image
    if len(rows) == len(chosen):
        return change(image, rows)
    index = torch.from_numpy(rows).to(image.device)
    return image.index_copy(0, index, change(image.index_select(0, index), rows))


def per_sample(values: np.ndarray, image: Tensor) -> Tensor:
    """Return one value per sample, shaped to broadcast over `image`, of its type and device."""
    column = torch.as_tensor(values, dtype=image.dtype, device=image.device)
    return column.reshape(-1, *(1,) * (image.ndim - 1))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
