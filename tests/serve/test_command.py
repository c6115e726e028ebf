"""`qinjing serve` as a process: what it takes in, keeps through a kill, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydicom")
pytest.importorskip("pynetdicom")

import httpx2
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

from qinjing import cli
from qinjing.cli.serve import _node
from qinjing.errors import ConfigError
from qinjing.serve.auth import Tokens
from qinjing.serve.catalogue import open_catalogue, study_key
from qinjing.serve.settings import ServeConfig
from tests.serve.dicom import instance

QINJING = (sys.executable, "-m", "qinjing")


class Process:
    """A service, and the two addresses that it told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.dicom = int(self.line("listening as QINJING on").rsplit(":", 1)[1])
        self.page = self.line("serving").split()[1].rstrip(";")

    def line(self, begins: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith(begins):
                return line.strip()
        raise AssertionError(f"it never said {begins}")

    def end(self, how: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def worklist(self, token: str) -> list[dict[str, Any]]:
        """As the page lists it, once the house is lit."""
        headers = {"Authorization": f"Bearer {token}"}
        until = time.monotonic() + 30
        while True:
            try:
                answer = httpx2.post(f"{self.page}api/studies", json={}, headers=headers)
                break
            except httpx2.TransportError:
                assert time.monotonic() < until
        assert answer.status_code == 200, answer.text
        studies: list[dict[str, Any]] = answer.json()["studies"]
        return studies


@contextmanager
def serving(folder: Path, *words: str, command: tuple[str, ...] = QINJING) -> Iterator[Process]:
    ports = ("--port", "0", "--dicom-port", "0")
    process = subprocess.Popen(
        [*command, "serve", "-o", str(folder), *ports, *words],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=folder.parent,
        env={**os.environ, "QINJING_EVIDENCE_KEY": str(folder.parent / "key.pem")},
    )  # fmt: skip
    try:
        yield Process(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def store(port: int, *datasets: Any) -> list[int]:
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title="QINJING")
    assert association.is_established
    answers = [association.send_c_store(one).Status for one in datasets]
    association.release()
    return answers


def test_what_was_taken_in_is_shown_and_outlives_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    folder.mkdir()
    _, token = Tokens(folder / "tokens.jsonl").make("reader", name="Dr. Li")
    with serving(folder) as first:
        assert first.worklist(token) == []
        assert store(first.dicom, *(instance(1, number) for number in range(3))) == [0, 0, 0]
        (study,) = first.worklist(token)
        assert study["study"] == study_key(instance(1, 0).StudyInstanceUID)
        assert study["instances"] == 3
        assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL
    with serving(folder) as second:
        (again,) = second.worklist(token)
        assert (again["study"], again["instances"]) == (study["study"], 3)
        code, said = second.end(signal.SIGINT)
    assert code == 130 and "every change that was confirmed is kept" in said


HOLDING = """
import sys, threading
from pathlib import Path
from qinjing import cli
from qinjing.serve import node, work

def shown(job, catalogue, config):
    print("begun", file=sys.stderr, flush=True)
    while not Path("go").exists():
        threading.Event().wait(0.01)
    return {"images": [], "refused": 0}

work.KINDS["show"] = shown
made = node.NodeConfig.__init__
node.NodeConfig.__init__ = lambda self, **more: made(self, **more, quiet_s=0.1)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_termination_waits_for_the_job_at_hand(tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    command = (sys.executable, "-c", HOLDING)
    with serving(folder, command=command) as held:
        assert store(held.dicom, instance(1, 0)) == [0]
        held.line("begun")
        held.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 30
        while True:  # the page is closed, and the worker still at it
            try:
                httpx2.get(held.page)
            except httpx2.TransportError:
                break
            assert time.monotonic() < until
        assert held.process.poll() is None
        (job,) = open_catalogue(folder).queue.of()
        assert job.state == "taken"
        (tmp_path / "go").touch()
        code, said = held.end(signal.SIGTERM)  # asked twice, it ends as well
    assert code == 0, said
    (job,) = open_catalogue(folder).queue.of()
    assert (job.state, job.attempts) == ("done", 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--callers", "PACS"), "--callers must be given together with --dicom-port"),
        (("--tls-ca", "FILE"), "--tls-ca must be given together with --dicom-port"),
        (("--send-to", "PACS@h:104"), "--send-to must be given together with --dicom-port, --wat"),
        (("--login", "FILE", "--watch", "w"), "--login must be given together with --send-to"),
        (("--ca", "FILE", "--watch", "w"), "--ca must be given together with --send-to"),
        (("-m", "FILE", "-o", ""), "--model must be given together with --folder"),
        (("--watch", "w", "-o", ""), "--watch must be given together with --folder"),
        (("-o", "FILE"), "--folder must be a folder that can be written, got File exists"),
        (("-o", "/proc/none"), "--folder must be a folder that can be written"),
    ],
)
def test_what_would_do_nothing_is_refused(
    words: tuple[str, ...], sentence: str, place: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "file"
    file.touch()
    said = [str(file) if word == "FILE" else word for word in words]
    if "-o" not in said:
        said += ["-o", str(tmp_path / "studies")]
    elif "" in said:
        said = said[:-2]
    assert cli.main(["serve", "--consents", place, "--port", "0", *said]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [("token", "--role", "reader"), ("tokens",), ("revoke", "1a2b")])
def test_the_folder_of_tokens_must_be_there(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typo = tmp_path / "typo"
    assert cli.main(["serve", *words, "-o", str(typo)]) == 2
    err = capsys.readouterr().err
    assert "--folder must be there, got nothing" in err and "`qinjing serve -o` makes it" in err
    assert not typo.exists()
    if words[0] == "token":
        file = tmp_path / "tokens.jsonl"
        assert cli.main(["serve", *words, "-o", str(typo), "--tokens", str(file)]) == 0
        assert file.exists() and not typo.exists()


def test_a_place_for_tokens_that_cannot_be_written_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "token", "--role", "reader", "--json", "--tokens", "/proc/none/tokens.jsonl"]
    assert cli.main([*words, "-o", str(tmp_path)]) == 2
    assert (
        "tokens must be a file that can be written" in json.loads(capsys.readouterr().out)["error"]
    )


def test_the_page_s_certificate_is_not_asked_of_scanners_on_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "pem"
    here = ServeConfig("c")
    tls = replace(here, tls_cert=file, tls_key=file)
    for one in (here, tls):
        node = _node(one, 0, (), None, ("show",))
        assert node is not None and (node.host, node.tls_cert) == ("127.0.0.1", None)
    known = _node(tls, 0, (), file, ("show",))
    assert known is not None and known.tls_cert == known.tls_key == known.tls_ca == file
    with pytest.raises(ConfigError, match="--tls-cert, --tls-key and --tls-ca must be given toget"):
        _node(replace(tls, host="192.0.2.1"), 0, (), None, ("show",))
    assert _node(here, None, (), None, ("show",)) is None


def test_a_model_is_worked_with_where_others_take_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is there by -m and -o alone."""
    from types import SimpleNamespace

    model: Any = SimpleNamespace(name="liver", product_class="tool")
    begun: list[Any] = []
    monkeypatch.setattr("qinjing.report.declared.served", lambda run: model)
    monkeypatch.setattr("qinjing.serve.work.work", lambda _, doing, ended: begun.append(doing))
    monkeypatch.setattr("qinjing.serve.listen.listen", lambda config, tell: begun.append(config))
    words = ["serve", "-o", str(tmp_path / "studies"), "-m", str(tmp_path)]
    assert cli.main(words) == 0
    doing = next(one for one in begun if hasattr(one, "kinds"))
    assert doing.kinds == ("show", "release", "predict") and doing.models == (model,)
    begun.clear()
    assert cli.main(words[:3]) == 0
    assert len(begun) == 1  # without a model others do the work
