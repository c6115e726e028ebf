"""Describe what was done and append it to a folder's record."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from qinjing.errors import EvidenceError
from qinjing.evidence.envelope import (
    HEAD_PAYLOAD,
    STATEMENT_PAYLOAD,
    canonical,
    load_private_key,
    locked,
    public_text,
    replace,
    seal,
    sha256,
    unseal,
)

RECORD = "evidence.jsonl"
HEAD = "evidence.head.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:qinjing:evidence:v1"


def append(
    folder: str | Path,
    command: str,
    inputs: Mapping[str, str | Path],
    outputs: Iterable[str | Path],
    configuration: Any,
    *,
    basis: str | None = None,
    key: str | Path | None = None,
) -> None:
    """Append one signed statement to the record of `folder`.

    Safe with other processes appending at the same time, and with being killed: a torn last line
    is cut off by the next append, which records what it cut.

    Args:
        folder: where the record lies; made if missing.
        command: what was done, for example "train".
        inputs: role → file or folder that was read.
        outputs: files or folders inside `folder` that were made; a folder stands for every file
            in it.
        configuration: a dataclass or JSON content; paths in it are cut to their last part.
        basis: the licence, consent or other ground on which the inputs are used.
        key: Ed25519 private key in PEM; default `private_key_path()`, made on first use.

    Raises:
        EvidenceError: an input or output is missing, an output lies outside `folder`, the key
            or the record cannot be used, or the record was altered or cut.
    """
    folder = Path(folder)
    signer = load_private_key(key)
    content = _without_places(configuration)
    predicate: dict[str, Any] = {
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "inputs": [_input(folder, role, Path(path)) for role, path in inputs.items()],
        "configuration": {"content": content, "digest": {"sha256": sha256(canonical(content))}},
        "code": {"name": "qinjing", "version": _version(), "digest": {"sha256": _code_digest()}},
        "runtime": _runtime(),
        "public_key": public_text(signer),
    }
    if basis:
        predicate["basis"] = basis
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": value}}
            for name, value in sorted(_outputs(folder, outputs).items())
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / RECORD) as record:
            count, previous, torn = _end_of(folder, record)
            if torn:
                os.ftruncate(record, os.fstat(record).st_size - len(torn))
                predicate["cut"] = {"bytes": len(torn), "digest": {"sha256": sha256(torn)}}
            predicate |= {"index": count, "previous": previous}
            line = seal(signer, STATEMENT_PAYLOAD, statement)
            _write(record, line + b"\n")
            head = {"count": count + 1, "last": sha256(line), "public_key": predicate["public_key"]}
            replace(folder / HEAD, seal(signer, HEAD_PAYLOAD, head) + b"\n")
    except OSError as error:
        raise EvidenceError("record", "a file that can be written", error, where=folder) from None


def digest(path: str | Path) -> str:
    """SHA-256 in hex of a file, or of a folder's sorted manifest of relative path and SHA-256.

    Hidden files and evidence records do not count in a folder: looking at a folder, and
    recording what was done in it, leave its digest alone.

    Raises:
        EvidenceError: there is no such file or folder, or it cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _manifest_digest(path, files_below(path))
        if not path.is_file():
            raise EvidenceError("file", "there", "nothing that can be read", where=path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EvidenceError("file", "readable", error.strerror, where=path) from None


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


def _manifest_digest(root: Path, files: Iterable[Path]) -> str:
    lines = [f"{digest(path)}  {path.relative_to(root).as_posix()}\n" for path in files]
    return sha256("".join(lines).encode("utf-8", "surrogateescape"))


def _input(folder: Path, role: str, path: Path) -> dict[str, Any]:
    described: dict[str, Any] = {"name": role, "digest": {"sha256": digest(path)}}
    described["kind"] = "folder" if path.is_dir() else "file"
    beside = PurePath(os.path.relpath(path.resolve(), folder.resolve()))
    if beside.parts[:2] != ("..", "..") and beside.parts != ("..",):
        described["path"] = beside.as_posix()
    return described


def _outputs(folder: Path, outputs: Iterable[str | Path]) -> dict[str, str]:
    root = folder.resolve()
    described = {}
    for output in map(Path, outputs):
        # A link keeps the name that it was written under: only its folder is resolved.
        place = output.resolve() if output.is_dir() else output.parent.resolve() / output.name
        if not place.is_relative_to(root):
            raise EvidenceError("output", "inside the evidence folder", output, where=folder)
        for path in files_below(place) if place.is_dir() else [place]:
            described[path.relative_to(root).as_posix()] = digest(path)
    return described


def _end_of(folder: Path, record: int) -> tuple[int, str | None, bytes]:
    """Return the number of whole lines, the last one's digest, and a torn tail.

    Raises:
        EvidenceError: the record holds less than its head says: appending would hide the loss.
    """
    *lines, torn = os.pread(record, os.fstat(record).st_size, 0).split(b"\n")
    head_path = folder / HEAD
    count, altered = 0, False
    if head_path.exists():
        try:
            head, _ = unseal(head_path.read_bytes().removesuffix(b"\n"), HEAD_PAYLOAD)
            count = head["count"]
            altered = not 0 < count <= len(lines) or sha256(lines[count - 1]) != head["last"]
        except (ValueError, KeyError, TypeError):
            altered = True
    # A kill between line and head leaves the head one line behind, never more.
    if altered or len(lines) - count > 1:
        raise EvidenceError(
            "evidence record", f"as its {HEAD} says", "another", where=folder,
            advice="run `qinjing verify` on the folder and move the two files aside to begin anew",
        )  # fmt: skip
    return len(lines), sha256(lines[-1]) if lines else None, torn


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
    os.fsync(descriptor)


def _without_places(value: Any) -> Any:
    """Plain JSON content with every path cut to its last part."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_places(item) for item in value]
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, float) and value - value != 0:  # not finite, which JSON cannot say
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _version() -> str:
    try:
        return metadata.version("qinjing")
    except metadata.PackageNotFoundError:
        return "unknown"


@lru_cache
def _code_digest() -> str:
    """Digest of the package's own source files, as they run."""
    root = Path(__file__).parents[1]
    return _manifest_digest(root, sorted(root.rglob("*.py")))


def _runtime() -> dict[str, str]:
    """Versions of what already runs; nothing is imported for it."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "numpy"):
        if name in sys.modules:
            versions[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return versions
