"""The commands that take studies in otherwise than by C-STORE, as somebody types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("httpx2")
pytest.importorskip("pydicom")
pytest.importorskip("pynetdicom")
pytest.importorskip("sqlalchemy")

from qinjing.serve.catalogue import open_catalogue
from tests.clinic.orthanc import Pacs
from tests.serve.dicom import content, instance

QINJING = [sys.executable, "-m", "qinjing", "serve"]


def soon(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until, "not within a minute"
        time.sleep(0.05)


def test_studies_are_fetched_and_queued(pacs: Pacs, tmp_path: Path) -> None:
    pytest.importorskip("dicomweb_client")
    for study in range(3):
        more = {"StudyDate": f"2025010{study + 1}"}
        pacs.client().store_instances([instance(study, plane, **more) for plane in range(2)])
    command = [*QINJING, "fetch", pacs.dicom_web, "-o", str(tmp_path), "--modality", "CT"]
    command += ["--dates", "20250102-", "--do", "show", "--json"]
    said = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout))
        assert "1.2.826" not in done.stdout + done.stderr
    assert said[0] | {"refused": []} == said[0]
    counted = [[one[name] for name in ("studies", "new", "known", "queued")] for one in said]
    assert counted == [[2, 4, 0, 2], [2, 0, 4, 0]]
    catalogue = open_catalogue(tmp_path)
    assert sorted(job.revision for job in catalogue.queue.of()) == [2, 2]
    wrong = [*QINJING, "fetch", "http://pacs.example/", "-o", str(tmp_path)]
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "of https" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_what_is_dropped_is_not_lost_when_the_node_is_killed(tmp_path: Path) -> None:
    """Killed -9 three times while sixty files come, one after the other."""
    drop, folder = tmp_path / "drop", tmp_path / "studies"
    drop.mkdir()
    command = [*QINJING, "node", "-o", str(folder), "--port", "0", "--watch", str(drop)]
    command += ["--quiet", "0.1", "--do", "show"]

    def taken() -> int:
        return len(list((drop / "taken").glob("*.dcm"))) if (drop / "taken").is_dir() else 0

    written = 0
    for life in range(4):
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            before = taken()
            for _ in range(15):
                whole = content(instance(1, written))
                (drop / f".{written}").write_bytes(whole)
                (drop / f".{written}").rename(drop / f"{written}.dcm")
                written += 1
            least = before + 1 if life < 3 else written
            soon(lambda least=least: taken() >= least)  # type: ignore[misc]
        finally:
            process.send_signal(signal.SIGKILL if life < 3 else signal.SIGINT)
            process.wait(timeout=60)
    catalogue = open_catalogue(folder)
    (study,) = catalogue.studies()
    assert study.instances == written == 60
    assert sorted(one.name for one in drop.iterdir()) == ["refused", "taken"]
    assert not list((drop / "refused").iterdir())
    files = [one for one in (folder / "instances").rglob("*.dcm") if one.is_file()]
    assert len(files) == 60
    said = (tmp_path / "log").read_text()
    assert "watching" in said and "files were taken" in said
    for word in ("Canary", "MRN", "1.2.826"):
        assert word not in said
