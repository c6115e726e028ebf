"""Which reader opens what: an ordered table, asked by a file's suffix, or for a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qinjing.data.dicom.read import read_series, read_series_header
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
        folder: one image is a folder of such files, which nobody opens one by one.
    """

    suffixes: tuple[str, ...]
    read: Callable[[str | Path], Volume]
    read_header: Callable[[str | Path], Header]
    folder: bool = False


READERS: dict[str, Reader] = {
    "nifti": Reader((".nii.gz", ".nii"), read_nifti, read_header),
    "dicom": Reader((".dcm",), read_series, read_series_header, folder=True),
}


FILE_SUFFIXES = tuple(
    e for reader in READERS.values() if not reader.folder for e in reader.suffixes
)


def read_volume(path: str | Path) -> Volume:
    """Read an image or a label map with the reader that its suffix asks for.

    A folder is read as the DICOM series that lies in it.

    Raises:
        ConfigError: a folder, and pydicom is not installed.
        FormatError: no reader knows the suffix, or the file is damaged.
        GeometryError: the affine is not an invertible matrix, or slices make no regular grid.
    """
    return find_reader(path).read(path)


def find_reader(path: str | Path) -> Reader:
    """Return the first reader that knows the file's suffix, or for a folder that reads folders.

    Raises:
        FormatError: none does.
    """
    is_folder = Path(path).is_dir()
    for reader in READERS.values():
        if reader.folder if is_folder else suffix(path) in reader.suffixes:
            return reader
    known = ", ".join(FILE_SUFFIXES)
    raise FormatError(
        "file name",
        f"one that ends with {known}, or a DICOM series' folder",
        Path(path).name,
        where=path,
    )


def suffix(path: str | Path) -> str:
    """Return the known suffix of a file name (".nii.gz") in lower case, "" where none is known.

    A DICOM slice has none here: it is no image of its own.
    """
    name = Path(path).name.lower()
    return next((end for end in FILE_SUFFIXES if name.endswith(end) and name != end), "")


def stem(path: str | Path) -> str:
    """Return the file name without its known suffix: "a/b_0000.nii.gz" → "b_0000"."""
    name = Path(path).name
    return name[: len(name) - len(suffix(path))]
