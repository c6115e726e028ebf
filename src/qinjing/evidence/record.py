"""Describe what was done and append it to a folder's record."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from qinjing.errors import EvidenceError
from qinjing.evidence.digests import (
    HEAD,
    RECORD,
    Digested,
    digest,
    digest_of,
    files_below,
    left_of,
    manifest,
)
from qinjing.evidence.envelope import (
    HEAD_PAYLOAD,
    STATEMENT_PAYLOAD,
    canonical,
    load_private_key,
    locked,
    public_text,
    seal,
    sha256,
    unseal,
)
from qinjing.evidence.head import check_head, write_head

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:qinjing:evidence:v1"
_BLOCK = 32 * 1024  # some twenty lines


def append(
    folder: str | Path,
    command: str,
    inputs: Mapping[str, Digested],
    outputs: Iterable[str | Path],
    configuration: Any,
    *,
    basis: str | None = None,
    removed: Iterable[str] = (),
    key: str | Path | None = None,
) -> None:
    """Append one signed statement to the record of `folder`, after the work.

    Safe with other processes appending at the same time, and with being killed: a torn last line
    is cut off by the next append, which records what it cut. However long the record is, only its
    end is read: what was altered before that is for `verify` to find.

    Args:
        folder: where the record lies; made if missing.
        command: what was done, for example "train".
        inputs: role → what was read, digested before the work by `digested`. It is digested
            again here: what changed meanwhile was not surely what was read, and is not signed.
        outputs: files or folders inside `folder` that were made; a folder stands for every file
            in it.
        configuration: a dataclass or JSON content; paths in it are cut to their last part.
        basis: the licence, consent or other ground on which the inputs are used.
        removed: names, relative to `folder`, of files that earlier statements name and that were
            taken away on purpose.
        key: Ed25519 private key in PEM; default `private_key_path()`, made on first use.

    Raises:
        EvidenceError: an input changed during the work, an output is missing or lies outside
            `folder`, the key or the record cannot be used, or the record does not end as its head
            says.
    """
    folder = Path(folder)
    signer = load_private_key(key)
    content = _without_places(configuration)
    named = _outputs(folder, outputs)
    made = {folder.resolve() / name for name in named}
    predicate: dict[str, Any] = {
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "inputs": [_input(folder, role, one, made) for role, one in inputs.items()],
        "configuration": {"content": content, "digest": {"sha256": sha256(canonical(content))}},
        "code": {"name": "qinjing", "version": _version(), "digest": {"sha256": code_digest()}},
        "runtime": _runtime(),
        "public_key": public_text(signer),
    }
    if basis:
        predicate["basis"] = basis
    gone = sorted(removed)
    if gone:
        predicate["removed"] = gone
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": value}} for name, value in sorted(named.items())
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
            if count == 0:
                write_head(folder, signer, 0, None)
            _write(record, line + b"\n")
            write_head(folder, signer, count + 1, sha256(line))
    except OSError as error:
        raise EvidenceError("record", "a file that can be written", error, where=folder) from None


def _input(folder: Path, role: str, read: Digested, made: Collection[Path]) -> dict[str, Any]:
    path = read.path
    before = left_of(read.files, path, made)
    now = left_of(manifest(path, read.without), path, made)
    if before != now:
        differ = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
        raise EvidenceError(
            f"input {role}", "unchanged during the work",
            f"another {differ[0]}" if differ[0] else "other bytes", where=path,
            advice="the outputs are kept but not signed; do the work again",
        )  # fmt: skip
    described: dict[str, Any] = {"name": role, "digest": {"sha256": digest_of(before)}}
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


def last_line(record: int) -> tuple[bytes | None, bytes]:
    """Return the last whole line without its line feed, None where there is none, and a torn tail.

    Args:
        record: a descriptor of the file, which is read from its end, no further than it must.
    """
    at, block, end = os.fstat(record).st_size, _BLOCK, b""
    while at and end.count(b"\n") < 2:
        start = max(0, at - block)
        end = os.pread(record, at - start, start) + end
        at, block = start, 2 * block
    *lines, torn = end.split(b"\n")
    return lines[-1] if lines else None, torn


def _end_of(folder: Path, record: int) -> tuple[int, str | None, bytes]:
    """Return the number of whole lines, the last one's digest, and a torn tail.

    Raises:
        EvidenceError: the record does not end as its head says: appending would hide the loss.
    """
    last, torn = last_line(record)
    count = _counted(folder, last) if last is not None else None
    if last is not None and count is not None:
        return count, sha256(last), torn
    # A kill left the head one line behind, or something does not fit: then all of it is looked at.
    *lines, torn = os.pread(record, os.fstat(record).st_size, 0).split(b"\n")
    # Only an append that was killed before it wrote anything leaves an empty record alone.
    if lines or torn or (folder / HEAD).exists():
        try:
            check_head(folder, lines)
        except ValueError as error:
            raise EvidenceError(
                "evidence record", f"as its {HEAD} says", f"a head that {error}", where=folder,
                advice="run `qinjing verify` on the folder, then move the two files aside to begin "
                "anew",
            ) from None  # fmt: skip
    return len(lines), sha256(lines[-1]) if lines else None, torn


def _counted(folder: Path, last: bytes) -> int | None:
    """How many lines the head counts, where it is of this last line and by its key; else None."""
    try:
        sealed = (folder / HEAD).read_bytes()
        head, key_id = unseal(sealed[:-1], HEAD_PAYLOAD)
        line, signed_by = unseal(last, STATEMENT_PAYLOAD)
        count: int = head["count"]
        names = sealed[-1:] == b"\n" and head["last"] == sha256(last) and key_id == signed_by
        return count if names and line["predicate"]["index"] == count - 1 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
def code_digest() -> str:
    """Return the digest of the package's own source files, as they run."""
    root = Path(__file__).parents[1]
    sources = sorted(root.rglob("*.py"))
    return digest_of({path.relative_to(root).as_posix(): digest(path) for path in sources})


def _runtime() -> dict[str, str]:
    """Versions of what already runs; nothing is imported for it."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "numpy"):
        if name in sys.modules:
            versions[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return versions
