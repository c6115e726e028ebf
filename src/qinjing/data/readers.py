"""Which reader opens which file: an ordered table, asked by the file's suffix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qinjing.data.nifti import Header, read_header, read_nifti
from qinjing.errors import FormatError
from qinjing.volume import Volume


@dataclass(frozen=True)
class Reader:
    """One file format.

    Attributes:
        suffixes: ends of file names, in lower case, the longest first.
        read: file → Volume.
        read_header: file → shape, affine and type, without the pixels.
    """

    suffixes: tuple[str, ...]
    read: Callable[[str | Path], Volume]
    read_header: Callable[[str | Path], Header]


READERS: dict[str, Reader] = {
    "nifti": Reader((".nii.gz", ".nii"), read_nifti, read_header),
}


def read_volume(path: str | Path) -> Volume:
    """Read an image or a label map with the reader that its suffix asks for.

    Raises:
        FormatError: no reader knows the suffix, or the file is damaged.
        GeometryError: the affine is not an invertible matrix.
    """
    return find_reader(path).read(path)


def find_reader(path: str | Path) -> Reader:
    """Return the first reader that knows the file's suffix.

    Raises:
        FormatError: none does.
    """
    for reader in READERS.values():
        if suffix(path) in reader.suffixes:
            return reader
    known = ", ".join(end for reader in READERS.values() for end in reader.suffixes)
    raise FormatError("file name", f"one that ends with {known}", Path(path).name, where=path)


def suffix(path: str | Path) -> str:
    """Return the known suffix of a file name (".nii.gz") in lower case, "" where none is known."""
    name = Path(path).name.lower()
    ends = (end for reader in READERS.values() for end in reader.suffixes)
    return next((end for end in ends if name.endswith(end) and name != end), "")


def stem(path: str | Path) -> str:
    """Return the file name without its known suffix: "a/b_0000.nii.gz" → "b_0000"."""
    name = Path(path).name
    return name[: len(name) - len(suffix(path))]
