"""The files that annotation programs bring and take: NIfTI, NRRD, and OHIF's bare voxels."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.data.layouts.discover import label_values
from qinjing.data.nifti import read_header, read_nifti, write_nifti
from qinjing.data.nrrd import MAGIC, read_nrrd, write_nrrd
from qinjing.errors import FormatError, GeometryError, LabelError
from qinjing.volume import Volume

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
_TYPES = ("uint8", "int16", "uint16", "int32", "float32")
_TOLERANCE_MM = 0.05  # what a quaternion of single precision moves a corner of a large scan by
_MOST_LABEL = 65535


def taken(content: bytes, folder: Path) -> Path:
    """Write what was sent as a NIfTI file, whatever its name said.

    Args:
        content: NIfTI, gzipped or not, or NRRD.
        folder: for the file, which is called by us.

    Raises:
        FormatError: it is neither, or damaged.
        GeometryError: its affine is no invertible matrix.
    """
    name = secrets.token_hex(8)
    if content.startswith(MAGIC):
        given = folder / f"{name}.nrrd"
        given.write_bytes(content)
        made = folder / f"{name}.nii.gz"
        write_nifti(made, read_nrrd(given).volume)
        given.unlink()
        return made
    packed = content.startswith(b"\x1f\x8b")
    made = folder / f"{name}.nii{'.gz' if packed else ''}"
    made.write_bytes(content)
    read_header(made)
    return made


def segment_names(content: bytes) -> dict[int, str]:
    """Return what 3D Slicer calls the segments of a ``.seg.nrrd``; of other files nothing."""
    head = content[: 1 << 20].split(b"\n\n", 1)[0].split(b"\r\n\r\n", 1)[0]
    if not content.startswith(MAGIC):
        return {}
    said = dict(
        line.split(":=", 1) for line in head.decode("utf-8", "replace").splitlines() if ":=" in line
    )
    names = {}
    for key, name in said.items():
        segment, _, what = key.partition("_")
        value = said.get(f"{segment}_LabelValue", "").strip()
        if what == "Name" and value.isdecimal() and int(value) <= _MOST_LABEL:
            names[int(value)] = name.strip()
    return names


def labels_on(content: bytes, image: Path, folder: Path) -> Volume:
    """Return the labels that were sent, in the axes of their image.

    Args:
        content: NIfTI, NRRD, or one bare byte a voxel, as OHIF sends them.
        image: its NIfTI file.
        folder: for what comes between.

    Returns:
        (D, H, W) whole numbers from 0 to 65535.

    Raises:
        FormatError: the file is damaged, or of another form.
        GeometryError: it lies on another grid.
        LabelError: values that are no labels.
    """
    header = read_header(image)
    grid = Volume(np.broadcast_to(np.zeros((), np.uint8), header.shape[-3:]), header.affine)
    bare = len(content) == grid.voxels.size and not content.startswith((MAGIC, b"\x1f\x8b"))
    if bare:
        return grid.with_voxels(np.frombuffer(content, np.uint8).reshape(grid.shape))
    file = taken(content, folder)
    told = read_header(file)
    if sorted(told.shape[-3:]) != sorted(grid.shape) or told.shape[:-3] not in ((), (1,)):
        raise GeometryError("labels", f"of shape {grid.shape}", told.shape)
    labels = read_nifti(file)
    labels = Volume(labels.voxels.reshape(told.shape[-3:]), labels.affine)
    file.unlink()
    difference = grid.canonical().grid_difference(labels.canonical(), _TOLERANCE_MM)
    if difference:
        raise GeometryError("labels", "on their image's grid", difference)
    turned = labels.canonical().restore_axes(grid)
    values = label_values(turned.voxels)
    if not np.array_equal(values, np.rint(values)) or values[0] < 0 or values[-1] > _MOST_LABEL:
        raise LabelError("labels", f"whole numbers from 0 to {_MOST_LABEL}", "others")
    kind = np.uint8 if values[-1] < 256 else np.uint16
    return turned.with_voxels(turned.voxels.astype(kind))


def packed(labels: Volume, folder: Path) -> bytes:
    """Return a gzipped NIfTI file of labels."""
    file = folder / f"{secrets.token_hex(8)}.nii.gz"
    write_nifti(file, labels)
    return file.read_bytes()


def encoded(labels: Volume, params: Mapping[str, Any], folder: Path) -> Path:
    """Write labels in the form that a client asks for.

    Args:
        labels: (D, H, W).
        params: "result_extension", one of `EXTENSIONS`; "result_dtype"; "result_compress", which
            a NRRD is not unless it says so.
        folder: for the file.

    Raises:
        FormatError: a form that is not written here, or a type that does not hold the labels.
    """
    extension, dtype = params.get("result_extension"), params.get("result_dtype")
    extension = ".nii.gz" if extension is None else str(extension).replace(".seg.nrrd", ".nrrd")
    if extension not in EXTENSIONS:
        raise FormatError("result_extension", f"one of {', '.join(EXTENSIONS)}", extension)
    if dtype is not None and dtype not in _TYPES:
        raise FormatError("result_dtype", f"one of {', '.join(_TYPES)}", dtype)
    target = np.dtype(dtype or labels.voxels.dtype)
    most = int(labels.voxels.max(initial=0))
    if target.kind in "iu" and most > np.iinfo(target).max:
        raise FormatError("result_dtype", f"one that holds {most}", target.name)
    file = folder / f"{secrets.token_hex(8)}{extension}"
    if extension == ".nrrd":
        written = labels.with_voxels(labels.voxels.astype(target))
        write_nrrd(file, written, compress=bool(params.get("result_compress")))
    else:
        write_nifti(file, labels, dtype=target)
    return file


def renumbered(mask: Path, values: Mapping[int, int], out: Path) -> None:
    """Write a label file with other values; what has none becomes background.

    Args:
        mask: a NIfTI file of labels.
        values: old → new, up to 255.
        out: the file to write.
    """
    labels = read_nifti(mask)
    table = np.zeros(_MOST_LABEL + 1, np.uint8)
    for old, new in values.items():
        table[old] = new
    write_nifti(out, labels.with_voxels(table[labels.voxels.astype(np.int64)]))


def values_in(mask: Path) -> tuple[int, ...]:
    """Return the label values that a file holds, without background."""
    return tuple(int(value) for value in label_values(read_nifti(mask).voxels) if value)
