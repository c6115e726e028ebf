"""NIfTI-1 and NIfTI-2, single file, gzipped or not: read and written with the affine in LPS.

nibabel reads the header's fields; the pixels go straight from (i)gzip into their array. A NIfTI
array (i, j, k) is the same memory read backwards, (D, H, W) = (k, j, i), and RAS becomes LPS by
negating x and y.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError

from qinjing.config import atomic_path
from qinjing.errors import FormatError, GeometryError
from qinjing.volume import Volume

GZIP_MAGIC = b"\x1f\x8b"
# Deflate cannot pack more than 1032 bytes into one, so that a header which promises more than this
# many times the file's size lies, and nothing needs to be allocated to know it.
DEFLATE_MAX_RATIO = 1032
# NIfTI datatype code → NumPy type. Binary, complex, RGB and 128-bit types are refused.
DTYPES = {
    2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 64: np.float64,
    256: np.int8, 512: np.uint16, 768: np.uint32, 1024: np.int64, 1280: np.uint64,
}  # fmt: skip
REFUSED_TYPES = {
    0: "unknown", 1: "binary", 32: "complex64", 128: "RGB colour", 1536: "float128",
    1792: "complex128", 2048: "complex256", 2304: "RGBA colour",
}  # fmt: skip
MILLIMETRES = {1: 1000.0, 3: 0.001}  # xyzt_units: metre, micrometre; all others are millimetres

# nibabel repairs small faults of a header and tells its own logger; the repair is wanted, the line
# on the terminal is not.
_quiet = logging.getLogger("qinjing.data.nifti.header")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


@dataclass(frozen=True, eq=False)
class Header:
    """What a NIfTI header says, in the terms of `Volume`.

    Attributes:
        shape: (D, H, W) or (C, D, H, W).
        affine: (4, 4) float64, index (d, h, w, 1) → LPS millimetres.
        dtype: the type that `read_nifti` returns.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype


@dataclass(frozen=True)
class _Stored:
    """How the pixels lie in the file."""

    header: Header
    dtype: np.dtype
    offset: int
    slope: float | None
    intercept: float | None

    @property
    def n_bytes(self) -> int:
        return math.prod(self.header.shape) * self.dtype.itemsize


def read_header(path: str | Path) -> Header:
    """Read shape, affine and type; of a gzipped file only the head is unpacked.

    Raises:
        FormatError: the file is missing, is not single-file NIfTI, or its header is damaged.
        GeometryError: the affine is not an invertible matrix.
    """
    path = Path(path)
    with _refusals(path), _open(path) as file:
        return _parse(_read_head(file), path).header


def read_nifti(path: str | Path) -> Volume:
    """Read a NIfTI file as a Volume, in the type that it was stored in.

    (i, j, k) becomes (D, H, W), (i, j, k, t) becomes (C, D, H, W); axes of length 1 beyond the
    third are dropped and an image of two axes gets D = 1. Pixels with a scale factor become
    float32; others keep their type, in the machine's byte order. The affine is sform's, else
    qform's, else the pixel sizes', in LPS millimetres.

    Raises:
        FormatError: missing, not single-file NIfTI, truncated, corrupt, or of a type that an image
            cannot have here (complex, colour).
        GeometryError: the affine is not an invertible matrix.
    """
    path = Path(path)
    with _refusals(path):
        with _open(path) as file:
            head = _read_head(file)
            stored = _parse(head, path)
            _check_size(stored, path, isinstance(file, igzip.IGzipFile))
            _skip(file, stored.offset - len(head), path)
            voxels = np.empty(stored.header.shape, dtype=stored.dtype)
            _fill(file, voxels, path)
            # Reading up to the end lets gzip compare its checksum; a long tail is not worth it.
            file.read(1 << 16)
        if not stored.dtype.isnative:
            voxels = voxels.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))
        voxels = _scale(voxels, stored)
    return Volume(voxels, stored.header.affine)


def write_nifti(path: str | Path, volume: Volume, dtype: np.dtype | type | None = None) -> None:
    """Write a Volume, whole or not at all; gzipped where the name ends with .gz.

    The affine goes into sform as it is, and into qform where it has no shear. A single channel is
    written as a 3-D image, and an axis longer than 32,767 makes the file NIfTI-2.

    Args:
        path: ends with .nii or .nii.gz.
        volume: (D, H, W) or (C, D, H, W).
        dtype: how to store; by default float32 for floats, and for integers the smallest of uint8,
            int16, uint16, int32 and so on that holds every value.

    Raises:
        FormatError: values that `dtype` cannot hold.
    """
    path = Path(path)
    voxels = (
        volume.voxels[0] if volume.voxels.ndim == 4 and len(volume.voxels) == 1 else volume.voxels
    )
    if voxels.size == 0:
        raise FormatError("image", "of at least one voxel", voxels.shape, where=path)
    target = np.dtype(dtype) if dtype is not None else _smallest_dtype(voxels)
    header = _make_header(volume, voxels.shape, target, path)
    if dtype is not None:
        _check_fits(voxels, target, path)
    data = np.ascontiguousarray(voxels, dtype=target.newbyteorder("<"))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # No name and no time in the gzip header: the same volume gives the same bytes.
            with igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                packed.write(header)
                packed.write(data.reshape(-1).view(np.uint8).data)
        else:
            file.write(header)
            file.write(data.reshape(-1).view(np.uint8).data)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn what the file system, gzip and nibabel raise into one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise FormatError("file", "there", "nothing", where=path) from None
    except EOFError:
        raise FormatError("file", "complete", "a gzip stream that ends early", where=path) from None
    except MemoryError:
        raise FormatError("image", "small enough for this machine's memory", where=path) from None
    except HeaderDataError as error:
        raise FormatError("NIfTI header", "valid", error, where=path) from None
    except GeometryError as error:
        raise GeometryError("affine", "an invertible matrix", error, where=path) from None
    except (OSError, isal_zlib.error) as error:  # type: ignore[misc]
        raise FormatError("file", "readable", error, where=path) from None


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file, unpacking it where its first bytes are gzip's, whatever its name is."""
    with path.open("rb") as file:
        if file.read(2) != GZIP_MAGIC:
            file.seek(0)
            yield file
            return
        file.seek(0)
        with igzip.IGzipFile(fileobj=file) as unpacked:
            yield cast(BinaryIO, unpacked)


def _read_head(file: BinaryIO) -> bytes:
    head = file.read(348)
    if len(head) == 348 and 540 in _header_sizes(head):
        head += file.read(540 - 348)
    return head


def _header_sizes(head: bytes) -> tuple[int, int]:
    """The header's first number, which is its size, in both byte orders."""
    return int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")


def _parse(head: bytes, path: Path) -> _Stored:
    """Check a header of 348 or 540 bytes and say what it promises."""
    sizes = _header_sizes(head)
    version = 2 if 540 in sizes else 1
    expected = 540 if version == 2 else 348
    if len(head) < expected or expected not in sizes:
        got = f"{len(head)} bytes that start with {head[:4].hex(' ')}"
        raise FormatError("file", "NIfTI with a header of 348 or 540 bytes", got, where=path)
    magic = head[4:7] if version == 2 else head[344:347]
    if magic not in (b"n+1", b"n+2"):
        raise FormatError("NIfTI magic", "n+1 or n+2", repr(magic), where=path,
                          advice="convert pairs of .hdr and .img to one .nii file")  # fmt: skip
    kind = nibabel.Nifti2Header if version == 2 else nibabel.Nifti1Header
    fields = kind(head, "<" if sizes[0] == expected else ">", check=False)
    code = int(fields["datatype"])
    if code not in DTYPES:
        got = REFUSED_TYPES.get(code, f"code {code}")
        raise FormatError("voxel type", "integer or float of 8 to 64 bits", got, where=path)
    if not np.isfinite(float(fields["vox_offset"])) or float(fields["vox_offset"]) < 0:
        raise FormatError("vox_offset", "a number of bytes", fields["vox_offset"], where=path)
    lengths = _lengths(fields, path)
    with np.errstate(all="ignore"):
        fields.check_fix(logger=_quiet, error_level=40)
        affine = _affine(fields, lengths, path)
    slope, intercept = fields.get_slope_inter()
    if slope == 1 and not intercept:
        slope = intercept = None
    stored = np.dtype(DTYPES[code]).newbyteorder(fields.endianness)
    dtype = np.dtype(DTYPES[code] if slope is None else np.float32)
    offset = int(fields["vox_offset"]) or fields.single_vox_offset
    return _Stored(Header(lengths[::-1], affine, dtype), stored, offset, slope, intercept)


def _lengths(fields: Any, path: Path) -> tuple[int, ...]:
    """The axes (i, j, k) or (i, j, k, channel), after dropping trailing axes of length 1."""
    n_axes = int(fields["dim"][0])
    lengths = [int(n) for n in fields["dim"][1 : 1 + n_axes]] if 0 < n_axes < 8 else []
    if len(lengths) < 2 or min(lengths) < 1:
        raise FormatError("dim", "2 to 7 axes of at least one voxel", fields["dim"], where=path)
    spatial = [*lengths, 1][:3]
    further = [n for n in lengths[3:] if n > 1]
    if len(further) > 1:
        raise FormatError("image", "of at most one axis beyond i, j, k", lengths, where=path)
    return (*spatial, *further)


def _affine(fields: Any, lengths: tuple[int, ...], path: Path) -> np.ndarray:
    """Index (d, h, w, 1) → LPS millimetres."""
    try:
        affine = np.array(fields.get_best_affine(), dtype=np.float64)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise FormatError(
            "orientation", "a valid quaternion or matrix", error, where=path
        ) from None
    affine[:3] *= MILLIMETRES.get(int(fields["xyzt_units"]) & 7, 1.0)
    if lengths[2] == 1 and not affine[:3, 2].any():
        # A single slice often says nothing of its thickness.
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    affine[:2] *= -1
    affine = np.ascontiguousarray(affine[:, [2, 1, 0, 3]])
    Volume(np.empty((1, 1, 1), np.uint8), affine)  # the one rule for affines lives there
    return affine


def _check_size(stored: _Stored, path: Path, packed: bool) -> None:
    """Refuse a header that promises more than the file can hold, before anything is allocated."""
    there = path.stat().st_size * (DEFLATE_MAX_RATIO if packed else 1)
    if stored.offset + stored.n_bytes > there:
        got = f"{path.stat().st_size} bytes for {stored.header.shape} voxels of {stored.dtype.name}"
        raise FormatError("file", "as long as its header promises", got, where=path)


def _skip(file: BinaryIO, n_bytes: int, path: Path) -> None:
    """Skip header extensions."""
    if n_bytes < 0:
        raise FormatError("vox_offset", "beyond the header", where=path)
    while n_bytes > 0:
        piece = len(file.read(min(n_bytes, 1 << 20)))
        if piece == 0:
            raise FormatError("file", "as long as its header promises", "no pixels", where=path)
        n_bytes -= piece


def _fill(file: BinaryIO, voxels: np.ndarray, path: Path) -> None:
    target = voxels.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(target):
        piece = file.readinto(target[done:])  # type: ignore[attr-defined]
        if not piece:
            got = f"{done} of {len(target)} bytes of pixels"
            raise FormatError("file", "as long as its header promises", got, where=path)
        done += piece


def _scale(voxels: np.ndarray, stored: _Stored) -> np.ndarray:
    """Apply the scale factor; wide integers and doubles are scaled as doubles first."""
    if stored.slope is None or stored.intercept is None:
        return voxels
    narrow = voxels.dtype.itemsize <= 2 or voxels.dtype == np.float32
    scaled: np.ndarray = voxels.astype(np.float32 if narrow else np.float64)
    with np.errstate(all="ignore"):
        np.multiply(scaled, stored.slope, out=scaled)
        np.add(scaled, stored.intercept, out=scaled)
        return scaled.astype(np.float32, copy=False)


def _smallest_dtype(voxels: np.ndarray) -> np.dtype:
    if voxels.dtype.kind == "f":
        return np.dtype(np.float32)
    low, high = int(voxels.min()), int(voxels.max())
    for kind in (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.uint64)


def _check_fits(voxels: np.ndarray, target: np.dtype, path: Path) -> None:
    if target.kind not in "iu" or voxels.dtype == target:
        return
    low, high = voxels.min(), voxels.max()
    whole = voxels.dtype.kind != "f" or bool(np.all(voxels == np.rint(voxels)))
    if not whole or low < np.iinfo(target).min or high > np.iinfo(target).max:
        got = f"{'whole' if whole else 'fractional'} values from {low} to {high}"
        raise FormatError("voxels", f"whole numbers that fit {target}", got, where=path)


def _make_header(volume: Volume, shape: tuple[int, ...], target: np.dtype, path: Path) -> bytes:
    """The header and the four bytes that say there are no extensions."""
    if target not in [np.dtype(kind) for kind in DTYPES.values()]:
        raise FormatError("voxel type", "integer or float of 8 to 64 bits", target, where=path)
    header = nibabel.Nifti1Header() if max(shape) <= 32767 else nibabel.Nifti2Header()
    header.set_data_shape(shape[::-1])
    header.set_data_dtype(target)
    header.set_xyzt_units("mm", "unknown" if len(shape) == 3 else "sec")
    affine = volume.affine[:, [2, 1, 0, 3]].copy()
    affine[:2] *= -1
    header.set_qform(affine, code=1, strip_shears=True)
    reach = np.abs(affine[:3, :3] - header.get_qform()[:3, :3]) @ np.array(shape[::-1][:3])
    if reach.max() > 1e-3:  # mm at the far corner: sheared, so that no quaternion says it
        header["qform_code"] = 0
    header.set_sform(affine, code=1)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    with io.BytesIO() as out:
        out.write(header.binaryblock)
        out.write(bytes(4))
        return out.getvalue()
