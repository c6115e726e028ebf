"""The gate: which cases of a data set may be used for a purpose at a moment, and why not."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from qinjing.config import read_config
from qinjing.data.case import Case
from qinjing.data.consent.record import Row, day_of, now, span_of
from qinjing.data.consent.store import VARIABLE, Store, check_purpose
from qinjing.errors import ConfigError

DECLARED = "consent.json"


@dataclass(frozen=True)
class Declaration:
    """On what ground a whole data set may be used, as its `consent.json` says.

    Attributes:
        basis: "licence" of a public data set, or the approval of an "ethics" committee.
        reference: which one: "CC BY-SA 4.0", or the vote's number.
        purposes: what for, of `PURPOSES`.
        until: the last day, month or year (2027-12-31); None for ever.
    """

    basis: Literal["licence", "ethics"]
    reference: str
    purposes: tuple[str, ...]
    until: str | None = None

    def __post_init__(self) -> None:
        if not self.reference.strip():
            raise ConfigError("reference", "the licence's name or the vote's number", "nothing")
        if not self.purposes:
            raise ConfigError("purposes", "one at least", "none")
        for purpose in self.purposes:
            check_purpose(purpose)
        self.ends()

    def ends(self) -> datetime | None:
        """Return the first moment at which it no longer holds, UTC; None for never.

        Raises:
            ConfigError: `until` is no date.
        """
        if self.until is None:
            return None
        try:
            return span_of(self.until)[1]
        except (ValueError, OverflowError):
            raise ConfigError("until", "a date such as 2027-12-31", self.until) from None


@dataclass(frozen=True)
class Excluded:
    """A case that may not be used.

    Attributes:
        case_id: which.
        reason: one sentence that names no patient.
    """

    case_id: str
    reason: str


class Gate:
    """Parts cases into those that may be used for a purpose and those that may not.

    Args:
        purpose: one of `PURPOSES`.
        store: what patients said; None where the declaration alone counts.
        declared: what the data set says of itself.

    Raises:
        ConfigError: there is no such purpose, or nothing to go by.
    """

    def __init__(
        self, purpose: str, store: Store | None, declared: Declaration | None = None
    ) -> None:
        check_purpose(purpose)
        if store is None and declared is None:
            raise ConfigError("gate", "given a store or a declaration", "neither")
        self.purpose, self.store, self.declared = purpose, store, declared
        self._head: tuple[int, str] | None = None
        self._rows: dict[tuple[str, str], Row] = {}

    @property
    def basis(self) -> str:
        """The ground on which cases pass now, for the evidence: never a patient, always a head."""
        parts = []
        if self.declared and self._covers(now()):
            parts.append(f"{self.declared.basis}: {self.declared.reference}")
        if self.store is not None:
            count, digest = self.store.head()
            parts.append(f"consent for {self.purpose}: store of {count} rows, head {digest}")
        return "; ".join(parts)

    def split(
        self, cases: Sequence[Case], at: datetime | None = None
    ) -> tuple[list[Case], list[Excluded]]:
        """Return the cases that may be used, and the others with a reason each.

        Args:
            cases: of the data set.
            at: the moment, and as the store stood then; None is this one.

        Raises:
            ConfigError: the store cannot be read.
        """
        rows = self._now() if at is None else self._current(at)
        moment = at or now()
        allowed, excluded = [], []
        for case in cases:
            reason = self._refusal(rows.get((case.patient_id, self.purpose)), moment)
            if reason is None:
                allowed.append(case)
            else:
                excluded.append(Excluded(case.case_id, reason))
        return allowed, excluded

    def head(self) -> tuple[int, str] | None:
        """The store's rows and the last one's digest, by one short query; None without a store."""
        return self.store.head() if self.store is not None else None

    def next_change(self, at: datetime) -> datetime | None:
        """Return the first moment after `at` when a period begins or ends; None for never."""
        known = [moment for row in self._rows.values() for moment in (row.start, row.end)]
        if self.declared:
            known.append(self.declared.ends())
        return min((moment for moment in known if moment and moment > at), default=None)

    def _now(self) -> dict[tuple[str, str], Row]:
        """The rows as they stand; where the store has grown only what is new is read."""
        if self.store is not None:
            head = self.store.head()
            if head != self._head:
                known = self._head is not None and self.store.holds(*self._head)
                after = self._head[0] if self._head and known else 0
                newer = self.store.current(self.purpose, after=after)
                self._rows, self._head = {**self._rows, **newer} if after else newer, head
        return self._rows

    def _current(self, at: datetime) -> dict[tuple[str, str], Row]:
        return self.store.current(self.purpose, at=at) if self.store is not None else {}

    def _covers(self, at: datetime) -> bool:
        if self.declared is None or self.purpose not in self.declared.purposes:
            return False
        ends = self.declared.ends()
        return ends is None or at < ends

    def _refusal(self, row: Row | None, at: datetime) -> str | None:
        """Why a case may not be used, or None."""
        must = f"consent for {self.purpose} must be given"
        if row is not None and row.decision == "deny":
            return f"{must}, got a deny of {day_of(row.decided)}"
        if self._covers(at) or (row is not None and row.permits(at)):
            return None
        if row is not None and row.start is not None and at < row.start:
            return f"{must}, got one that begins on {day_of(row.start)}"
        if row is not None and row.end is not None:
            return f"{must}, got one that ended before {row.end:%Y-%m-%d %H:%M} UTC"
        if self.declared is None:
            return f"{must}, got none"
        if self.purpose in self.declared.purposes:
            return f"{must}, got a {DECLARED} that held until {self.declared.until}"
        return f"{must}, got a {DECLARED} for {', '.join(self.declared.purposes)}"


def open_gate(
    folder: str | Path,
    purpose: str = "research",
    *,
    store: Store | str | Path | None = None,
    required: bool = False,
) -> Gate | None:
    """Return the gate that stands before a data set, or None where none is in force.

    Args:
        folder: of the data set; its `consent.json` is read, if there is one.
        purpose: what the cases are wanted for.
        store: the store, or its place; None takes `QINJING_CONSENT`, where that is set.
        required: refuse a data set of which nobody says on what ground it may be used.

    Raises:
        ConfigError: the store or the declaration cannot be used, or none is there and one must be.
        FormatError: `consent.json` is not JSON.
    """
    check_purpose(purpose)
    path = Path(folder) / DECLARED
    declared = read_config(path, Declaration) if path.is_file() else None
    if not isinstance(store, Store) and (store or os.environ.get(VARIABLE)):
        store = Store(store)
    if isinstance(store, Store) or declared is not None:
        return Gate(purpose, store if isinstance(store, Store) else None, declared)
    if required:
        raise ConfigError(
            "consent", f"kept in a store or declared in {DECLARED}", "neither", where=folder,
            advice=f"set {VARIABLE}, or write down the licence or approval in {DECLARED}",
        )  # fmt: skip
    return None


class Watch:
    """Tells from batch to batch which cases may not be used at this very moment.

    A look is one short query; only where the store has grown, or a period begins or ends, are the
    cases parted again. What it tells is a function of the store and the clock alone, so that a
    resumed training goes on with what an undisturbed one goes on with.

    Args:
        gate: to ask.
        cases: all that are watched.
        changed: told of a step and of the excluded cases, sorted, whenever these are others.
    """

    def __init__(
        self, gate: Gate, cases: Sequence[Case], changed: Callable[[int, list[str]], None]
    ) -> None:
        self._gate, self._cases, self._changed = gate, cases, changed
        self._found: frozenset[str] = frozenset()
        self._out: frozenset[str] = frozenset()  # as last told
        self._until: datetime | None = now()
        self._looked = now()
        self._head: tuple[int, str] | None = None  # another's look at the gate counts for nothing

    def out(self, step: int | None = None) -> frozenset[str]:
        """Return the ids of the cases that may not be used.

        Args:
            step: of the training, which a change is told with; None leaves telling to the next.

        Raises:
            ConfigError: the store cannot be read: then nothing may be used.
        """
        moment, head = now(), self._gate.head()
        due = self._until is not None and moment >= self._until
        if due or head != self._head or moment < self._looked:  # clocks are set back, too
            _, excluded = self._gate.split(self._cases)
            self._head, self._looked = head, moment
            self._until = self._gate.next_change(moment)
            self._found = frozenset(one.case_id for one in excluded)
        if step is not None and self._found != self._out:
            self._out = self._found
            self._changed(step, sorted(self._out))
        return self._found
