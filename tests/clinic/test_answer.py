"""From a PACS to a model and back: Orthanc sends a study, gets segmentation and report."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
for package in ("highdicom", "pynetdicom", "sqlalchemy", "fpdf", "dicomweb_client"):
    pytest.importorskip(package)

from qinjing.data.database import Database  # noqa: E402
from qinjing.data.dicom.read import read_dicom  # noqa: E402
from qinjing.data.dicom.read_seg import read_seg  # noqa: E402
from qinjing.data.nifti import read_nifti  # noqa: E402
from qinjing.errors import ConfigError  # noqa: E402
from qinjing.evidence import verify  # noqa: E402
from qinjing.report.declared import ServedModel, declare, served  # noqa: E402
from qinjing.serve.answer import answer  # noqa: E402
from qinjing.serve.catalogue import Catalogue, open_catalogue  # noqa: E402
from qinjing.serve.node import NodeConfig, described, node  # noqa: E402
from qinjing.serve.send import Destination  # noqa: E402
from qinjing.serve.work import WorkConfig, work  # noqa: E402
from qinjing.tasks.predict import predict_folder  # noqa: E402
from tests.clinic.answering import get, model_of, post, worked  # noqa: E402
from tests.clinic.orthanc import free_port, started  # noqa: E402
from tests.data.dicom.derive import errors_of  # noqa: E402


@pytest.mark.parametrize("product_class", ["tool", "analysis"])
def test_a_study_goes_from_orthanc_to_the_model_and_back(
    product_class: str, run: Path, study: Path, dataset: Path, tmp_path: Path
) -> None:
    port = free_port()
    with started(tmp_path / "orthanc", {"qinjing": ("QINJING", port)}) as pacs:
        catalogue = open_catalogue(tmp_path / "studies")
        client = pacs.client()
        client.store_instances([pydicom.dcmread(file) for file in sorted(study.rglob("*.dcm"))])
        (there,) = get(f"{pacs.url}/studies")
        config = NodeConfig(port=port, quiet_s=0.2, kinds=("predict",), callers=("ORTHANC",))
        model = model_of(run, product_class)
        destination = Destination("ORTHANC", "127.0.0.1", pacs.port)
        with node(config, catalogue):
            post(f"{pacs.url}/modalities/qinjing/store", there)
            worked(catalogue, WorkConfig(("predict",), models=(model,), destination=destination))
        (job,) = catalogue.queue.of()
        assert job.state == "done" and job.reason == ""
        uid = job.study_instance_uid
        found = client.search_for_series(uid)
        modalities = sorted(one["00080060"]["Value"][0] for one in found)
        wanted = {"tool": ["SEG"], "analysis": ["SEG", "SR"]}[product_class]
        assert modalities == sorted(["CT", "CT", "DOC", *wanted])
        for one in found:
            for got in client.retrieve_series(uid, one["0020000E"]["Value"][0]):
                assert (got.PatientID, str(got.PatientName)) == ("P1", "Canary^Kanarie")
                path = tmp_path / f"{got.Modality}.dcm"
                got.save_as(path, enforce_file_format=True)
                if got.Modality in ("SEG", "SR", "DOC"):
                    assert errors_of(path) == []
    # The same voxels as `qinjing predict` labels on the NIfTI that this scan was.
    predict_folder(run, dataset / "images", tmp_path / "predicted")
    expected = read_nifti(tmp_path / "predicted" / "case0.nii.gz").canonical()
    scan = next(one for one in read_dicom(study).volumes if len(one.planes) > 2)
    said = read_seg(tmp_path / "SEG.dcm")
    marked = sum(said.mask(one.number, scan).canonical().voxels > 0 for one in said.segments)
    np.testing.assert_array_equal(marked, expected.voxels > 0)
    assert expected.voxels.any()
    made = json.loads(next((tmp_path / "studies").rglob("case.json")).read_text())
    assert (made["measured"] is None) == (product_class == "tool")


def test_a_second_attempt_gives_the_same_instances(run: Path, study: Path, tmp_path: Path) -> None:
    model = model_of(run, "analysis")
    uids = [_uids(answer(study, model, tmp_path / attempt)) for attempt in ("first", "second")]
    assert uids[0] == uids[1] and len(set(uids[0])) == 3
    other = _uids(answer(study, model_of(run, "tool"), tmp_path / "tool"))
    assert not set(other) & set(uids[0])


def test_a_study_without_a_fitting_series_is_left_alone(
    run: Path, study: Path, tmp_path: Path
) -> None:
    assert answer(study, model_of(run, "tool", modality="MR"), tmp_path / "out") == ([], [])


def test_a_model_has_one_declaration(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tool, analysis, diagnosis"):
        model_of(run, "toy")
    with pytest.raises(ConfigError, match="intended use and limits must be declared"):
        model_of(run, "diagnosis", limits=())
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with pytest.raises(ConfigError, match=r"serve declare -m .*run --class tool"):
        served(copy)
    said = model_of(run, "tool").declared
    declare(copy, said)
    declare(copy, said)
    assert served(copy) == ServedModel(copy, said) and verify(copy).faults == ()
    with pytest.raises(ConfigError, match="another class is another product"):
        declare(copy, replace(said, product_class="analysis"))


def _uids(answers: Any) -> list[str]:
    files = [file for one in answers[0] for file in one.files]
    return [str(pydicom.dcmread(file).SOPInstanceUID) for file in files]


def test_a_diagnosis_goes_out_under_the_name_of_who_confirmed_it(
    run: Path, study: Path, tmp_path: Path
) -> None:
    model = model_of(run, "diagnosis")
    catalogue = open_catalogue(tmp_path / "studies")
    _take_in(catalogue, sorted(study.rglob("*.dcm")))
    config = WorkConfig(("predict", "release"), models=(model,))
    worked(catalogue, config)
    (job,) = catalogue.queue.of()
    assert job.result["made"] == ["seg.dcm"]  # findings and figures wait
    (image,) = [one for one in catalogue.images.all() if one.shape[2] > 2]
    (one,) = catalogue.images.segmentations(image.image_id)
    assert one.confidence and one.maker.startswith("sha256:")
    assert catalogue.confirm(one, "Mei Li", image.study, lambda: None)
    worked(catalogue, config)
    released = catalogue.queue.of()[-1]
    assert released.kind == "release" and sorted(released.result["made"]) == [
        "report.dcm", "seg.dcm", "sr.dcm",
    ]  # fmt: skip
    (place,) = (catalogue.folder / "made").rglob("sr.dcm")
    said = pydicom.dcmread(place)
    assert said.VerificationFlag == "VERIFIED"
    assert said.VerifyingObserverSequence[0].VerifyingObserverName == "Li^Mei"
    assert errors_of(place) == []
    html = next((catalogue.folder / "made").rglob("case.html")).read_text()
    assert "Confirmed by Mei Li" in html


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in test_node
def test_what_waits_for_the_archive_says_no_more_than_its_model_may_by_then(
    run: Path, study: Path, tmp_path: Path
) -> None:
    now = [time.time()]
    folder = tmp_path / "studies"
    place = tmp_path / "catalogue.sqlite"
    database = Database(place, what="catalogue", extra="serve", create=True)
    catalogue = Catalogue(folder, database, lambda: now[0])
    _take_in(catalogue, sorted((study / "scan").glob("*.dcm")))
    away = Destination("ARCHIVE", "127.0.0.1", free_port())
    ended = threading.Event()
    config = WorkConfig(("predict",), models=(model_of(run, "analysis"),), destination=away)
    work(catalogue, config, ended, lambda *_: ended.set())
    (job,) = catalogue.queue.of()
    assert job.state == "waiting" and list(folder.rglob("sr.dcm"))
    now[0] += 100
    archive = tmp_path / "archive"
    archive.mkdir()
    worked(
        catalogue,
        WorkConfig(("predict",), models=(model_of(run, "tool"),), destination=archive),
    )
    assert sorted(file.name[:3] for file in archive.rglob("*.dcm")) == ["DOC", "SEG"]
    assert not list(folder.rglob("sr.dcm"))
    database.close()


def test_a_study_that_grows_is_another_image_and_is_answered_anew(
    run: Path, study: Path, tmp_path: Path
) -> None:
    catalogue = open_catalogue(tmp_path / "studies")
    files = sorted((study / "scan").glob("*.dcm"))
    config = WorkConfig(("predict",), models=(model_of(run, "analysis"),))
    _take_in(catalogue, files[:10])
    worked(catalogue, config)
    (early,) = catalogue.images.of_study(catalogue.queue.of()[0].study_instance_uid)
    _take_in(catalogue, files[10:])
    worked(catalogue, config)
    (late,) = catalogue.images.of_study(early.study)
    assert (early.shape[2], late.shape[2]) == (10, len(files))
    assert early.image_id != late.image_id and catalogue.images.get(early.image_id) == early
    for image in (early, late):
        (one,) = catalogue.images.segmentations(image.image_id)
        mask = read_nifti(catalogue.images.mask(one))
        assert mask.grid_difference(read_nifti(catalogue.images.volume(image.image_id))) is None


def _take_in(catalogue: Catalogue, files: list[Path]) -> None:
    for file in files:
        content = file.read_bytes()
        catalogue.keep(described(content), content)
    assert catalogue.queue_quiet(-1, ["predict"]) == 1
