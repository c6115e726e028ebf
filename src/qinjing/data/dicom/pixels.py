"""Stored pixels of an image, frame by frame: straight from the file, or through a decoder.

Source: DICOM PS3.5, 8 (native and encapsulated pixels), 8.1.1 (bits stored, high bit).
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.data.dicom.elements import (
    BIG_ENDIAN,
    DEFLATED,
    DOUBLES,
    EXPLICIT,
    FLOATS,
    IMPLICIT,
    DamagedError,
    Elements,
    inflate,
)
from qinjing.errors import ConfigError

NATIVE = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
# Who decodes what: for each syntax the library made for it, where it is installed. Trying the next
# after a failure would only find a worse reason, or a library that ends the process.
_DECODERS = {
    "1.2.840.10008.1.2.4.80": "pyjpegls", "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg", "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg", "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg", "1.2.840.10008.1.2.5": "pydicom",
}  # fmt: skip
# What a decoder may make of one byte: flat images pack well, but a header that promises more lies.
MOST_FROM_A_BYTE = 4096


@dataclass(frozen=True)
class Stored:
    """How the pixels of one file lie there.

    Attributes:
        path: the file.
        syntax: transfer syntax UID.
        at: offset of the pixels' bytes, in the inflated file where it is deflated.
        length: in bytes; None where they are encapsulated.
        n_frames: frames in the file.
        shape: (rows, columns) of a frame.
        dtype: of a stored value, in the machine's byte order.
        bits: how many of them count.
        high_bit: the highest of those.
        colour: photometric interpretation.
    """

    path: Path
    syntax: str
    at: int
    length: int | None
    n_frames: int
    shape: tuple[int, int]
    dtype: np.dtype
    bits: int
    high_bit: int
    colour: str

    @property
    def frame_bytes(self) -> int:
        """Of a frame that is not compressed."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


def stored_pixels(file: Elements, path: Path) -> Stored:
    """Check what a file's header says of its pixels.

    Raises:
        DamagedError: it holds none that make a grey image, or says too little of them.
    """
    if not file.pixels:
        raise DamagedError("no pixels")
    samples, colour = file.number(0x00280002), file.text(0x00280004)
    if samples not in (None, 1.0) or colour != "MONOCHROME2":
        raise DamagedError(f"pixels must be grey, MONOCHROME2, got {colour or 'nothing'}")
    bits = [int(_finite(file, tag)) for tag in (0x00280100, 0x00280010, 0x00280011)]
    allocated, rows, columns = bits
    if rows < 1 or columns < 1:
        raise DamagedError(f"pixels must be at least one row and column, got {rows}×{columns}")
    if file.pixels in (FLOATS, DOUBLES):
        dtype = np.dtype(np.float32 if file.pixels == FLOATS else np.float64)
        if allocated != 8 * dtype.itemsize:
            raise DamagedError(f"BitsAllocated must be {8 * dtype.itemsize}, got {allocated}")
        used, high = allocated, allocated - 1
    else:
        signed = int(file.number(0x00280103) or 0)
        if allocated not in (8, 16, 32) or signed not in (0, 1):
            raise DamagedError(f"BitsAllocated must be 8, 16 or 32, got {allocated}")
        dtype = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
        used = int(file.number(0x00280101) or allocated)
        high = int(file.number(0x00280102) or used - 1)
        if not 0 < used <= allocated or not used - 1 <= high < allocated:
            raise DamagedError(f"BitsStored must be 1 to {allocated}, got {used} below bit {high}")
    frames = int(file.number(0x00280008) or 1)
    if frames < 1:
        raise DamagedError(f"NumberOfFrames must be positive, got {frames}")
    return Stored(path, file.syntax, file.at, file.length, frames, (rows, columns), dtype, used,
                  high, colour)  # fmt: skip


def _finite(file: Elements, tag: int) -> float:
    number = file.number(tag)
    if number is None or not np.isfinite(number):
        raise DamagedError(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) must be a number")
    return number


def check_length(stored: Stored, size: int) -> None:
    """Refuse pixels that the file is too short for, before anything is allocated.

    Args:
        size: of the file in bytes.

    Raises:
        DamagedError: it is.
    """
    promised = stored.frame_bytes * stored.n_frames
    if stored.syntax in NATIVE:
        there = stored.length if stored.length is not None else 0
        if stored.syntax != DEFLATED:
            there = min(there, size - stored.at)
    else:
        there = max(0, size - stored.at) * MOST_FROM_A_BYTE
    if there < promised:
        what = f"{stored.n_frames} × {stored.shape[0]}×{stored.shape[1]} pixels"
        raise DamagedError(f"pixels must be as many as the header promises, got too few for {what}")


def read_frames(stored: Stored, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield stored values of frames (from 0, rising), each (rows, columns).

    Raises:
        DamagedError: they are cut off, or cannot be decoded.
        ConfigError: pydicom is not installed, which decodes compressed pixels.
        OSError: the file cannot be read.
    """
    if stored.syntax in NATIVE:
        yield from (_trim(pixels, stored) for pixels in _native(stored, frames))
    else:
        yield from _decoded(stored, frames)


def _native(stored: Stored, frames: Sequence[int]) -> Iterator[np.ndarray]:
    kind = stored.dtype
    if stored.syntax == BIG_ENDIAN:
        # Bytes of 8-bit pixels are swapped too where they were written as words (PS3.5, A.3).
        kind = kind.newbyteorder(">")
    with stored.path.open("rb") as file:
        whole = None
        if stored.syntax == DEFLATED:
            data = file.read()
            meta = 132 if data[128:132] == b"DICM" else 0
            whole = inflate(data[meta + _meta_length(data, meta) :])
        for frame in frames:
            start = stored.at + frame * stored.frame_bytes
            if whole is None:
                file.seek(start)
                buffer: bytes = file.read(stored.frame_bytes)
            else:
                buffer = whole[start : start + stored.frame_bytes]
            if len(buffer) < stored.frame_bytes:
                raise DamagedError("pixels that are cut off")
            pixels = np.frombuffer(buffer, kind).reshape(stored.shape)
            yield pixels if kind.isnative else pixels.astype(stored.dtype)


def _meta_length(data: bytes, at: int) -> int:
    """Bytes of the file meta information."""
    meta = Elements(data, little=True, explicit=True)
    return meta._scan(at, len(data), False, 1, group=2) - at


def _trim(pixels: np.ndarray, stored: Stored) -> np.ndarray:
    """Values of the bits that count, of the others nothing."""
    spare = 8 * stored.dtype.itemsize - stored.bits
    if spare == 0:
        return pixels
    below = stored.high_bit + 1 - stored.bits
    if stored.dtype.kind == "i":
        left: np.ndarray = pixels << (spare - below)
        return left >> spare
    mask = (1 << stored.bits) - 1
    if below == 0 and int(pixels.max()) <= mask:
        return pixels
    return (pixels >> below) & stored.dtype.type(mask)


def _decoded(stored: Stored, frames: Sequence[int]) -> Iterator[np.ndarray]:
    try:
        from pydicom.encaps import generate_frames
        from pydicom.pixels import get_decoder
        from pydicom.uid import UID
    except ModuleNotFoundError as error:
        advice = "pip install 'qinjing[dicom]'"
        raise ConfigError(
            error.name or "pydicom", "installed to decode compressed pixels", advice=advice
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values; those that are used are checked
        name = UID(stored.syntax).name
        try:
            decoder = get_decoder(UID(stored.syntax))
            there = decoder.available_plugins
        except NotImplementedError:
            there = ()
    if not there:
        rule = "of a transfer syntax that can be decoded here"
        raise DamagedError(f"pixels must be {rule}, got {name}; decompress the series first")
    with stored.path.open("rb") as file:
        file.seek(stored.at)
        buffer = file.read()
    said: dict[str, Any] = {
        "rows": stored.shape[0], "columns": stored.shape[1], "samples_per_pixel": 1,
        "photometric_interpretation": stored.colour, "number_of_frames": stored.n_frames,
        "bits_allocated": 8 * stored.dtype.itemsize, "bits_stored": stored.bits,
        "pixel_representation": int(stored.dtype.kind == "i"), "pixel_keyword": "PixelData",
    }  # fmt: skip
    best = _DECODERS.get(stored.syntax, "gdcm")
    plugin = best if best in there else there[0]
    found = decoder.iter_array(
        buffer, indices=list(frames), raw=True, decoding_plugin=plugin, **said
    )
    packed = enumerate(generate_frames(buffer, number_of_frames=stored.n_frames))
    for frame in frames:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _check_codestream(next(some for k, some in packed if k == frame), stored.shape)
                pixels = np.asarray(next(found)[0])
        except (DamagedError, MemoryError):
            raise
        except Exception as error:  # each decoder raises classes of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise DamagedError(f"pixels must be decodable as {name}, got {reason}") from None
        if pixels.shape != stored.shape:
            raise DamagedError(f"pixels must be of shape {stored.shape}, got {pixels.shape}")
        yield _trim(pixels.astype(stored.dtype, copy=False), stored)


def _check_codestream(packed: bytes, shape: tuple[int, int]) -> None:
    """Refuse a JPEG of any kind whose own header says another size: a decoder would allocate it.

    Source: ITU-T T.81, B.2.2 (frame header); T.800, A.5.1 (image size).
    """
    if packed[:4] == b"\xff\x4f\xff\x51" and len(packed) >= 24:
        right, down, left, top = struct.unpack_from(">4I", packed, 8)
        said = (down - top, right - left)
    elif packed[:2] == b"\xff\xd8":
        at = 2
        while True:
            if at + 9 > len(packed) or packed[at] != 0xFF:
                raise DamagedError("pixels must be decodable, got a JPEG without a frame header")
            marker = packed[at + 1]
            if marker == 0xFF:  # fill bytes
                at += 1
            elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                break
            else:
                at += 2 + int(struct.unpack_from(">H", packed, at + 2)[0])
        if marker == 0xF7 and not packed.rstrip(b"\0").endswith(b"\xff\xd9"):
            # Behind the last byte of such a stream, CharLS may count for a minute.
            raise DamagedError("pixels must be decodable, got a JPEG-LS stream that is cut off")
        said = struct.unpack_from(">2H", packed, at + 5)
    else:
        return
    if tuple(said) != shape:
        raise DamagedError(f"pixels must be of shape {shape}, got {tuple(said)}")
