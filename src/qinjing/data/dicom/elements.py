"""The elements of a DICOM file up to its pixels: a bounded parser that copies nothing.

Reading geometry takes a few dozen elements of files that come by the thousand; a general library
makes an object of each. What is damaged is a `DamagedError`, never anything else.

Source: DICOM PS3.5, 7.1 (data elements), 7.5 (sequences), A.4 (encapsulated pixels); PS3.10, 7.1.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
PIXELS, FLOATS, DOUBLES = 0x7FE00010, 0x7FE00008, 0x7FE00009
UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
_BINARY = {
    b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d", b"OW": "H", b"OF": "f",
    b"AT": "I", b"UV": "Q", b"SV": "q", b"OD": "d",
}  # fmt: skip
# Of elements that hold no text, for files that do not say so (implicit VR, or UN).
_IMPLIED = {
    **dict.fromkeys(
        (0x00280002, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103),
        b"US",
    ),
    **dict.fromkeys((0x00209057, 0x00209128, 0x00209157), b"UL"),
    **dict.fromkeys(
        (0x00189082, 0x00189087, 0x00189089, 0x00189153, 0x00209153, 0x00651037, 0x0065100A,
         0x0019100E, 0x00409224, 0x00409225), b"FD",
    ),
    **dict.fromkeys((0x2005100E, 0x20011003), b"FL"),
    0x00209165: b"AT", 0x00209167: b"AT",
}  # fmt: skip
DEEPEST = 16
INFLATED_BYTES = 1 << 31  # more than this no deflated file may become
_FIRST_READ = 1 << 16


class DamagedError(Exception):
    """A file whose bytes do not say what they must."""


class _ShortError(DamagedError):
    """The bytes at hand end before the elements do."""


class Elements:
    """Elements of a data set or an item, by tag (0xGGGGEEEE); values are decoded when asked for.

    Attributes:
        syntax: the transfer syntax' UID.
        at: where the pixels' bytes start in the file (in the inflated one, where it is deflated).
        length: of the pixels in bytes; None where they are encapsulated.
        pixels: tag of the pixels' element, 0 where there is none.
        meta: the file meta information, of a whole file.
    """

    __slots__ = (
        "_data",
        "_explicit",
        "_found",
        "_little",
        "at",
        "length",
        "meta",
        "pixels",
        "syntax",
    )

    def __init__(self, data: bytes, little: bool, explicit: bool, syntax: str = "") -> None:
        self._data = data
        self._little = little
        self._explicit = explicit
        self._found: dict[int, tuple[bytes, int, int]] = {}
        self.syntax = syntax
        self.at = 0
        self.length: int | None = 0
        self.pixels = 0
        self.meta: Elements | None = None

    def __contains__(self, tag: int) -> bool:
        return tag in self._found

    def raw(self, tag: int) -> bytes:
        """Return the bytes of an element, none where it is not there."""
        found = self._found.get(tag)
        return b"" if found is None else self._data[found[1] : found[2]]

    def text(self, tag: int) -> str:
        """Return the text of an element without its padding, "" where it is not there."""
        found = self._found.get(tag)
        if found is None:
            return ""
        return self._data[found[1] : found[2]].decode("latin-1").strip(" \0\t\r\n")

    def words(self, tag: int) -> list[str]:
        """Return the texts of an element of several values."""
        text = self.text(tag)
        return [word.strip() for word in text.split("\\")] if text else []

    def numbers(self, tag: int) -> list[float]:
        """Return the numbers of an element; none where it is not there or empty.

        Raises:
            DamagedError: it holds something else.
        """
        found = self._found.get(tag)
        if found is None or found[1] == found[2]:
            return []
        vr = found[0]
        kind = _BINARY.get(_IMPLIED.get(tag, vr) if vr in (b"", b"UN") else vr)
        if kind is None:
            try:
                return [float(word) for word in self.words(tag) if word]
            except ValueError:
                raise DamagedError(f"no number in {_name(tag)}") from None
        size = struct.calcsize(kind)
        count = (found[2] - found[1]) // size
        order = "<" if self._little else ">"
        return [float(n) for n in struct.unpack_from(f"{order}{count}{kind}", self._data, found[1])]

    def number(self, tag: int) -> float | None:
        """Return the first number of an element, None where there is none."""
        found = self.numbers(tag)
        return found[0] if found else None

    def items(self, tag: int) -> list[Elements]:
        """Return the items of a sequence; none where it is not there.

        Raises:
            DamagedError: they are not what a sequence holds.
        """
        found = self._found.get(tag)
        if found is None:
            return []
        vr, at, stop = found
        implied = vr == b"UN"  # of unknown VR, and so written with implicit ones
        items = []
        while at + 8 <= stop:
            kind, length = _item(self._data, at, self._little or implied)
            at += 8
            if kind == _SEQUENCE_END:
                break
            if kind != _ITEM:
                raise DamagedError(f"no item where one must be, in {_name(tag)}")
            item = Elements(
                self._data, self._little or implied, self._explicit and not implied, self.syntax
            )
            end = stop if length == UNDEFINED else at + length
            if end > stop:
                raise DamagedError(f"an item longer than {_name(tag)}")
            at = item._scan(at, end, length == UNDEFINED, 1)
            items.append(item)
        return items

    def _scan(self, at: int, stop: int, delimited: bool, depth: int, group: int = -1) -> int:
        """Find the elements from `at` on; where they end.

        Args:
            delimited: an item of undefined length, which a delimiter ends.
            group: stop at the first element of another.
        """
        data, explicit, found = self._data, self._explicit, self._found
        order = "<" if self._little else ">"
        short, long = struct.Struct(order + "HH2sH"), struct.Struct(order + "I")
        while at + 8 <= stop:
            of, number, vr, length = short.unpack_from(data, at)
            tag = of << 16 | number
            if group >= 0 and of != group:
                return at
            start = at + 8
            if explicit and of != 0xFFFE:
                if vr in _LONG:
                    if start + 4 > stop:
                        raise _ShortError("an element that is cut off")
                    (length,) = long.unpack_from(data, start)
                    start += 4
                elif not (vr.isalpha() and vr.isupper()):
                    raise DamagedError(f"{_name(tag)} has no value representation")
            else:
                vr = b""
                (length,) = long.unpack_from(data, at + 4)
            if tag == _ITEM_END and delimited:
                return start
            if tag in (PIXELS, FLOATS, DOUBLES) and depth == 0:
                self.at, self.pixels = start, tag
                self.length = None if length == UNDEFINED else length
                return start
            if length == UNDEFINED:
                end = self._skip(start, stop, vr == b"UN", depth + 1)
            else:
                end = start + length
                if end > stop:
                    raise _ShortError(f"{_name(tag)} is cut off")
            found[tag] = (vr, start, end)
            at = end
        if delimited:
            raise _ShortError("an item that does not end")
        if stop - at and group < 0:
            raise _ShortError("bytes that are no element")
        return at

    def _skip(self, at: int, stop: int, implied: bool, depth: int) -> int:
        """Return where a sequence of undefined length ends."""
        if depth > DEEPEST:
            raise DamagedError("sequences within sequences without end")
        little = self._little or implied
        while at + 8 <= stop:
            kind, length = _item(self._data, at, little)
            at += 8
            if kind == _SEQUENCE_END:
                return at
            if kind != _ITEM:
                raise DamagedError("no item where one must be")
            if length == UNDEFINED:
                inner = Elements(self._data, little, self._explicit and not implied)
                at = inner._scan(at, stop, True, depth)
            else:
                at += length
        raise _ShortError("a sequence that does not end")


def _item(data: bytes, at: int, little: bool) -> tuple[int, int]:
    of, number, length = struct.unpack_from("<HHI" if little else ">HHI", data, at)
    return of << 16 | number, length


def _name(tag: int) -> str:
    return f"element ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def vector(file: Elements, tag: int, n: int, name: str) -> np.ndarray:
    """Return n finite numbers of an element.

    Raises:
        DamagedError: there are more, fewer or none, or one is no length of this world.
    """
    found = file.numbers(tag)
    if len(found) != n or not all(math.isfinite(one) and abs(one) < 1e9 for one in found):
        raise DamagedError(f"{name} must be {n} numbers, got {found or 'nothing'}")
    return np.array(found)


def position(file: Elements) -> np.ndarray:
    """Return ImagePositionPatient.

    Raises:
        DamagedError: it is not there, or not three numbers.
    """
    return vector(file, 0x00200032, 3, "ImagePositionPatient")


def is_dicom(head: bytes) -> bool:
    """Tell a DICOM file by its first 132 bytes; those without the preamble too."""
    if head[128:132] == b"DICM":
        return True
    tags = (b"\x02\x00\x00\x00", b"\x02\x00\x10\x00", b"\x08\x00\x00\x00", b"\x08\x00\x05\x00",
            b"\x08\x00\x08\x00", b"\x08\x00\x16\x00")  # fmt: skip
    return len(head) >= 12 and head[:4] in tags


def read_elements(path: Path) -> Elements:
    """Read a file's elements up to its pixels, of a large file no more than is needed.

    Raises:
        DamagedError: they are not sound.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        wanted = _FIRST_READ
        while True:
            file.seek(0)
            data = file.read(wanted)
            try:
                found = parse(data)
            except _ShortError:
                if len(data) >= size:
                    raise
            else:
                # Elements may end just where the bytes at hand do.
                if found.pixels or len(data) >= size:
                    return found
            wanted *= 8


def parse(data: bytes) -> Elements:
    """Parse the bytes of a file up to its pixels.

    Raises:
        DamagedError: they are not sound.
    """
    at = 132 if data[128:132] == b"DICM" else 0
    if not is_dicom(data[:132]):
        raise DamagedError("no DICOM file by its first bytes")
    meta = Elements(data, little=True, explicit=True)
    if data[at : at + 2] == b"\x02\x00":
        at = meta._scan(at, len(data), False, 1, group=2)
    syntax = meta.text(0x00020010)
    if not syntax:  # files of before the standard had file meta information
        letters = data[at + 4 : at + 6]
        syntax = EXPLICIT if letters.isalpha() and letters.isupper() else IMPLICIT
    if syntax == DEFLATED:
        data, at = inflate(data[at:]), 0
    found = Elements(data, syntax != BIG_ENDIAN, syntax != IMPLICIT, syntax)
    found.meta = meta
    found._scan(at, len(data), False, 0)
    return found


def inflate(data: bytes) -> bytes:
    """Undo deflated explicit VR little endian.

    Raises:
        DamagedError: it does not end, or becomes too large.
    """
    unpack = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = unpack.decompress(data, INFLATED_BYTES)
    except zlib.error as error:
        raise DamagedError(f"deflated bytes: {error}") from None
    if unpack.unconsumed_tail:
        raise DamagedError("deflated bytes that become too many")
    if not unpack.eof:
        raise _ShortError("deflated bytes that end early")
    return inflated
