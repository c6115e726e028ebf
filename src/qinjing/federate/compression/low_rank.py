"""Updates as products of two thin matrices."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from qinjing.federate.compression.codecs import Arrays, Quantise, Shapes, check
from qinjing.federate.compression.wire import Reader, Writer


@dataclass(frozen=True)
class LowRank:
    """Each tensor as a matrix of (first axis) × (all others): two thin factors of it.

    Attributes:
        rank: of the product. A tensor that is no smaller as factors is quantised.
        turns: power iterations, from a random start of the seed.
        bits: of the factors' numbers, 2 to 8.

    Source: arXiv:1905.13727 (PowerSGD).
    """

    rank: int = 4
    turns: int = 2
    bits: int = 8

    def __post_init__(self) -> None:
        check("rank", 1 <= self.rank <= 1024, "1 to 1024", self.rank)
        check("turns", 1 <= self.turns <= 100, "1 to 100", self.turns)
        check("bits", 2 <= self.bits <= 8, "2 to 8", self.bits)

    def write(self, tensors: Arrays, out: Writer, seed: int = 0) -> Arrays:
        """Write tensors; return them as they will be read."""
        rng = np.random.default_rng(seed)
        thin = Quantise(self.bits, rows=True)
        seen: Arrays = {}
        for name, x in tensors.items():
            if not self._worth(x.shape):
                seen |= Quantise(self.bits).write({name: x}, out)
                continue
            matrix = x.reshape(len(x), -1)
            right = rng.standard_normal((matrix.shape[1], self.rank), np.float32)
            for _ in range(self.turns):
                left = np.linalg.qr(matrix @ right)[0]
                right = matrix.T @ left
            sent = thin.write({"left": left.T, "right": right.T}, out)
            seen[name] = (sent["left"].T @ sent["right"]).reshape(x.shape)
        return seen

    def read(self, shapes: Shapes, source: Reader) -> Arrays:
        """Read tensors of these shapes, in this order."""
        thin = Quantise(self.bits, rows=True)
        seen: Arrays = {}
        for name, shape in shapes.items():
            if not self._worth(shape):
                seen |= Quantise(self.bits).read({name: shape}, source)
                continue
            factors = {"left": (self.rank, shape[0]), "right": (self.rank, prod(shape[1:]))}
            sent = thin.read(factors, source)
            seen[name] = (sent["left"].T @ sent["right"]).reshape(shape)
        return seen

    def _worth(self, shape: tuple[int, ...]) -> bool:
        rows, columns = shape[0], prod(shape[1:])
        return self.rank * (rows + columns) < rows * columns and self.rank <= min(rows, columns)
