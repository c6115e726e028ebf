"""The append-only store: a SQLite file, or PostgreSQL by URL, through SQLAlchemy Core."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qinjing.data.consent.record import (
    PURPOSES,
    Change,
    Row,
    chained,
    digest_of,
    from_columns,
    now,
)
from qinjing.data.database import Database, missing
from qinjing.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select, Table

VARIABLE = "QINJING_CONSENT"
Current = Mapping[tuple[str, str], Row]

_WHAT, _EXTRA = "consent store", "consent"
_ALONE = "LOCK TABLE consent IN SHARE ROW EXCLUSIVE MODE"
_ALONE_BEFORE = "SELECT pg_advisory_xact_lock(7161465)"  # while there is no table to lock
_TEXTS = (
    "patient_id", "purpose", "decision", "decided", "start", "end", "source", "source_sha256",
    "recorded_by", "basis", "recorded", "previous", "digest",
)  # fmt: skip
# Only the next number may be put in, so that REPLACE, which fires no trigger of its own, has
# nothing to replace.
_SQLITE_TRIGGERS = (
    "CREATE TRIGGER consent_is_not_changed BEFORE UPDATE ON consent "
    "BEGIN SELECT RAISE(ABORT, 'consents are only appended'); END",
    "CREATE TRIGGER consent_is_not_removed BEFORE DELETE ON consent "
    "BEGIN SELECT RAISE(ABORT, 'consents are only appended'); END",
    "CREATE TRIGGER consent_is_appended BEFORE INSERT ON consent "
    "WHEN NEW.seq IS NOT (SELECT COALESCE(MAX(seq), 0) + 1 FROM consent) "
    "BEGIN SELECT RAISE(ABORT, 'consents are only appended'); END",
)
_POSTGRESQL_TRIGGERS = (
    "CREATE FUNCTION consent_refuse() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'consents are only appended'; END $$",
    "CREATE TRIGGER consent_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON consent "
    "FOR EACH STATEMENT EXECUTE FUNCTION consent_refuse()",
)


class Store:
    """Consents, each a row that is never changed.

    Args:
        place: a file, or a URL of SQLite or PostgreSQL; None takes `QINJING_CONSENT`.
        create: make it where there is none.

    Raises:
        ConfigError: no place is named, nothing is there, or it cannot be reached or used.
    """

    def __init__(self, place: str | Path | None = None, *, create: bool = False) -> None:
        self._table = _table()
        place = place or os.environ.get(VARIABLE)
        if not place:
            raise ConfigError(_WHAT, "named", "none", advice=f"set {VARIABLE} to a file or a URL")
        self._database = Database(place, what=_WHAT, extra=_EXTRA, create=create)
        self.name = self._database.name
        with self._database.connected() as connection:
            if not self._has_table(connection):
                if not create:
                    raise ConfigError(_WHAT, "one", "another database", where=self.name)
                self._make()

    def append(self, changes: Iterable[Change]) -> int:
        """Append changes, all or none, and return how many.

        Raises:
            ConfigError: the store cannot be written.
        """
        kept = list(changes)
        return self._append(lambda _: kept)

    def append_decided(self, decide: Callable[[Current, frozenset[str]], Iterable[Change]]) -> int:
        """Append what `decide` makes of the store, with nobody writing in between.

        Args:
            decide: given the latest row of each (patient, purpose), and the digests of every
                source that was recorded.

        Raises:
            ConfigError: the store cannot be written.
        """

        def with_state(connection: Connection) -> Iterable[Change]:
            column = self._table.c.source_sha256
            sources = connection.scalars(self._select(column).distinct())
            return decide(self._current(connection), frozenset(sources))

        return self._append(with_state)

    def current(
        self,
        purpose: str | None = None,
        patient_id: str | None = None,
        at: datetime | None = None,
        after: int = 0,
    ) -> dict[tuple[str, str], Row]:
        """Return the latest row of each (patient, purpose).

        Args:
            purpose: this one only.
            patient_id: this one only.
            at: as the store stood then; None: as it stands.
            after: of the rows behind this number only.
        """
        with self._database.connected() as connection:
            return self._current(connection, purpose, patient_id, at, after)

    def permitted(self, patient_id: str, purpose: str, at: datetime | None = None) -> bool:
        """Whether a patient's data may be used for a purpose at a moment; None is this one.

        Raises:
            ConfigError: there is no such purpose, or the store cannot be read.
        """
        check_purpose(purpose)
        row = self.current(purpose, patient_id, at).get((patient_id, purpose))
        return row is not None and row.permits(at or now())

    def patients(self, like: str = "", after: str = "", limit: int = 50) -> list[str]:
        """Return the ids of patients of whom something is recorded, in the database's order.

        Args:
            like: a part of the id, capitals or not.
            after: begin behind this id: the last one of the page before.
            limit: return no more than these.
        """
        column = self._table.c.patient_id
        query = self._select(column).distinct().order_by(column).limit(limit)
        if like:
            query = query.where(column.icontains(like, autoescape=True))
        if after:
            query = query.where(column > after)
        with self._database.connected() as connection:
            return list(connection.scalars(query))

    def history(self, patient_id: str) -> list[Row]:
        """Return all that was ever recorded of a patient, in its order."""
        c = self._table.c
        query = self._select(self._table).where(c.patient_id == patient_id).order_by(c.seq)
        with self._database.connected() as connection:
            return [from_columns(dict(found._mapping)) for found in connection.execute(query)]

    def head(self) -> tuple[int, str]:
        """Return the number of rows and the last one's digest, "" where there is none."""
        with self._database.connected() as connection:
            count, digest, _ = self._last(connection)
            return count, digest

    def holds(self, count: int, digest: str) -> bool:
        """Whether this was the head once: what was read then is still a part of the chain."""
        c = self._table.c
        with self._database.connected() as connection:
            found = connection.scalar(self._select(c.digest).where(c.seq == count))
        return (found or "") == digest

    def verify(self, known: Sequence[str] = ()) -> list[str]:
        """Walk the chain; return what does not hold, a sentence each.

        Args:
            known: heads that were noted elsewhere; each must be in the chain, so that rows cut
                off its end are missed.
        """
        faults: list[str] = []
        wanted, previous, last, count = set(known), "", "", 0
        query = self._select(self._table).order_by(self._table.c.seq)
        with self._database.connected() as connection:
            connection.exec_driver_sql("BEGIN")  # one look, in parts: only within a transaction
            for row in connection.execute(query, execution_options={"yield_per": 1000}):
                found = dict(row._mapping)
                count += 1
                seq = found["seq"]
                if seq != count:
                    faults.append(f"row {count} is missing: the next one is {seq}")
                    count = seq
                if digest_of(found) != found["digest"]:
                    faults.append(f"row {seq} is not as it was recorded")
                if found["previous"] != previous:
                    faults.append(f"row {seq} does not follow the row before it")
                if found["recorded"] < last:
                    faults.append(f"row {seq} was recorded before the row before it")
                previous, last = found["digest"], found["recorded"]
                wanted.discard(previous)
            connection.exec_driver_sql("COMMIT")
        return faults + [f"no row has the digest {digest}: rows were cut off or changed"
                         for digest in sorted(wanted)]  # fmt: skip

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, make: Callable[[Connection], Iterable[Change]]) -> int:
        with self._database.writing(_ALONE) as connection:
            count, previous, recorded = self._last(connection)
            moment = max(now(), datetime.fromisoformat(recorded)) if recorded else now()
            lines = []
            for seq, change in enumerate(make(connection), start=count + 1):
                lines.append(chained(change, seq, moment, previous))
                previous = lines[-1]["digest"]
            if lines:
                connection.execute(self._table.insert(), lines)
        return len(lines)

    def _select(self, *what: Any) -> Select[Any]:
        from sqlalchemy import select

        return select(*what)

    def _last(self, connection: Connection) -> tuple[int, str, str]:
        # Asked at every batch of a training, so nothing is built for it.
        found = connection.exec_driver_sql(
            "SELECT seq, digest, recorded FROM consent ORDER BY seq DESC LIMIT 1"
        ).first()
        return (found[0], found[1], found[2]) if found else (0, "", "")

    def _current(
        self,
        connection: Connection,
        purpose: str | None = None,
        patient_id: str | None = None,
        at: datetime | None = None,
        after: int = 0,
    ) -> dict[tuple[str, str], Row]:
        from sqlalchemy import func

        c = self._table.c
        latest = self._select(func.max(c.seq)).group_by(c.patient_id, c.purpose)
        if purpose is not None:
            latest = latest.where(c.purpose == purpose)
        if after:
            latest = latest.where(c.seq > after)
        if patient_id is not None:
            latest = latest.where(c.patient_id == patient_id)
        if at is not None:
            stamp = at.astimezone(UTC).isoformat(timespec="microseconds")
            latest = latest.where(c.recorded <= stamp)
        query = self._select(self._table).where(c.seq.in_(latest))
        rows = (from_columns(dict(found._mapping)) for found in connection.execute(query))
        return {(row.patient_id, row.purpose): row for row in rows}

    def _has_table(self, connection: Connection) -> bool:
        from sqlalchemy import inspect

        return inspect(connection).has_table(self._table.name)

    def _make(self) -> None:
        """Make the table and what refuses to change it; another process may be about it, too."""
        with self._database.writing(_ALONE_BEFORE) as connection:
            if not self._has_table(connection):
                self._table.create(connection)
                for line in _SQLITE_TRIGGERS if self._database.on_sqlite else _POSTGRESQL_TRIGGERS:
                    connection.exec_driver_sql(line)


def check_purpose(purpose: str) -> None:
    """Refuse a word that is no purpose.

    Raises:
        ConfigError: naming those that there are.
    """
    if purpose not in PURPOSES:
        raise ConfigError("purpose", f"one of {', '.join(PURPOSES)}", purpose)


def _table() -> Table:
    try:
        from sqlalchemy import Column, Index, Integer, MetaData, Table, Text
    except ImportError:
        raise missing(_WHAT, "SQLAlchemy", _EXTRA) from None
    texts = [Column(name, Text, nullable=name in ("start", "end")) for name in _TEXTS]
    table = Table(
        "consent", MetaData(), Column("seq", Integer, primary_key=True, autoincrement=False), *texts
    )
    Index("consent_of", table.c.patient_id, table.c.purpose, table.c.seq)
    Index("consent_for", table.c.purpose, table.c.patient_id, table.c.seq)
    Index("consent_source", table.c.source_sha256)
    return table
