"""NRRD files of one channel, header and voxels in one file: what 3D Slicer and OHIF exchange.

Source: "Definition of NRRD File Format", https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinjing.config import atomic_path
from qinjing.errors import FormatError
from qinjing.volume import Volume

MAGIC = b"NRRD000"
_MOST_HEADER, _MOST_BYTES = 1 << 20, 2 << 30
_TYPES = {
    "int8": ("int8", "signed char", "int8_t"),
    "uint8": ("uint8", "unsigned char", "uchar", "uint8_t"),
    "int16": ("int16", "short", "short int", "signed short", "int16_t"),
    "uint16": ("uint16", "unsigned short", "ushort", "unsigned short int", "uint16_t"),
    "int32": ("int32", "int", "signed int", "int32_t"),
    "uint32": ("uint32", "unsigned int", "uint", "uint32_t"),
    "float32": ("float",),
    "float64": ("double",),
}
_DTYPES = {name: dtype for dtype, names in _TYPES.items() for name in names}
# What a space's axes are multiplied with to become left, posterior, superior.
_SPACES = {
    "left-posterior-superior": (1, 1, 1), "LPS": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "RAS": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "LAS": (1, -1, 1),
}  # fmt: skip
_VECTOR = re.compile(r"\(([^()]*)\)")


@dataclass(frozen=True, eq=False)
class Nrrd:
    """What a file holds.

    Attributes:
        volume: (D, H, W).
        said: its key/value pairs, such as 3D Slicer's names of segments.
    """

    volume: Volume
    said: dict[str, str]


def read_nrrd(path: Path) -> Nrrd:
    """Read a file of one channel in three dimensions.

    Raises:
        FormatError: it is damaged, of another form, or its voxels lie in another file.
        GeometryError: its directions are no invertible matrix.
    """
    with path.open("rb") as file:
        fields, said = _header(file.read(_MOST_HEADER), path)
        shape, affine = _grid(fields, path)
        dtype = _dtype(fields, path)
        file.seek(int(fields["bytes of header"]))
        size = math.prod(shape) * dtype.itemsize
        if not 0 < size <= _MOST_BYTES:
            raise _wrong("sizes", f"of 1 to {_MOST_BYTES} bytes of voxels", size, path)
        encoding = fields.get("encoding", "")
        if encoding == "raw":
            data = file.read(size)
        elif encoding in ("gzip", "gz"):
            try:
                data = zlib.decompressobj(wbits=31).decompress(file.read(), size)
            except zlib.error:
                raise _wrong("voxels", "packed by gzip", "others", path) from None
        else:
            raise _wrong("encoding", "raw or gzip", encoding or "none", path)
    if len(data) < size:
        raise _wrong("voxels", f"of {size} bytes", len(data), path)
    voxels = np.frombuffer(data, dtype).reshape(shape[::-1])
    return Nrrd(Volume(voxels.astype(dtype.newbyteorder("=")), affine), said)


def write_nrrd(path: Path, volume: Volume, *, compress: bool = False) -> None:
    """Write a volume, whole or not at all.

    Args:
        path: the file.
        volume: (D, H, W) of a type that NRRD has.
        compress: by gzip; OHIF's reader takes no packed voxels of one byte each.

    Raises:
        FormatError: the type cannot be written.
    """
    name = volume.voxels.dtype.name
    if name not in _TYPES or volume.voxels.ndim != 3:
        raise FormatError("voxels", f"(D, H, W) of {', '.join(_TYPES)}", name, where=path)
    matrix = volume.affine
    directions = " ".join(_text(matrix[:3, axis]) for axis in (2, 1, 0))
    lines = [
        "NRRD0004",
        f"type: {_TYPES[name][0]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in volume.voxels.shape[::-1])}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {_text(matrix[:3, 3])}",
        "", "",
    ]  # fmt: skip
    data = np.ascontiguousarray(volume.voxels, volume.voxels.dtype.newbyteorder("<")).tobytes()
    with atomic_path(path) as temporary:
        content = gzip.compress(data, 1, mtime=0) if compress else data
        temporary.write_bytes("\n".join(lines).encode("ascii") + content)


def _header(start: bytes, path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Fields and key/value pairs; "bytes of header" is where the voxels begin."""
    end = re.search(rb"\r?\n\r?\n", start)
    if not start.startswith(MAGIC) or end is None:
        raise _wrong("file", "a NRRD header and voxels", "another thing", path)
    fields, said = {"bytes of header": str(end.end())}, {}
    for line in start[: end.start()].decode("utf-8", "replace").splitlines()[1:]:
        if line.startswith("#"):
            continue
        key, separator, value = line.partition(":")
        if separator and value.startswith("="):
            said[key.strip()] = value[1:].strip()
        elif separator:
            fields[key.strip().lower()] = value.strip()
    if "data file" in fields or "datafile" in fields:
        raise _wrong("voxels", "in the file itself", "in another", path)
    return fields, said


def _grid(fields: dict[str, str], path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Sizes along i, j and k, and index (k, j, i, 1) → LPS mm."""
    if fields.get("dimension") != "3":
        raise _wrong("dimension", "3", fields.get("dimension", "none"), path)
    signs = _SPACES.get(fields.get("space", ""))
    if signs is None:
        raise _wrong("space", f"one of {', '.join(_SPACES)}", fields.get("space", "none"), path)
    try:
        shape = tuple(int(n) for n in fields.get("sizes", "").split())
        vectors = [[float(n) for n in one.split(",")]
                   for one in _VECTOR.findall(fields.get("space directions", ""))]  # fmt: skip
        (origin,) = _VECTOR.findall(fields.get("space origin", "(0,0,0)"))
        columns = np.array([*vectors[::-1], [float(n) for n in origin.split(",")]]).T
    except ValueError:
        raise _wrong("sizes and directions", "numbers", "others", path) from None
    if len(shape) != 3 or min(shape) < 1 or columns.shape != (3, 4):
        raise _wrong("sizes and directions", "of three axes", "others", path)
    affine = np.eye(4)
    affine[:3] = columns * np.array(signs)[:, None]
    return shape, affine


def _dtype(fields: dict[str, str], path: Path) -> np.dtype:
    name = _DTYPES.get(fields.get("type", ""))
    if name is None:
        raise _wrong("type", f"one of {', '.join(_TYPES)}", fields.get("type", "none"), path)
    return np.dtype(name).newbyteorder(">" if fields.get("endian") == "big" else "<")


def _text(vector: np.ndarray) -> str:
    return f"({','.join(repr(float(one)) for one in vector)})"


def _wrong(name: str, rule: str, got: object, path: Path) -> FormatError:
    return FormatError(f"NRRD {name}", rule, got, where=path)
