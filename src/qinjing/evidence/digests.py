"""SHA-256 of files and folders, taken before the work that reads them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from qinjing.errors import EvidenceError
from qinjing.evidence.envelope import sha256

RECORD = "evidence.jsonl"
HEAD = "evidence.head.json"


@dataclass(frozen=True)
class Digested:
    """An input as it was before the work.

    Attributes:
        path: the file or folder.
        files: relative path → SHA-256 of every file in a folder; a file has one entry, "".
        without: a folder inside `path` that is no part of the input: where the work puts its own.
    """

    path: Path
    files: Mapping[str, str]
    without: Path | None = None

    @property
    def sha256(self) -> str:
        """The digest of all of it, as `digest` gives it."""
        return digest_of(self.files)


def digested(
    inputs: Mapping[str, str | Path], *, without: str | Path | None = None
) -> dict[str, Digested]:
    """Digest inputs before the work reads them; `append` takes the result after it.

    Args:
        inputs: role → file or folder that will be read.
        without: the folder that the work writes; inside an input it is no part of it.

    Raises:
        EvidenceError: an input is missing or cannot be read, or lies inside `without`.
    """
    taken = {}
    for role, path in inputs.items():
        place = Path(path)
        inside = None
        if without is not None:
            own = Path(without).resolve()
            if place.resolve().is_relative_to(own):
                raise EvidenceError(
                    "output", "a folder that does not hold the input", own, where=place,
                    advice="choose another output folder",
                )  # fmt: skip
            inside = own if own.is_relative_to(place.resolve()) else None
        taken[role] = Digested(place, manifest(place, inside), inside)
    return taken


def digest(path: str | Path) -> str:
    """SHA-256 in hex of a file, or of a folder's sorted manifest of relative path and SHA-256.

    Hidden files and evidence records do not count in a folder: looking at a folder, and
    recording what was done in it, leave its digest alone.

    Raises:
        EvidenceError: there is no such file or folder, or it cannot be read.
    """
    return digest_of(manifest(Path(path)))


def manifest(path: Path, without: Path | None = None) -> dict[str, str]:
    """Relative path → SHA-256 of every file in a folder, sorted; of a file, one entry named "".

    Raises:
        EvidenceError: there is no such file or folder, or it cannot be read.
    """
    try:
        if path.is_dir():
            root = path.resolve()
            names = [file.relative_to(path).as_posix() for file in files_below(path)]
            if without is not None:
                names = [name for name in names if not (root / name).is_relative_to(without)]
            return {name: _file_digest(path / name) for name in names}
        if not path.is_file():
            raise EvidenceError("file", "there", "nothing that can be read", where=path)
        return {"": _file_digest(path)}
    except OSError as error:
        raise EvidenceError("file", "readable", error.strerror, where=path) from None


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of what `manifest` returned."""
    if "" in files:
        return files[""]
    lines = [f"{value}  {name}\n" for name, value in files.items()]
    return sha256("".join(lines).encode("utf-8", "surrogateescape"))


def left_of(files: Mapping[str, str], path: Path, made: Collection[Path]) -> Mapping[str, str]:
    """A folder's manifest without the files that the work itself `made` there.

    So `data split` can write `splits_final.json` into the data set that it reads.
    """
    root = path.resolve()
    if "" in files or not any(one.is_relative_to(root) for one in made):
        return files
    return {name: value for name, value in files.items() if root / name not in made}


def files_below(folder: Path) -> list[Path]:
    """Every file below, sorted by relative path, without hidden ones and evidence records.

    Links to folders are followed, since data sets are often gathered by links; a folder is
    entered once, so that a circle ends.
    """
    found: list[Path] = []
    entered = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        below = {
            name: os.path.realpath(os.path.join(place, name))  # noqa: PTH118
            for name in sorted(folders)
            if not name.startswith(".")
        }
        folders[:] = [name for name, real in below.items() if real not in entered]
        entered.update(below.values())
        kept = (n for n in names if not n.startswith(".") and n not in (RECORD, HEAD))
        found += [path for path in (Path(place, name) for name in kept) if path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
