"""Mosaics: the slices of one time point as tiles of one image.

Siemens states the place of the big image's corner as if it were one slice; the number of tiles and
the direction in which they are stacked stand in the private CSA header, the places of the slices
in the protocol beside it. United Imaging (UIH) states each tile's place in a private sequence.

Source: NiBabel, "Siemens DICOM" (nipy.org/nibabel/dicom/siemens_csa.html, dicom_mosaic.html).
"""

from __future__ import annotations

import math
import re
import struct

import numpy as np

from qinjing.data.dicom.elements import DamagedError, Elements, position, vector

_IMAGE_CSA, _SERIES_CSA = 0x00291010, 0x00291020
_SLICE = re.compile(r"sSliceArray\.asSlice\[(\d+)\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*(\S+)")
EVEN = 0.02  # how far the gaps of a protocol may lie from one another, as a part
Tiles = tuple[list[tuple[int, int]], tuple[int, int], np.ndarray]


def siemens_tiles(file: Elements, shape: tuple[int, int]) -> Tiles:
    """Return first row and column of each tile, their shape, and the places of their corners.

    Args:
        file: a mosaic's elements.
        shape: of the whole image.

    Raises:
        DamagedError: the private header does not say how the tiles are stacked.
    """
    csa = read_csa(file.raw(_IMAGE_CSA))
    counts, normals = csa.get("NumberOfImagesInMosaic", []), csa.get("SliceNormalVector", [])
    if not counts or len(normals) < 3:
        raise DamagedError(
            "a mosaic must have its private CSA header, which says how its tiles are stacked"
        )
    try:
        n, stacked = int(float(counts[0])), np.array([float(word) for word in normals[:3]])
    except ValueError:
        raise DamagedError("the CSA header must hold numbers") from None
    tiles, tile = _cut(n, shape, square=True)
    directions = vector(file, 0x00200037, 6, "ImageOrientationPatient").reshape(2, 3)
    rows_mm, columns_mm = vector(file, 0x00280030, 2, "PixelSpacing")
    normal = np.cross(*directions)
    if not abs(float(stacked @ normal)) > 0.99:
        raise DamagedError(
            "the mosaic's slice normal must be at a right angle to its rows and columns"
        )
    step = normal * math.copysign(_gap(file, normal, n), float(stacked @ normal))
    first = (
        position(file)
        + directions[0] * columns_mm * (shape[1] - tile[1]) / 2
        + directions[1] * rows_mm * (shape[0] - tile[0]) / 2
    )
    return tiles, tile, first + step * np.arange(n)[:, None]


def uih_tiles(file: Elements, shape: tuple[int, int]) -> Tiles:
    """Return the same of a grid of UIH's.

    Raises:
        DamagedError: it does not say where its tiles lie.
    """
    items = file.items(0x00651051)
    if not items:
        raise DamagedError("a UIH grid must say where its tiles lie")
    tiles, tile = _cut(len(items), shape, square=False)
    return tiles, tile, np.array([position(item) for item in items])


def _cut(
    n: int, shape: tuple[int, int], square: bool
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """First row and column of each tile, row by row, and the tiles' shape."""
    if not 1 <= n <= shape[0] * shape[1]:
        raise DamagedError(f"a mosaic must have at least one tile, got {n}")
    across = math.ceil(math.sqrt(n))
    down = across if square else math.ceil(n / across)
    if shape[0] % down or shape[1] % across:
        raise DamagedError(
            f"a mosaic of {n} tiles must divide evenly, got {shape[0]}×{shape[1]} pixels"
        )
    rows, columns = shape[0] // down, shape[1] // across
    return [(i // across * rows, i % across * columns) for i in range(n)], (rows, columns)


def _gap(file: Elements, normal: np.ndarray, n: int) -> float:
    """Millimetres from tile to tile: the protocol's, or SpacingBetweenSlices."""
    stated = file.number(0x00180088)
    text = file.raw(_SERIES_CSA).decode("latin-1")
    start = text.find("### ASCCONV BEGIN")
    text = text[start : text.find("### ASCCONV END", start)] if start >= 0 else ""
    places = np.zeros((n, 3))
    for index, axis, value in _SLICE.findall(text):
        if int(index) < n:
            try:
                places[int(index), ("Sag", "Cor", "Tra").index(axis)] = float(value)
            except ValueError:
                raise DamagedError("the protocol's slice positions must be numbers") from None
    gaps = np.diff(np.sort(places @ normal))
    if len(gaps) and gaps.min() > 0 and np.ptp(gaps) <= EVEN * gaps.max():
        return float(gaps.mean())
    if stated is None or not 0 < stated < 1e4:
        raise DamagedError("a mosaic must say how far its slices lie apart")
    return stated


def read_csa(raw: bytes) -> dict[str, list[str]]:
    """Read Siemens' CSA header ("SV10", or the older form) as texts by name.

    Raises:
        DamagedError: its lengths do not fit.
    """
    at = 8 if raw[:4] == b"SV10" else 0
    found: dict[str, list[str]] = {}
    try:
        (n_tags,) = struct.unpack_from("<I", raw, at)
        at += 8
        if n_tags > 1024:
            raise DamagedError(f"a CSA header must have some hundred tags, got {n_tags}")
        for _ in range(n_tags):
            name = raw[at : at + 64].split(b"\0")[0].decode("latin-1")
            (n_items,) = struct.unpack_from("<i", raw, at + 76)
            at += 84
            words = []
            for _ in range(n_items):
                (length,) = struct.unpack_from("<i", raw, at + 4)
                if length < 0 or at + 16 + length > len(raw):
                    raise DamagedError("an item of the CSA header is cut off")
                word = raw[at + 16 : at + 16 + length].split(b"\0")[0]
                words.append(word.decode("latin-1").strip())
                at += 16 + (length + 3) // 4 * 4
            found[name] = [word for word in words if word]
    except struct.error:
        raise DamagedError("the CSA header is cut off") from None
    return found
