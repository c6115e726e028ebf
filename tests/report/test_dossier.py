"""The dossier says what is there, and what a class needs and is missing."""

from __future__ import annotations

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
    append(run, "train", {}, [run / "fold_0", run / "dataset.json"], {"seed": 0})
    declare(run, Declaration("Liver <1>", "CT", product_class, use, limits))
    return run


def a_table(folder: Path, name: str) -> Path:
    interval = {"mean": 0.91, "low": 0.88, "high": 0.93, "n": 9}
    case = {"case_id": "a", "labels": {"1": {"dice": 0.91}}}
    (folder / name).mkdir()
    write_json(
        folder / name / "metrics.json",
        {"labels": {"1": "liver"}, "cases": [case],
         "mean": {"1": {"dice": interval}, "foreground": {"dice": interval}}},
    )  # fmt: skip
    return folder / name / "metrics.json"


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
    for person, did in (("Li", "image opened"), ("Li", "confirmed"), ("Wang", "image opened")):
        append(tmp_path / "s" / "audit" / "day", "serve", {}, (), {"person": person, "did": did})
    tables = [a_table(tmp_path, "north"), a_table(tmp_path, "south")]
    made = write_dossier(run, tmp_path / "out", metrics=tables, service=tmp_path / "s")
    assert made["missing"] == []
    told = json.loads(Path(made["json"]).read_text())["use"]
    assert told["did"] == {"confirmed": 1, "image opened": 2} and told["confirmed_by"] == ["Li"]
    record = tmp_path / "s" / "audit" / "day" / "evidence.jsonl"
    record.write_bytes(record.read_bytes().replace(b'"', b'"', 1)[:-1])
    again = write_dossier(run, tmp_path / "out", metrics=tables, service=tmp_path / "s")
    assert again["missing"] == ["an audit of use that holds"]


def test_a_changed_weight_breaks_the_record(tmp_path: Path) -> None:
    run = a_run(tmp_path, "tool", "drafts", ("none known",))
    (run / "fold_0" / "weights.safetensors").write_bytes(b"others")
    made = write_dossier(run, tmp_path / "out", metrics=[a_table(tmp_path, "north")])
    assert made["missing"] == ["an unbroken signed record from data to weights"]


def test_a_model_without_a_declaration_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="serve declare"):
        write_dossier(tmp_path, tmp_path / "out")
