"""What one row of a consent store says, and the digest that chains it to the row before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from qinjing.errors import ConfigError

PURPOSES = ("care", "research", "commercial", "federated", "export")
BY_HAND = "by hand"
Decision = Literal["permit", "deny"]
_EVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Change:
    """One decision of one patient about one purpose.

    Attributes:
        patient_id: who, as the data set calls the patient.
        purpose: one of `PURPOSES`.
        decision: permit or deny.
        decided: when it was made, UTC; of two the later one holds, though it be imported first.
        start: from when it holds, UTC; None from ever.
        end: the first moment at which it no longer holds, UTC; None for ever.
        source: the FHIR resource that said so ("Consent/a1"), or "by hand".
        source_sha256: of that resource, "" where there is none.
        recorded_by: who wrote it down.
        basis: the ground on which data are used.
    """

    patient_id: str
    purpose: str
    decision: Decision
    decided: datetime
    start: datetime | None = None
    end: datetime | None = None
    source: str = BY_HAND
    source_sha256: str = ""
    recorded_by: str = ""
    basis: str = "consent"

    def __post_init__(self) -> None:
        # The value is not repeated: it may be a name.
        if not self.patient_id or not self.patient_id.isprintable():
            raise ConfigError("patient id", "printable text")
        if self.purpose not in PURPOSES:
            raise ConfigError("purpose", f"one of {', '.join(PURPOSES)}", self.purpose)
        if self.decision not in ("permit", "deny"):
            raise ConfigError("decision", "permit or deny", self.decision)
        if self.start and self.end and self.start >= self.end:
            raise ConfigError("period", "one that ends after it begins", "another")


@dataclass(frozen=True)
class Row(Change):
    """A change as the store keeps it.

    Attributes:
        seq: its number, from 1.
        recorded: when it was written down, UTC, never before the row before it.
        previous: digest of the row before it, "" for the first.
        digest: SHA-256 of all of the above.
    """

    seq: int = 0
    recorded: datetime = _EVER
    previous: str = ""
    digest: str = ""

    def permits(self, at: datetime) -> bool:
        """Whether this row allows its purpose at a moment."""
        begun = self.start is None or self.start <= at
        return self.decision == "permit" and begun and (self.end is None or at < self.end)


_FIELDS = tuple(field.name for field in fields(Row))


def columns(row: Change) -> dict[str, Any]:
    """Return a row as the database holds it: text and one number, times in one form."""
    return {
        name: _text(value) if isinstance(value, datetime) else value
        for name, value in vars(row).items()
    }


def from_columns(found: Mapping[str, Any]) -> Row:
    """Read a row back.

    Raises:
        ValueError: a time or a word that was never written so.
        ConfigError: a purpose or a decision that there is none of.
    """
    times = ("decided", "start", "end", "recorded")
    known = {name: found[name] for name in _FIELDS}
    read = {n: datetime.fromisoformat(known[n]) if known[n] else None for n in times}
    return Row(**{**known, **read})


def chained(change: Change, seq: int, recorded: datetime, previous: str) -> dict[str, Any]:
    """Return the columns of a change as row `seq`, its digest over all others among them."""
    content = columns(change)
    content |= {"seq": seq, "recorded": _text(recorded), "previous": previous}
    return {**content, "digest": digest_of(content)}


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 in hex of a row's columns but "digest", written as JSON in one way only."""
    signed = {name: value for name, value in content.items() if name != "digest"}
    line = json.dumps(signed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(line.encode()).hexdigest()


def now() -> datetime:
    """This moment, UTC."""
    return datetime.now(UTC)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


_MOMENT = re.compile(
    r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?:T(\d{2}:\d{2}:\d{2}(?:\.\d+)?)(Z|[+-]\d{2}:\d{2}))?)?)?"
)


def span_of(text: str) -> tuple[datetime, datetime | None]:
    """Return the first moment of a FHIR date or dateTime, and the first one after it.

    A year, a month or a day is all of it, in UTC; a dateTime is its second. What ends in the year
    9999 never ends: None.

    Raises:
        ValueError: not a date of the standard.

    Source: HL7 FHIR R5, datatypes, `dateTime` and `Period` (an end includes all of its day).
    """
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise ValueError("not a date")
    year, month, day = (int(part or 0) for part in match.groups()[:3])
    time = match[4]
    if year == 9999:
        return datetime(9999, 1, 1, tzinfo=UTC), None
    if time:
        first = datetime.fromisoformat(text).replace(microsecond=0).astimezone(UTC)
        return first, first + timedelta(seconds=1)
    first = datetime(year, month or 1, day or 1, tzinfo=UTC)
    if day:
        return first, first + timedelta(days=1)
    if month and month < 12:
        return first, first.replace(month=month + 1)
    return first, datetime(year + 1, 1, 1, tzinfo=UTC)


def day_of(moment: datetime) -> str:
    """Return the day of a moment for a sentence."""
    return date(moment.year, moment.month, moment.day).isoformat()
