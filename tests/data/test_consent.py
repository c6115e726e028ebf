"""Consent: an append-only chain, FHIR in and out, a gate that yields nothing it may not."""

from __future__ import annotations

import json
import multiprocessing
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qinjing.config import write_json
from qinjing.data.case import Case
from qinjing.data.consent import PURPOSES, VARIABLE, Change, Declaration, Gate, Store, open_gate
from qinjing.data.consent import gate as gate_room
from qinjing.data.consent import store as store_room
from qinjing.data.consent.exchange import export_file, import_files
from qinjing.data.consent.fhir import read_resource
from qinjing.data.consent.gate import Watch
from qinjing.data.consent.record import span_of
from qinjing.errors import ConfigError, FormatError, InputError

pytest.importorskip("sqlalchemy")

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HL7 = "http://terminology.hl7.org/CodeSystem"


def permit(patient: str, purpose: str = "research", **fields: Any) -> Change:
    return Change(patient, purpose, "permit", fields.pop("decided", T0), **fields)


def deny(patient: str, purpose: str = "research", **fields: Any) -> Change:
    return Change(patient, purpose, "deny", fields.pop("decided", T0), **fields)


def case(name: str, patient: str | None = None) -> Case:
    return Case(name, patient or name, (Path(f"{name}.nii.gz"),))


@pytest.fixture(autouse=True)
def no_store_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def raw(place: str, *statements: str) -> None:
    """Run SQL past the store, as whoever holds the database may."""
    if place.startswith("postgresql"):
        import psycopg

        with psycopg.connect(place, autocommit=True) as connection:
            for line in statements:
                connection.execute(line)  # type: ignore[call-overload]
    else:
        with sqlite3.connect(place) as connection:
            for line in statements:
                connection.execute(line)
        connection.close()


def unlocked(place: str) -> list[str]:
    """What takes the triggers away."""
    if place.startswith("postgresql"):
        return ["DROP TRIGGER consent_is_kept ON consent"]
    names = ("consent_is_not_changed", "consent_is_not_removed", "consent_is_appended")
    return [f"DROP TRIGGER {name}" for name in names]


def test_the_latest_row_holds_and_absence_is_no_consent(place: str) -> None:
    with Store(place, create=True) as store:
        assert not store.permitted("a", "research")
        store.append([permit("a"), permit("b"), permit("a", "care")])
        assert store.permitted("a", "research") and not store.permitted("a", "export")
        store.append([deny("a")])
        assert not store.permitted("a", "research")
        assert store.permitted("a", "care") and store.permitted("b", "research")
        store.append([permit("a", start=T0, end=T0 + DAY)])
        # As the store stood at a moment before it was written, nobody had said anything.
        assert not store.permitted("a", "research", T0)
        assert [row.decision for row in store.history("a")] == [
            "permit",
            "permit",
            "deny",
            "permit",
        ]
        assert store.verify() == []
        with pytest.raises(ConfigError, match="one of care, research"):
            store.permitted("a", "fun")


def test_a_period_begins_with_its_first_moment_and_ends_before_its_end(tmp_path: Path) -> None:
    with Store(tmp_path / "s", create=True) as store:
        store.append([permit("a", start=T0, end=T0 + DAY), permit("b", start=T0)])
        (a, b) = store.current().values()
    second = timedelta(microseconds=1)
    moments = (T0 - second, T0, T0 + DAY - second, T0 + DAY)
    assert [a.permits(at) for at in moments] == [False, True, True, False]
    assert [b.permits(at) for at in moments] == [False, True, True, True]


def test_the_database_refuses_to_change_or_remove_a_row(place: str) -> None:
    with Store(place, create=True) as store:
        store.append([permit("a"), deny("b")])
    lines = ["UPDATE consent SET decision = 'permit'", "DELETE FROM consent WHERE seq = 2"]
    if place.startswith("postgresql"):
        lines.append("TRUNCATE consent")
    else:
        lines.append("INSERT OR REPLACE INTO consent SELECT * FROM consent WHERE seq = 1")
    for line in lines:
        with pytest.raises(Exception, match="only appended"):
            raw(place, line)
    with Store(place) as store:
        assert store.verify() == [] and store.head()[0] == 2


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("UPDATE consent SET decision = 'permit' WHERE seq = 3", "row 3 is not as it was recorded"),
        ("UPDATE consent SET patient_id = 'z' WHERE seq = 1", "row 1 is not as it was recorded"),
        ("DELETE FROM consent WHERE seq = 2", "row 2 is missing"),
        ("UPDATE consent SET previous = '' WHERE seq = 4", "row 4 does not follow"),
        ("DELETE FROM consent WHERE seq = 5", "no row has the digest"),
    ],
)
def test_what_is_altered_past_the_triggers_is_seen(place: str, line: str, fault: str) -> None:
    with Store(place, create=True) as store:
        store.append([permit("a"), permit("b"), deny("a")])
        store.append([permit("c"), deny("c")])
        _, head = store.head()
    raw(place, *unlocked(place), line)
    with Store(place) as store:
        assert any(fault in one for one in store.verify([head])), store.verify([head])
        if "seq = 5" in line:  # from the store alone nobody can tell
            assert store.verify() == []


def append_many(place: str, name: str, gate: Any) -> None:
    gate.wait()
    with Store(place, create=True) as store:
        for number in range(10):
            store.append([permit(f"{name}{number}"), permit(f"{name}{number}", "care")])


def test_processes_at_once_lose_no_row_and_keep_the_chain(place: str) -> None:
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(3)  # the store is not there yet: making it is part of the race
    workers = [context.Process(target=append_many, args=(place, n, gate)) for n in "xyz"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with Store(place) as store:
        assert store.head()[0] == 60 and store.verify() == []
        assert len(store.current()) == 60
        for name in "xyz":
            rows = [store.history(f"{name}{number}") for number in range(10)]
            assert all(len(two) == 2 and two[1].seq == two[0].seq + 1 for two in rows)


def test_a_failed_append_leaves_nothing(place: str) -> None:
    with Store(place, create=True) as store:
        store.append([permit("a")])

        def break_off(current: Any, known: Any) -> Any:
            yield permit("b")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.append_decided(break_off)
        assert store.head()[0] == 1
        store.append([permit("c")])
        assert store.verify() == [] and store.head()[0] == 2


def test_places_that_cannot_be_are_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"set {VARIABLE}"):
        Store()
    with pytest.raises(ConfigError, match="there"):  # looking makes no empty store
        Store(tmp_path / "none.sqlite")
    (tmp_path / "text").write_text("not a database, but long enough to look like one\n" * 40)
    with pytest.raises(ConfigError, match="reached and used"):
        Store(tmp_path / "text")
    with pytest.raises(ConfigError, match="SQLite or PostgreSQL"):
        Store("mysql://somewhere/x")
    with pytest.raises(ConfigError) as refusal:
        Store("postgresql://me:secret@127.0.0.1:1/x?connect_timeout=1")
    assert "secret" not in str(refusal.value)
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(ConfigError, match="another database"):
        Store(tmp_path / "other.sqlite")
    with Store(tmp_path / "new.sqlite", create=True):
        assert (tmp_path / "new.sqlite").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError) as unnamed:
        permit("Müller\0")
    assert "Müller" not in str(unnamed.value)


def test_dates_of_the_standard() -> None:
    utc = UTC
    assert span_of("2015") == (datetime(2015, 1, 1, tzinfo=utc), datetime(2016, 1, 1, tzinfo=utc))
    assert span_of("2015-12")[1] == datetime(2016, 1, 1, tzinfo=utc)
    assert span_of("2012-02-03")[1] == datetime(2012, 2, 4, tzinfo=utc)
    assert span_of("2016-02-29")[1] == datetime(2016, 3, 1, tzinfo=utc)
    # The zone of the standard's own example, 2015-02-07T13:28:17-05:00.
    assert span_of("2015-02-07T13:28:17-05:00") == (
        datetime(2015, 2, 7, 18, 28, 17, tzinfo=utc), datetime(2015, 2, 7, 18, 28, 18, tzinfo=utc)
    )  # fmt: skip
    assert span_of("9999-12-31")[1] is None
    for bad in ("2015-13", "2015-02-30", "2015-02-07T13:28", "12.3.2015", "2015-2-1", ""):
        with pytest.raises(ValueError):
            span_of(bad)


def r4(who: str = "f001", **fields: Any) -> dict[str, Any]:
    """As the standard's basic example (hl7.org/fhir/R4/consent-example-basic), with a purpose."""
    resource = {
        "resourceType": "Consent",
        "id": "consent-example-basic",
        "status": "active",
        "scope": coded("http://terminology.hl7.org/CodeSystem/consentscope", "patient-privacy"),
        "category": [coded("http://loinc.org", "59284-0")],
        "patient": {"reference": f"Patient/{who}", "display": "P. van de Heuvel"},
        "dateTime": "2016-05-11",
        "organization": [{"reference": "Organization/f001"}],
        "sourceAttachment": {"title": "The terms of the consent in lawyer speak."},
        "policyRule": coded(f"{HL7}/v3-ActCode", "OPTIN"),  # codespell:ignore
        "provision": {
            "period": {"start": "1964-01-01", "end": "2036-01-01"},
            "purpose": [purpose("HRESCH")],
        },
    }
    return {name: value for name, value in {**resource, **fields}.items() if value is not None}


def r5(who: str = "f001", **fields: Any) -> dict[str, Any]:
    """As the standard's basic example of R5: a decision, and exceptions from it."""
    resource = {
        "resourceType": "Consent",
        "id": "consent-example-basic",
        "status": "active",
        "category": [coded("http://loinc.org", "59284-0")],
        "subject": {"reference": f"Patient/{who}"},
        "date": "2018-12-28",
        "controller": [{"reference": "Organization/f001"}],
        "regulatoryBasis": [coded("http://terminology.hl7.org/CodeSystem/v3-ActCode", "INFA")],
        "decision": "deny",
        "provision": [
            {
                "period": {"start": "2018-12-28", "end": "2036-06"},
                "purpose": [purpose("HRESCH"), own("federated")],
            }
        ],
    }
    return {name: value for name, value in {**resource, **fields}.items() if value is not None}


def coded(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def purpose(code: str) -> dict[str, str]:
    return {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": code}


def own(code: str) -> dict[str, str]:
    return {"system": "urn:qinjing:purpose", "code": code}


def provision(kind: str | None, *purposes: dict[str, str], **more: Any) -> dict[str, Any]:
    given = {"type": kind, "purpose": list(purposes)}
    return {**{name: value for name, value in given.items() if value}, **more}


def said(resource: dict[str, Any]) -> dict[str, str]:
    pytest.importorskip("fhir.resources")
    return {c.purpose: c.decision for c in read_resource(resource, "me", T0).changes}


def test_the_standards_examples_are_read() -> None:
    pytest.importorskip("fhir.resources")
    (change,) = read_resource(r4(), "me", T0).changes
    assert (change.patient_id, change.purpose, change.decision) == ("f001", "research", "permit")
    assert change.start == datetime(1964, 1, 1, tzinfo=UTC)
    assert change.end == datetime(2036, 1, 2, tzinfo=UTC)  # an end is all of its day
    assert change.decided == datetime(2016, 5, 11, tzinfo=UTC)
    assert change.source == "Consent/consent-example-basic" and len(change.source_sha256) == 64
    federated, research = read_resource(r5(), "me", T0).changes
    assert [federated.purpose, research.purpose] == ["federated", "research"]
    assert federated.decision == research.decision == "permit"
    assert research.end == datetime(2036, 7, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("resource", "decisions"),
    [
        (r4(provision=provision("deny", purpose("HRESCH"))), {"research": "deny"}),
        (r4(provision=provision("permit", purpose("TREAT"), own("export"))),
         {"care": "permit", "export": "permit"}),
        (r4(provision=provision("permit", purpose("HMARKT"))), {"commercial": "permit"}),
        # A deny of one kind of research denies it all; a permit of one is refused (below).
        (r4(provision=provision("deny", purpose("CLINTRCH"))), {"research": "deny"}),
        # The root denies, exceptions permit: so German broad consents are laid out.
        (r4(policyRule=None, provision=provision(
            "deny", provision=[provision("permit", purpose("HRESCH")),
                               provision("deny", purpose("HMARKT"))])),
         {"research": "permit", "commercial": "deny"}),
        # Said both ways, it is denied.
        (r4(provision=provision("permit", purpose("HRESCH"),
                                provision=[provision("deny", purpose("BIORCH"))])),
         {"research": "deny"}),
        # A narrow deny is a whole one.
        (r4(provision=provision("deny", purpose("HRESCH"),
                                code=[coded("http://loinc.org", "1-1")])), {"research": "deny"}),
        # Without a purpose, a bare no is for everything.
        (r4(provision=None, policyRule=coded(
            "http://terminology.hl7.org/CodeSystem/v3-ActCode", "OPTOUT")),
         dict.fromkeys(sorted(PURPOSES), "deny")),
        (r4(scope=coded("http://terminology.hl7.org/CodeSystem/consentscope", "research"),
            provision=None), {"research": "permit"}),
        (r4(status="rejected"), {"research": "deny"}),
        (r4(patient=None) | {"patient": {"identifier": {"value": "77"}}}, {"research": "permit"}),
        (r5(decision="permit", provision=[{"purpose": [purpose("HMARKT")]}]),
         {"commercial": "deny"}),
        (r5(provision=None), dict.fromkeys(sorted(PURPOSES), "deny")),
        # Levels alternate: denied, but research, but of that not the federated.
        (r5(provision=[{"purpose": [purpose("HRESCH")],
                        "provision": [{"purpose": [own("federated")]}]}]),
         {"research": "permit", "federated": "deny"}),
    ],
)  # fmt: skip
def test_what_a_resource_decides(resource: dict[str, Any], decisions: dict[str, str]) -> None:
    assert said(resource) == decisions


@pytest.mark.parametrize(
    ("resource", "message"),
    [
        ({"resourceType": "Patient"}, "resource must be a Consent"),
        ([], "resource must be a Consent"),
        (r4(status=None), "status must be as FHIR R4 has it"),
        (r4(status="draft"), "status must be one that decides.*draft"),
        (r5(status="not-done"), "one that decides"),
        (r4(status="agreed"), "status must be one of the standard"),
        (r4(patient=None), "patient must be a reference"),
        (r4(patient={"reference": "Group/1"}), "patient must be a reference"),
        (r4(colour="blue"), "colour must be as FHIR R4 has it"),
        (r5(provision=[{"period": {"start": "yesterday"}}]), "as FHIR R5 has it"),
        (r4(provision=provision("maybe", purpose("HRESCH"))), "type must be permit or deny"),
        (r4(provision=provision("permit", purpose("BIORCH"))), "a part of research"),
        (r4(provision=provision("permit", purpose("HRESCH"), dataPeriod={"start": "2020"})),
         "limited by dataPeriod"),
        (r4(provision=provision("permit", purpose("HRESCH"), action=[
            coded("http://terminology.hl7.org/CodeSystem/consentaction", "correct")])),
         "to access or use"),
        (r4(provision=provision("permit", purpose("HPAYMT"))), "for a purpose that is known"),
        # The very example of the standard: it names no purpose at all.
        (r4(provision={"period": {"start": "1964-01-01", "end": "2016-01-01"}}),
         "for a purpose that is known"),
        (r4(modifierExtension=[{"url": "urn:x:not", "valueBoolean": True}]), "modifying"),
        (r5(decision=None), "decision must be permit or deny"),
        (r4(provision=provision("permit", purpose("HRESCH"),
                                period={"start": "2030", "end": "2020"})), "ends after it begins"),
    ],
)  # fmt: skip
def test_what_is_refused(resource: Any, message: str) -> None:
    pytest.importorskip("fhir.resources")
    with pytest.raises(InputError, match=message) as refusal:
        read_resource(resource, "me", T0)
    assert "f001" not in str(refusal.value) and "Heuvel" not in str(refusal.value)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "consent.sqlite", create=True) as made:
        yield made


@pytest.fixture
def take(store: Store, tmp_path: Path) -> Callable[..., Any]:
    """Import resources from a file of lines."""
    pytest.importorskip("fhir.resources")

    def call(*resources: Any) -> Any:
        path = tmp_path / "in.ndjson"
        path.write_text("".join(json.dumps(one) + "\n" for one in resources))
        return import_files(store, [path], "me")

    return call


def test_one_bad_resource_is_refused_and_the_rest_goes_on(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("fhir.resources")
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [
        {"resource": {"resourceType": "Patient", "id": "a"}},
        {"resource": r4("a")}, {"resource": r4("b", status="odd")}, {"resource": r5("c")}, {},
    ]}  # fmt: skip
    write_json(tmp_path / "bundle.json", bundle)
    lines = [json.dumps(r4("d", id="d")), "", "{torn", json.dumps(r5("e", id="e"))]
    (tmp_path / "lines.ndjson").write_text("\n".join(lines))
    write_json(tmp_path / "one.json", r4("f", id="f"))
    (tmp_path / "torn.json").write_text("{")
    names = ("bundle.json", "lines.ndjson", "one.json", "torn.json")
    done = import_files(store, [tmp_path / name for name in names], "desk")
    assert (done.resources, done.recorded) == (5, 7)  # R5's are for two purposes
    assert [one.place.removeprefix(f"{tmp_path}/") for one in done.refused] == [
        "bundle.json entry 3", "bundle.json entry 5", "lines.ndjson line 3", "torn.json",
    ]  # fmt: skip
    assert all(store.permitted(patient, "research") for patient in "acdef")
    assert not store.permitted("b", "research")
    assert {row.recorded_by for row in store.current().values()} == {"desk"}


def test_reading_again_undoes_no_withdrawal(store: Store, take: Callable[..., Any]) -> None:
    take(r4("a"))
    store.append([deny("a", decided=T0)])
    again = take(r4("a", meta={"versionId": "2"}))  # the server's bookkeeping is not the patient's
    assert (again.recorded, again.unchanged) == (0, 1)
    older = take(r4("a", id="another", dateTime="2025-01-01"))  # a paper of before the withdrawal
    assert older.recorded == 0 and not store.permitted("a", "research")
    newer = take(r4("a", id="anew", dateTime="2026-03-02"))
    assert newer.recorded == 1 and store.permitted("a", "research")


def test_of_several_resources_the_latest_decision_holds_in_any_order(
    tmp_path: Path, take: Callable[..., Any]
) -> None:
    no = provision("deny", purpose("HRESCH"))
    history = [
        r4("a", id="1", dateTime="2020-01-01"),
        r4("a", id="2", dateTime="2021", provision=no),
        r4("a", id="3", dateTime="2022-05-01T10:00:00Z"),
        r4("b", id="4", dateTime="2022-05-01T10:00:00Z"),
        r4("b", id="5", dateTime="2022-05-01", provision=no),  # that day, who knows when
    ]
    for number in range(6):
        random.Random(number).shuffle(history)
        path = tmp_path / f"{number}.json"
        entries = [{"resource": one} for one in history]
        write_json(path, {"resourceType": "Bundle", "type": "collection", "entry": entries})
        with Store(tmp_path / f"{number}.sqlite", create=True) as own_store:
            import_files(own_store, [path])
            assert own_store.permitted("a", "research")
            assert not own_store.permitted("b", "research")
            for one in history:  # and one by one
                write_json(path, one)
                import_files(own_store, [path])
            assert own_store.permitted("a", "research")
            assert not own_store.permitted("b", "research")


def test_what_has_ended_takes_back_what_it_gave_and_no_more(
    store: Store, take: Callable[..., Any]
) -> None:
    take(r4("a", id="1"), r4("b", id="2"), r4("c", id="3"), r4("d", id="4"))
    store.append([permit("e"), permit("f")])
    take(r4("c", id="new", dateTime="2020-01-01"))  # replaced by another
    take(
        r4("a", id="1", status="inactive"),
        r4("b", id="2", status="entered-in-error"),
        r4("c", id="3", status="inactive"),
        r4("e", id="9", status="inactive"),
        r4("f", id="8", status="entered-in-error"),
        r4("g", id="7", status="inactive"),
    )
    held = {name: store.permitted(name, "research") for name in "abcdefg"}
    assert held == {"a": False, "b": False, "c": True, "d": True, "e": False, "f": True, "g": False}
    assert store.history("g") == []  # nothing was there to take back
    assert store.verify() == []


@pytest.mark.parametrize("version", ["R4", "R5"])
@pytest.mark.parametrize("name", ["out.json", "out.ndjson"])
def test_what_is_written_is_of_the_standard_and_reads_back(
    version: Any, name: str, tmp_path: Path
) -> None:
    fhir = pytest.importorskip("fhir.resources")
    changes = [
        permit("a", "care", decided=T0), permit("a", "research", start=T0, end=T0 + DAY),
        deny("b", "commercial"), permit("b/7", "federated", end=T0), permit("ü", "export"),
        permit("c"), deny("c"),
    ]  # fmt: skip
    with Store(tmp_path / "from.sqlite", create=True) as one:
        one.append(changes)
        assert export_file(one, tmp_path / name, version) == 6
        rows = one.current()
    text = (tmp_path / name).read_text()
    found = [json.loads(line) for line in text.splitlines()] if "nd" in name else [
        entry["resource"] for entry in json.loads(text)["entry"]
    ]  # fmt: skip
    from importlib import import_module

    room = "fhir.resources.R4B.consent" if version == "R4" else f"{fhir.__name__}.consent"
    for resource in found:
        import_module(room).Consent.model_validate(resource)
    with Store(tmp_path / "to.sqlite", create=True) as other:
        assert import_files(other, [tmp_path / name]).recorded == 5  # "b/7" is no FHIR id
        back = other.current()
    assert rows.keys() - back.keys() == {("b/7", "federated")}
    for key, row in back.items():
        assert (row.decision, row.start, row.end) == (
            rows[key].decision, rows[key].start, rows[key].end
        )  # fmt: skip


def test_the_gate_names_cases_and_reasons_and_no_patient(store: Store) -> None:
    past, ahead = datetime(2020, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)
    store.append([
        permit("Anna"), deny("Bert"), permit("Cora", end=past), permit("Dora", start=ahead),
        permit("Emil", "care"),
    ])  # fmt: skip
    gate = Gate("research", store)
    names = ("Anna", "Bert", "Cora", "Dora", "Emil", "Fritz")
    allowed, excluded = gate.split([case(f"case_{k}", name) for k, name in enumerate(names)])
    assert [one.case_id for one in allowed] == ["case_0"]
    reasons = {one.case_id: one.reason for one in excluded}
    assert "got a deny of 2026-03-01" in reasons["case_1"]
    assert "ended before 2020-01-01" in reasons["case_2"]
    assert "begins on 2999-01-01" in reasons["case_3"]
    assert reasons["case_4"] == reasons["case_5"] == "consent for research must be given, got none"
    assert not any(name in reason for name in names for reason in reasons.values())
    count, head = store.head()
    assert gate.basis == f"consent for research: store of {count} rows, head {head}"


def declare(folder: Path, **fields: Any) -> Path:
    content = {"basis": "licence", "reference": "CC BY-SA 4.0", "purposes": ["research"], **fields}
    write_json(folder / "consent.json", content)
    return folder


def test_a_declared_basis_lets_all_pass_but_who_said_no(store: Store, tmp_path: Path) -> None:
    store.append(
        [deny("b"), permit("c", end=T0 - DAY), deny("d", "federated"), permit("e", "export")]
    )
    declare(tmp_path, purposes=["research", "federated"])
    cases = [case(name) for name in "abcde"]

    def passing(purpose: str, **options: Any) -> str:
        gate = open_gate(tmp_path, purpose, **options)
        assert gate is not None
        return "".join(one.case_id for one in gate.split(cases)[0])

    assert passing("research") == "abcde"  # no store, nobody said no
    assert passing("research", store=store) == "acde"
    assert passing("federated", store=store) == "abce"
    assert passing("export", store=store) == "e"  # not declared: then patients' own word
    assert passing("export") == ""
    gate = open_gate(tmp_path, "research", store=store)
    assert gate is not None and gate.basis.startswith("licence: CC BY-SA 4.0; consent for research")
    declare(tmp_path, until="2020-12-31")
    assert passing("research") == "" and passing("research", store=store) == ""
    gate = open_gate(tmp_path)
    assert gate is not None and "held until 2020-12-31" in gate.split(cases)[1][0].reason


def test_where_nobody_says_anything_there_is_no_gate_unless_it_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_gate(tmp_path) is None
    with pytest.raises(ConfigError, match="kept in a store or declared"):
        open_gate(tmp_path, "federated", required=True)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "lost.sqlite"))
    with pytest.raises(ConfigError, match="there"):  # a store that is lost lets nothing pass
        open_gate(tmp_path)
    Store(create=True).close()
    gate = open_gate(tmp_path, required=True)
    assert gate is not None and gate.split([case("a")])[0] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"basis": "hope"}, "basis"),
        ({"reference": " "}, "reference"),
        ({"purposes": []}, "purposes"),
        ({"purposes": ["fun"]}, "purpose must be one of"),
        ({"until": "next year"}, "until"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_declaration_that_says_nothing_clear_is_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_gate(declare(tmp_path, **fields))


def test_a_watch_sees_a_withdrawal_and_an_end_at_once_and_asks_little(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [T0]
    for room in (gate_room, store_room):
        monkeypatch.setattr(room, "now", lambda: clock[0])
    store.append([permit("a"), permit("b", end=T0 + DAY), permit("c", start=T0 + 2 * DAY)])
    told: list[tuple[int, list[str]]] = []
    gate = Gate("research", store)
    watch = Watch(gate, [case(name) for name in "abc"], lambda step, out: told.append((step, out)))
    parted: list[int] = []
    split = gate.split
    monkeypatch.setattr(gate, "split", lambda cases: parted.append(1) or split(cases))
    assert [watch.out(step) for step in range(5)] == [frozenset("c")] * 5
    assert len(parted) == 1 and told == [(0, ["c"])]
    store.append([deny("a")])
    assert watch.out() == frozenset("ac") and len(told) == 1  # a validation tells nothing
    assert watch.out(5) == frozenset("ac") and told[1:] == [(5, ["a", "c"])]
    clock[0] = T0 + DAY
    assert watch.out(6) == frozenset("abc")
    clock[0] = T0 + 2 * DAY
    assert watch.out(7) == frozenset("ab")
    assert len(parted) == 4 and [step for step, _ in told] == [0, 5, 6, 7]


def test_a_gate_reads_what_is_new_and_all_where_what_it_read_is_gone(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [case(name) for name in "abc"]

    def passing() -> str:
        return "".join(one.case_id for one in gate.split(cases)[0])

    with Store(place, create=True) as store:
        gate = Gate("research", store)
        assert passing() == ""
        store.append([permit("a"), permit("b"), deny("b", "care")])
        assert passing() == "ab"
        read: list[int] = []
        current = store.current
        monkeypatch.setattr(
            store, "current", lambda *w, **o: read.append(len(found := current(*w, **o))) or found
        )
        store.append([deny("a")])
        assert passing() == "b" and passing() == "b" and read == [1]
        raw(place, *unlocked(place), "DELETE FROM consent WHERE seq = 4")
        store.append([permit("c"), permit("c")])  # more rows than before, but others
        assert passing() == "abc" and read == [1, 3]


def test_two_watches_on_one_gate_both_see_a_withdrawal(store: Store) -> None:
    store.append([permit("a")])
    gate = Gate("research", store)
    watches = [Watch(gate, [case("a")], lambda step, out: None) for _ in "12"]
    assert [watch.out(0) for watch in watches] == [frozenset()] * 2
    store.append([deny("a")])
    assert [watch.out(1) for watch in watches] == [frozenset("a")] * 2


def test_rows_and_declarations_are_frozen(store: Store) -> None:
    store.append([permit("a")])
    (row,) = store.current().values()
    with pytest.raises(AttributeError):
        row.decision = "deny"  # type: ignore[misc]
    assert replace(row, end=T0).digest == row.digest  # a copy is no row of the store
    assert Declaration("ethics", "EK 7/2024", ("research",)).ends() is None
    with pytest.raises(FormatError):
        read_resource("text", "me", T0)
