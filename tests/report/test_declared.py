"""A declaration is taken at its word only where the run's record signed it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("pydicom")

from qinjing.cli import main
from qinjing.config import write_json
from qinjing.errors import ConfigError, EvidenceError
from qinjing.evidence import append, verify
from qinjing.report import declared
from qinjing.report.declared import Declaration, declare, declared_of, served

TOOL = Declaration("liver", "CT", "tool")
ANALYSIS = Declaration("liver", "CT", "analysis")


@pytest.fixture(autouse=True)
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QINJING_EVIDENCE_KEY", str(tmp_path / "key.pem"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "a run"
    (run / "fold_0").mkdir(parents=True)
    write_json(run / "dataset.json", {"name": "Livers", "labels": {"background": 0, "liver": 1}})
    (run / "fold_0" / "weights.safetensors").write_bytes(b"weights")
    append(run, "train", {}, [run / "fold_0", run / "dataset.json"], {"seed": 0})
    return run


def commands(run: Path) -> list[str]:
    return [one.command for one in verify(run).statements]


def test_a_class_written_by_hand_is_refused(run: Path) -> None:
    file = declare(run, TOOL)
    assert served(run).declared == TOOL
    signed = file.read_text()
    file.write_text(signed.replace('"tool"', '"analysis"'))
    assert json.loads(file.read_text())["product_class"] == "analysis"
    with pytest.raises(EvidenceError, match="declaration must be as it was signed, got another"):
        served(run)
    file.write_text(signed)
    assert served(run).declared == TOOL


def test_a_declaration_that_nobody_signed_is_refused(run: Path) -> None:
    file = run / "declared.json"
    file.write_text('{"name": "liver", "modality": "CT", "product_class": "diagnosis"}')
    with pytest.raises(EvidenceError, match="declaration must be signed") as refused:
        served(run)
    assert f"serve declare -m '{run}' --class tool" in str(refused.value)
    # Another command that names the file makes no declaration of it.
    append(run, "train", {}, [file], {})
    with pytest.raises(EvidenceError, match="declaration must be signed"):
        served(run)


def test_the_last_statement_counts(run: Path) -> None:
    file = declare(run, TOOL)
    first = file.read_bytes()
    file.unlink()
    declare(run, ANALYSIS)
    assert served(run).declared == ANALYSIS
    file.write_bytes(first)
    with pytest.raises(EvidenceError, match="as it was signed"):
        served(run)


@pytest.mark.parametrize("fault", ["letter", "cut", "torn", "no head", "no record"])
def test_a_record_that_does_not_hold_bears_nothing_out(run: Path, fault: str) -> None:
    declare(run, TOOL)
    record = run / "evidence.jsonl"
    content = record.read_bytes()
    if fault == "letter":
        at = len(content) // 4
        record.write_bytes(content[:at] + (b"A" if content[at] != 65 else b"B") + content[at + 1 :])
    elif fault == "cut":
        record.write_bytes(content.splitlines(keepends=True)[0])
    elif fault == "torn":
        record.write_bytes(content + b'{"payload')
    else:
        (run / "evidence.head.json" if fault == "no head" else record).unlink()
    with pytest.raises(EvidenceError, match="record of the declared model") as refused:
        served(run)
    assert f"qinjing verify '{run}'" in str(refused.value)


def test_weights_are_not_read(run: Path) -> None:
    declare(run, TOOL)
    (run / "fold_0" / "weights.safetensors").unlink()
    assert served(run).declared == TOOL and verify(run).faults


@pytest.mark.parametrize("before", [None, ANALYSIS])
def test_killed_before_it_was_signed_it_is_signed_by_the_next_call(
    run: Path, before: Declaration | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before:
        declare(run, before).unlink()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(declared, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            declare(run, TOOL)
    with pytest.raises(EvidenceError):
        served(run)
    with pytest.raises(ConfigError, match="another class is another product"):
        declare(run, ANALYSIS)
    declare(run, TOOL)
    assert served(run).declared == TOOL and not verify(run).faults
    count = len(commands(run))
    declare(run, TOOL)
    assert len(commands(run)) == count and commands(run)[-1] == "declare"


@pytest.mark.parametrize("modality", ["", "ct", "C", "CT MR", "CT\n", "ÄT", "A" * 17, "M2"])
def test_a_modality_is_of_capital_letters(modality: str) -> None:
    with pytest.raises(ConfigError, match="modality must be of 2 to 16 letters A to Z"):
        Declaration("liver", modality, "tool")


@pytest.mark.parametrize(
    "name", ["", " ", "a\\b", "a^b", "a=b", "a\nb", "a\x1bb", "n" * 65], ids=repr
)
def test_a_name_is_one_that_dicom_can_bear(name: str) -> None:
    with pytest.raises(ConfigError, match="name must be printable text of 1 to 64 letters"):
        Declaration(name, "CT", "tool")


def test_names_and_modalities_that_are_in_use() -> None:
    for name in ("n" * 64, "Liver <1>", "肝脏", "Foie – été"):
        assert Declaration(name, "PT", "tool").name == name


def test_two_labels_of_one_name_are_refused(run: Path) -> None:
    labels = {"0": "background", "1": "lesion", "2": "lesion "}
    write_json(run / "dataset.json", {"name": "Livers", "labels": labels})
    with pytest.raises(ConfigError, match="labels must be of different names, got two called les"):
        declare(run, TOOL)
    assert not (run / "declared.json").exists()


def test_a_fold_is_what_its_run_was_declared(run: Path, tmp_path: Path) -> None:
    assert declared_of(run) is None and declared_of(run / "fold_0") is None
    declare(run, ANALYSIS)
    for place in (run, run / "fold_0"):
        found = declared_of(place)
        assert found is not None and found.product_class == "analysis"
    assert declared_of(tmp_path) is None


def test_a_declared_tool_gives_no_structured_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scan").mkdir()
    (tmp_path / "seg.nii.gz").write_bytes(b"is not read")
    words = ["export", "dicom", "-i", str(tmp_path / "seg.nii.gz"), "--source"]
    words += [str(tmp_path / "scan"), "-o", str(tmp_path / "out")]
    declare(run, TOOL)
    for model in (run, run / "fold_0"):
        assert main([*words, "-m", str(model), "--as", "seg", "sr"]) == 2
        said = capsys.readouterr().err
        assert "output must be what a product of class tool may put out, got a measurement" in said
        assert len(said.splitlines()) == 1 and not (tmp_path / "out").exists()
    # Its segmentation may leave, and without a declaration nothing is asked: both get to reading.
    for more in (["-m", str(run), "--as", "seg"], ["--as", "sr"]):
        assert main([*words, *more]) == 2
        assert "product of class" not in capsys.readouterr().err
