"""Updates of convolution kernels by their frequencies, as pictures are sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from qinjing.federate.compression.codecs import Arrays, Shapes, check
from qinjing.federate.compression.entropy import LARGEST, entropy_bits
from qinjing.federate.compression.wire import Reader, Writer

# What is added before a magnitude is cut to a whole number: 0.5 would be the nearest one.
_ROUNDING = 1 / 3
_MOST_GROUPS = 64  # of one tensor
_SAMPLE = 2**21
_HALVINGS = 14


@dataclass(frozen=True)
class Spectral:
    """Kernels by their cosine transform, with one step for all, as fine as the bits allow.

    Neighbours in a kernel change together: the orthonormal transform over its taps (D, H, W) puts
    most of an update into a few frequencies, and each of them is a group of its own for the entropy
    coder. The same step everywhere makes the squared error of the whole least. Numbers are rounded
    towards 0 somewhat more often than away from it, which saves more bytes than it costs error.

    A number is off by 2/3 of a step at the most, but for those beyond 127 steps, which are cut.

    Attributes:
        bits: of a weight, on average, 0.01 to 8. The step is found for the entropy of each
            frequency by itself; that they share tables adds some 3 %, small tensors, tables and the
            header come on top.

    Source: arXiv:1506.04449 (kernels by their frequencies), doi:10.1109/30.125072 (JPEG).
    """

    bits: float = 1.0

    def __post_init__(self) -> None:
        check("bits", 0.01 <= self.bits <= 8, "0.01 to 8", self.bits)

    def write(self, tensors: Arrays, out: Writer, seed: int = 0) -> Arrays:
        """Write tensors; return them as they will be read."""
        waves = {name: _transformed(x) for name, x in tensors.items()}
        step = _step(waves.values(), self.bits)
        out.put(step, "<f4")
        seen = {}
        for name, wave in waves.items():
            symbols = _rounded(wave, step)
            for group in _groups(symbols):
                out.put_symbols(group)
            seen[name] = _transformed(symbols * step, back=True)
        return seen

    def read(self, shapes: Shapes, source: Reader) -> Arrays:
        """Read tensors of these shapes, in this order."""
        step = source.take(1, "<f4")[0]
        seen = {}
        for name, shape in shapes.items():
            symbols = np.empty(shape, np.int8)
            for group in _groups(symbols):
                group[...] = source.take_symbols(group.size).reshape(group.shape)
            seen[name] = _transformed(symbols * step, back=True)
        return seen


def _transformed(x: np.ndarray, back: bool = False) -> np.ndarray:
    """Return the cosine transform (DCT-II, orthonormal) over all axes but the first two."""
    for axis in range(2, x.ndim):
        matrix = _cosines(x.shape[axis])
        along = np.moveaxis(x, axis, -1)
        x = np.moveaxis(along @ (matrix if back else matrix.T), -1, axis)
    return np.ascontiguousarray(x)


def _cosines(n: int) -> np.ndarray:
    """The DCT-II as a matrix (frequency, tap), orthonormal."""
    frequency, tap = np.mgrid[:n, :n]
    matrix = np.cos(np.pi * (2 * tap + 1) * frequency / (2 * n)) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix.astype(np.float32)


def _groups(x: np.ndarray) -> Iterator[np.ndarray]:
    """Give views of `x`, one for each frequency, as long as there are not too many."""
    taps = x.shape[2:]
    for place in np.ndindex(taps) if prod(taps) <= _MOST_GROUPS else [()]:
        yield x[(..., *place)]


def _rounded(x: np.ndarray, step: np.float32) -> np.ndarray:
    whole = np.floor(np.abs(x) / (step if step > 0 else np.float32(1)) + np.float32(_ROUNDING))
    return np.copysign(np.minimum(whole, LARGEST), x).astype(np.int8)


def _step(waves: Iterable[np.ndarray], bits: float) -> np.float32:
    """Return the step at which each group's entropy adds up to the bits asked for."""
    groups = [group.ravel() for wave in waves for group in _groups(wave)]
    every = max(1, sum(group.size for group in groups) // _SAMPLE)
    groups = [group[::every] for group in groups]
    if not groups:
        return np.float32(0)
    flat = np.concatenate(groups)
    kind = np.repeat(np.arange(len(groups)), [group.size for group in groups]) * (2 * LARGEST + 1)
    largest = float(np.abs(flat).max())
    fine = float(np.sqrt(np.square(flat, dtype=np.float64).mean())) / 64
    if not fine > 0:
        return np.float32(0)
    low, high = np.log2([fine, 2 * largest])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        place = kind + _rounded(flat, np.float32(2**middle)) + LARGEST
        counts = np.bincount(place, minlength=len(groups) * (2 * LARGEST + 1))
        found = entropy_bits(counts.reshape(len(groups), -1)).sum() / flat.size
        low, high = (middle, high) if found > bits else (low, middle)
    return np.float32(2**high)
