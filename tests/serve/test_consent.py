"""The routes: what is seen, who may see and change it, and that all of it is in the store."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import pytest

from qinjing.cli import consent as cli_consent
from qinjing.config import write_json
from qinjing.data.consent import PURPOSES, Seen, Store
from qinjing.errors import InputError
from qinjing.serve.consent import Purpose
from qinjing.serve.seen import Owners, merged
from tests.data.conftest import drop
from tests.data.conftest import postgresql as postgresql  # a fixture
from tests.data.test_consent import raw, unlocked
from tests.serve.conftest import Service, say, write_models
from tests.tasks.test_train import write_case


def write_run(folder: Path, dataset: str, case_id: str, trunk: Path | None = None) -> None:
    """A run that learnt from a case of a data set."""
    (folder / "fold_0").mkdir(parents=True)
    write_json(folder / "run.json", {})
    write_json(folder / "dataset.json", {"name": dataset})
    write_json(folder / "splits_final.json", [{"train": [case_id], "val": []}])
    if trunk is not None:
        write_json(folder / "plan.json", {"transfer": {"trunk": str(trunk)}})


def standing(answer: Any) -> dict[str, str]:
    return {one["purpose"]: one["state"] for one in answer.json()["standing"]}


def test_what_stands_and_what_was_said_is_told(service: Service, place: str) -> None:
    client = service.client("reader")
    answer = client.post("/api/consent/patient", json={"patient_id": "p-bela"})
    assert standing(answer) == {
        "care": "none", "research": "permit", "commercial": "deny", "federated": "none",
        "export": "none",
    }  # fmt: skip
    (last, first) = answer.json()["history"]
    assert (last["seq"], last["purpose"], last["decision"]) == (3, "commercial", "deny")
    assert (first["recorded_by"], first["source"]) == ("desk", "by hand")
    assert client.post("/api/consent/patient", json={"patient_id": "x"}).json()["history"] == []
    assert client.post("/api/consent/patient", json={}).json()["code"] == "invalid"


def test_a_change_goes_into_the_store_and_names_its_token(service: Service, place: str) -> None:
    kept, text = service.tokens.make("ethics", name="Dr. Li")
    client = service.client()
    client.post("/api/session", json={"token": text})
    asked = {"patient_id": "new", "purposes": ["research", "care", "care"], "start": "2026-01-01",
             "end": "2030"}  # fmt: skip
    answer = client.post("/api/consent/grant", json=asked)
    assert answer.status_code == 200 and answer.json()["recorded"] == 2
    assert standing(answer)["research"] == standing(answer)["care"] == "permit"
    (_, newest) = answer.json()["history"]
    assert (newest["first_day"], newest["last_day"]) == ("2026-01-01", "2030-12-31")
    with Store(place) as store:
        assert store.head() == (answer.json()["rows"], answer.json()["head"])
        rows = store.history("new")
        assert {row.recorded_by for row in rows} == {f"Dr. Li (ethics, token {kept.token_id})"}
        assert store.permitted("new", "research")
        answer = client.post(
            "/api/consent/withdraw", json={"patient_id": "new", "purposes": ["research"]}
        )
        assert standing(answer)["research"] == "deny" and standing(answer)["care"] == "permit"
        assert not store.permitted("new", "research") and store.permitted("new", "care")
        assert store.verify([rows[-1].digest]) == []


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"purposes": []}, "invalid"),
        ({"purposes": ["fun"]}, "invalid"),
        ({"purposes": "care"}, "invalid"),
        ({"start": "soon"}, "period"),
        ({"start": "2027", "end": "2026"}, "period"),
        ({"end": "99999-01-01"}, "period"),
        ({"recorded_by": "somebody else"}, "invalid"),
        ({"decided": "2020-01-01"}, "invalid"),
    ],
)
def test_what_cannot_be_recorded(service: Service, more: dict[str, Any], code: str) -> None:
    client = service.client("ethics")
    before = service.app.state.store.head()
    asked = {"patient_id": "p-anna", "purposes": ["care"], **more}
    answer = client.post("/api/consent/grant", json=asked)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert "p-anna" not in answer.text and service.app.state.store.head() == before


def test_a_period_that_is_over_or_to_come(service: Service) -> None:
    client = service.client("ethics")
    for purpose, period in (
        ("care", {"end": "2020"}), ("export", {"start": "2999"}), ("federated", {"start": ""}),
    ):  # fmt: skip
        asked = {"patient_id": "p", "purposes": [purpose], **period}
        answer = client.post("/api/consent/grant", json=asked)
    found = standing(answer)
    assert (found["care"], found["export"], found["federated"]) == ("ended", "later", "permit")


def test_a_reader_changes_nothing(service: Service) -> None:
    client = service.client("reader")
    before = service.app.state.store.head()
    for route in ("grant", "withdraw"):
        asked = {"patient_id": "p-anna", "purposes": ["care"]}
        answer = client.post(f"/api/consent/{route}", json=asked)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert service.app.state.store.head() == before
    assert client.post("/api/consent/verify", json={}).json()["verified"]


def test_a_patient_sees_and_changes_one_patient_alone(service: Service) -> None:
    anna = service.client("patient", patient_id="p-anna")
    bela = service.client("patient", patient_id="p-bela")
    before = service.app.state.store.head()
    asked = {"purposes": ["research"]}
    for other in ("p-bela", "P-ANNA", "p-anna ", "nobody", "p-anna%"):
        answers = [
            anna.post("/api/consent/patient", json={"patient_id": other}),
            anna.post("/api/consent/grant", json={"patient_id": other, **asked}),
            anna.post("/api/consent/withdraw", json={"patient_id": other, **asked}),
            anna.post("/api/consent/models", json={"patient_id": other}),
            anna.post("/api/consent/models", json={"case_id": other}),
            anna.post("/api/consent/models", json={"patient_id": "p-anna", "case_id": other}),
        ]
        # One and the same answer, whether there is such a patient or not.
        assert {(one.status_code, one.json()["code"]) for one in answers} == {(403, "forbidden")}
        assert len({one.text for one in answers[:4]}) == 1
    assert service.app.state.store.head() == before
    for search in ({}, {"search": "p-"}, {"after": "a"}):
        found = anna.post("/api/consent/patients", json=search).json()
        assert [one["patient_id"] for one in found["patients"]] == ["p-anna"]
    assert anna.post("/api/consent/patients", json={"search": "bela"}).json()["patients"] == []
    assert anna.post("/api/consent/verify", json={}).status_code == 403
    for own in ({}, {"patient_id": "p-anna"}):
        assert anna.post("/api/consent/patient", json=own).json()["patient_id"] == "p-anna"
    answer = anna.post("/api/consent/withdraw", json=asked)
    assert standing(answer)["research"] == "deny"
    assert answer.json()["history"][0]["recorded_by"].startswith("patient, token ")
    assert standing(bela.post("/api/consent/patient", json={}))["research"] == "permit"
    # Nor does a cookie of one open the other's: swapped, it is that other's session altogether.
    anna.cookies.set("qinjing", bela.cookies["qinjing"], domain="127.0.0.1")
    anna.cookies = bela.cookies
    assert anna.post("/api/consent/patient", json={"patient_id": "p-anna"}).status_code == 403


def test_patients_come_in_pages(service: Service, place: str) -> None:
    say(place, "permit", *[f"q{n:02d}" for n in range(7)], "50%", "a_b")
    client = service.client("reader")
    seen: list[str] = []
    after = ""
    while True:
        asked = {"search": "Q", "after": after, "limit": 3}
        page = client.post("/api/consent/patients", json=asked).json()
        seen += [one["patient_id"] for one in page["patients"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert seen == [f"q{n:02d}" for n in range(7)]
    for search, found in (("%", ["50%"]), ("_", ["a_b"]), ("'", []), ("p-", ["p-anna", "p-bela"])):
        page = client.post("/api/consent/patients", json={"search": search}).json()
        assert [one["patient_id"] for one in page["patients"]] == found
    assert page["patients"][1]["purposes"]["commercial"] == "deny"
    assert client.post("/api/consent/patients", json={"limit": 1000}).status_code == 422


def test_models_that_saw_a_patient_are_named_without_this_machines_folders(
    service: Service, tmp_path: Path
) -> None:
    for client in (service.client("ethics"), service.client("patient", patient_id="p-anna")):
        found = client.post("/api/consent/models", json={"patient_id": "p-anna"}).json()
        assert found["looked"] and str(tmp_path) not in str(found)
        assert [(one["model"], one["learnt"], one["how"]) for one in found["models"]] == [
            ("models/liver", True, ["fold 0 learnt from it"]),
            ("models/lung", False, ["fold 0 was measured on it"]),
        ]
    staff = service.client("ethics")
    by_case = staff.post("/api/consent/models", json={"case_id": "p-bela"}).json()
    assert [one["learnt"] for one in by_case["models"]] == [False, True]
    assert staff.post("/api/consent/models", json={"case_id": "none"}).json()["models"] == []
    assert staff.post("/api/consent/models", json={}).status_code == 422


def test_a_data_set_tells_whose_a_case_is(
    make: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, run = tmp_path / "scans", tmp_path / "models" / "liver"
    for number, name in enumerate(("p1_ED", "p1_ES", "p2_ED")):
        write_case(dataset, name, number)
    (dataset / "participants.tsv").write_text("participant_id\np1\n")
    owners = Owners([dataset])
    assert owners.cases("p1") == ["p1", "p1_ED", "p1_ES"]
    assert owners.cases("p2_ED") == ["p2_ED"]
    # Who is called as another's case is not shown that other's models.
    assert owners.cases("p1_ED") == [] and Owners([]).cases("p1_ED") == ["p1_ED"]
    write_models(tmp_path / "models")
    write_json(run / "splits_final.json", [{"train": ["p1_ES", "p1_ED"], "val": []}])
    write_json(run / "dataset.json", {"name": "scans"})
    service = make(models=(tmp_path / "models",), datasets=(dataset,))
    # They are opened once, not whenever somebody asks.
    monkeypatch.setattr("qinjing.serve.seen.open_dataset", None)
    for patient_id, seen in (("p1", ["models/liver"]), ("p1_ED", [])):
        client = service.client("patient", patient_id=patient_id)
        found = client.post("/api/consent/models", json={}).json()
        assert [one["model"] for one in found["models"]] == seen and found["cases"] is None
    monkeypatch.undo()
    with pytest.raises(InputError):
        make(datasets=(tmp_path / "models",))


def test_a_case_of_another_data_set_is_not_the_patients(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    for number, name in enumerate(("here", "there")):
        write_case(tmp_path / name, "case_001", number)
        write_run(tmp_path / "models" / name, name, "case_001")
    (tmp_path / "here" / "participants.tsv").write_text("participant_id\ncase\n")
    write_run(tmp_path / "models" / "elsewhere", "elsewhere", "case_001")
    write_run(tmp_path / "models" / "own", "elsewhere", "case")
    service = make(
        models=(tmp_path / "models",), datasets=(tmp_path / "here", tmp_path / "there")
    )  # fmt: skip
    for role, patient, wanted in (
        ("patient", "case", ["here", "own"]),
        ("patient", "case_001", ["there"]),
        ("ethics", "case", ["elsewhere", "here", "own"]),  # the office judges what may be
        ("ethics", "case_001", ["elsewhere", "there"]),
    ):
        client = service.client(role, **({"patient_id": patient} if role == "patient" else {}))
        found = client.post("/api/consent/models", json={"patient_id": patient}).json()["models"]
        assert sorted(one["model"] for one in found) == [f"models/{name}" for name in wanted]
    client = service.client("ethics")
    found = client.post("/api/consent/models", json={"case_id": "case_001"}).json()["models"]
    assert len(found) == 3


def test_no_folder_of_this_machine_is_told_of_a_trunk_elsewhere(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    write_run(secret / "old", "scans", "p-anna")
    write_run(tmp_path / "models" / "new", "scans", "p-bela", trunk=secret / "old" / "fold_0")
    service = make(models=(tmp_path / "models",))
    for role, more in (("ethics", {}), ("patient", {"patient_id": "p-anna"})):
        answer = service.client(role, **more).post(
            "/api/consent/models", json={"patient_id": "p-anna"}
        )
        assert str(tmp_path) not in answer.text and "secret" not in answer.text
        (one,) = answer.json()["models"]
        assert one["how"] == ["began from old/fold_0, which learnt from it"]


def test_a_place_is_cut_at_its_beginning_alone() -> None:
    how = "began from /b/srv/models/a, which learnt from it"
    seen = Seen(Path("/srv/models/x/srv/models/y"), ("scans",), True, (how,), True)
    (one,) = merged([seen], [Path("/srv/models"), Path("/srv")])
    assert one["model"] == "models/x/srv/models/y"
    assert one["how"] == ["began from a, which learnt from it"]
    (one,) = merged([seen], [Path("/")])
    assert one["model"] == "y"


def test_the_purposes_are_the_same_everywhere() -> None:
    assert PURPOSES == get_args(Purpose) == cli_consent.PURPOSES
    static = resources.files("qinjing.serve") / "static"
    (line,) = re.findall(r"const PURPOSES = (\[.*?\]);", (static / "consent.js").read_text())
    assert tuple(json.loads(line)) == PURPOSES
    tables = re.findall(r"purposeNames: \{(.*?)\}", (static / "words.js").read_text(), re.DOTALL)
    assert [tuple(re.findall(r"(\w+): \"", table)) for table in tables] == [PURPOSES] * 2


def test_the_whole_record_is_checked(service: Service, place: str) -> None:
    client = service.client("reader")
    found = client.post("/api/consent/verify", json={}).json()
    assert found == {"verified": True, "rows": 3, "head": found["head"], "faults": []}
    known = {"known": [found["head"]]}
    assert client.post("/api/consent/verify", json=known).json()["verified"]
    assert client.post("/api/consent/verify", json={"known": ["x"]}).status_code == 422
    raw(place, *unlocked(place), "UPDATE consent SET decision = 'permit' WHERE seq = 3")
    found = client.post("/api/consent/verify", json=known).json()
    assert not found["verified"] and found["faults"] == ["row 3 is not as it was recorded"]


@pytest.fixture
def url(postgresql: str) -> Iterator[str]:
    say(postgresql, "permit", "p-anna", "p-bela")
    yield postgresql
    drop(postgresql)


def test_on_postgresql_it_is_the_same(
    url: str, make: Callable[..., Service], tmp_path: Path
) -> None:
    service = make(consents=url, models=(write_models(tmp_path / "models"),))
    client = service.client("ethics", name="Dr. Li")
    found = client.post("/api/consent/patients", json={"search": "ANN", "limit": 1}).json()
    assert [one["patient_id"] for one in found["patients"]] == ["p-anna"] and not found["next"]
    first = client.post("/api/consent/patients", json={"limit": 1}).json()
    rest = client.post("/api/consent/patients", json={"after": first["next"]}).json()
    assert [one["patient_id"] for one in rest["patients"]] == ["p-bela"]
    asked = {"patient_id": "p-anna", "purposes": ["research"]}
    answer = client.post("/api/consent/withdraw", json=asked)
    assert standing(answer)["research"] == "deny"
    assert answer.json()["history"][0]["recorded_by"].startswith("Dr. Li (ethics")
    assert client.post("/api/consent/verify", json={}).json()["verified"]
    other = service.client("patient", patient_id="p-bela")
    assert other.post("/api/consent/patient", json={"patient_id": "p-anna"}).status_code == 403
