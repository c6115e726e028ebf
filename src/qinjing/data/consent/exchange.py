"""Consents from files and to files: one resource, a Bundle, or a resource a line (NDJSON)."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinjing.config import atomic_path, read_json, write_json
from qinjing.data.consent.fhir import Said, Version, read_resource
from qinjing.data.consent.fhir_out import write_resources
from qinjing.data.consent.record import Change, Row, now
from qinjing.data.consent.store import Store
from qinjing.errors import FormatError, InputError


@dataclass(frozen=True)
class Refused:
    """A resource that was not taken.

    Attributes:
        place: the file, and which resource or line of it, from 1.
        reason: one sentence that names no patient.
    """

    place: str
    reason: str


@dataclass(frozen=True)
class Imported:
    """What importing did.

    Attributes:
        resources: Consents that were read.
        recorded: rows that were appended for them.
        unchanged: Consents that say nothing new.
        refused: what could not be taken; the rest was.
    """

    resources: int
    recorded: int
    unchanged: int
    refused: tuple[Refused, ...]


def import_files(store: Store, files: Sequence[str | Path], recorded_by: str = "") -> Imported:
    """Record what the Consents in files say, all in one go; a bad one is refused alone.

    Args:
        store: to append to.
        files: each one resource, a Bundle (whose other resources are passed over), or NDJSON.
        recorded_by: who imports them; the user of this process where "".

    Raises:
        ConfigError: the store cannot be written.
    """
    said: list[Said] = []
    refused: list[Refused] = []
    at, who = now(), recorded_by or this_user()
    for file in files:
        for place, found in _resources(Path(file)):
            try:
                if isinstance(found, InputError):
                    raise found
                said.append(read_resource(found, who, at))
            except InputError as error:
                refused.append(Refused(place, str(error)))
    counted = {"unchanged": 0}

    def decide(current: Any, known: frozenset[str]) -> list[Change]:
        changes, counted["unchanged"] = merge(said, current, known)
        return changes

    recorded = store.append_decided(decide)
    return Imported(len(said), recorded, counted["unchanged"], tuple(refused))


def export_file(store: Store, file: str | Path, version: Version = "R4") -> int:
    """Write each patient's standing consents; return how many.

    Args:
        store: to read.
        file: a Bundle, or one resource a line where it ends with .ndjson.
        version: of FHIR.
    """
    rows = sorted(store.current().values(), key=lambda row: row.seq)
    bundle = write_resources(rows, version)
    path = Path(file)
    if path.suffix.lower() != ".ndjson":
        write_json(path, bundle)
        return len(rows)
    lines = [json.dumps(entry["resource"]) for entry in bundle.get("entry", ())]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(rows)


def merge(said: Iterable[Said], current: Mapping[tuple[str, str], Row], known: frozenset[str]
          ) -> tuple[list[Change], int]:  # fmt: skip
    """Return the changes that resources make to a store, in their order, and how many make none.

    A resource that was recorded before says nothing new: reading it again undoes no withdrawal.
    Nor does an older decision replace a newer one. What has ended takes back what it gave itself
    and, unless it was entered in error, what was granted by hand; not what another resource gives.

    Args:
        said: what was read, in any order.
        current: the store's latest rows.
        known: digests of the sources that it holds.
    """
    state: dict[tuple[str, str], Change] = dict(current)
    changes: list[Change] = []
    unchanged, seen = 0, set(known)
    ordered = sorted(said, key=lambda one: (one.ended is not None, one.changes[0].decided))
    for one in ordered:
        took: Callable[[Change, Change | None], bool] = _takes_back if one.ended else _is_newer
        fresh = [c for c in one.changes if took(c, state.get((c.patient_id, c.purpose)))]
        if one.ended == "entered-in-error":
            fresh = [c for c in fresh if state[c.patient_id, c.purpose].source == c.source]
        if one.changes[0].source_sha256 in seen or not fresh:
            unchanged += 1
            continue
        seen.add(fresh[0].source_sha256)
        state |= {(c.patient_id, c.purpose): c for c in fresh}
        changes += fresh
    return changes, unchanged


def _is_newer(change: Change, before: Change | None) -> bool:
    """Whether a decision replaces another; of one moment a deny does."""
    if before is None or change.decided > before.decided:
        return True
    stricter = change.decision == "deny" or before.decision == "permit"
    return change.decided == before.decided and stricter


def _takes_back(change: Change, before: Change | None) -> bool:
    by_hand = before is not None and not before.source_sha256
    own = before is not None and before.source == change.source
    return before is not None and before.decision == "permit" and (own or by_hand)


def this_user() -> str:
    """Who runs this process, as far as the system says."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _resources(file: Path) -> Iterator[tuple[str, Any]]:
    """Each resource of a file with its place, or why it cannot be read."""
    if file.suffix.lower() == ".ndjson":
        yield from _lines(file)
        return
    try:
        content = read_json(file)
        if isinstance(content, dict) and content.get("resourceType") == "Bundle":
            entries = content.get("entry", [])
            if not isinstance(entries, list):
                raise FormatError("Bundle", "with a list of entries", "another thing")
        else:
            yield str(file), content
            return
    except InputError as error:
        yield str(file), error
        return
    for number, entry in enumerate(entries, start=1):
        resource = entry.get("resource") if isinstance(entry, dict) else None
        kind = resource.get("resourceType") if isinstance(resource, dict) else None
        if kind in (None, "Consent"):
            yield f"{file} entry {number}", resource


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                place = f"{file} line {number}"
                try:
                    yield place, json.loads(line)
                except (ValueError, RecursionError):
                    yield place, FormatError("line", "one resource in JSON", "another thing")
    except (OSError, UnicodeDecodeError) as error:
        yield str(file), FormatError("file", "text in UTF-8", type(error).__name__)
