"""Which files a place holds: a folder with all below it, a zip, a DICOMDIR, or one file.

Source: DICOM PS3.10, 8.6 and PS3.3, F.3 (DICOMDIR).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from qinjing.data.dicom.elements import DamagedError, is_dicom, read_elements
from qinjing.data.dicom.series import Refusal
from qinjing.errors import FormatError

# What a zip may become: a study of tens of thousands of slices, and no bomb.
UNPACKED_BYTES = 64 << 30
UNPACKED_FILES = 500_000
DIRECTORY = "1.2.840.10008.1.3.10"
_SUFFIXES = (".dcm", ".dicom", ".ima")
_PIECE = 1 << 20


class Unpacked:
    """A temporary folder that goes when nothing holds it any more.

    Attributes:
        folder: where it is.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="qinjing-dicom-")
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(eq=False)
class Files:
    """DICOM files of a place.

    Attributes:
        paths: in the order of their names, which means nothing.
        refused: what could not be opened or unpacked.
        unpacked: where a zip's files lie.
    """

    paths: list[Path] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    unpacked: Unpacked | None = None


def find_files(place: Path) -> Files:
    """Find the DICOM files of a folder (with its subfolders and zips), zip, DICOMDIR or file.

    Files that are no DICOM by their first bytes are left alone, but for those named as if.

    Raises:
        FormatError: there is no such place, or it cannot be opened.
    """
    found = Files()
    if place.is_dir():
        for folder, folders, names in os.walk(place):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith(".") or not path.is_file():
                    continue
                if path.suffix.lower() == ".zip":
                    _unpack(path, found)
                else:
                    _take(path, found)
        return found
    if not place.is_file():
        raise FormatError("place", "a folder, zip, DICOMDIR or DICOM file", "nothing", where=place)
    if zipfile.is_zipfile(place) and not _is_dicom(place):
        _unpack(place, found)
    elif _is_directory(place):
        _follow(place, found)
    else:
        _take(place, found)
        if not found.paths and not found.refused:
            rule = "a folder, zip, DICOMDIR or DICOM file"
            raise FormatError("place", rule, "another file", where=place)
    return found


def series_files(folder: Path) -> list[Path]:
    """Return the files of a folder that make its series, by name.

    Raises:
        FormatError: there is no such folder, or no DICOM file in it.
    """
    try:
        files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
        named = [file for file in files if file.suffix.lower() == ".dcm"]
        found = named or [file for file in files if _is_dicom(file)]
    except OSError as error:
        raise FormatError("series", "a folder that can be read", error, where=folder) from None
    if not found:
        raise FormatError("series", "a folder of DICOM files", "none", where=folder)
    return found


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return is_dicom(file.read(132))


def _is_directory(path: Path) -> bool:
    try:
        meta = read_elements(path).meta
        return meta is not None and meta.text(0x00020002) == DIRECTORY
    except (DamagedError, OSError):
        return False


def _take(path: Path, found: Files) -> None:
    """Keep a file if it is DICOM, refuse it if only its name is."""
    try:
        if _is_dicom(path):
            found.paths.append(path)
        elif path.suffix.lower() in _SUFFIXES:
            reason = FormatError("file", "DICOM, as its name says", "other bytes", where=path)
            found.refused.append(Refusal("", path, str(reason)))
    except OSError as error:
        found.refused.append(Refusal("", path, _unreadable(path, error)))


def _unreadable(path: Path, error: object) -> str:
    return str(FormatError("file", "readable", error, where=path))


def _follow(directory: Path, found: Files) -> None:
    """Keep the files that a DICOMDIR names, all within its folder."""
    root = directory.parent.resolve()
    try:
        records = read_elements(directory).items(0x00041220)
    except DamagedError as error:
        raise FormatError("DICOMDIR", "sound", error, where=directory) from None
    for record in records:
        words = record.words(0x00041500)
        if not words:
            continue
        path = root.joinpath(*words)
        inside = ".." not in words and path.resolve().is_relative_to(root)
        if not inside:
            reason = FormatError("file", "within the DICOMDIR's folder", path, where=directory)
            found.refused.append(Refusal("", directory, str(reason)))
        elif not path.is_file():
            reason = FormatError("file", "where the DICOMDIR says", "nothing", where=path)
            found.refused.append(Refusal("", path, str(reason)))
        else:
            _take(path, found)


def _unpack(archive: Path, found: Files) -> None:
    """Unpack a zip's DICOM files under names of our own into a temporary folder."""
    if found.unpacked is None:
        found.unpacked = Unpacked()
    folder = Path(tempfile.mkdtemp(dir=found.unpacked.folder))
    left = UNPACKED_BYTES
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [one for one in packed.infolist() if not one.is_dir()]
            if len(members) > UNPACKED_FILES:
                got = f"{len(members)} files"
                raise FormatError("zip", f"of at most {UNPACKED_FILES} files", got, where=archive)
            for i, member in enumerate(members):
                # The name is for a person to find the file again, never a path.
                name = Path(member.filename.replace("\\", "/")).name
                kept = "".join(c if c.isalnum() or c in "._- " else "_" for c in name)[-80:]
                left -= _unpack_one(packed, member, folder / f"{i:06d}-{kept}", left)
                if left < 0:
                    got = f"more, at {member.filename}"
                    raise FormatError(
                        "zip", f"of at most {UNPACKED_BYTES} bytes unpacked", got, where=archive
                    )
                if (folder / f"{i:06d}-{kept}").is_file():
                    found.paths.append(folder / f"{i:06d}-{kept}")
    except FormatError as error:
        found.refused.append(Refusal("", archive, str(error)))
    except Exception as error:  # zipfile raises what zlib, lzma, struct and others do
        found.refused.append(Refusal("", archive, _unreadable(archive, error)))


def _unpack_one(packed: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, most: int) -> int:
    """Unpack a member if it is DICOM; how many bytes it has."""
    done = 0
    with packed.open(member) as source:
        piece = source.read(_PIECE)
        if not is_dicom(piece[:132]):
            return 0
        with target.open("xb") as file:
            while piece and done <= most:
                done += file.write(piece)
                piece = source.read(_PIECE)
    return done
