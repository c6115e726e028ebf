"""The dossier says what is there, and what a class needs and is missing."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

pytest.importorskip("pydicom")

from qinjing.config import write_json
from qinjing.errors import ConfigError
from qinjing.evidence import append
from qinjing.report.declared import Declaration, declare
from qinjing.report.dossier import write_dossier


def a_run(folder: Path, product_class: str, use: str = "", limits: tuple[str, ...] = ()) -> Path:
    run = folder / product_class
    (run / "fold_0").mkdir(parents=True)
    write_json(run / "dataset.json", {"name": "Livers", "labels": {"background": 0, "liver": 1}})
    (run / "fold_0" / "weights.safetensors").write_bytes(b"weights")
    splits = run / "splits_final.json"
    write_json(splits, [{"train": ["t1", "t2"], "val": ["v"]}, {"train": ["v"], "val": ["t1"]}])
    append(run, "train", {}, [run / "fold_0", run / "dataset.json", splits], {"seed": 0})
    declare(run, Declaration("Liver <1>", "CT", product_class, use, limits))
    return run


def a_table(folder: Path, name: str, cases: str = "abc", **changed: object) -> Path:
    interval = {"mean": 0.91, "low": 0.88, "high": 0.93, "n": 9}
    measured = [{"case_id": case, "labels": {"1": {"dice": 0.91}}} for case in cases]
    (folder / name).mkdir()
    write_json(
        folder / name / "metrics.json",
        {"labels": {"1": "liver"}, "cases": measured,
         "mean": {"1": {"dice": interval | changed}, "foreground": {"dice": interval}}},
    )  # fmt: skip
    return folder / name / "metrics.json"


def did(folder: Path, person: str, what: str, **more: object) -> None:
    said = {"person": person, "did": what, **more}
    append(folder / "s" / "audit" / "day", "serve", {}, (), said)


def test_a_tool_with_words_and_a_table_lacks_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path, "tool", "drafts for annotators", ("no children",))
    made = write_dossier(run, tmp_path / "out", metrics=[a_table(tmp_path, "north")])
    assert made["missing"] == []
    page = Path(made["html"]).read_text()
    assert "Liver &lt;1&gt;" in page and "<script" not in page and "0.910 (0.880 to 0.930)" in page
    assert "certificate of class I." in page and "no children" in page
    told = json.loads(Path(made["json"]).read_text())
    assert [one["command"] for one in told["record"]["statements"]] == ["train", "declare"]
    assert told["product"]["may"] == ["segmentations", "pictures with outlines"]


def test_what_a_diagnosis_needs_is_named_where_it_is_missing(tmp_path: Path) -> None:
    run = a_run(tmp_path, "diagnosis", "second look", ("adults alone",))
    made = write_dossier(run, tmp_path / "out")
    assert made["missing"] == [
        "measured on cases that it never saw", "intervals of every figure",
        "measured at two places or more", "an audit of use that holds",
        "confirmed by named readers",
    ]  # fmt: skip


def test_the_audit_of_use_counts_and_names_who_confirmed(tmp_path: Path) -> None:
    run = a_run(tmp_path, "diagnosis", "second look", ("adults alone",))
    did(tmp_path, "Li", "image opened")
    did(tmp_path, "Li", "confirmed", product_class="diagnosis", model="Liver <1>")
    did(tmp_path, "Wang", "image opened")
    tables = [a_table(tmp_path, "north"), a_table(tmp_path, "south", "de")]
    made = write_dossier(run, tmp_path / "out", metrics=tables, service=tmp_path / "s")
    assert made["missing"] == []
    told = json.loads(Path(made["json"]).read_text())["use"]
    assert told["did"] == {"confirmed": 1, "image opened": 2} and told["confirmed_by"] == ["Li"]
    record = tmp_path / "s" / "audit" / "day" / "evidence.jsonl"
    record.write_bytes(record.read_bytes()[:-1])
    again = write_dossier(run, tmp_path / "out", metrics=tables, service=tmp_path / "s")
    assert again["missing"] == ["an audit of use that holds"]


def test_a_confirmation_of_another_model_or_class_is_not_this_ones(tmp_path: Path) -> None:
    run = a_run(tmp_path, "diagnosis", "second look", ("adults alone",))
    did(tmp_path, "Ann", "confirmed", product_class="diagnosis", model="Lung")
    did(tmp_path, "Ben", "confirmed", product_class="analysis", model="Liver <1>")
    did(tmp_path, "Cai", "confirmed")
    made = write_dossier(run, tmp_path / "out", service=tmp_path / "s")
    assert "confirmed by named readers" in made["missing"]
    did(tmp_path, "Dee", "confirmed", product_class="diagnosis")
    made = write_dossier(run, tmp_path / "out", service=tmp_path / "s")
    assert json.loads(Path(made["json"]).read_text())["use"]["confirmed_by"] == ["Dee"]


@pytest.mark.parametrize(
    "spoilt", [b"{", b"\xff\n", b'{"payload": "????"}\n', b"[]\n", b'{"payload": "e30="}\n']
)
def test_a_spoilt_line_of_the_audit_is_a_named_fault(tmp_path: Path, spoilt: bytes) -> None:
    run = a_run(tmp_path, "diagnosis", "second look", ("adults alone",))
    did(tmp_path, "Li", "confirmed", product_class="diagnosis")
    record = tmp_path / "s" / "audit" / "day" / "evidence.jsonl"
    record.write_bytes(record.read_bytes() + spoilt)
    made = write_dossier(run, tmp_path / "out", service=tmp_path / "s")
    faults = json.loads(Path(made["json"]).read_text())["use"]["faults"]
    assert "day/evidence.jsonl line 2" in faults[0]
    assert "an audit of use that holds" in made["missing"]
    assert "The audit does not hold" in Path(made["html"]).read_text()


def test_a_line_whose_words_were_altered_names_nobody(tmp_path: Path) -> None:
    run = a_run(tmp_path, "diagnosis", "second look", ("adults alone",))
    did(tmp_path, "Li", "confirmed", product_class="diagnosis")
    record = tmp_path / "s" / "audit" / "day" / "evidence.jsonl"
    line = json.loads(record.read_bytes())
    payload = base64.b64decode(line["payload"]).replace(b'"Li"', b'"Xi"')
    line["payload"] = base64.b64encode(payload).decode()
    record.write_text(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n")
    made = write_dossier(run, tmp_path / "out", service=tmp_path / "s")
    told = json.loads(Path(made["json"]).read_text())["use"]
    assert told["confirmed_by"] == [] and "signature" in told["faults"][0]


def test_a_signed_line_without_a_person_or_a_deed_is_a_named_fault(tmp_path: Path) -> None:
    run = a_run(tmp_path, "tool", "drafts", ("none known",))
    append(tmp_path / "s" / "audit" / "day", "serve", {}, (), {"did": 3, "person": "Li"})
    append(tmp_path / "s" / "audit" / "day", "serve", {}, (), ["confirmed"])
    made = write_dossier(run, tmp_path / "out", service=tmp_path / "s")
    faults = json.loads(Path(made["json"]).read_text())["use"]["faults"]
    assert faults == [f"day/evidence.jsonl line {n} says not who did what" for n in (1, 2)]


def test_a_table_on_cases_that_it_learnt_from_does_not_count(tmp_path: Path) -> None:
    run = a_run(tmp_path, "tool", "drafts", ("none known",))
    file = a_table(tmp_path, "north", "abv")  # "v" was held out of one fold, and taught the other
    made = write_dossier(run, tmp_path / "out", metrics=[file])
    assert made["missing"] == ["measured on cases that it never saw"]
    assert "The model learnt from 1 of these 3 cases" in Path(made["html"]).read_text()
    made = write_dossier(run, tmp_path / "out", metrics=[file, a_table(tmp_path, "south")])
    assert made["missing"] == []


def test_without_splits_no_table_is_known_to_be_unseen(tmp_path: Path) -> None:
    run = a_run(tmp_path, "tool", "drafts", ("none known",))
    (run / "splits_final.json").unlink()
    made = write_dossier(run, tmp_path / "out", metrics=[a_table(tmp_path, "north")])
    assert "measured on cases that it never saw" in made["missing"]
    assert "no splits_final.json" in Path(made["html"]).read_text()


@pytest.mark.parametrize(("cases", "apart"), [("abc", False), ("cd", False), ("de", True)])
def test_two_places_have_no_case_in_common(tmp_path: Path, cases: str, apart: bool) -> None:
    run = a_run(tmp_path, "diagnosis", "second look", ("adults alone",))
    tables = [a_table(tmp_path, "north"), a_table(tmp_path, "south", cases)]
    made = write_dossier(run, tmp_path / "out", metrics=tables)
    assert ("measured at two places or more" not in made["missing"]) == apart


def test_a_table_of_the_models_own_cases_is_no_second_place(tmp_path: Path) -> None:
    run = a_run(tmp_path, "diagnosis", "second look", ("adults alone",))
    (tmp_path / "own").mkdir()
    own = a_table(tmp_path / "own", "north", "v")
    made = write_dossier(run, tmp_path / "out", metrics=[a_table(tmp_path, "north"), own])
    assert "measured at two places or more" in made["missing"]


def test_one_figure_without_an_interval_is_one_too_many(tmp_path: Path) -> None:
    run = a_run(tmp_path, "analysis", "volumes", ("adults alone",))
    whole, bare = a_table(tmp_path, "north"), a_table(tmp_path, "south", "de", low=None)
    assert write_dossier(run, tmp_path / "out", metrics=[whole])["missing"] == []
    made = write_dossier(run, tmp_path / "out", metrics=[whole, bare])
    assert made["missing"] == ["intervals of every figure"]


def test_a_figure_that_nobody_could_take_needs_no_interval(tmp_path: Path) -> None:
    run = a_run(tmp_path, "analysis", "volumes", ("adults alone",))
    absent = a_table(tmp_path, "north", "abc", mean=None, low=None, high=None)
    assert write_dossier(run, tmp_path / "out", metrics=[absent])["missing"] == []


def test_a_table_without_a_case_measures_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path, "tool", "drafts", ("none known",))
    made = write_dossier(run, tmp_path / "out", metrics=[a_table(tmp_path, "north", "")])
    assert made["missing"] == ["measured on cases that it never saw"]


def test_a_changed_weight_breaks_the_record(tmp_path: Path) -> None:
    run = a_run(tmp_path, "tool", "drafts", ("none known",))
    (run / "fold_0" / "weights.safetensors").write_bytes(b"others")
    made = write_dossier(run, tmp_path / "out", metrics=[a_table(tmp_path, "north")])
    assert made["missing"] == ["an unbroken signed record from data to weights"]


def test_a_model_without_a_declaration_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="serve declare"):
        write_dossier(tmp_path, tmp_path / "out")
