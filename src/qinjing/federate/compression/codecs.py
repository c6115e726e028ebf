"""Codecs: trained tensors of an update → few symbols and numbers, and back.

Each is a small frozen dataclass with two verbs. `write` puts the tensors into a `Writer` and
returns what a reader will see; `read` takes them out of a `Reader`. Nothing is sent that the reader
can work out from shapes and options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2, prod
from typing import Protocol

import numpy as np
import torch

from qinjing.errors import ConfigError, FormatError
from qinjing.federate.compression.entropy import LARGEST
from qinjing.federate.compression.wire import Reader, Writer

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
_HOP = 2 * LARGEST  # the last symbol
_TRIED = tuple(2.0 ** (-part / 3) for part in range(16))


class Codec(Protocol):
    """What every codec can do; tensors are float32 and finite, at least one number each."""

    def write(self, tensors: Arrays, out: Writer, seed: int = 0) -> Arrays:
        """Write tensors; return them as they will be read."""

    def read(self, shapes: Shapes, source: Reader) -> Arrays:
        """Read tensors of these shapes, in this order."""


@dataclass(frozen=True)
class Float32:
    """Every number as it is: what the others are measured by."""

    def write(self, tensors: Arrays, out: Writer, seed: int = 0) -> Arrays:
        """Write tensors; return them as they will be read."""
        for x in tensors.values():
            out.put(x, "<f4")
        return dict(tensors)

    def read(self, shapes: Shapes, source: Reader) -> Arrays:
        """Read tensors of these shapes, in this order."""
        return {n: source.take(prod(shape), "<f4").reshape(shape) for n, shape in shapes.items()}


@dataclass(frozen=True)
class Float16:
    """Halves, times a power of two of each tensor: none is too large or too small for them."""

    def write(self, tensors: Arrays, out: Writer, seed: int = 0) -> Arrays:
        """Write tensors; return them as they will be read."""
        seen = {}
        for name, x in tensors.items():
            exponent = int(np.frexp(np.abs(x).max(initial=0))[1])
            halves = np.ldexp(x, -exponent).astype("<f2")
            out.put(exponent, "<i2")
            out.put(halves, "<f2")
            seen[name] = np.ldexp(halves.astype(np.float32), exponent)
        return seen

    def read(self, shapes: Shapes, source: Reader) -> Arrays:
        """Read tensors of these shapes, in this order."""
        seen = {}
        for name, shape in shapes.items():
            exponent = int(source.take(1, "<i2")[0])
            halves = source.take(prod(shape), "<f2").reshape(shape)
            seen[name] = np.ldexp(halves.astype(np.float32), exponent)
        return seen


@dataclass(frozen=True)
class Quantise:
    """Equal steps on both sides of 0, as wide as makes the squared error least.

    A number beyond the last step is cut to it, every other is off by half a step at the most.
    Rounding by chance keeps the mean right, but on real updates it lost a quarter more in one round
    and in the sum of many with error feedback, so that there is none.

    Attributes:
        bits: 2 to 8; 2ᵇ − 1 values.
        rows: a step for each row (first axis) in place of one for each tensor.

    Source: arXiv:1610.02132 (QSGD), arXiv:1901.09847 (error feedback).
    """

    bits: int = 4
    rows: bool = False

    def __post_init__(self) -> None:
        check("bits", 2 <= self.bits <= 8, "2 to 8", self.bits)

    def write(self, tensors: Arrays, out: Writer, seed: int = 0) -> Arrays:
        """Write tensors; return them as they will be read."""
        seen, last = {}, 2 ** (self.bits - 1) - 1
        for name, x in tensors.items():
            table = x.reshape(self._scales(x.shape), -1)
            step = _best_steps(table, last)
            whole = np.rint(table / np.where(step > 0, step, 1)[:, None])
            symbols = np.clip(whole, -last, last).astype(np.int8)
            out.put(step, "<f4")
            out.put_symbols(symbols)
            seen[name] = (symbols * step[:, None]).reshape(x.shape)
        return seen

    def read(self, shapes: Shapes, source: Reader) -> Arrays:
        """Read tensors of these shapes, in this order."""
        seen = {}
        for name, shape in shapes.items():
            step = source.take(self._scales(shape), "<f4")
            symbols = source.take_symbols(prod(shape)).reshape(len(step), -1)
            seen[name] = (symbols * step[:, None]).reshape(shape)
        return seen

    def _scales(self, shape: tuple[int, ...]) -> int:
        return shape[0] if self.rows and shape else 1


@dataclass(frozen=True)
class TopK:
    """The largest numbers of all tensors together, as gaps between them and quantised values.

    A gap is entropy coded but for its lowest bits, which are as good as random.

    Attributes:
        share: of the numbers that are kept, above 0, at most 0.5.
        bits: of each kept value, 2 to 8.

    Source: arXiv:1704.05021 (sparse updates), arXiv:1712.01887 (deep gradient compression).
    """

    share: float = 0.05
    bits: int = 4

    def __post_init__(self) -> None:
        check("share", 0 < self.share <= 0.5, "above 0 and at most 0.5", self.share)
        check("bits", 2 <= self.bits <= 8, "2 to 8", self.bits)

    def write(self, tensors: Arrays, out: Writer, seed: int = 0) -> Arrays:
        """Write tensors; return them as they will be read."""
        if not tensors:
            return {}
        flat = np.concatenate([x.ravel() for x in tensors.values()])
        kept, low = self._sizes(flat.size)
        places = torch.from_numpy(np.abs(flat)).topk(kept, sorted=False).indices.numpy()
        places = np.sort(places)
        gaps = np.diff(places, prepend=-1) - 1
        high = gaps >> low
        # A symbol of its own moves on by the most that a gap can say, as often as needed.
        hops, high = high // _HOP, high % _HOP
        symbols = np.full(kept + int(hops.sum()), _HOP)
        symbols[np.cumsum(hops + 1) - 1] = high
        bits = gaps[:, None] >> np.arange(low) & 1
        out.put_symbols(symbols - LARGEST)
        out.put(np.packbits(bits.astype(np.uint8)), "u1")
        values = Quantise(self.bits).write({"": flat[places]}, out)[""]
        sparse = np.zeros(flat.size, np.float32)
        sparse[places] = values
        return _split(sparse, {name: x.shape for name, x in tensors.items()})

    def read(self, shapes: Shapes, source: Reader) -> Arrays:
        """Read tensors of these shapes, in this order."""
        if not shapes:
            return {}
        size = sum(map(prod, shapes.values()))
        kept, low = self._sizes(size)
        symbols = source.take_symbols().astype(np.int64) + LARGEST
        ends = np.flatnonzero(symbols != _HOP)
        if len(ends) != kept or ends[-1] != len(symbols) - 1:
            raise FormatError("gaps", f"{kept}", len(ends))
        packed = source.take(-(-kept * low // 8), "u1")
        bits = np.unpackbits(packed, count=kept * low).reshape(kept, low).astype(np.int64)
        moves = symbols << low
        moves[ends] += (bits << np.arange(low)).sum(1) + 1
        places = np.cumsum(moves)[ends] - 1
        if places[-1] >= size:
            raise FormatError("places", f"below {size}", places[-1])
        sparse = np.zeros(size, np.float32)
        sparse[places] = Quantise(self.bits).read({"": (kept,)}, source)[""]
        return _split(sparse, shapes)

    def _sizes(self, size: int) -> tuple[int, int]:
        """How many numbers are kept, and how many low bits of a gap are sent as they are."""
        kept = max(1, round(self.share * size))
        return kept, max(0, int(log2(size / kept)) - 3)


def check(name: str, right: bool, rule: str, got: object) -> None:
    """Raise a ConfigError about an option of a codec unless it is right."""
    if not right:
        raise ConfigError(f"codec's {name}", rule, got)


def _best_steps(table: np.ndarray, last: int) -> np.ndarray:
    """Return the step of each row, of a few that are tried, with the least squared error."""
    largest = np.abs(table).max(1)
    best, least = np.zeros(len(table), np.float32), np.full(len(table), np.inf)
    for part in _TRIED:
        step = largest / np.float32(last) * np.float32(part)
        safe = np.where(step > 0, step, 1)[:, None]
        seen = np.clip(np.rint(table / safe), -last, last) * step[:, None]
        error = np.square(table - seen, dtype=np.float64).sum(1)
        best, least = np.where(error < least, step, best), np.minimum(error, least)
    return best


def _split(flat: np.ndarray, shapes: Shapes) -> Arrays:
    ends = np.cumsum([prod(shape) for shape in shapes.values()])[:-1]
    parts = np.split(flat, ends)
    return {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
