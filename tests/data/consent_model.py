"""Consent told in the plainest way: a list of changes that is walked through for every question.

It shares with the store the words of a change and nothing else: no chain, no key, no SQL, no row
that knows whether it permits.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from qinjing.data.case import Case
from qinjing.data.consent import PURPOSES, Change, Declaration, Gate, Store

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)


@dataclass
class Reference:
    """What was said, in the order in which it was written down, each with its moment."""

    told: list[tuple[datetime, Change]] = field(default_factory=list)

    def record(self, clock: datetime, changes: Sequence[Change]) -> None:
        """Write changes down; a clock that was set back does not turn the order round."""
        moment = max(clock, self.told[-1][0]) if self.told else clock
        self.told += [(moment, change) for change in changes]

    def said(self, patient: str, purpose: str, until: datetime | None) -> Change | None:
        """The last word of a patient on a purpose, as the list stood; None as it stands."""
        last = None
        for recorded, change in self.told:
            known = until is None or recorded <= until
            if known and change.patient_id == patient and change.purpose == purpose:
                last = change
        return last

    def words(self, purpose: str, until: datetime | None) -> dict[str, Change]:
        """The last word of every patient on a purpose."""
        last: dict[str, Change] = {}
        for recorded, change in self.told:
            if change.purpose == purpose and (until is None or recorded <= until):
                last[change.patient_id] = change
        return last


def consents(word: Change | None, at: datetime) -> bool:
    """Whether a word allows at a moment: the first moment of a period counts, its end does not."""
    if word is None or word.decision == "deny":
        return False
    if word.start is not None and at < word.start:
        return False
    return word.end is None or at < word.end


def passes(
    word: Change | None, at: datetime, purpose: str, declared: Declaration | None = None
) -> bool:
    """Whether a gate lets a case through: a no is stronger than what is declared of all."""
    if word is not None and word.decision == "deny":
        return False
    if declared is not None and purpose in declared.purposes:
        day = at.astimezone(UTC).isoformat()
        if declared.until is None or day[: len(declared.until)] <= declared.until:
            return True
    return consents(word, at)


def stream(
    draw: random.Random, patients: int, changes: int
) -> Iterator[tuple[datetime, list[Change]]]:
    """Yield (moment, changes that are recorded then): first words, withdrawals, second thoughts.

    Args:
        draw: where chance comes from.
        patients: how many there are.
        changes: in all.
    """
    moment, left = T0, changes
    while left:
        size = min(left, draw.choice([1, 1, 2, 5, 20, 200]))
        batch = []
        for _ in range(size):
            start, end = (
                T0 + draw.uniform(-60, 400) * DAY if draw.random() < 0.4 else None for _ in "se"
            )
            if start and end and start >= end:
                start, end = end, start + DAY
            zone = timezone(timedelta(hours=draw.choice([-9, 0, 0, 5.5])))
            batch.append(
                Change(
                    f"p{draw.randrange(patients)}",
                    draw.choice(PURPOSES),
                    "permit" if draw.random() < 0.7 else "deny",
                    moment,
                    start and start.astimezone(zone),
                    end and end.astimezone(zone),
                    recorded_by=draw.choice(["", "desk"]),
                )
            )
        yield moment, batch
        left -= size
        moment += draw.choice([timedelta(0), INSTANT, draw.uniform(0, 2) * DAY])


def moments(draw: random.Random, reference: Reference) -> Iterator[datetime]:
    """Yield moments to ask about: every other one an edge, or an instant beside it."""
    while True:
        recorded, change = draw.choice(reference.told)
        edge = draw.choice([recorded, change.start or recorded, change.end or recorded])
        yield edge + draw.choice([-INSTANT, timedelta(0), INSTANT])
        first, last = reference.told[0][0], reference.told[-1][0]
        yield first + draw.uniform(-0.1, 1.1) * (last - first)


@dataclass
class Tally:
    """How many answers were held against the list, and which were others."""

    asked: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def hold(self, kind: str, found: object, wanted: object, about: str) -> None:
        """Count one answer."""
        self.asked[kind] = self.asked.get(kind, 0) + 1
        if found != wanted:
            self.wrong.append(f"{kind}, {about}: {found!r}, the list says {wanted!r}"[:500])


DECLARED = (
    None,
    Declaration("licence", "CC0", ("research", "federated")),
    Declaration("ethics", "7/2026", ("research", "care"), "2026-03-02"),
    Declaration("ethics", "8/2026", ("commercial",), "2026-09"),
)


def held_against(
    store: Store,
    reference: Reference,
    draw: random.Random,
    patients: int,
    *,
    asked: int,
    parted: int,
) -> Tally:
    """Ask a store and the list the same.

    Args:
        store: that all of the list was written into.
        reference: the list.
        draw: where chance comes from.
        patients: how many there are; one more is asked about, who never said a word.
        asked: questions about one patient, of each kind.
        parted: how many times all patients' cases are parted by a gate.
    """
    tally, when = Tally(), moments(draw, reference)
    for _ in range(asked):
        at, who, purpose = next(when), f"p{draw.randrange(patients + 1)}", draw.choice(PURPOSES)
        about = f"{who} for {purpose} at {at}"
        word = reference.said(who, purpose, at)
        tally.hold("permitted", store.permitted(who, purpose, at), consents(word, at), about)
        (row,) = store.current(purpose, who, at).values() or (None,)
        tally.hold("latest row", row and told_in(row), word and told_in(word), about)
        own = [told_in(change) for _, change in reference.told if change.patient_id == who]
        tally.hold("history", [told_in(row) for row in store.history(who)], own, who)
    everybody = [Case(f"c{k}", f"p{k}", (Path("x"),)) for k in range(patients + 1)]
    for number in range(parted):
        at, purpose = next(when), draw.choice(PURPOSES)
        declared = DECLARED[number % len(DECLARED)]
        words = reference.words(purpose, at)
        allowed, excluded = Gate(purpose, store, declared).split(everybody, at)
        wanted = {
            case.case_id
            for case in everybody
            if passes(words.get(case.patient_id), at, purpose, declared)
        }
        about = f"{purpose} at {at} with {declared}"
        tally.hold("parted", {case.case_id for case in allowed}, wanted, about)
        left = {case.case_id for case in everybody} - wanted
        tally.hold("excluded", {one.case_id for one in excluded}, left, about)
    return tally


def told_in(change: Change) -> tuple[object, ...]:
    """What a change says, of a row as well."""
    told = (change.patient_id, change.purpose, change.decision, change.decided)
    return (*told, change.start, change.end, change.source, change.recorded_by, change.basis)
