"""Training on what was labelled: one at a time, with consent, ended and found again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("highdicom")
pytest.importorskip("python_multipart")

from qinjing.config import read_json, write_json
from qinjing.data.layouts import open_dataset
from qinjing.errors import ConfigError
from qinjing.physics.phantom import write_dataset
from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.drawn import About
from qinjing.serve.labelling.cases import Labelled, write_cases
from qinjing.serve.labelling.train import Trainings
from qinjing.tasks.consented import admitted
from tests.serve.conftest import Service, say
from tests.serve.monailabel import client_class
from tests.tasks.test_train import write_case

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for number in range(5):
        write_case(folder, f"case{number}", number)
    return folder


@pytest.fixture
def catalogue(dataset: Path, tmp_path: Path) -> Catalogue:
    """Five scans, each called as its patient, whom a log must not name."""
    catalogue = open_catalogue(tmp_path / "clinic")
    for number in range(5):
        file = dataset / "images" / f"case{number}.nii.gz"
        catalogue.images.add_image(file, About(name=f"Canary{number}", modality="CT"))
    return catalogue


def signed_in(service: Service, address: str, scratch: Path) -> Any:
    client = client_class().MONAILabelClient(f"{address}/monailabel", str(scratch))
    client.update_auth(client.auth_token("Dr. Li", service.token("reader", name="Dr. Li")))
    return client


def serve(make: Callable[..., Service], catalogue: Catalogue) -> Service:
    return make(folder=catalogue.folder)


def label_all(client: Any, catalogue: Catalogue, dataset: Path) -> None:
    names = [{"name": "rim", "idx": 2}, {"name": "core", "idx": 5}]
    for number, image in enumerate(catalogue.images.all()):
        label = str(dataset / "labels" / f"case{number}.nii.gz")
        client.save_label(image.image_id, label, params={"label_info": names})


def test_a_training_begins_and_is_ended(
    make: Callable[..., Service], running: Callable[[Service], str], catalogue: Catalogue,
    dataset: Path, tmp_path: Path,
) -> None:  # fmt: skip
    service = serve(make, catalogue)
    client = signed_in(service, running(service), tmp_path)
    module = client_class()
    assert list(client.info()["trainers"]) == ["qinjing"] and client.info()["train_stats"] == {}
    assert client.train_status(check_if_running=True) is False
    with pytest.raises(module.MONAILabelClientException, match="409"):
        client.train_start("qinjing", {})
    label_all(client, catalogue, dataset)
    for status, model, params in (
        ("404", "other", {}),
        ("400", "qinjing", {"steps": "-1"}),
        ("400", "qinjing", {"minutes": 1e9}),
    ):
        with pytest.raises(module.MONAILabelClientException, match=status):
            client.train_start(model, params)
    begun = client.train_start("qinjing", {"steps": "2", "minutes": 15})
    assert begun["status"] == "RUNNING" and begun["request"]["steps"] == 2
    with pytest.raises(module.MONAILabelClientException, match="429"):
        client.train_start("", {"qinjing": {"steps": 3}})
    assert client.train_status(check_if_running=True) is True
    assert client.info()["train_stats"]["qinjing"]["start_ts"] == begun["start_ts"]
    ended = client.train_stop()
    assert (ended["id"], ended["status"]) == (begun["id"], "STOPPED") and ended["details"]
    assert client.train_stop() is None
    assert client.train_status()["status"] == "STOPPED"
    assert client.train_status(check_if_running=True) is False
    browser = service.client("reader", name="Dr. Li")
    log = browser.get("/monailabel/logs/?lines=50&html=false").text
    assert "training begins" in log and log.rstrip().endswith("training ends: STOPPED")
    page = browser.get("/monailabel/logs/?refresh=1").text
    assert 'content="3"' in page and "<script" not in page
    assert "Canary" not in log and str(tmp_path) not in log
    found = serve(make, catalogue).client("reader").get("/monailabel/train/?all=true").json()
    assert [one["id"] for one in found] == [begun["id"]] and "pid" not in found[0]


def test_what_ran_when_the_service_went_down_is_ended(tmp_path: Path) -> None:
    place = tmp_path / "0001"
    words = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    left = subprocess.Popen(
        [*words, str(place / "run")], start_new_session=True, stdout=subprocess.PIPE
    )
    other = subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert left.stdout is not None and other.stdout is not None
        left.stdout.readline(), other.stdout.readline()
        known = {
            "id": "0001",
            "status": "RUNNING",
            "start_ts": "2026-01-01 00:00:00",
            "details": [],
        }
        write_json(place / "task.json", {**known, "pid": left.pid})
        # A process that has the number of one that is long gone.
        write_json(tmp_path / "0002" / "task.json", {**known, "id": "0002", "pid": other.pid})
        found = Trainings(tmp_path).all()
        assert [one["status"] for one in found] == ["STOPPED", "STOPPED"]
        assert "went down" in found[0]["details"][-1]
        assert left.wait(20) != 0 and other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.communicate()


def cases_of(dataset: Path, *patients: str) -> list[Labelled]:
    return [
        Labelled(
            f"{number:032x}", dataset / "images" / f"case{number}.nii.gz",
            dataset / "labels" / f"case{number}.nii.gz", {2: "rim", 5: "core"}, "CT", patient,
        )
        for number, patient in enumerate(patients)
    ]  # fmt: skip


def test_only_patients_who_consent_pass_the_gate(
    place: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store knows p-anna and p-bela; one other never said anything, one has no file's name."""
    told: list[str] = []
    cases = cases_of(dataset, "p-anna", "p-bela", "p-carl", "a/../b", "")
    names = write_cases(cases, (), True, tmp_path / "data", told.append)
    monkeypatch.setenv("QINJING_CONSENT", place)
    say(place, "deny", "p-bela")
    allowed, refused = admitted(open_dataset(tmp_path / "data")).parted()
    assert [(case.patient_id, names[case.case_id]) for case in allowed] == [("p-anna", f"{0:032x}")]
    assert len(refused) == 2 and any("whom nobody can ask for consent: 2" in one for one in told)


def test_labels_go_by_their_names(dataset: Path, tmp_path: Path) -> None:
    told: list[str] = []
    first, second, third, other = cases_of(dataset, "1", "2", "2", "3")
    second = replace(second, labels={2: "core", 5: "rim"})
    third = replace(third, labels={2: "rim"})
    other = replace(other, modality="MR")
    made = tmp_path / "data"
    write_cases([first, second, third, other], ["core"], False, made, told.append)
    opened = open_dataset(made)
    assert dict(opened.labels) == {0: "background", 1: "core", 2: "rim"}
    assert opened.channel_names == ("CT",)
    by_image = {case.case_id.rpartition(".")[2]: case for case in opened.cases}
    assert len({case.patient_id for case in opened.cases}) == 2 and len(opened.cases) == 3
    assert not {"1", "2"} & {case.patient_id for case in opened.cases}  # no patient is named
    for one, values in ((first, {2: 2, 5: 1}), (second, {2: 1, 5: 2}), (third, {2: 2, 5: 0})):
        label = by_image[one.image_id].label
        assert label is not None
        before, after = (np.asanyarray(nib.load(file).dataobj) for file in (one.mask, label))
        for old, new in values.items():
            assert (after[before == old] == new).all() and (before == old).any()
        image = by_image[one.image_id].images[0]
        assert image.read_bytes() == one.image.read_bytes()
    assert any("another modality than CT: 1" in one for one in told)
    assert any(one.startswith("core is named in 2 of 3 cases") for one in told)
    with pytest.raises(ConfigError, match="labels"):
        write_cases([replace(first, labels={})], (), False, tmp_path / "none", told.append)


@pytest.mark.slow
def test_a_training_comes_to_its_end_without_whom_did_not_consent(
    make: Callable[..., Service], running: Callable[[Service], str], place: str, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "phantom", cases=5)
    catalogue = open_catalogue(tmp_path / "clinic")
    for number in range(5):
        file = data / "imagesTr" / f"phantom_{number:03d}.nii.gz"
        catalogue.images.add_image(file, About(name=f"Canary{number}", modality="MR"))
    say(place, "permit", *(f"Canary{number}" for number in range(4)))
    service = serve(make, catalogue)
    client = signed_in(service, running(service), tmp_path)
    for number, image in enumerate(catalogue.images.all()):
        label = str(data / "labelsTr" / f"phantom_{number:03d}.nii.gz")
        client.save_label(image.image_id, label)
    begun = client.train_start("qinjing", {"steps": 2})
    service.app.state.labelling.trainings.wait(600)
    ended = client.train_status()
    log = service.client("reader").get("/monailabel/logs/?lines=0&html=false").text
    assert (ended["id"], ended["status"]) == (begun["id"], "DONE"), log
    stats = client.info()["train_stats"]["qinjing"]
    assert (stats["epoch"], stats["total_epochs"]) == (2, 2) and stats["total_time"]
    assert 0 <= stats["best_metric"] <= 1
    run = catalogue.folder / "labelling" / "training" / begun["id"] / "run"
    learnt = {name for split in read_json(run / "splits_final.json") for name in split["train"]}
    assert {name.partition(".")[0] for name in learnt} == {f"Canary{number}" for number in range(4)}
    last = catalogue.images.all()[4].image_id
    assert "Canary" not in log and str(tmp_path) not in log and f"{last}: consent for" in log
    assert os.environ.get("QINJING_CONSENT") is None
