"""Vectors as integers modulo 2^bits, and the masks over them, block by block.

A block and a mask's bytes for it fit in the processor's cache, so that a mask costs little more
than its AES.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from qinjing.errors import ConfigError
from qinjing.federate.secure_sum.terms import Terms

_BLOCK = 2**15  # values
_NOTHING = bytes(4 * _BLOCK)


@dataclass(frozen=True)
class Total:
    """A sum over sites.

    Attributes:
        integers: (length,) int32, the exact sum of the sites' rounded vectors.
        step: what an integer of 1 stands for.
        sites: whose vectors are in it.
    """

    integers: np.ndarray
    step: float
    sites: tuple[str, ...]

    def values(self) -> np.ndarray:
        """The sum as float32, (length,): within `step` / 2 of the true one per site."""
        return _scaled(self.integers, self.step)


def weighted(vector: np.ndarray, n: float) -> np.ndarray:
    """Weigh a vector and write the weight behind it, so that the server learns only two sums.

    Args:
        vector: (length,) float32.
        n: the site's weight, such as its number of cases, or its part of the largest allowed
            number. It is rounded to the terms' step like every value: with 32 bits and a bound
            below 2^31 / sites whole numbers stay exact.

    Returns:
        (length + 1,) float32, all within `bound` if n times the vector and n itself are.
    """
    result = np.empty(len(vector) + 1, np.float32)
    np.multiply(vector, np.float32(n), out=result[:-1])
    result[-1] = n
    return result


def mean(total: Total) -> np.ndarray:
    """The weighted mean from a sum of `weighted` vectors.

    Returns:
        (length,) float32.

    Raises:
        ConfigError: the weights do not sum to anything.
    """
    weight = int(total.integers[-1])
    if weight <= 0:
        raise ConfigError(
            "sum of weights", "above 0", weight * total.step,
            advice="use more bits or a lower bound",
        )  # fmt: skip
    return _scaled(total.integers[:-1], 1.0 / weight)


def masked(vector: np.ndarray, terms: Terms, masks: Sequence[tuple[bytes, int]]) -> bytearray:
    """Round a vector and hide it.

    Args:
        vector: (length,) float32.
        terms: of the round.
        masks: key and sign, +1 or −1, of each mask.

    Returns:
        The terms' tag, 32 bytes, then each value modulo 2^bits, little-endian.

    Raises:
        ConfigError: a value is not finite or exceeds the bound.
    """
    message = bytearray(32 + terms.length * terms.bits // 8)
    message[:32] = bytes.fromhex(terms.tag)
    wire = _wire(message, terms)
    layers = _Masks(masks)
    for part in _blocks(terms.length):
        words = _rounded(vector[part], terms)
        layers.lay(words)
        _copy(wire[part], words)
    return message


def zero(terms: Terms) -> np.ndarray:
    """A sum to which nothing was added yet: (length,) of unsigned words."""
    return np.zeros(terms.length, _word(terms))


def add(sum_: np.ndarray, message: bytes | bytearray | memoryview, terms: Terms) -> None:
    """Add a masked vector to a sum, in place.

    Raises:
        ValueError: the message is not of this round or has another length.
    """
    content = memoryview(message).cast("B")
    due = 32 + terms.length * terms.bits // 8
    if len(content) != due:
        raise ValueError(f"{len(content)} bytes where {due} are due")
    if content[:32] != bytes.fromhex(terms.tag):
        raise ValueError("a vector under other terms")
    wire = _wire(content, terms)
    if wire.dtype == sum_.dtype:
        sum_ += wire
        return
    words = np.zeros(_BLOCK, sum_.dtype)
    for part in _blocks(terms.length):
        block = words[: part.stop - part.start]
        _copy(block, wire[part])
        sum_[part] += block


def unmasked(sum_: np.ndarray, terms: Terms, masks: Sequence[tuple[bytes, int]]) -> np.ndarray:
    """Take masks off a sum, in place.

    Args:
        sum_: (length,) as made by `zero` and `add`.
        terms: of the round.
        masks: key and sign of each, as they were laid on.

    Returns:
        (length,) int32: the sum, from −2^(bits − 1) to 2^(bits − 1) − 1.
    """
    layers = _Masks([(key, -sign) for key, sign in masks])
    for part in _blocks(len(sum_)):
        layers.lay(sum_[part])
    if terms.bits == 16:
        return sum_.view("<i2").astype(np.int32)
    unused = 32 - terms.bits
    sum_ <<= unused
    signed = sum_.view("<i4")
    signed >>= unused  # keeps the sign
    return signed


class _Masks:
    """Streams of masks, each read from its beginning to its end.

    A key is made for one stream of one round, so that its counter may begin at 0.
    """

    def __init__(self, masks: Sequence[tuple[bytes, int]]) -> None:
        self._streams = [
            (Cipher(AES(key), CTR(bytes(16))).encryptor(), np.add if sign > 0 else np.subtract)
            for key, sign in masks
        ]
        self._drawn = np.empty(len(_NOTHING), np.uint8)

    def lay(self, words: np.ndarray) -> None:
        """Add the next of every stream, in place."""
        drawn = self._drawn[: words.nbytes]
        nothing = memoryview(_NOTHING)[: words.nbytes]
        for stream, combine in self._streams:
            stream.update_into(nothing, drawn.data)
            combine(words, drawn.view(words.dtype), out=words)


def _rounded(block: np.ndarray, terms: Terms) -> np.ndarray:
    # Written so that NaN, which is neither, is refused too.
    if not (block.max() <= terms.limit and block.min() >= -terms.limit):
        raise ConfigError(
            "vector", f"of finite values within the bound of ±{terms.bound:g}",
            f"{np.abs(block).max():g}", advice="clip it, or agree on a higher bound",
        )  # fmt: skip
    scaled = block * np.float32(1.0 / terms.step)
    np.rint(scaled, out=scaled)
    return scaled.astype("<i2" if terms.bits == 16 else "<i4").view(_word(terms))


def _wire(message: bytearray | memoryview, terms: Terms) -> np.ndarray:
    """The values of a message: (length,) words, or (length, 3) bytes where there are no such."""
    if terms.bits == 24:
        return np.frombuffer(message, np.uint8, offset=32).reshape(terms.length, 3)
    return np.frombuffer(message, _word(terms), offset=32)


def _copy(to: np.ndarray, source: np.ndarray) -> None:
    """Copy words to words, or the three lower bytes of words to or from bytes."""
    if to.dtype == source.dtype:
        to[:] = source
        return
    to, source = (x if x.ndim == 2 else x.view(np.uint8).reshape(-1, 4) for x in (to, source))
    for byte in range(3):  # each a long loop; by rows it would be one of 3 bytes a value
        to[:, byte] = source[:, byte]


def _word(terms: Terms) -> np.dtype:
    return np.dtype("<u2" if terms.bits == 16 else "<u4")


def _blocks(length: int) -> Iterator[slice]:
    for start in range(0, length, _BLOCK):
        yield slice(start, min(start + _BLOCK, length))


def _scaled(integers: np.ndarray, factor: float) -> np.ndarray:
    result = np.empty(len(integers), np.float32)
    np.multiply(integers, factor, out=result, dtype=np.float64, casting="same_kind")
    return result
