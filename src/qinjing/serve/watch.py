"""Watch a folder into which people drop DICOM files and zips, for those with neither PACS nor web.

A file that has stopped changing is taken into the catalogue, then moved to `taken`; what cannot be
taken goes to `refused` with a sentence beside it. It is moved last, and an instance is kept once:
whoever dies in between loses nothing and makes nothing twice.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qinjing.config import atomic_path
from qinjing.data.dicom.elements import DamagedError, Elements, parse
from qinjing.data.dicom.files import DIRECTORY, find_files
from qinjing.errors import ConfigError, FormatError
from qinjing.serve.catalogue import Catalogue
from qinjing.serve.dicomweb import MOST_BYTES
from qinjing.serve.fetch import preambled, take

LOG = logging.getLogger("qinjing.serve.watch")
TAKEN, REFUSED = "taken", "refused"
RESULTS = "results"  # may lie there too: our own are not taken in again
_DEFLATED = "1.2.840.10008.1.2.1.99"
_OF_PIXELS = ("Image Storage", "Segmentation Storage", "Parametric Map Storage")
_ZIP = b"PK\x03\x04"
_NOT_YET = (".part", ".partial", ".crdownload", ".tmp", "~")  # what is being written elsewhere


@dataclass(frozen=True)
class Looked:
    """What became of the files of one look.

    Attributes:
        taken: files that went into the catalogue.
        refused: files that did not.
    """

    taken: int
    refused: int


class Watched:
    """A folder that is watched.

    Args:
        catalogue: where files go.
        folder: that people see; made where there is none.
        quiet_s: seconds without a change after which a file is whole.
        clock: seconds that only grow.

    Raises:
        ConfigError: the folder cannot be used, or lies with the catalogue.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        folder: Path,
        quiet_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalogue, self._folder = catalogue, folder
        self._quiet_s, self._clock = quiet_s, clock
        self._folders: list[Path] = []
        self._seen: dict[Path, tuple[tuple[int, int, int], float]] = {}
        ours, theirs = catalogue.folder.resolve(), folder.resolve()
        if ours == theirs or ours in theirs.parents or theirs in ours.parents:
            raise ConfigError("--watch", "a folder apart from that of the studies", folder)
        try:
            for name in (TAKEN, REFUSED):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                "--watch", "a folder that can be written", error.strerror, where=folder
            ) from None

    def look(self) -> Looked:
        """Take what has come and stopped changing.

        Raises:
            OSError: the disk takes no more; the files wait where they are.
            ConfigError: the database does not; likewise.
        """
        now, there = self._clock(), dict(self._files())
        self._seen = {
            path: self._seen[path] if self._seen.get(path, (None,))[0] == sign else (sign, now)
            for path, sign in there.items()
        }
        counts = {TAKEN: 0, REFUSED: 0}
        for path, (_, since) in self._seen.items():
            if now - since >= self._quiet_s:
                became = self._one(path)
                if became:
                    counts[became] += 1
        self._sweep()
        return Looked(counts[TAKEN], counts[REFUSED])

    def queue(self, kinds: Collection[str]) -> None:
        """Put studies that have gone quiet into the queue.

        Raises:
            ConfigError: the database is away.
        """
        self._catalogue.queue_quiet(self._quiet_s, kinds)

    def _files(self) -> Iterator[tuple[Path, tuple[int, int, int]]]:
        """Each file that waits, and what changes when it does."""
        self._folders = []
        for place, folders, names in os.walk(self._folder):
            at_top = Path(place) == self._folder
            if not at_top:
                self._folders.append(Path(place))
            folders[:] = sorted(
                one for one in folders
                if not one.startswith(".") and not (at_top and one in (TAKEN, REFUSED, RESULTS))
            )  # fmt: skip
            for name in sorted(names):
                if name.startswith(".") or name.lower().endswith(_NOT_YET):
                    continue
                path = Path(place, name)
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                yield path, (status.st_ino, status.st_size, status.st_mtime_ns)

    def _one(self, path: Path) -> str | None:
        """Take a file or refuse it; None where it went away meanwhile."""
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise FormatError("file", "one, and no link or device", "another thing")
            self._take(path, status.st_size)
        except FileNotFoundError:
            return None
        except FormatError as error:
            return self._move(path, REFUSED, str(error))
        return self._move(path, TAKEN)

    def _take(self, path: Path, size: int) -> None:
        if _read(path, 4) != _ZIP:
            self._keep(path, size)
            return
        try:
            found = find_files(path)
        except FormatError:
            raise FormatError("zip", "whole and sound", "another") from None
        if found.refused:
            raise FormatError("zip", "whole, sound and of 64 GiB at most", "another")
        if not found.paths:
            raise FormatError("zip", "with DICOM files in it", "none")
        damaged = 0
        for one in found.paths:
            try:
                self._keep(one, one.stat().st_size)
            except FormatError:
                damaged += 1
        if damaged:
            got = f"{damaged} of {len(found.paths)} that are not; the others were taken"
            raise FormatError("zip", "of sound DICOM files", got)

    def _keep(self, path: Path, size: int) -> None:
        if size > MOST_BYTES:
            raise FormatError("file", f"of {MOST_BYTES} bytes at most", size)
        content = preambled(_read(path))
        try:
            found = parse(content)
        except DamagedError:
            raise FormatError(
                "file", "DICOM, whole and sound, or a zip of such", "another"
            ) from None
        if found.meta is not None and found.meta.text(0x00020002) == DIRECTORY:
            return  # the table of contents of a disc is nothing to keep
        if not is_whole(found, content):
            raise FormatError("file", "whole", "one that is cut off", advice="copy it again")
        if take(content, self._catalogue, set()) is None:
            raise FormatError("file", "DICOM with the UIDs that it must have", "another")

    def _move(self, path: Path, where: str, reason: str = "") -> str | None:
        target = _free(self._folder / where / path.relative_to(self._folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        if reason:
            with atomic_path(_beside(target)) as temporary:
                temporary.write_text(f"{reason}\n", encoding="utf-8")
        try:
            path.rename(target)
        except FileNotFoundError:
            return None
        return where

    def _sweep(self) -> None:
        """Take away folders that were dropped and are empty now, if nobody copies into them."""
        old = time.time() - max(60.0, self._quiet_s)
        for path in reversed(self._folders):
            try:
                if path.stat().st_mtime < old:
                    path.rmdir()
            except OSError:
                continue  # it is not empty


def watch(
    watched: Watched,
    ended: threading.Event,
    kinds: Collection[str] = (),
    idle_s: float = 1.0,
    tell: Callable[[Looked], object] = lambda _: None,
) -> None:
    """Look again and again until the event is set, and queue the studies that have gone quiet.

    Args:
        watched: the folder.
        ended: set it to stop.
        kinds: of jobs that a complete study gets.
        idle_s: seconds between two looks.
        tell: told of each look in which something came.
    """
    while not ended.wait(idle_s):
        try:
            looked = watched.look()
            watched.queue(kinds)
        except (OSError, ConfigError) as error:  # files wait until there is room again
            said = error.strerror if isinstance(error, OSError) else str(error)
            LOG.error("dropped files could not be taken: %s", said)
            continue
        if looked.taken or looked.refused:
            tell(looked)


@contextmanager
def watching(
    watched: Watched, kinds: Collection[str], tell: Callable[[Looked], object] = lambda _: None
) -> Iterator[None]:
    """Watch in a thread of its own while the block runs; see `watch`."""
    ended = threading.Event()
    options = {"kinds": kinds, "tell": tell}
    thread = threading.Thread(target=watch, args=(watched, ended), kwargs=options, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def is_whole(found: Elements, content: bytes) -> bool:
    """Whether a DICOM file has all of its pixels: one that is being copied ends early.

    Args:
        found: its elements up to the pixels.
        content: the file.

    Source: DICOM PS3.5, A.4 (items of encapsulated pixels and what ends them).
    """
    if not found.pixels:  # it may end just where an element does
        from pydicom.uid import UID

        kind = UID(found.text(0x00080016)).name
        return not any(word in kind for word in _OF_PIXELS)
    if found.syntax == _DEFLATED:  # which does not end, where it is cut off
        return True
    if found.length is not None:
        return found.at + found.length <= len(content)
    at = found.at
    while at + 8 <= len(content):
        group, element, length = struct.unpack_from("<HHI", content, at)
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000):
            return False
        at += 8 + length
    return False


def _read(path: Path, most: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except PermissionError:
        raise FormatError("file", "one that we may read", "another") from None


def _free(target: Path) -> Path:
    """The path, or one beside it that nothing has."""
    number, free = 1, target
    while free.exists() or free.is_symlink() or _beside(free).exists():
        number += 1
        free = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return free


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.txt")
