"""The bytes of an update: magic and version, header, plain numbers, symbols, SHA-256 over all.

```
"QJU" 1 | length header | length plain | length symbols     each length 4 bytes, little endian
header    canonical JSON, deflated: the codec with its options; name, type and shape of each tensor
plain     scales, small and exact tensors, one after the other
symbols   what `entropy.encode` makes
SHA-256   of all before
```
The digest finds damage. It proves nothing about the sender, which is the transport's business.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from itertools import pairwise
from typing import Any

import numpy as np

from qinjing.errors import FormatError
from qinjing.federate.compression import entropy

MAGIC = b"QJU\x01"
_HEAD = struct.Struct("<4sIII")
_LARGEST_HEADER = 2**24


class Writer:
    """Takes what a codec writes, in the order in which its reader will ask for it."""

    def __init__(self) -> None:
        self._plain: list[bytes] = []
        self._groups: list[np.ndarray] = []

    def put(self, numbers: Any, kind: str) -> None:
        """Write numbers as they are, as `kind` ("<f4", "<i8", …)."""
        self._plain.append(np.ascontiguousarray(numbers, kind).tobytes())

    def put_symbols(self, group: np.ndarray) -> None:
        """Write one group of whole numbers from −127 to 127, to be entropy coded."""
        self._groups.append(group.astype(np.int8, copy=False))

    def seal(self, header: dict[str, Any]) -> bytes:
        """Return all of it as bytes."""
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
        blocks = (
            zlib.compress(text.encode(), 9),
            b"".join(self._plain),
            entropy.encode(self._groups),
        )
        data = b"".join((_HEAD.pack(MAGIC, *map(len, blocks)), *blocks))
        return data + hashlib.sha256(data).digest()


class Reader:
    """Gives back what a `Writer` took.

    Args:
        data: the bytes, from anywhere.

    Raises:
        FormatError: they are not whole, or their header is not ours.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEAD.size + 32 or data[: len(MAGIC)] != MAGIC:
            raise FormatError("update", "one of ours, version 1", f"{len(data)} bytes")
        _, *lengths = _HEAD.unpack_from(data)
        if _HEAD.size + sum(lengths) + 32 != len(data):
            raise FormatError("update", "as long as it says", f"{len(data)} bytes")
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise FormatError("update", "undamaged", "another SHA-256", advice="send it again")
        ends = np.cumsum([_HEAD.size, *lengths])
        packed, self._plain, self._symbols = (data[a:b] for a, b in pairwise(ends))
        text = entropy.unzip(packed, _LARGEST_HEADER, "header")
        try:
            self.header: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError("header", "JSON", error) from None
        self._at = 0
        self._groups: list[np.ndarray] = []

    def unpack(self, largest: int) -> None:
        """Decode the symbols; more than `largest` are refused before room is made for them.

        Raises:
            FormatError: they are too many, or not ours.
        """
        self._groups = entropy.decode(self._symbols, largest)[::-1]

    def take(self, count: int, kind: str) -> np.ndarray:
        """Return the next numbers, (count,) of `kind`.

        Raises:
            FormatError: there are fewer.
        """
        size = count * np.dtype(kind).itemsize
        part = self._plain[self._at : self._at + size]
        if len(part) != size:
            raise FormatError("plain numbers", "as many as the header says", len(self._plain))
        self._at += size
        return np.frombuffer(part, kind)

    def take_symbols(self, count: int | None = None) -> np.ndarray:
        """Return the next group, (count,) int8; of any length where None.

        Raises:
            FormatError: there is none, or one of another length.
        """
        if not self._groups or (count is not None and len(self._groups[-1]) != count):
            raise FormatError("group of symbols", f"of {count}", "another or none")
        return self._groups.pop()

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            FormatError: something is.
        """
        if self._groups or self._at != len(self._plain):
            raise FormatError("update", "no longer than its tensors")
