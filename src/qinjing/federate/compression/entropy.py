"""Entropy coding of small whole numbers: interleaved rANS with a few static tables.

Why not the standard library: on quantised updates of a real training, with error feedback, lzma and
bz2 need 16 to 19 % and zlib 32 % more than these tables (benchmarks/compression.py).

Numbers come in groups of one kind (one frequency of one tensor's kernels). Groups that are alike
share a table; which ones do is found by a few rounds of Lloyd's algorithm and sent, a byte a group.
Many states ("lanes") are moved at once, so that the loop runs in NumPy.

Source: arXiv:1311.2540 (asymmetric numeral systems), arXiv:1402.3392 (interleaved coders).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from qinjing.errors import FormatError

LARGEST = 127
LARGEST_GROUPS = 2**17
_ALPHABET = 2 * LARGEST + 1
_BITS = 14  # of a probability
_WHOLE = 1 << _BITS
_LOW = 1 << 16  # states lie between this and 2³²; they shrink and grow by words of 16 bits
_TABLES = (1, 2, 4, 8, 16, 32)
_ROUNDS = 4
_LONGEST_LOOP = 2**14
# A lane costs 4 bytes; with as many bits of content a lane it costs 1 %.
_BITS_A_LANE = 3200
_HEAD = struct.Struct("<IBII")  # groups, tables, length of what describes them, lanes


def encode(groups: Sequence[np.ndarray]) -> bytes:
    """Return the numbers of all groups as few bytes.

    Args:
        groups: whole numbers from −127 to 127, any shape, int8.
    """
    if not groups:
        return b""
    lengths = np.array([group.size for group in groups], np.uint32)
    symbols = [group.ravel().astype(np.int16) + LARGEST for group in groups]
    counts = np.zeros((len(groups), _ALPHABET), np.float32)
    for own, group in zip(counts, symbols, strict=True):
        own += np.bincount(group, minlength=_ALPHABET)
    table_of, tables, bits = _share(counts)
    described = zlib.compress(
        lengths.tobytes() + table_of.tobytes() + b"".join(map(_table_bytes, tables)), 9
    )
    number = int(lengths.sum())
    lanes = max(1, -(-number // _LONGEST_LOOP), min(number, int(bits) // _BITS_A_LANE))
    head = _HEAD.pack(len(groups), len(tables), len(described), lanes)
    kind = np.repeat(table_of.astype(np.int32) * _ALPHABET, lengths)
    return head + described + _push(kind + np.concatenate(symbols), tables, lanes)


def decode(data: bytes, largest: int) -> list[np.ndarray]:
    """Return the groups that `encode` was given, each (N,) int8.

    Args:
        data: its bytes, from anywhere.
        largest: more numbers than these are refused before room is made for them.

    Raises:
        FormatError: anything else than what `encode` returns.
    """
    if not data:
        return []
    if len(data) < _HEAD.size:
        raise FormatError("symbols", "as long as their head", f"{len(data)} bytes")
    groups, count, size, lanes = _HEAD.unpack_from(data)
    if not 0 < groups <= LARGEST_GROUPS or count > max(_TABLES) or size > len(data) - _HEAD.size:
        raise FormatError("symbols", "with a head that holds", (groups, count, size))
    bound = 5 * groups + count * (2 + 2 * _ALPHABET)
    described = unzip(data[_HEAD.size : _HEAD.size + size], bound, "tables of symbols")
    if len(described) < 5 * groups:
        raise FormatError("tables of symbols", f"of {groups} groups", f"{len(described)} bytes")
    lengths = np.frombuffer(described, np.uint32, groups).astype(np.int64)
    table_of = np.frombuffer(described, np.uint8, groups, 4 * groups)
    tables = _read_tables(described[5 * groups :], count)
    number = int(lengths.sum())
    if number > largest:
        raise FormatError("symbols", f"at most {largest}", number)
    if int(table_of.max()) >= count:
        raise FormatError("table of a group", f"below {count}", int(table_of.max()))
    if not -(-number // _LONGEST_LOOP) <= lanes <= max(1, number) or lanes < 1:
        raise FormatError("lanes of symbols", f"fit for {number}", lanes)
    flat = _pull(data[_HEAD.size + size :], np.repeat(table_of, lengths), tables, lanes)
    return np.split(flat, np.cumsum(lengths)[:-1])


def entropy_bits(counts: np.ndarray) -> np.ndarray:
    """Return the bits of each row's numbers under its own frequencies, (G,) of counts (G, A)."""
    total = counts.sum(-1)
    logs = np.log2(counts, out=np.zeros(counts.shape, np.float64), where=counts > 0)
    return total * np.log2(np.maximum(total, 1)) - (counts * logs).sum(-1)


def unzip(data: bytes, bound: int, name: str) -> bytes:
    """Return what zlib packed, if it is whole and at most `bound` bytes long.

    Raises:
        FormatError: it is not.
    """
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(data, bound + 1)
    except zlib.error as error:
        raise FormatError(name, "whole", error) from None
    if len(found) > bound or not unpacker.eof or unpacker.unused_data:
        raise FormatError(name, f"whole and at most {bound} bytes long", f"{len(data)} bytes")
    return found


def _share(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return each group's table, the tables (T, A) in 1/2¹⁴, and the bits that they come to."""
    used = np.flatnonzero(counts.any(0)) if counts.any() else np.array([LARGEST])
    small = counts[:, used]
    total = small.sum(1)
    order = np.argsort(entropy_bits(small) / np.maximum(total, 1), kind="stable")
    best = (np.inf, np.zeros(0, np.uint8), small)
    for number in _TABLES:
        if number > len(counts):
            break
        table_of = np.zeros(len(counts), np.uint8)
        # Neighbours in entropy begin together, as many numbers in each table.
        before = np.cumsum(total[order]) - total[order] / 2
        table_of[order] = np.minimum(before / max(1, total.sum()) * number, number - 1)
        for _ in range(_ROUNDS if number > 1 else 0):
            sums = np.stack([small[table_of == k].sum(0) for k in range(number)])
            price = -np.log2((sums + 1e-3) / (sums + 1e-3).sum(1, keepdims=True))
            table_of = (small @ price.T.astype(np.float32)).argmin(1).astype(np.uint8)
        kept, renamed = np.unique(table_of, return_inverse=True)
        table_of = renamed.astype(np.uint8)
        sums = np.stack([small[table_of == k].sum(0) for k in range(len(kept))])
        bits = float(entropy_bits(sums).sum()) + 10.0 * np.count_nonzero(sums)
        if bits < best[0]:
            best = bits, table_of, sums
    tables = np.zeros((len(best[2]), _ALPHABET), np.int64)
    tables[:, used] = [_rounded(own) for own in best[2]]
    return best[1], tables, best[0]


def _rounded(counts: np.ndarray) -> np.ndarray:
    """Return frequencies that add up to 2¹⁴, none that is used at 0."""
    found = np.rint(counts / max(1.0, counts.sum()) * _WHOLE).astype(np.int64)
    found[(counts > 0) & (found == 0)] = 1
    if not counts.any():
        found[0] = _WHOLE
    found[found.argmax()] += _WHOLE - found.sum()
    return found


def _table_bytes(table: np.ndarray) -> bytes:
    first, last = np.flatnonzero(table)[[0, -1]]
    return bytes([first, last]) + table[first : last + 1].astype("<u2").tobytes()


def _read_tables(data: bytes, count: int) -> np.ndarray:
    tables = np.zeros((count, _ALPHABET), np.int64)
    for table in tables:
        first, last = data[:2] if len(data) >= 2 else (1, 0)
        end = 2 + 2 * (last - first + 1)
        if first > last or last >= _ALPHABET or end > len(data):
            raise FormatError("table of symbols", "whole", f"{len(data)} bytes")
        table[first : last + 1] = np.frombuffer(data[2:end], "<u2")
        data = data[end:]
    if data or (tables.sum(1) != _WHOLE).any():
        raise FormatError("table of symbols", f"of frequencies that add up to {_WHOLE}")
    return tables


def _push(index: np.ndarray, tables: np.ndarray, lanes: int) -> bytes:
    """Return states and words for the numbers (N,), each with its place in the tables laid flat."""
    often = tables.ravel()
    start = (np.cumsum(tables, 1) - tables).ravel()
    most = often << (32 - _BITS)  # a state from here on must shrink first
    state = np.full(lanes, _LOW)
    words: list[np.ndarray] = []
    for first in range((len(index) - 1) // lanes * lanes, -1, -lanes) if len(index) else ():
        at = index[first : first + lanes]
        x = state[: len(at)]
        full = (x >= most[at]).nonzero()[0]
        if full.size:
            words.append(x[full].astype("<u2"))
            x[full] >>= 16
        times, rest = np.divmod(x, often[at])
        x[:] = (times << _BITS) + rest + start[at]
    return b"".join([state.astype("<u4").tobytes(), *(own.tobytes() for own in words[::-1])])


def _pull(data: bytes, table_of: np.ndarray, tables: np.ndarray, lanes: int) -> np.ndarray:
    """Undo `_push`: return the numbers, (N,) int8."""
    if len(data) < 4 * lanes or len(data) % 2:
        raise FormatError("symbols", f"at least {4 * lanes} bytes long", len(data))
    state = np.frombuffer(data, "<u4", lanes).astype(np.int64)
    words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.int64)
    if (state < _LOW).any():
        raise FormatError("state of symbols", f"at least {_LOW}", int(state.min()))
    # For each slot of each table: its number, how often that is, and how far on its slots begin.
    number = np.repeat(np.tile(np.arange(_ALPHABET), len(tables)), tables.ravel()) - LARGEST
    often = np.repeat(tables.ravel(), tables.ravel())
    within = np.arange(often.size) % _WHOLE
    within -= np.repeat((np.cumsum(tables, 1) - tables).ravel(), tables.ravel())
    found = np.empty(len(table_of), np.int8)
    read = 0
    for first in range(0, len(table_of), lanes):
        slot = table_of[first : first + lanes].astype(np.int64) << _BITS
        x = state[: len(slot)]
        slot += x & (_WHOLE - 1)
        x[:] = often[slot] * (x >> _BITS) + within[slot]
        found[first : first + lanes] = number[slot]
        empty = (x < _LOW).nonzero()[0]
        if empty.size:
            if read + empty.size > len(words):
                raise FormatError("symbols", "whole", f"{len(words)} words")
            x[empty] = (x[empty] << 16) | words[read : read + empty.size]
            read += empty.size
    if read != len(words) or (state != _LOW).any():
        raise FormatError("symbols", "at an end where their bytes are", f"{len(words) - read} left")
    return found
