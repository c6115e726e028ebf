"""Consent on the command line and in training: who said no is not learnt from, at once."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qinjing import cli, evidence
from qinjing.config import read_config, read_json, write_json
from qinjing.data.consent import VARIABLE, Change, Store, affected
from qinjing.data.layouts import open_dataset
from qinjing.data.splits import write_splits
from qinjing.engine.log import read_events
from qinjing.engine.plan import Plan, make_plan, with_steps
from qinjing.errors import ConfigError, LayoutError
from qinjing.tasks import mean_teacher, segment
from qinjing.tasks import pretrain as pretraining
from qinjing.tasks import train as training
from qinjing.tasks.label_curve import LabelCurveConfig, label_curve
from qinjing.tasks.planning import measure
from qinjing.tasks.pretrain import PretrainConfig, pretrain
from qinjing.tasks.train import TrainConfig, train
from tests.tasks.test_train import write_case

pytest.importorskip("sqlalchemy")

Call = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "consent.sqlite"
    monkeypatch.setenv(VARIABLE, str(place))
    return place


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command with --json; exit code, object, standard error."""

    def run(*words: object) -> tuple[int, Any, str]:
        code = cli.main([*map(str, words), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return run


def test_what_is_granted_and_withdrawn_is_shown_and_verifies(store: Path, call: Call) -> None:
    code, made, _ = call("consent", "grant", "p1", "--purpose", "research", "federated",
                         "--from", "2026-01-01", "--until", "2999", "--by", "desk")  # fmt: skip
    assert code == 0 and made["purposes"] == ["federated", "research"]
    assert call("consent", "grant", "p2", "--purpose", "research")[0] == 0
    assert call("consent", "withdraw", "p1", "--purpose", "research")[0] == 0
    code, shown, _ = call("consent", "show")
    assert shown["rows"] == 4
    assert shown["purposes"]["research"] == {"permitted": 1, "denied": 1, "patients": 2}
    assert shown["purposes"]["federated"] == {"permitted": 1, "denied": 0, "patients": 1}
    code, one, _ = call("consent", "show", "--patient", "p1")
    rows = one["history"]
    assert [(row["purpose"], row["decision"]) for row in rows] == [
        ("federated", "permit"), ("research", "permit"), ("research", "deny"),
    ]  # fmt: skip
    assert rows[0]["recorded_by"] == "desk" and rows[0]["source"] == "by hand"
    assert rows[0]["start"].startswith("2026-01-01") and rows[0]["end"].startswith("3000-01-01")
    code, verdict, _ = call("consent", "verify", "--head", made["head"])
    assert code == 0 and verdict["verified"] and verdict["head"] == shown["head"]
    code, verdict, err = call("consent", "verify", "--head", "f" * 64)
    assert code == 2 and not verdict["verified"] and "cut off" in err
    for words in (["show"], ["show", "--patient", "p1"], ["verify"]):
        assert cli.main(["consent", *words]) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["grant", "p", "--purpose", "fun"], "invalid choice"),
        (["grant", "p"], "missing"),
        (["grant", "p", "--purpose", "care", "--until", "soon"], "--until must be a date"),
        (["grant", "p", "--purpose", "care", "--from", "2027", "--until", "2026"], "ends after"),
        (["grant", "", "--purpose", "care"], "patient id must be printable"),
        (["show"], "there"),
        (["import", "none.json"], "file or folder that is there"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    words: list[str], sentence: str, store: Path, call: Call
) -> None:
    code, _, err = call("consent", *words)
    assert code == 2 and sentence in err
    assert not store.exists()


def test_no_store_named_is_said(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    code, _, err = call("consent", "show")
    assert code == 2 and f"set {VARIABLE}" in err


def test_a_failure_of_ours_logs_no_patient(
    store: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("qinjing.data.consent.Store.head", lambda self: 1 / 0)
    code, _, err = call("consent", "grant", "Erika", "--purpose", "care")
    (log,) = tmp_path.glob("qinjing-failure-*.log")
    assert code == 1 and "Erika" not in log.read_text() + err
    assert "consent grant PATIENT" in log.read_text()


def test_fhir_comes_in_and_goes_out(store: Path, call: Call, tmp_path: Path) -> None:
    pytest.importorskip("fhir.resources")
    resource = {
        "resourceType": "Consent", "id": "1", "status": "active",
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "subject": {"reference": "Patient/p1"}, "decision": "deny",
        "provision": [{"purpose": [{"system": "urn:qinjing:purpose", "code": "research"}]}],
    }  # fmt: skip
    (tmp_path / "in.ndjson").write_text(json.dumps(resource) + "\n{}\n")
    code, done, err = call("consent", "import", tmp_path / "in.ndjson")
    assert code == 2 and "in.ndjson line 2: resource must be a Consent" in err
    assert (done["resources"], done["recorded"], done["unchanged"]) == (1, 1, 0)
    out = tmp_path / "out" / "all.json"
    code, written, _ = call("consent", "export", "-o", out, "--version", "R5")
    assert code == 0 and written["consents"] == 1
    assert read_json(out)["entry"][0]["resource"]["subject"] == {"reference": "Patient/p1"}
    assert not evidence.verify(out.parent).faults
    code, done, _ = call("consent", "import", out)
    assert code == 0 and (done["recorded"], done["unchanged"]) == (0, 1)
    record = (out.parent / "evidence.jsonl").read_text()
    assert "p1" not in base64.b64decode(json.loads(record)["payload"]).decode()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("consented")
    for number in range(8):
        write_case(folder, f"case{number}", number)
    return folder


@pytest.fixture(scope="module")
def plan(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    opened = open_dataset(dataset)
    made = make_plan(measure(opened, opened.cases), device="cpu", threads=1, net="subvoxel_unet")
    made = replace(made, augmentation=(), batch_size=3)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    write_json(path, with_steps(made, 8, None, 2))
    return path


def say(place: Path, decision: Any, *numbers: int) -> None:
    with Store(place, create=True) as store:
        now = datetime.now(UTC)
        store.append([Change(f"case{n}", "research", decision, now) for n in numbers])


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no memory in processes of their own, and time ways of running by the fewest steps."""
    monkeypatch.setattr(training, "prediction_memory_gib", lambda *_: 0.1)
    monkeypatch.setattr(pretraining, "_TRIAL_S", 0.0)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The case ids of every batch of patches that is cut."""
    seen: list[set[str]] = []
    for room in (segment, mean_teacher):
        cut = room.batch_of_patches

        def look(rng: Any, cases: Any, *rest: Any, _cut: Any = cut) -> Any:
            seen.append({case.case_id for case in cases})
            return _cut(rng, cases, *rest)

        monkeypatch.setattr(room, "batch_of_patches", look)
    return seen


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    path = tmp_path / "given.json"
    write_splits(path, [{"train": [f"case{n}" for n in range(6)], "val": ["case6", "case7"]}])
    return path


def basis_of(folder: Path) -> str:
    line = (folder / "evidence.jsonl").read_bytes().splitlines()[-1]
    statement = json.loads(base64.b64decode(json.loads(line)["payload"]))
    return str(statement["predicate"].get("basis"))


def test_without_any_set_up_training_goes_on_as_before(
    dataset: Path, plan: Path, tmp_path: Path, drawn: list[set[str]], splits: Path
) -> None:
    result = train(TrainConfig(dataset, tmp_path / "run", plan=plan, splits=splits))
    assert result["refused"] == [] and basis_of(tmp_path / "run") == "None"
    assert set().union(*drawn) == {f"case{n}" for n in range(6)}


def test_training_yields_no_case_without_consent_and_names_its_basis(
    dataset: Path, plan: Path, store: Path, tmp_path: Path, drawn: list[set[str]], splits: Path
) -> None:
    say(store, "permit", 0, 1, 2, 3, 6, 7)
    say(store, "deny", 1)
    result = train(TrainConfig(dataset, tmp_path / "run", plan=plan, splits=splits))
    assert set().union(*drawn) == {"case0", "case2", "case3"}
    reasons = {one["case_id"]: one["reason"] for one in result["refused"]}
    assert reasons.keys() == {"case1", "case4", "case5"}
    assert "a deny of" in reasons["case1"] and reasons["case4"].endswith("got none")
    assert read_json(tmp_path / "run" / "splits_final.json")[0]["train"] == [
        "case0", "case2", "case3",
    ]  # fmt: skip
    with Store() as opened:
        assert opened.head()[1] in basis_of(tmp_path / "run")
    assert not evidence.verify(tmp_path / "run").faults
    say(store, "deny", 0, 2, 3, 6)
    with pytest.raises(LayoutError, match="7 are left out for want of consent"):
        train(TrainConfig(dataset, tmp_path / "other", plan=plan))


@pytest.mark.parametrize("weight", [0.0, 1.0], ids=["labels", "teacher"])
def test_a_withdrawal_counts_from_the_next_batch_on_and_resumes_to_the_same_bits(
    weight: float,
    dataset: Path,
    plan: Path,
    tmp_path: Path,
    drawn: list[set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = replace(read_config(plan, Plan), unlabelled_weight=weight)
    often, splits = tmp_path / "often.json", tmp_path / "splits.json"
    write_json(often, replace(made, fit=replace(made.fit, checkpoint_s=0.0)))
    ids = [f"case{n}" for n in range(6)]
    fold = {"train": ids[:3], "unlabelled": ids[3:]} if weight else {"train": ids}
    write_json(splits, [{**fold, "val": ["case6", "case7"]}])

    def run(way: str, killed: int | None) -> tuple[list[int], bytes]:
        """Withdraw two cases after step 2; return the steps logged, and the weights."""
        store, config = tmp_path / f"{way}.sqlite", TrainConfig(dataset, tmp_path / way, plan=often)
        config = replace(config, splits=splits)
        monkeypatch.setenv(VARIABLE, str(store))
        say(store, "permit", *range(8))
        drawn.clear()
        before: list[int] = []

        def tell(kind: str, fields: dict[str, Any]) -> None:
            if kind == "step" and fields["step"] == 2:
                before.append(len(drawn))
                say(store, "deny", 1, 4)
            if kind == "step" and fields["step"] == killed:
                raise KeyboardInterrupt

        if killed:
            with pytest.raises(KeyboardInterrupt):
                train(config, tell)
            result = train(replace(config, resume=True))
            assert [one["case_id"] for one in result["refused"]] == ["case1", "case4"]
        else:
            train(config, tell)
        assert {"case1", "case4"} <= set().union(*drawn[: before[0]])
        assert set().union(*drawn[before[0] :]) == {"case0", "case2", "case3", "case5"}
        # The run's own splits still say what it saw.
        assert "case1" in read_json(tmp_path / way / "splits_final.json")[0]["train"]
        events = read_events(tmp_path / way / "fold_0" / "log.jsonl")
        told = [event for event in events if event["kind"] == "consent"]
        assert all(event["excluded"] == ["case1", "case4"] for event in told)
        weights = (tmp_path / way / "fold_0" / "weights.safetensors").read_bytes()
        return [event["step"] for event in told], weights

    steps, whole = run("whole", None)
    assert steps == [3]
    steps, resumed = run("killed", 5)
    assert steps == [3, 5]  # a resumed training says again what it goes without
    assert whole == resumed


def test_when_nobody_is_left_training_stops_with_a_sentence(
    dataset: Path, plan: Path, store: Path, tmp_path: Path, splits: Path
) -> None:
    say(store, "permit", *range(8))

    def tell(kind: str, fields: dict[str, Any]) -> None:
        if kind == "step" and fields["step"] == 1:
            say(store, "deny", *range(6))

    with pytest.raises(ConfigError, match="cases must be left that consent to research"):
        train(TrainConfig(dataset, tmp_path / "run", plan=plan, splits=splits), tell)
    assert not (tmp_path / "run" / "evidence.jsonl").exists()


def test_a_held_out_case_that_was_withdrawn_is_not_measured(
    dataset: Path, plan: Path, store: Path, tmp_path: Path, splits: Path
) -> None:
    say(store, "permit", *range(8))

    def tell(kind: str, fields: dict[str, Any]) -> None:
        if kind == "step" and fields["step"] == 1:
            say(store, "deny", 6)

    train(TrainConfig(dataset, tmp_path / "run", plan=plan, splits=splits), tell)
    metrics = read_json(tmp_path / "run" / "fold_0" / "metrics.json")
    assert [one["case_id"] for one in metrics["cases"]] == ["case7"]
    assert not (tmp_path / "run" / "fold_0" / "validation" / "case6.nii.gz").exists()


def test_pretraining_and_the_curve_keep_to_it_and_models_that_saw_a_case_are_named(
    dataset: Path, plan: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    call: Call, splits: Path,
) -> None:  # fmt: skip
    say(store, "permit", *range(1, 8))
    trunk, models = tmp_path / "models" / "trunk", tmp_path / "models"

    def tell(kind: str, fields: dict[str, Any]) -> None:
        if kind == "step" and fields["step"] == 1:
            say(store, "deny", 5)

    # The curve's plan, so that it need not time this machine.
    kept = read_config(plan, Plan)
    write_json(models / "curve" / "plans" / "seed_0.json", kept)
    config = PretrainConfig((dataset,), trunk, steps=3, splits=splits, net="subvoxel_unet")
    result = pretrain(config, tell)
    assert [one["case_id"] for one in result["refused"]] == ["case0"]
    saw = ["case1", "case2", "case3", "case4", "case5"]
    assert read_json(trunk / "trunk.json")["saw"][0]["cases"] == saw  # it saw case5 for a while
    told = [e for e in read_events(trunk / "log.jsonl") if e["kind"] == "consent"]
    assert (told[-1]["step"], told[-1]["excluded"]) == (2, ["case0", "case5"])
    assert basis_of(trunk).startswith("consent for research")

    curve = LabelCurveConfig(
        dataset, models / "curve", trunk, counts=(0,), seeds=1, steps=2, splits=splits,
        methods=("random", "pretrained"),
    )  # fmt: skip
    label_curve(curve)
    runs = sorted((models / "curve").rglob("splits_final.json"))
    assert [read_json(run)[0]["train"] for run in runs] == [
        ["case1", "case2", "case3", "case4"]
    ] * 2

    def names(case: str) -> dict[str, Any]:
        found = call("consent", "affected", case, "-i", models)[1]["models"]
        return {Path(one["folder"]).relative_to(models).parts[-3:][0]: one for one in found}

    assert names("case0") == {}
    learnt = names("case1")
    assert learnt.keys() == {"trunk", "random", "pretrained"}
    assert all(one["learnt"] and one["signed"] for one in learnt.values())
    # Withdrawn before the curve was trained: there it is only in what began from the trunk.
    assert names("case5").keys() == {"trunk", "pretrained"}
    assert "began from" in names("case5")["pretrained"]["how"][0]
    held = names("case6")
    assert held.keys() == {"random", "pretrained"}
    assert not any(one["learnt"] for one in held.values())
    assert held["random"]["how"] == ["fold 0 was measured on it"]
    assert held["random"]["dataset"] == [dataset.name]
    # What no signature stands for is listed all the same, and said to be so.
    path = Path(held["random"]["folder"]) / "splits_final.json"
    write_json(path, [{"train": ["case0"], "val": ["case6"]}])
    assert names("case0")["random"]["signed"] is False
    trunk.rename(models / "moved")
    assert affected("case5", [models])[-1].folder == models / "moved"
    assert cli.main(["consent", "affected", "case5", "-i", str(models)]) == 0
