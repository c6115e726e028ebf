"""Scans with words and voxels that are nowhere else, and a search for them in any bytes.

Words stand in every place that a scan has for them: names of file, patient and group, and all text
of the header. Voxels are lines of `LINE` drawn numbers. They are found again as any affine function
of themselves, so whatever was subtracted and divided by, as numbers of any usual type in either
byte order, forwards and backwards, at any place, and rounded to 4 bits and up.
"""

from __future__ import annotations

import base64
import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qinjing.errors import InputError
from qinjing.federate.compression import decompress, entropy
from qinjing.federate.compression.wire import MAGIC, Reader
from qinjing.federate.message import Message

LINE = 16
SHAPE = (20, 20, 18)  # x, y, z as in the file
# Chance alone reaches this once in 10¹⁵ windows; 4 bits a number leave 0.9975.
ALIKE = 0.997
_WINDOWS = 1 << 14  # at a time


@dataclass(frozen=True)
class Canary:
    """What is planted in one scan.

    Attributes:
        case: its id, one of the words.
        words: that stand in its names and its header.
        lines: (k, LINE) voxel values.
    """

    case: str
    words: tuple[str, ...]
    lines: np.ndarray


def plant(folder: Path, number: int) -> Canary:
    """Write a scan and its label, as `images/` and `labels/` have them.

    Args:
        folder: the data set.
        number: of the scan; decides all that is drawn.
    """
    rng = np.random.default_rng((8, number))
    names = [bytes(rng.integers(97, 123, 11, np.uint8)).decode() for _ in range(7)]
    patient, group, *texts = names
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    centre = rng.uniform(8, 12, 3)
    far = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
    label = (far < 25).astype(np.uint8)
    image = (200 * label + rng.normal(300, 20, SHAPE)).astype(np.int16)
    lines = rng.integers(100, 700, (2, LINE)).astype(np.int16)
    image[2 : 2 + LINE, 17, 15] = lines[0]  # runs on in memory, as the file and as we keep it
    image[17, 2, 1 : 1 + LINE] = lines[1]  # across
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    made = nibabel.Nifti1Image(image, affine)
    for field, text in zip(("descrip", "aux_file", "intent_name", "db_name"), texts, strict=False):
        made.header[field] = text
    made.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", texts[4].encode()))
    case = f"{patient}_{number}"
    for part, content in (("images", made), ("labels", nibabel.Nifti1Image(label, affine))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        nibabel.save(content, folder / part / f"{case}.nii.gz")
    with (folder / "participants.tsv").open("a", encoding="utf-8") as table:
        if table.tell() == 0:
            table.write("participant_id\tgroup\n")
        table.write(f"{patient}\t{group}\n")
    return Canary(case, (case, *names), lines)


class Search:
    """Look for canaries.

    Args:
        canaries: those to look for.
        words: more words to look for, of none of them.
    """

    def __init__(self, canaries: Iterable[Canary], words: Iterable[str] = ()) -> None:
        canaries = tuple(canaries)
        self._words = {form: word for c in canaries for word in c.words for form in _forms(word)}
        self._words |= {form: word for word in words for form in _forms(word)}
        both = [(c.case, line) for c in canaries for own in c.lines for line in (own, own[::-1])]
        self._of = [f"voxels of {case}" for case, _ in both]
        kinds = ("<i2", ">i2", "<i4", ">i4", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8")
        self._exact = {
            line[:6].astype(kind).tobytes(): f"voxels of {case}"
            for case, line in both for kind in kinds
        }  # fmt: skip
        lines = np.array([line for _, line in both], np.float32)
        lines -= lines.mean(1, keepdims=True)
        self._lines = (lines / np.linalg.norm(lines, axis=1, keepdims=True)).T.copy()

    def __call__(self, data: bytes) -> set[str]:
        """Words, and "voxels of …", that are in some bytes, packed or not."""
        found: set[str] = set()
        for layer in layers(data):
            found |= {word for form, word in self._words.items() if form in layer}
            for numbers in _readings(layer):
                found |= self.among(numbers)
        for numbers in _decoded(data):
            found |= self.among(numbers)
        return found

    def plainly(self, data: bytes) -> set[str]:
        """Words that are in some bytes as they are, and the first voxels of lines."""
        found = {word for form, word in self._words.items() if form in data}
        return found | {word for form, word in self._exact.items() if form in data}

    def among(self, numbers: np.ndarray) -> set[str]:
        """The lines of voxels that are in a row of numbers, (n,)."""
        with np.errstate(all="ignore"):  # bytes that are no numbers can be any
            values = np.nan_to_num(numbers.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        values = np.where(np.abs(values) < 1e-15, 0, values).clip(
            -1e15, 1e15
        )  # squares are float32
        found: set[str] = set()
        windows = sliding_window_view(values, LINE) if len(values) >= LINE else np.zeros((0, LINE))
        for start in range(0, len(windows), _WINDOWS):
            some = windows[start : start + _WINDOWS]
            some = some - some.mean(1, keepdims=True)
            length = np.sqrt(np.einsum("ij,ij->i", some, some)).clip(1e-20)
            likeness = np.abs(some @ self._lines) / length[:, None]
            found |= {self._of[k] for k in np.flatnonzero((likeness > ALIKE).any(0))}
        return found


def layers(data: bytes, depth: int = 3) -> Iterator[bytes]:
    """Yield bytes, and what every packed stream in them unpacks to, and so on."""
    yield data
    if depth == 0:
        return
    for magics, unpacker in _PACKED:
        for magic in magics:
            at = data.find(magic)
            while at >= 0:
                unpacked = _unpacked(memoryview(data)[at:], unpacker)
                if len(unpacked) >= 8:
                    yield from layers(unpacked, depth - 1)
                at = data.find(magic, at + 1)


_PACKED: tuple[tuple[tuple[bytes, ...], Callable[[], object]], ...] = (
    ((b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"), zlib.decompressobj),
    ((b"\x1f\x8b\x08",), lambda: zlib.decompressobj(31)),
    ((b"BZh",), bz2.BZ2Decompressor),
    ((b"\xfd7zXZ\x00", b"\x5d\x00\x00"), lzma.LZMADecompressor),
)


def _unpacked(data: memoryview, unpacker: Callable[[], object]) -> bytes:
    """What a stream unpacks to as far as it goes; nothing where it is none."""
    made, found = unpacker(), bytearray()
    try:
        for start in range(0, len(data), 4096):
            found += made.decompress(data[start : start + 4096])  # type: ignore[attr-defined]
            if made.eof:  # type: ignore[attr-defined]
                break
    except (zlib.error, OSError, lzma.LZMAError, EOFError):
        pass
    return bytes(found)


def _forms(word: str) -> set[bytes]:
    """A word as it may be written."""
    plain = word.encode()
    forms = {plain, word.upper().encode(), word.encode("utf-16-le"), word.encode("utf-16-be")}
    forms |= {form[::-1] for form in forms}
    for shift in range(3):  # base64 of a longer text that has it somewhere
        coded = base64.b64encode(bytes(shift) + plain)
        forms.add(coded[4 if shift else 0 : -4])
    return forms | {plain.hex().encode(), plain.hex().upper().encode()}


def _readings(data: bytes) -> Iterator[np.ndarray]:
    """The bytes as rows of numbers of each usual type, in either order, from each place on."""
    for kind in ("u1", "i1", "<i2", ">i2", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"):
        for start in range(min(np.dtype(kind).itemsize, len(data))):
            yield _numbers(data, kind, start)
    for kind in ("<u2", ">u2"):
        for start in range(min(2, len(data))):
            yield (_numbers(data, kind, start).astype(np.uint32) << 16).view(np.float32)  # bfloat16


def _numbers(data: bytes, kind: str, start: int) -> np.ndarray:
    return np.frombuffer(data, kind, (len(data) - start) // np.dtype(kind).itemsize, start)


def _decoded(data: bytes) -> Iterator[np.ndarray]:
    """The numbers that a message's update stands for, and the symbols that it is made of."""
    try:
        message = Message.unpack(data)
    except InputError:
        return
    for value in (v for own in message.tensors.values() for v in own.values()):
        packed = value.numpy().tobytes()
        if packed[: len(MAGIC)] != MAGIC:
            continue
        shapes = {name: shape for name, _, shape in Reader(packed).header["tensors"]}
        yield from (v.numpy().ravel() for v in decompress(packed, shapes).values())
        header, plain, symbols = struct.unpack_from("<III", packed, len(MAGIC))
        start = 16 + header + plain
        groups = entropy.decode(packed[start : start + symbols], 1 << 30)
        yield np.concatenate([np.zeros(0, np.int8), *groups])
