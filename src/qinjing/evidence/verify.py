"""Check every record at or below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from qinjing.errors import EvidenceError
from qinjing.evidence.digests import HEAD, RECORD, digest_of, files_below, left_of, manifest
from qinjing.evidence.envelope import (
    STATEMENT_PAYLOAD,
    canonical,
    key_id_of,
    sha256,
    unseal,
)
from qinjing.evidence.head import check_head
from qinjing.evidence.record import PREDICATE_TYPE, STATEMENT_TYPE


@dataclass(frozen=True)
class Statement:
    """One line of a record that bears its signature.

    Attributes:
        record: the `evidence.jsonl` that it stands in, relative to the folder verified.
        line: its line, from 1.
        command: what was done.
        time: when, UTC, ISO 8601.
        outputs: path relative to the record's folder → SHA-256.
        inputs: as recorded: name, kind, SHA-256, and the path where one was kept.
        key_id: SHA-256 of the public key that signed it.
        removed: paths of files that were taken away on purpose, relative to the record's folder.
        configuration: what was asked for, as recorded.
    """

    record: str
    line: int
    command: str
    time: str
    outputs: Mapping[str, str]
    inputs: tuple[Mapping[str, str], ...]
    key_id: str
    removed: tuple[str, ...] = ()
    configuration: Any = None


@dataclass(frozen=True)
class EvidenceFault:
    """One thing that does not hold.

    Attributes:
        where: the file at fault, relative to the folder verified.
        line: the record's line, from 1, or None where a whole file is at fault.
        message: what is wrong.
    """

    where: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.where}{f' line {self.line}' if self.line else ''} {self.message}"


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` found.

    Attributes:
        statements: every statement that bears its signature, records in path order.
        faults: what does not hold; empty means verified.
        unchecked: inputs that are out of reach, which is no fault.
        unclaimed: files that no statement names: a warning, or faults too where `strict`.
        notes: harmless states worth a word, such as a head one line behind after a kill.
    """

    statements: tuple[Statement, ...]
    faults: tuple[EvidenceFault, ...]
    unchecked: tuple[str, ...]
    unclaimed: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Every key that signed, in order of first use."""
        return tuple(dict.fromkeys(statement.key_id for statement in self.statements))


def verify(
    folder: str | Path,
    *,
    trusted_key: str | Path | None = None,
    sources: Sequence[str | Path] = (),
    strict: bool = False,
) -> VerifyResult:
    """Check every record at or below `folder`: signatures, chain, head, outputs and inputs.

    A file that several statements name must be as the latest one says. An input is checked where
    its recorded place still holds something, or where one of `sources` has its digest.

    Args:
        folder: the folder to walk.
        trusted_key: PEM of the only key (public or private) that may have signed; without it a
            record made anew with another key passes, and `key_ids` says which keys signed.
        sources: files or folders that were inputs, kept elsewhere: each must be an input that
            some statement names, unchanged.
        strict: a file anywhere in the folder that no statement names is a fault. This is what
            finds a record that was removed whole from a folder within.

    Raises:
        EvidenceError: there is no such folder, no record in it, or no such key.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvidenceError("folder", "there", "nothing", where=folder)
    walk = _Walk(folder, key_id_of(trusted_key) if trusted_key is not None else None)
    places = [Path(place) for place, _, names in _walk(folder) if RECORD in names or HEAD in names]
    if not places:
        raise EvidenceError("folder", f"one with {RECORD} in it or below", "none", where=folder)
    for place in places:
        walk.record(place)
    walk.outputs()
    walk.inputs([Path(source) for source in sources])
    claimed = {path for path in walk.latest if path.is_relative_to(folder)}
    unclaimed = [
        path
        for path in files_below(folder)
        if path not in claimed and (strict or any(path.is_relative_to(p) for p in places))
    ]
    for path in unclaimed if strict else ():
        walk.fault(path, "is named by no statement")
    return VerifyResult(
        tuple(statement for _, statement in walk.statements),
        tuple(walk.faults),
        tuple(walk.unchecked),
        tuple(path.relative_to(folder).as_posix() for path in unclaimed),
        tuple(walk.notes),
    )


def verify_record(folder: str | Path, *, trusted_key: str | Path | None = None) -> VerifyResult:
    """Check one folder's own record alone: signatures, chain and head.

    No file that it names is read, so that it takes a moment for a folder of any size. A record that
    is not there is a fault.

    Args:
        folder: where the record lies.
        trusted_key: as of `verify`.

    Raises:
        EvidenceError: there is no such key.
    """
    place = Path(folder)
    walk = _Walk(place, key_id_of(trusted_key) if trusted_key is not None else None)
    walk.record(place)
    statements = tuple(statement for _, statement in walk.statements)
    return VerifyResult(statements, tuple(walk.faults), (), (), tuple(walk.notes))


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place, folders, names


@dataclass
class _Walk:
    """What is known so far."""

    folder: Path
    trusted: str | None
    statements: list[tuple[Path, Statement]] = field(default_factory=list)
    faults: list[EvidenceFault] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    latest: dict[Path, tuple[Statement, str]] = field(default_factory=dict)

    def fault(self, path: Path, message: str, line: int | None = None) -> None:
        self.faults.append(EvidenceFault(self.name(path), line, message))

    def name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def record(self, place: Path) -> None:
        """Check one record's lines, chain and head."""
        path = place / RECORD
        try:
            *lines, tail = path.read_bytes().split(b"\n")
        except OSError as error:
            self.fault(path, f"cannot be read ({error.strerror})")
            return
        if tail:
            self.fault(path, f"ends in {len(tail)} bytes that are no whole line", len(lines) + 1)
        previous: str | None = None
        for index, line in enumerate(lines):
            self.line(place, index, line, previous)
            previous = sha256(line)
        self.head(place, lines)

    def line(self, place: Path, index: int, line: bytes, previous: str | None) -> None:
        """Check one line."""
        path = place / RECORD
        try:
            content, key_id = unseal(line, STATEMENT_PAYLOAD)
        except ValueError as error:
            self.fault(path, str(error), index + 1)
            return
        try:
            statement = _statement(self.name(path), index + 1, content, key_id)
            predicate = content["predicate"]
            if predicate["index"] != index or predicate["previous"] != previous:
                self.fault(path, "does not follow the line before it", index + 1)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"is signed but is no statement of ours ({type(error).__name__})"
            self.fault(path, message, index + 1)
            return
        if self.trusted not in (None, key_id):
            self.fault(path, f"is signed by another key ({key_id[:16]})", index + 1)
        self.statements.append((place, statement))
        for output, expected in statement.outputs.items():
            self.latest[place / output] = statement, expected
        for name in statement.removed:
            self.latest.pop(place / name, None)

    def head(self, place: Path, lines: list[bytes]) -> None:
        """Check the signed count and last digest against the lines that are there."""
        path = place / HEAD
        try:
            count, key_id = check_head(place, lines)
        except ValueError as error:
            self.fault(path, str(error))
            return
        if self.trusted not in (None, key_id):
            self.fault(path, f"is signed by another key ({key_id[:16]})")
        if len(lines) > count:
            self.notes.append(f"{self.name(path)} is one line behind: killed while appending")
        if not lines:
            self.notes.append(f"{self.name(path)} counts no line yet: killed while appending")

    def outputs(self) -> None:
        """Check each file against the latest statement that names it."""
        for path, (statement, expected) in self.latest.items():
            said = f"{statement.record} line {statement.line} ({statement.command})"
            if not path.is_file():
                self.fault(path, f"is missing; {said} names it")
            elif _files(path) != {"": expected}:
                self.fault(path, f"is not as {said} says")

    def inputs(self, sources: list[Path]) -> None:
        """Check inputs whose place was recorded, and those that `sources` hold."""
        offered = {source: _files(source) for source in sources}
        used: set[Path] = set()
        newest: dict[tuple[Path, str], tuple[Statement, Mapping[str, str]]] = {}
        for place, statement in self.statements:
            made = _made(place, statement)
            for entry in statement.inputs:
                matching = [
                    source
                    for source, files in offered.items()
                    if entry["sha256"]
                    in (digest_of(files), digest_of(left_of(files, source, made)))
                ]
                used.update(matching)
                if not matching:
                    newest[place, entry.get("path", entry["name"])] = statement, entry
        for (place, _), (statement, entry) in newest.items():
            path = place / entry["path"] if "path" in entry else None
            said = f"{statement.record} line {statement.line} ({statement.command})"
            if path is None or not path.exists():
                self.unchecked.append(f"{entry['name']}, an input of {said}")
            elif path in self.latest and self.latest[path][1] == entry["sha256"]:
                continue  # checked as an output already
            elif digest_of(left_of(_files(path), path, _made(place, statement))) != entry["sha256"]:
                self.fault(path, f"is not the {entry['name']} that {said} read")
        for source in sources:
            if source not in used:
                self.fault(source, "is not an input that any statement names")


def _files(path: Path) -> dict[str, str]:
    try:
        return manifest(path)
    except EvidenceError:
        return {"": ""}  # a file whose digest is none's


def _made(place: Path, statement: Statement) -> set[Path]:
    root = place.resolve()
    return {root / name for name in statement.outputs}


def _statement(record: str, line: int, content: dict[str, Any], key_id: str) -> Statement:
    """Read the fields that are checked.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is not a statement as `append` writes.
    """
    predicate = content["predicate"]
    if content["_type"] != STATEMENT_TYPE or content["predicateType"] != PREDICATE_TYPE:
        raise ValueError("type")
    configuration = predicate["configuration"]
    if configuration["digest"]["sha256"] != sha256(canonical(configuration["content"])):
        raise ValueError("configuration")
    outputs = {
        _inside(item["name"], 0): str(item["digest"]["sha256"]) for item in content["subject"]
    }
    inputs = []
    for item in predicate["inputs"]:
        entry = {"name": str(item["name"]), "kind": str(item["kind"])}
        entry["sha256"] = str(item["digest"]["sha256"])
        if "path" in item:
            entry["path"] = _inside(item["path"], 1)
        inputs.append(entry)
    return Statement(
        record,
        line,
        str(predicate["command"]),
        str(predicate["time"]),
        outputs,
        tuple(inputs),
        key_id,
        tuple(str(name) for name in predicate.get("removed", ())),
        configuration["content"],
    )


def _inside(name: str, up: int) -> str:
    """Refuse a recorded path that would lead a check out of the folder (or of its parent)."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts[up:]:
        raise ValueError("path")
    return name
