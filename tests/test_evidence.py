"""Evidence: what is appended verifies, and one changed bit anywhere is named."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qinjing import evidence
from qinjing.errors import EvidenceError
from qinjing.evidence.digests import HEAD, RECORD
from qinjing.evidence.envelope import (
    HEAD_PAYLOAD,
    STATEMENT_PAYLOAD,
    load_private_key,
    pre_authentication,
    public_text,
    seal,
    sha256,
    unseal,
)
from qinjing.evidence.head import write_head


@pytest.fixture(autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("key") / "key.pem"
    monkeypatch.setenv("QINJING_EVIDENCE_KEY", str(path))
    return path


@dataclass(frozen=True)
class Settings:
    dataset: Path
    rate: float = 0.1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with two statements about three files, its data set beside it."""
    dataset = tmp_path / "data"
    dataset.mkdir()
    (dataset / "a.nii").write_bytes(b"a" * 200)
    (dataset / "b.nii").write_bytes(b"b" * 100)
    folder = tmp_path / "run"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plan.json").write_text('{"patch": [64, 64, 64]}')
    (folder / "fold_0" / "log.jsonl").write_text('{"step": 1}\n')
    settings = Settings(dataset=Path("/home/someone/data"))
    read = evidence.digested({"dataset": dataset})
    evidence.append(folder, "plan", read, [folder / "plan.json"], settings)
    (folder / "fold_0" / "weights").write_bytes(bytes(range(256)))
    evidence.append(folder, "train", read, [folder / "fold_0"], {"seed": 0})
    return folder


def statement(folder: Path, line: int = -1) -> dict:
    envelope = json.loads((folder / RECORD).read_bytes().splitlines()[line])
    return json.loads(base64.b64decode(envelope["payload"]))


def test_untouched_record_verifies(run: Path) -> None:
    result = evidence.verify(run)
    assert not result.faults and not result.unclaimed and not result.notes and not result.unchecked
    assert [s.command for s in result.statements] == ["plan", "train"]
    assert set(result.statements[1].outputs) == {"fold_0/log.jsonl", "fold_0/weights"}
    assert len(result.key_ids) == 1


def test_statement_is_in_toto_and_names_what_is_needed(run: Path) -> None:
    content = statement(run, 0)
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["subject"][0]["name"] == "plan.json"
    predicate = content["predicate"]
    assert predicate["index"] == 0 and predicate["previous"] is None
    assert predicate["inputs"][0]["name"] == "dataset"
    assert (
        predicate["code"]["name"] == "qinjing" and len(predicate["code"]["digest"]["sha256"]) == 64
    )
    assert predicate["runtime"]["python"].startswith("3.")
    # A folder above the data, which may be named after a person, is never written down.
    assert predicate["configuration"]["content"] == {"dataset": "data", "rate": 0.1}
    assert "someone" not in json.dumps(content)
    assert statement(run, 1)["predicate"]["previous"] == sha256(
        (run / RECORD).read_bytes().splitlines()[0]
    )


def test_far_input_is_kept_by_role_alone(tmp_path: Path) -> None:
    far = tmp_path / "WANG_WEI" / "scans"
    far.mkdir(parents=True)
    (far / "x.nii").write_bytes(b"x")
    folder = tmp_path / "out" / "deep" / "run"
    folder.mkdir(parents=True)
    (folder / "y").write_bytes(b"y")
    evidence.append(folder, "predict", evidence.digested({"images": far}), [folder / "y"], {})
    assert "WANG_WEI" not in json.dumps(statement(folder))
    result = evidence.verify(folder)
    assert not result.faults and len(result.unchecked) == 1
    checked = evidence.verify(folder, sources=[far])
    assert not checked.faults and not checked.unchecked
    (far / "x.nii").write_bytes(b"z")
    assert "not an input" in str(evidence.verify(folder, sources=[far]).faults[0])


@pytest.mark.parametrize("name", [RECORD, HEAD, "plan.json", "fold_0/log.jsonl", "fold_0/weights"])
def test_every_flipped_bit_is_named(run: Path, name: str) -> None:
    path = run / name
    whole = path.read_bytes()
    rng = random.Random(0)
    places = range(len(whole)) if len(whole) < 150 else sorted(rng.sample(range(len(whole)), 150))
    # The ends of lines are where a careless check would slip.
    places = sorted({*places, 0, len(whole) - 1, *[i for i, b in enumerate(whole) if b == 10]})
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        named = [fault for fault in evidence.verify(run).faults if fault.where == name]
        assert named, f"byte {place} of {name} changed and was not named"
        if name == RECORD:
            line = whole[:place].count(b"\n") + 1
            assert any(fault.line in (line, line + 1) for fault in named)
    path.write_bytes(whole)
    assert not evidence.verify(run).faults


def test_every_bit_of_an_envelope_is_held(run: Path) -> None:
    """Base64 has spare bits and JSON has spare forms; none may pass unseen."""
    whole = (run / HEAD).read_bytes()[:-1]
    assert unseal(whole, HEAD_PAYLOAD)[0]["count"] == 2
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            with pytest.raises(ValueError):
                unseal(bytes(changed), HEAD_PAYLOAD)


def test_changed_input_is_named(run: Path) -> None:
    (run.parent / "data" / "a.nii").write_bytes(b"a" * 199 + b"b")
    (fault,) = evidence.verify(run).faults
    assert fault.where == "../data" and "dataset" in fault.message


@pytest.mark.parametrize("change", ["rewrite", "add", "remove"])
def test_an_input_changed_during_the_work_is_refused(run: Path, change: str) -> None:
    data, record = run.parent / "data", (run / RECORD).read_bytes()
    read = evidence.digested({"dataset": data})
    name = {"rewrite": "a.nii", "add": "c.nii", "remove": "b.nii"}[change]
    (data / name).write_bytes(b"other") if change != "remove" else (data / name).unlink()
    (run / "table.json").write_text("{}")
    with pytest.raises(EvidenceError, match=rf"input dataset .* another {name}") as refusal:
        evidence.append(run, "evaluate", read, [run / "table.json"], {})
    assert "\n" not in str(refusal.value) and (run / "table.json").exists()
    assert (run / RECORD).read_bytes() == record


def test_an_input_file_overwritten_by_its_output_is_refused(run: Path) -> None:
    read = evidence.digested({"plan": run / "plan.json"})
    (run / "plan.json").write_text("{}")
    with pytest.raises(EvidenceError, match="input plan must be unchanged"):
        evidence.append(run, "plan", read, [run / "plan.json"], {})


def test_what_was_read_is_signed_not_what_the_work_left(tmp_path: Path) -> None:
    """A split written into its data set is an output alone; the data set's digest is as before."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.nii").write_bytes(b"a")
    for content in ("[]", "[{}]"):  # the second overwrites the first
        read = evidence.digested({"dataset": data})
        (data / "splits.json").write_text(content)
        evidence.append(data, "split", read, [data / "splits.json"], {})
        assert not evidence.verify(data).faults
        checked = evidence.verify(data, sources=[data])
        assert not checked.faults and not checked.unchecked
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(data / "a.nii", alone / "a.nii")
    recorded = statement(data)["predicate"]["inputs"][0]["digest"]["sha256"]
    assert recorded == evidence.digest(alone)
    (data / "a.nii").write_bytes(b"b")
    assert "is not the dataset" in str(evidence.verify(data).faults[0])


def test_the_folder_of_the_work_is_no_input_and_holds_none(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "data" / "run"
    output.mkdir(parents=True)
    (data / "a.nii").write_bytes(b"a")
    (output / "cache").write_bytes(b"of a run that was killed")
    read = evidence.digested({"dataset": data}, without=output)
    (output / "cache").unlink()
    (output / "weights").write_bytes(b"w")
    evidence.append(output, "train", read, [output], {})
    assert not evidence.verify(output, sources=[data]).faults
    for place in (data, tmp_path):
        with pytest.raises(EvidenceError, match="does not hold the input"):
            evidence.digested({"dataset": data}, without=place)


def test_missing_and_unclaimed_files_are_named(run: Path) -> None:
    (run / "fold_0" / "weights").unlink()
    (run / "stranger.txt").write_text("hello")
    result = evidence.verify(run)
    assert [fault.where for fault in result.faults] == ["fold_0/weights"]
    assert result.unclaimed == ("stranger.txt",)


def test_later_statement_replaces_an_output(run: Path) -> None:
    log = run / "fold_0" / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n')
    assert evidence.verify(run).faults
    read = evidence.digested({"dataset": run.parent / "data"})
    evidence.append(run, "train", read, [log], {"resume": True})
    assert not evidence.verify(run).faults


@pytest.mark.parametrize("keep", [0, 1])
def test_lines_cut_from_the_end_are_found_and_not_built_upon(run: Path, keep: int) -> None:
    lines = (run / RECORD).read_bytes().splitlines(keepends=True)
    (run / RECORD).write_bytes(b"".join(lines[:keep]))
    assert any(fault.where == HEAD for fault in evidence.verify(run).faults)
    with pytest.raises(EvidenceError, match="qinjing verify"):
        evidence.append(run, "train", {}, [], {})


def test_missing_head_or_record_is_found(run: Path) -> None:
    shutil.copy(run / HEAD, run / "kept")
    (run / HEAD).unlink()
    assert any(fault.where == HEAD for fault in evidence.verify(run).faults)
    with pytest.raises(EvidenceError, match="evidence record"):
        evidence.append(run, "train", {}, [], {})
    (run / "kept").rename(run / HEAD)
    (run / RECORD).unlink()
    assert any(fault.where == RECORD for fault in evidence.verify(run).faults)


def test_a_record_cut_and_left_without_its_head_is_found(run: Path, tmp_path: Path) -> None:
    """Nor does a head that anyone can sign stand in for the one that was taken."""
    first = (run / RECORD).read_bytes().splitlines(keepends=True)[0]
    (run / RECORD).write_bytes(first)
    (run / HEAD).unlink()
    (fault,) = [fault for fault in evidence.verify(run).faults if fault.where == HEAD]
    assert "missing beside 1 lines" in fault.message
    with pytest.raises(EvidenceError, match="missing beside 1 lines"):
        evidence.append(run, "train", {}, [], {})
    write_head(run, evidence.load_private_key(tmp_path / "other.pem"), 0, None)
    (fault,) = [fault for fault in evidence.verify(run).faults if fault.where == HEAD]
    assert "another key than line 1" in fault.message
    with pytest.raises(EvidenceError, match="another key"):
        evidence.append(run, "train", {}, [], {})


class Killed(BaseException):
    """Stands for the end of the process at one call."""


@pytest.mark.parametrize("at", range(8))
def test_the_first_append_killed_anywhere_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Before each step that changes the disk: both heads' files, their renames, and the line."""
    evidence.load_private_key()
    steps = 0

    def dies(function: Any) -> Any:
        def counted(*words: Any, **options: Any) -> Any:
            nonlocal steps
            if steps == at:
                raise Killed
            steps += 1
            return function(*words, **options)

        return counted

    with monkeypatch.context() as patch:
        for name in ("write", "fsync"):
            patch.setattr(os, name, dies(getattr(os, name)))
        patch.setattr(Path, "replace", dies(Path.replace))
        try:
            evidence.append(tmp_path, "first", {}, [], {})
        except Killed:
            assert at < 6
        else:
            assert steps == 6 <= at
    found = evidence.verify(tmp_path)
    empty = (tmp_path / RECORD).read_bytes() == b"" and not (tmp_path / HEAD).exists()
    assert bool(found.faults) == empty  # nothing is recorded yet, which does not verify
    evidence.append(tmp_path, "second", {}, [], {})
    after = evidence.verify(tmp_path)
    assert not after.faults and not after.notes
    assert [s.command for s in after.statements][-1] == "second"


def test_lines_swapped_or_repeated_are_found(run: Path) -> None:
    first, second = (run / RECORD).read_bytes().splitlines(keepends=True)
    for order in ([second, first], [first, first, second], [second]):
        (run / RECORD).write_bytes(b"".join(order))
        assert any(fault.where == RECORD for fault in evidence.verify(run).faults)


def test_record_made_anew_with_another_key_is_found_by_the_trusted_key(
    run: Path, own_key: Path, tmp_path: Path
) -> None:
    forged = tmp_path / "forged.pem"
    (run / RECORD).unlink()
    (run / HEAD).unlink()
    evidence.append(run, "train", {}, [run], {}, key=forged)
    assert not evidence.verify(run).faults  # the stated limit
    assert any("another key" in f.message for f in evidence.verify(run, trusted_key=own_key).faults)
    assert not evidence.verify(run, trusted_key=forged).faults


def test_head_signed_by_another_key_is_found(run: Path, tmp_path: Path) -> None:
    lines = (run / RECORD).read_bytes().splitlines(keepends=True)
    other = tmp_path / "other"
    other.mkdir()
    evidence.append(other, "x", {}, [], {}, key=tmp_path / "other.pem")
    (run / RECORD).write_bytes(lines[0])
    key = evidence.load_private_key(tmp_path / "other.pem")
    head = {"count": 1, "last": sha256(lines[0][:-1]), "public_key": public_text(key)}
    (run / HEAD).write_bytes(seal(key, HEAD_PAYLOAD, head) + b"\n")
    assert any("another key" in fault.message for fault in evidence.verify(run).faults)


def test_torn_line_is_found_then_cut_and_recorded(run: Path) -> None:
    with (run / RECORD).open("ab") as file:
        file.write(b'{"payload":"torn')
    (fault,) = evidence.verify(run).faults
    assert fault.line == 3 and "16 bytes" in fault.message
    evidence.append(run, "resume", {}, [], {})
    assert not evidence.verify(run).faults
    cut = statement(run)["predicate"]["cut"]
    assert cut == {"bytes": 16, "digest": {"sha256": sha256(b'{"payload":"torn')}}


def test_a_kill_between_line_and_head_is_no_fault(run: Path) -> None:
    before = (run / HEAD).read_bytes()
    evidence.append(run, "third", {}, [], {})
    (run / HEAD).write_bytes(before)
    result = evidence.verify(run)
    assert not result.faults and "one line behind" in result.notes[0]
    evidence.append(run, "fourth", {}, [], {})
    assert evidence.verify(run).notes == ()


def test_a_long_record_costs_an_append_no_more_than_a_short_one(
    tmp_path: Path, own_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence.append(tmp_path, "first", {}, [], {})
    key = load_private_key(own_key)
    content, read, read_all = statement(tmp_path), os.pread, Path.read_bytes
    cost = [0]

    def counted(file: int, size: int, start: int) -> bytes:
        cost[-1] += size
        return read(file, size, start)

    def counted_all(path: Path) -> bytes:
        cost[-1] += path.stat().st_size * (path.parent == tmp_path)
        return read_all(path)

    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr(Path, "read_bytes", counted_all)
    lines = [(tmp_path / RECORD).read_bytes()[:-1]]
    for much in (100, 2000):
        while len(lines) < much:
            content["predicate"] |= {"index": len(lines), "previous": sha256(lines[-1])}
            lines.append(seal(key, STATEMENT_PAYLOAD, content))
        (tmp_path / RECORD).write_bytes(b"".join(line + b"\n" for line in lines))
        write_head(tmp_path, key, len(lines), sha256(lines[-1]))
        cost.append(0)
        evidence.append(tmp_path, "one more", {}, [], {})
        lines.append(read_all(tmp_path / RECORD).splitlines()[-1])
    assert 1000 < cost[2] <= cost[1] + 10 < 100_000  # the head's count has more digits
    monkeypatch.undo()
    monkeypatch.setenv("QINJING_EVIDENCE_KEY", str(own_key))
    found = evidence.verify(tmp_path)
    assert not found.faults and len(found.statements) == 2001


@pytest.mark.parametrize("long", [10, 40_000, 200_000])
def test_a_torn_line_of_any_length_is_cut(run: Path, long: int) -> None:
    """The end is read by blocks, and a line may lie across some of them."""
    evidence.append(run, "long", {}, [], {"note": "x" * long})
    with (run / RECORD).open("ab") as file:
        file.write(b"{" * long)
    evidence.append(run, "go on", {}, [], {})
    assert statement(run)["predicate"]["index"] == 3
    assert statement(run)["predicate"]["cut"]["bytes"] == long
    assert not evidence.verify(run).faults


def append_many(folder: str, start: int) -> None:
    for number in range(start, start + 10):
        path = Path(folder, f"{number}.txt")
        path.write_text(str(number))
        evidence.append(folder, "count", {}, [path], {"number": number})


def test_appends_from_several_processes(tmp_path: Path, own_key: Path) -> None:
    assert not own_key.exists()  # so that they race for making the key as well
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=append_many, args=(str(tmp_path), 10 * i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    result = evidence.verify(tmp_path)
    assert not result.faults and not result.unclaimed
    assert len(result.statements) == 30 and len(result.key_ids) == 1


def test_killed_appends_leave_a_record_that_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; from qinjing import evidence\n"
        "while True: evidence.append(sys.argv[1], 'x', {}, [], {'text': 'y' * 200000})"
    )
    rng = random.Random(1)
    for _ in range(4):
        worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        while not (tmp_path / RECORD).exists() and worker.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.3, 0.6))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        evidence.append(tmp_path, "after", {}, [], {})
        assert not evidence.verify(tmp_path).faults
        for path in (tmp_path / RECORD, tmp_path / HEAD):
            path.unlink()


def test_key_is_made_private_under_an_empty_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QINJING_EVIDENCE_KEY")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    evidence.load_private_key()
    path = tmp_path / "home" / ".config" / "qinjing" / "evidence_key.pem"
    assert evidence.private_key_path() == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert evidence.private_key_path() == tmp_path / "xdg" / "qinjing" / "evidence_key.pem"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "")
    assert evidence.private_key_path().is_absolute()


def test_home_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QINJING_EVIDENCE_KEY", str(tmp_path / "file" / "key.pem"))
    with pytest.raises(EvidenceError, match="QINJING_EVIDENCE_KEY"):
        evidence.append(tmp_path, "x", {}, [], {})
    assert not (tmp_path / RECORD).exists()


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAA\n"])
def test_damaged_key_is_said(own_key: Path, tmp_path: Path, content: bytes) -> None:
    own_key.write_bytes(content)
    with pytest.raises(EvidenceError, match="evidence key"):
        evidence.append(tmp_path, "x", {}, [], {})


def test_output_outside_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    (tmp_path / "run").mkdir()
    with pytest.raises(EvidenceError, match="inside"):
        evidence.append(tmp_path / "run", "x", {}, [tmp_path / "other"], {})
    with pytest.raises(EvidenceError, match="there"):
        evidence.append(tmp_path / "run", "x", {}, [tmp_path / "run" / "none"], {})
    with pytest.raises(EvidenceError, match="there"):
        evidence.digested({"images": tmp_path / "none"})
    for folder in (tmp_path / "none", tmp_path / "run"):
        with pytest.raises(EvidenceError):
            evidence.verify(folder)


def test_signed_path_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    """A record from somebody else must not make us read anywhere."""
    evidence.append(tmp_path, "x", {}, [], {})
    for name in ("/etc/passwd", "../../etc/passwd", "a/../../b"):
        content = statement(tmp_path)
        content["subject"] = [{"name": name, "digest": {"sha256": "0" * 64}}]
        line = seal(evidence.load_private_key(), STATEMENT_PAYLOAD, content)
        (tmp_path / RECORD).write_bytes(line + b"\n")
        assert any("no statement of ours" in f.message for f in evidence.verify(tmp_path).faults)


def test_any_bytes_are_refused_in_words(run: Path) -> None:
    rng = random.Random(2)
    whole = (run / RECORD).read_bytes()
    samples = [b"", b"\n", b"[]\n", b"{}\n", b"null\n", b"[" * 100_000 + b"\n", b"9" * 5000 + b"\n"]
    samples += [b'{"payload":1,"signatures":[{}]}\n', b'{"payload":"bnVsbA==","signatures":[1]}\n']
    samples += [whole[: rng.randrange(len(whole))] for _ in range(20)]
    samples += [rng.randbytes(300) for _ in range(20)]
    for content in samples:
        (run / RECORD).write_bytes(content)
        assert evidence.verify(run).faults


def test_hidden_files_links_and_circles(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "images" / "a").write_bytes(b"a")
    before = evidence.digest(data)
    (data / ".DS_Store").write_bytes(b"x")
    (data / "loop").symlink_to(data)
    assert evidence.digest(data) == before
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "images").symlink_to(data / "images")
    assert evidence.digest(linked) == before
    (data / "images" / "a").write_bytes(b"b")
    assert evidence.digest(linked) != before


def test_nested_records_are_walked(run: Path) -> None:
    inner = run / "predictions"
    inner.mkdir()
    (inner / "case.nii.gz").write_bytes(b"label")
    inputs = evidence.digested({"weights": run / "fold_0" / "weights"})
    evidence.append(inner, "predict", inputs, [inner], {})
    result = evidence.verify(run)
    assert not result.faults and not result.unclaimed and len(result.statements) == 3
    (inner / "case.nii.gz").write_bytes(b"Label")
    assert [f.where for f in evidence.verify(run).faults] == ["predictions/case.nii.gz"]


def test_a_nested_record_removed_is_found_by_strict_alone(run: Path) -> None:
    for inner in (run / "predictions", run.parent / "elsewhere"):
        inner.mkdir()
        (inner / "case.nii.gz").write_bytes(b"label")
        evidence.append(inner, "predict", {}, [inner], {})
    assert not evidence.verify(run, strict=True).faults
    for inner in (run / "predictions", run.parent / "elsewhere"):
        for name in (RECORD, HEAD):
            (inner / name).unlink()
    result = evidence.verify(run)
    assert not result.faults and result.unclaimed == ("predictions/case.nii.gz",)  # stated
    (fault,) = evidence.verify(run, strict=True).faults
    assert (fault.where, fault.message) == ("predictions/case.nii.gz", "is named by no statement")
    above = {fault.where for fault in evidence.verify(run.parent, strict=True).faults}
    assert {"elsewhere/case.nii.gz", "run/predictions/case.nii.gz"} <= above


def test_signature_holds_by_securesystemslib(run: Path) -> None:
    """An implementation that we did not write reads the envelope and agrees on every byte."""
    dsse = pytest.importorskip("securesystemslib.dsse")
    signers = pytest.importorskip("securesystemslib.signer")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    for line in (run / RECORD).read_bytes().splitlines():
        content = json.loads(line)
        envelope = dsse.Envelope.from_dict(json.loads(line))
        raw = base64.b64decode(statement(run)["predicate"]["public_key"])
        public = Ed25519PublicKey.from_public_bytes(raw)
        key = signers.SSlibKey.from_crypto(public, keyid=content["signatures"][0]["keyid"])
        assert envelope.pae() == pre_authentication(STATEMENT_PAYLOAD, envelope.payload)
        assert list(envelope.verify([key], 1)) == [key.keyid]
        envelope.payload = envelope.payload[:-1] + b" "
        with pytest.raises(Exception, match="threshold"):
            envelope.verify([key], 1)


def test_statement_is_accepted_by_in_toto_attestation(run: Path) -> None:
    module = pytest.importorskip("in_toto_attestation.v1.statement")
    from google.protobuf import json_format

    for line in (0, 1):
        read = module.Statement.copy_from_pb(
            json_format.ParseDict(statement(run, line), module.spb.Statement())
        )
        read.validate()
        assert read.pb.predicate_type == "urn:qinjing:evidence:v1"


def test_two_hundred_files_are_quick(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.nii").write_bytes(os.urandom(100_000))
    start = time.process_time()
    evidence.append(tmp_path, "train", {}, [tmp_path], {})
    assert not evidence.verify(tmp_path).faults
    assert time.process_time() - start < 3
