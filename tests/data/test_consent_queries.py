"""Every question to a store of consents is answered as a plain list of what was said answers it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from qinjing.data.case import Case
from qinjing.data.consent import PURPOSES, VARIABLE, Change, Gate, Store, Watch
from qinjing.data.consent import gate as gate_room
from qinjing.data.consent import store as store_room
from tests.data.conftest import drop
from tests.data.consent_model import (
    DAY,
    DECLARED,
    INSTANT,
    T0,
    Reference,
    consents,
    held_against,
    passes,
    stream,
    told_in,
)

pytest.importorskip("sqlalchemy")

PATIENTS = ("a", "A", "a ", "b", "ä", "a\u0308", "%", "_", "o'x", '"; --', "病人", "0", "00")
CASES = [Case(f"c{k}", who, (Path("x"),)) for k, who in enumerate(PATIENTS)]


@pytest.fixture(autouse=True)
def no_store_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The moment that the store and the gate take for this one."""
    hands = [T0]
    for room in (store_room, gate_room):
        monkeypatch.setattr(room, "now", lambda: hands[0])
    return hands


EDGES = st.builds(lambda days, extra: T0 + days * DAY / 2 + extra * INSTANT,
                  st.integers(-4, 8), st.integers(-1, 1))  # fmt: skip
ZONES = st.sampled_from([timezone(timedelta(hours=hours)) for hours in (-11, 0, 5.5)])


@st.composite
def changes(draw: st.DrawFn) -> Change:
    start, end = (draw(st.none() | EDGES) for _ in "se")
    if start and end and start >= end:
        start, end = end, start + INSTANT
    zone = draw(ZONES)
    return Change(
        draw(st.sampled_from(PATIENTS)),
        draw(st.sampled_from(["research", "research", "care", "commercial"])),
        draw(st.sampled_from(["permit", "permit", "deny"])),
        draw(EDGES),
        start and start.astimezone(zone),
        end and end.astimezone(zone),
        recorded_by=draw(st.sampled_from(["", "desk", "Ö"])),
    )


class Consents(RuleBasedStateMachine):
    """A store, gates and watches that live long, under a clock that goes both ways."""

    def __init__(self, place: str, clock: list[datetime], clear: Callable[[], None]) -> None:
        super().__init__()
        self.place, self.clock, self.clear = place, clock, clear
        self.clock[0] = T0
        self.reference = Reference()
        self.store = Store(place, create=True)
        self.steps = 0
        self._look()

    def _look(self) -> None:
        """Open gates, with two watches on each: what one sees is not lost on the other."""
        self.watches = [
            (gate, [Watch(gate, CASES, lambda step, out: None) for _ in "12"])
            for gate in (Gate("research", self.store, declared) for declared in DECLARED)
        ]

    def _wanted(self, gate: Gate) -> set[str]:
        now, words = self.clock[0], self.reference.words(gate.purpose, None)
        return {
            case.case_id
            for case in CASES
            if not passes(words.get(case.patient_id), now, gate.purpose, gate.declared)
        }

    @rule(batch=st.lists(changes(), max_size=6), decided=st.booleans())
    def say(self, batch: list[Change], decided: bool) -> None:
        if decided:
            count = self.store.append_decided(lambda current, known: batch)
        else:
            count = self.store.append(batch)
        assert count == len(batch)
        self.reference.record(self.clock[0], batch)

    @rule(to=EDGES)
    def set_the_clock(self, to: datetime) -> None:
        self.clock[0] = to

    @rule(long=st.sampled_from([INSTANT, DAY / 2, DAY / 2 + INSTANT, DAY]))
    def wait(self, long: timedelta) -> None:
        self.clock[0] += long

    @rule()
    def begin_anew(self) -> None:
        """As another process."""
        self.store.close()
        self.store = Store(self.place)
        self._look()

    @rule(who=st.sampled_from(PATIENTS), purpose=st.sampled_from(PURPOSES[:3]),
          at=st.none() | EDGES)  # fmt: skip
    def ask_about_one(self, who: str, purpose: str, at: datetime | None) -> None:
        word = self.reference.said(who, purpose, at)
        found = self.store.permitted(who, purpose, at)
        assert found == consents(word, at or self.clock[0])
        row = self.store.current(purpose, who, at).get((who, purpose))
        assert (row and told_in(row)) == (word and told_in(word))

    @rule(who=st.sampled_from(PATIENTS))
    def ask_for_a_history(self, who: str) -> None:
        own = [told_in(change) for _, change in self.reference.told if change.patient_id == who]
        assert [told_in(row) for row in self.store.history(who)] == own

    @rule(at=EDGES, declared=st.sampled_from(DECLARED), purpose=st.sampled_from(PURPOSES[:3]))
    def part_all(self, at: datetime, declared: object, purpose: str) -> None:
        words = self.reference.words(purpose, at)
        allowed, excluded = Gate(purpose, self.store, declared).split(CASES, at)  # type: ignore[arg-type]
        for case in CASES:
            wanted = passes(words.get(case.patient_id), at, purpose, declared)  # type: ignore[arg-type]
            assert (case in allowed) == wanted
            assert (case.case_id in {one.case_id for one in excluded}) != wanted

    @rule(which=st.integers(0, len(DECLARED) - 1))
    def part_now(self, which: int) -> None:
        """By a gate that keeps what it read."""
        gate = self.watches[which][0]
        _, excluded = gate.split(CASES)
        assert {one.case_id for one in excluded} == self._wanted(gate)

    @invariant()
    def every_watch_sees_it(self) -> None:
        self.steps += 1
        for gate, watches in self.watches:
            wanted = self._wanted(gate)
            assert [watch.out(self.steps) for watch in watches] == [wanted, wanted]

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.store.head()[0] == len(self.reference.told)

    @precondition(lambda self: self.reference.told)
    @rule()
    def walk_the_chain(self) -> None:
        assert self.store.verify([self.store.head()[1]]) == []

    def teardown(self) -> None:
        self.store.close()
        self.clear()


@pytest.fixture
def clear(place: str) -> Iterator[Callable[[], None]]:
    """What makes a place empty for the next history."""

    def call() -> None:
        if place.startswith("postgresql"):
            drop(place)
        else:
            Path(place).unlink()

    yield call


def test_any_history_is_answered_as_the_list_answers(
    place: str, clock: list[datetime], clear: Callable[[], None]
) -> None:
    run_state_machine_as_test(
        lambda: Consents(place, clock, clear),
        settings=settings(
            max_examples=8 if place.startswith("postgresql") else 20,
            stateful_step_count=30,
            deadline=None,
        ),
    )


@pytest.mark.parametrize(
    ("patients", "count", "asked", "parted"),
    [
        pytest.param(40, 1200, 60, 24, id="small"),
        pytest.param(10_000, 100_000, 250, 24, id="full", marks=pytest.mark.slow),
    ],
)
def test_ten_thousand_patients_and_a_hundred_thousand_changes(
    patients: int, count: int, asked: int, parted: int, place: str, clock: list[datetime]
) -> None:
    draw, reference = random.Random(7), Reference()
    with Store(place, create=True) as store:
        for moment, batch in stream(draw, patients, count):
            clock[0] = moment
            store.append(batch)
            reference.record(moment, batch)
        assert store.head()[0] == len(reference.told) == count
        tally = held_against(store, reference, draw, patients, asked=asked, parted=parted)
        assert tally.wrong == []
        assert tally.asked == {
            "permitted": asked, "latest row": asked, "history": asked,
            "parted": parted, "excluded": parted,
        }  # fmt: skip
        assert store.verify([store.head()[1]]) == []
