"""Who looked at what and changed what, as signed statements that follow from one another.

A record a day; `qinjing verify FOLDER/audit` walks all of them. The first line of a day names the
last line that the day before it held then, so that a day that was taken away whole, or put back as
it was earlier, is missed by the one after it (`missing_days`); of the newest nothing can tell.
Patients are named by digests of their studies alone.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qinjing.errors import FormatError
from qinjing.evidence.digests import RECORD
from qinjing.evidence.envelope import sha256
from qinjing.evidence.record import append, last_line
from qinjing.serve.auth import Token


class Audit:
    """The record of a service.

    Args:
        folder: the service's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "audit"
        self._lock = threading.Lock()
        self._begun = ""  # the day of which we know that it has a line

    def append(self, who: Token, did: str, **what: Any) -> None:
        """Record one deed; on the disk when this returns.

        Args:
            who: did it.
            did: one word or two: "opened", "confirmed", "annotation submitted".
            what: ids and plain values that name no patient.

        Raises:
            EvidenceError: the record was altered, and nothing may be added.
        """
        name = datetime.now(UTC).strftime("%Y-%m-%d")
        said = {"person": who.person, "token": who.token_id, "did": did, **what}
        with self._lock:
            day = self.folder / name
            day.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._begun != name and _last(day) is None:  # two processes may both say it
                said["after"] = _before(day)
            append(day, "serve", {}, (), said)
            self._begun = name


def missing_days(audit: Path) -> list[str]:
    """Return the days that a later one names, and that are gone or do not hold the line it names.

    Args:
        audit: the folder of an audit.

    Raises:
        FormatError: a day's first line is no statement; `verify` says more.
    """
    missing = set()
    for record in sorted(audit.glob(f"*/{RECORD}")):
        with record.open("rb") as file:
            first = file.readline()
        if not first.endswith(b"\n"):
            continue  # a kill: nothing was recorded yet
        try:
            statement = json.loads(base64.b64decode(json.loads(first)["payload"]))
            after = statement["predicate"]["configuration"]["content"].get("after")
            if after and not _holds(audit / after["day"], after["head"]):
                missing.add(after["day"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise FormatError("first line", "a statement", "another", where=record) from None
    return sorted(missing)


def _holds(day: Path, head: str) -> bool:
    """Whether a day's record has a line of this digest: one more may have come at midnight."""
    record = day / RECORD
    if not record.is_file():
        return False
    with record.open("rb") as file:
        return any(sha256(line.rstrip(b"\n")) == head for line in file)


def _before(day: Path) -> dict[str, str] | None:
    """The newest day before this one that holds a line, and that line's digest."""
    for former in sorted(day.parent.iterdir(), reverse=True):
        head = _last(former) if former.name < day.name else None
        if head:
            return {"day": former.name, "head": head}
    return None


def _last(day: Path) -> str | None:
    """The digest of the last line of a day's record."""
    try:
        record = os.open(day / RECORD, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        line, _ = last_line(record)
    finally:
        os.close(record)
    return sha256(line) if line is not None else None
