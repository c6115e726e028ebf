"""MONAI Label's protocol, asked by its own unchanged client; and what its plug-ins do beside it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("highdicom")
pytest.importorskip("python_multipart")
pytest.importorskip("SimpleITK")
pytest.importorskip("requests")

import pydicom
import requests
import SimpleITK as itk
import torch

from qinjing.config import write_json
from qinjing.data.case import Case
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import read_nifti
from qinjing.engine.checkpoint import save_model
from qinjing.engine.plan import make_plan
from qinjing.report.declared import Declaration, ServedModel, declare, served
from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.drawn import About
from qinjing.tasks.planning import measure
from qinjing.tasks.predict import Segmenter
from qinjing.tasks.select import doubter
from tests.serve import clinics
from tests.serve.clinics import fill
from tests.serve.conftest import Service
from tests.serve.monailabel import client_class
from tests.tasks.test_train import write_case

# The client leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
LABELS = {2: "rim", 5: "core"}
FIGURE = re.compile(r"\d\s*(ml|mm|cm)\b|_ml|axis_mm|diameter|volume_|finding", re.IGNORECASE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for number in range(5):
        write_case(folder, f"case{number}", number)
    return folder


@pytest.fixture(scope="module")
def model(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A network of random weights: what it says is nonsense, and always the same nonsense."""
    opened = open_dataset(dataset)
    plan = make_plan(measure(opened, opened.cases), device="cpu", threads=1, net="subvoxel_unet")
    run = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    save_model(run / "fold_0", plan.model, plan.model.build().state_dict())
    write_json(run / "plan.json", plan)
    labels = {str(value): name for value, name in {0: "background", **LABELS}.items()}
    write_json(run / "dataset.json", {"name": "set", "labels": labels, "channel_names": ["image"]})
    declare(run, Declaration("organ 1", "CT", "tool"))
    return served(run)


@pytest.fixture
def catalogue(dataset: Path, tmp_path: Path) -> Catalogue:
    """Four scans that nobody labelled."""
    catalogue = open_catalogue(tmp_path / "clinic")
    for number in range(4):
        file = dataset / "images" / f"case{number}.nii.gz"
        catalogue.images.add_image(file, About(name=f"case{number}", modality="CT"))
    return catalogue


@pytest.fixture
def clinic(make: Callable[..., Service], catalogue: Catalogue, model: ServedModel) -> Service:
    service = make(folder=catalogue.folder, served=(model,))
    second = catalogue.images.all()[1].image_id
    catalogue.projects.make("one", {1: "core", 2: "rim"}, [second], ["Ann"])
    return service


@pytest.fixture
def sign_in(
    clinic: Service, running: Callable[[Service], str], tmp_path: Path
) -> Callable[..., Any]:
    """Lets 3D Slicer's way in happen: a token as the password, against a running service."""
    module = client_class()
    address = f"{running(clinic)}/monailabel"

    def come(role: str, name: str) -> Any:
        client = module.MONAILabelClient(address, str(tmp_path), client_id="slicer")
        assert client.auth_enabled() is True and client.auth_valid_token() is False
        client.update_auth(client.auth_token(name, clinic.token(role, name=name)))
        assert client.auth_valid_token() is True
        return client

    return come


def label_of(dataset: Path, number: int) -> Path:
    return dataset / "labels" / f"case{number}.nii.gz"


def test_a_reader_works_through_his_images(
    sign_in: Callable[..., Any], catalogue: Catalogue, model: ServedModel, dataset: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    client = sign_in("reader", "Dr. Li")
    info = client.info()
    assert list(info["models"]) == ["click", "organ_1"] and info["labels"] == ["rim", "core"]
    assert info["models"]["organ_1"]["labels"] == {"rim": 2, "core": 5}
    assert info["datastore"] == {"total": 4, "completed": 0, "label_tags": {}}
    assert {"first", "random", "uncertainty"} == set(info["strategies"]) and "config" not in info

    sample = client.next_sample("first", {})
    first = catalogue.images.all()[0]
    assert sample["id"].startswith(first.image_id) and sample["name"].endswith(".nii.gz")

    answered, params = client.infer("organ_1", sample["id"], {"result_extension": ".nrrd"})
    scan = read_nifti(catalogue.images.volume(first.image_id))
    expected, _ = Segmenter.load(model.run).segment(scan.canonical())
    got = itk.GetArrayFromImage(itk.ReadImage(answered))
    assert np.array_equal(got, expected.restore_axes(scan).voxels) and len(np.unique(got)) > 1
    assert set(params["label_names"].values()) == set(np.unique(got)) - {0}
    image = itk.ReadImage(str(catalogue.images.volume(first.image_id)))
    assert np.allclose(itk.ReadImage(answered).GetOrigin(), image.GetOrigin(), atol=1e-4)
    assert np.allclose(itk.ReadImage(answered).GetDirection(), image.GetDirection(), atol=1e-6)

    names = [{"name": "shell", "idx": 2}, {"name": "seed", "idx": 5}]
    client.save_label(sample["id"], str(label_of(dataset, 0)), params={"label_info": names})
    assert client.info()["datastore"] == {"total": 4, "completed": 1, "label_tags": {"final": 1}}
    store = client.datastore()["objects"][sample["id"]]
    assert store["labels"]["final"]["info"]["label_info"] == names
    fetched = nib.load(client.download_label(sample["id"], "final"))
    assert np.array_equal(fetched.get_fdata(), nib.load(label_of(dataset, 0)).get_fdata())
    (kept,) = catalogue.images.segmentations(first.image_id)
    assert (kept.kind, kept.author, kept.state) == ("reader", "Dr. Li", "submitted")
    assert (dict(kept.labels), kept.product_class) == ({2: "shell", 5: "seed"}, "tool")

    assert not client.next_sample("first", {})["id"].startswith(first.image_id)
    for strategy in ("random", "uncertainty"):
        assert client.next_sample(strategy, {})["id"][:32] != first.image_id
    with pytest.raises(client_class().MONAILabelClientException) as refused:
        client.next_sample("lucky", {})
    assert refused.value.status_code == 404


def test_the_page_too_gives_what_a_model_is_least_sure_of(
    catalogue: Catalogue, clinic: Service, model: ServedModel
) -> None:
    look = doubter(model.run)

    def doubt(image: str) -> float:
        return float(look(Case(image, "", (catalogue.images.volume(image),)))[0])

    images = sorted((one.image_id for one in catalogue.images.all()), key=doubt)
    assert doubt(images[-1]) > doubt(images[0])
    client = clinic.client("admin", name="Chief")
    asked = {"name": "Organs", "labels": {"1": "core"}, "images": images, "readers": ["Chief"]}
    route = f"/api/projects/{client.post('/api/projects', json=asked).json()['project']}/next"
    assert client.get(route).json() == {"image": images[0]}
    assert client.get(f"{route}?look=true").json() == {"image": images[-1]}
    assert client.get(route).json() == {"image": images[-1]}  # it stays known


def test_slicer_fetches_the_next_image_without_a_token(
    sign_in: Callable[..., Any], catalogue: Catalogue, clinic: Service, tmp_path: Path
) -> None:
    """As its plug-in does: by the id that it was told, and no header."""
    client = sign_in("annotator", "Ann")
    first, second = catalogue.images.all()[:2]
    store = client.datastore()["objects"]
    (own,) = store
    assert own.startswith(second.image_id)

    def fetch(image: str, method: str = "GET") -> Any:
        address = f"{client.get_server_url()}/datastore/image?image={quote_plus(image)}"
        return requests.request(method, address, timeout=20)

    assert fetch(own).status_code == 401  # it was not handed out yet
    sample = client.next_sample("random", {})
    assert sample["id"] == own and fetch(own, "HEAD").status_code == 200
    got = fetch(own)
    assert got.status_code == 200
    assert got.content == catalogue.images.volume(second.image_id).read_bytes()
    assert sample["name"] in got.headers["content-disposition"]
    sealed, at = own.rpartition("-")[0], len(own) - 1
    for other in (
        second.image_id, own[:at] + ("0" if own[at] != "0" else "1"), f"{sealed}-{'0' * 32}",
        own.replace(own[:32], first.image_id), "../../../etc/passwd",
    ):  # fmt: skip
        answer = fetch(other)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), other
    other = client_class().MONAILabelClient(client.get_server_url(), str(tmp_path))
    token = clinic.token("annotator", name="Bo")
    other.update_auth(other.auth_token("Bo", token))
    assert other.next_sample("first", {}) == {}  # no project names him
    clinic.tokens.revoke(own.split("-")[1])
    assert fetch(own).status_code == 401


def test_a_wrong_token_opens_nothing(
    clinic: Service, running: Callable[[Service], str], tmp_path: Path
) -> None:
    module = client_class()
    client = module.MONAILabelClient(f"{running(clinic)}/monailabel", str(tmp_path))
    with pytest.raises(module.MONAILabelClientException) as refused:
        client.auth_token("Dr. Li", "qj_00000000_wrong")
    assert refused.value.status_code == 401
    for role, more in (("ethics", {}), ("patient", {"patient_id": "p-anna"})):
        client.update_auth(client.auth_token("x", clinic.token(role, **more)))
        with pytest.raises(module.MONAILabelClientException) as refused:
            client.info()
        assert refused.value.status_code == 403
    answer = clinic.client().get("/monailabel/info/")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_an_annotator_sees_what_his_projects_name_and_nobody_elses_labels(
    sign_in: Callable[..., Any], catalogue: Catalogue, dataset: Path
) -> None:
    reader, annotator = sign_in("reader", "Dr. Li"), sign_in("annotator", "Ann")
    first, second = (one.image_id for one in catalogue.images.all()[:2])
    for image in (first, second):
        reader.save_label(image, str(label_of(dataset, 0)))
    assert annotator.info()["datastore"] == {"total": 1, "completed": 0, "label_tags": {}}
    assert annotator.info()["trainers"] == {}
    assert annotator.info()["labels"] == ["core", "rim"]
    assert annotator.next_sample("first", {})["id"].startswith(second)
    module = client_class()
    for image in (first, f"{first}-00000000-{'0' * 32}", "case0", "nothing"):
        with pytest.raises(module.MONAILabelClientException, match="404"):
            annotator.infer("organ_1", image, {})
        with pytest.raises(module.MONAILabelClientException, match="404"):
            annotator.save_label(image, str(label_of(dataset, 0)))
    with pytest.raises(module.MONAILabelClientException) as refused:
        annotator.download_label(second, "final")
    assert refused.value.status_code == 404
    names = {"label_info": [{"name": "core", "idx": 5}, {"name": "rim", "idx": 2}]}
    label = str(label_of(dataset, 1))
    for wrong in ({}, {"label_info": [{"name": "shell", "idx": 5}, {"name": "rim", "idx": 2}]}):
        with pytest.raises(module.MONAILabelClientException, match="400"):
            annotator.save_label(second, label, params=wrong)  # 5 is none of the project's
    annotator.save_label(second, label, tag="original", params=names)
    assert annotator.info()["datastore"]["label_tags"] == {"original": 1}
    annotator.save_label(second, label, params=names)
    assert annotator.info()["datastore"]["label_tags"] == {"final": 1}
    for tag in ("original", "final"):
        with pytest.raises(module.MONAILabelClientException, match="409"):
            annotator.save_label(second, label, tag=tag, params=names)
    drawn, sent = (
        nib.load(file).get_fdata() for file in (annotator.download_label(second, "final"), label)
    )
    for theirs, ours in ((5, 1), (2, 2), (0, 0)):
        assert np.array_equal(drawn == ours, sent == theirs)
    mine = nib.load(reader.download_label(second, "final")).get_fdata()
    assert np.array_equal(mine, nib.load(label_of(dataset, 0)).get_fdata())
    for call in (annotator.train_status, annotator.train_stop):
        with pytest.raises(module.MONAILabelClientException, match="403"):
            call()
    with pytest.raises(module.MONAILabelClientException, match="403"):
        annotator.train_start("qinjing", {})
    with pytest.raises(module.MONAILabelClientException, match="403"):
        annotator.upload_image(str(dataset / "images" / "case4.nii.gz"), "mine")


def test_images_come_along_in_sessions_and_uploads(
    sign_in: Callable[..., Any], catalogue: Catalogue, dataset: Path
) -> None:
    scan = dataset / "images" / "case4.nii.gz"
    module = client_class()
    known = sign_in("reader", "Dr. Li").infer("organ_1", catalogue.images.all()[0].image_id, {})
    first = dataset / "images" / "case0.nii.gz"
    made = sign_in("reader", "Dr. Li").create_session(str(first))
    by_session, _ = (reader := sign_in("reader", "Dr. Li")).infer(
        "organ_1", "volume", {}, session_id=made["session_id"]
    )
    by_file, _ = reader.infer("organ_1", "volume", {}, file=str(first))
    for other in (by_session, by_file):
        assert np.array_equal(nib.load(other).get_fdata(), nib.load(known[0]).get_fdata())
    assert made["session_info"]["path"] == "" and "/" not in made["session_info"]["image"]
    assert reader.get_session(made["session_id"])["name"] == made["session_id"]
    with pytest.raises(module.MONAILabelClientException, match="404"):
        sign_in("admin", "IT").get_session(made["session_id"])
    reader.remove_session(made["session_id"])
    with pytest.raises(module.MONAILabelClientException, match="404"):
        reader.get_session(made["session_id"])

    named = "4: MILLER^ANNA"
    assert reader.upload_image(str(scan), named) == {"image": named}
    assert reader.upload_image(str(scan), named) == {"image": named}  # again, the same
    with pytest.raises(module.MONAILabelClientException, match="409"):
        reader.upload_image(str(first), named)
    reader.save_label(named, str(label_of(dataset, 4)))
    kept = catalogue.images.all()[-1]
    assert "MILLER" not in repr(kept) and len(catalogue.images.all()) == 5
    assert [one.author for one in catalogue.images.segmentations(kept.image_id)] == ["Dr. Li"]
    with pytest.raises(module.MONAILabelClientException, match="404"):
        sign_in("reader", "Dr. Wang").infer("organ_1", named, {})


@pytest.mark.parametrize("extension", [".nrrd", ".seg.nrrd", ".nii.gz", ".nii"])
def test_labels_come_in_any_form_that_slicer_writes(
    sign_in: Callable[..., Any], catalogue: Catalogue, dataset: Path, tmp_path: Path,
    extension: str,
) -> None:  # fmt: skip
    reader, image = sign_in("reader", "Dr. Li"), catalogue.images.all()[0].image_id
    label = itk.ReadImage(str(label_of(dataset, 0)))
    turned = itk.PermuteAxes(itk.Flip(label, [True, False, False]), [1, 2, 0])
    for number, (name, value) in enumerate((("shell", 2), ("seed", 5))):
        turned.SetMetaData(f"Segment{number}_Name", name)
        turned.SetMetaData(f"Segment{number}_LabelValue", str(value))
    file = tmp_path / f"label{extension}"
    itk.WriteImage(turned, str(file), True)
    reader.save_label(image, str(file))
    fetched = nib.load(reader.download_label(image, "final"))
    assert np.array_equal(fetched.get_fdata(), nib.load(label_of(dataset, 0)).get_fdata())
    (kept,) = catalogue.images.segmentations(image)
    assert dict(kept.labels) == ({2: "shell", 5: "seed"} if "nrrd" in extension else LABELS)


def refusals(catalogue: Catalogue, dataset: Path, scratch: Path) -> dict[str, bytes]:
    """Files that are no labels of the first image."""
    label = nib.load(label_of(dataset, 0))
    moved = label.affine.copy()
    moved[0, 3] += 1.0
    made = {
        "another grid": nib.Nifti1Image(label.dataobj, moved),
        "another shape": nib.Nifti1Image(label.get_fdata()[1:].astype(np.uint8), label.affine),
        "halves": nib.Nifti1Image(label.get_fdata().astype(np.float32) / 2, label.affine),
        "negative": nib.Nifti1Image(-label.get_fdata().astype(np.int16), label.affine),
        "time": nib.Nifti1Image(
            np.stack([label.get_fdata()] * 2, 3).astype(np.uint8), label.affine
        ),
    }
    found = {}
    for name, image in made.items():
        nib.save(image, scratch / "made.nii.gz")
        found[name] = (scratch / "made.nii.gz").read_bytes()
    whole = label_of(dataset, 0).read_bytes()
    return found | {
        "cut off": whole[: len(whole) // 2], "nothing": b"", "text": b"no image",
        "a NRRD cut off": b"NRRD0004\ntype: uint8\n", "a NRRD of another file":
        b"NRRD0004\ntype: uint8\ndata file: /etc/passwd\n\n",
    }  # fmt: skip


def test_what_is_no_label_of_that_image_is_refused(
    clinic: Service, catalogue: Catalogue, dataset: Path, tmp_path: Path
) -> None:
    client, image = clinic.client("reader", name="Dr. Li"), catalogue.images.all()[0].image_id
    for name, content in refusals(catalogue, dataset, tmp_path).items():
        sent = {"label": ("../../label.nii.gz", content)}
        answer = client.put(f"/monailabel/datastore/label?image={image}", files=sent)
        assert answer.status_code == 400, name
        assert str(tmp_path) not in answer.text and "/tmp" not in answer.text, name
    for params in ("[]", "{", "[" * 50_000):
        sent = {"label": ("label.nii.gz", label_of(dataset, 0).read_bytes())}
        answer = client.put(
            f"/monailabel/datastore/label?image={image}", files=sent, data={"params": params}
        )
        assert answer.status_code == 400
    answer = client.put(f"/monailabel/datastore/label?image={image}&tag=../x", files=sent)
    assert answer.status_code == 422 and catalogue.images.segmentations(image) == []


def test_ohif_gets_its_voxels_and_sends_them_back(
    make: Callable[..., Service], model: ServedModel, tmp_path: Path
) -> None:
    """As its extension does: by the series' UID, raw NRRD alone, and bare bytes for a label."""
    catalogue = fill(tmp_path / "studies", studies=1)
    service = make(folder=catalogue.folder, served=(model,))
    client = service.client("reader", name="Dr. Li")
    (image,) = catalogue.images.all()
    params = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    form = {"params": (None, json.dumps({**params, "restore_label_idx": False}))}
    address = f"/monailabel/infer/organ_1?image={image.series}&output="
    answer = client.post(f"{address}image", files=form)
    assert answer.status_code == 200 and b"encoding: raw" in answer.content[:400]
    voxels = answer.content.split(b"\n\n", 1)[1]
    got = np.frombuffer(voxels, np.uint8).reshape(image.shape[::-1])
    seg = pydicom.dcmread(io.BytesIO(client.post(f"{address}dicom_seg", files=form).content))
    assert seg.Modality == "SEG" and seg.PatientID == "MRN1"
    drawn = read_seg_of(seg)
    assert {name: int(count) for name, count in drawn.items()} == {
        name: int((got == value).sum()) for value, name in LABELS.items() if (got == value).any()
    }
    told = client.post(f"{address}json", files=form).json()
    assert set(told["label_names"].values()) == set(np.unique(got)) - {0}
    sample = client.post("/monailabel/activelearning/random", json={}).json()
    assert (sample["StudyInstanceUID"], sample["SeriesInstanceUID"]) == (image.study, image.series)
    bare = {"params": (None, "{}"), "label": ("label.bin", voxels)}
    address = f"/monailabel/datastore/label?image={image.series}"
    assert client.put(address, files=bare).status_code == 200
    (kept,) = catalogue.images.segmentations(image.image_id, "reader")
    assert np.array_equal(nib.load(catalogue.images.mask(kept)).get_fdata().T, got)
    stopped = client.get("/monailabel/train/?check_if_running=true")
    assert stopped.status_code == 404


def test_no_route_gives_a_figure_and_no_log_a_patient(
    make: Callable[..., Service], model: ServedModel, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Whatever the class: a segmentation is all that this protocol is answered with."""
    catalogue = fill(tmp_path / "studies")
    image = catalogue.images.all()[0]
    clinics.say(catalogue, image, tmp_path, "diagnosis")
    service = make(folder=catalogue.folder, served=(model,))
    client = service.client("admin", name="IT")
    at, named = "/monailabel", f"label={image.image_id}&tag=original"
    answers = [
        client.get(f"{at}{path}")
        for path in (
            "/", "/info/", "/datastore/", "/datastore/?output=all", "/datastore/?output=train",
            f"/datastore/image/info?image={image.image_id}", f"/datastore/label/info?{named}",
            "/logs/", "/train/", "/auth/token/valid", f"/infer/organ_1?image={image.series}",
        )
    ]  # fmt: skip
    asked = [f"activelearning/{strategy}" for strategy in ("first", "random", "uncertainty")]
    asked += [
        f"infer/organ_1?image={image.series}&output={output}" for output in ("json", "all", "image")
    ]
    answers += [client.post(f"{at}/{path}") for path in asked]
    for answer in answers:
        said = answer.text.split("Content-Type: application/octet-stream")[0]
        if "attachment" not in answer.headers.get("content-disposition", ""):
            assert not FIGURE.search(said), said
        assert "Canary" not in said and "MRN1" not in said and str(tmp_path) not in said
    assert [one.status_code for one in answers[-6:]] == [200] * 6
    assert "Canary" not in caplog.text and "MRN1" not in caplog.text
    assert image.series not in caplog.text and image.study not in caplog.text


def test_clicks_segment_what_they_point_at(
    sign_in: Callable[..., Any], catalogue: Catalogue, dataset: Path
) -> None:
    """Clicks are voxels (i, j, k) of the file, as 3D Slicer and OHIF send them."""
    client, image = sign_in("reader", "Dr. Li"), catalogue.images.all()[0].image_id
    assert client.info()["models"]["click"]["type"] == "deepgrow"
    truth = nib.load(label_of(dataset, 0)).get_fdata() > 0
    middle = [int(at) for at in np.argwhere(truth).mean(0)]
    clicks = {"foreground": [middle], "background": [[0, 0, 0]], "label": "organ"}
    file, params = client.infer("click", image, {**clicks, "result_extension": ".nrrd"})
    got = itk.GetArrayFromImage(itk.ReadImage(file)).T > 0
    assert params["label_names"] == {"organ": 1} and got[tuple(middle)] and not got[0, 0, 0]
    assert 2 * (got & truth).sum() / (got.sum() + truth.sum()) > 0.8
    for wrong in (
        {}, {"foreground": [[1, 2]]}, {"foreground": [[999, 0, 0]]}, {"foreground": "x"},
        {"foreground": [[0.5, 1, 1]]}, {"foreground": [middle] * 501}, {"background": [middle]},
    ):  # fmt: skip
        with pytest.raises(client_class().MONAILabelClientException, match="400"):
            client.infer("click", image, wrong)


def test_slicer_is_told_the_names_of_those_labels_alone_that_there_are(
    clinic: Service, catalogue: Catalogue, dataset: Path
) -> None:
    """It gives the names, in order, to the values that it finds in the file."""
    client = clinic.client("reader", name="Dr. Li")
    names = {1: "spleen", 2: "rim", 4: "vein", 5: "core"}
    for image in catalogue.images.all()[:2]:
        catalogue.images.add_segmentation(
            image.image_id, kind="model", author="m", labels=names, product_class="tool",
            content=label_of(dataset, 0).read_bytes(),
        )  # fmt: skip
    sample = client.post("/monailabel/activelearning/first", json={"client_id": "x"}).json()
    objects = client.get("/monailabel/datastore/?output=all").json()["objects"]
    infos = [one["labels"]["original"]["info"] for one in objects.values() if one["labels"]]
    info = objects[sample["id"]]["labels"]["original"]["info"]
    assert info["params"]["label_names"] == {"rim": 2, "core": 5}
    assert [one["params"]["label_names"] for one in infos if one != info] == [{}]  # not looked at


def test_a_reviewer_says_more_of_a_label_and_nothing_is_removed(
    clinic: Service, catalogue: Catalogue, dataset: Path
) -> None:
    client, image = clinic.client("admin", name="IT"), catalogue.images.all()[0].image_id
    sent = {"label": ("label.nii.gz", label_of(dataset, 0).read_bytes())}
    named = f"label={image}&tag=final"
    update = f"/monailabel/datastore/updatelabelinfo?{named}"
    meta = {"segmentationMeta": {"status": "approved"}, "client_id": "another", "name": "../x"}
    said = {"params": json.dumps(meta)}
    assert client.put(update, data=said).status_code == 404
    client.put(f"/monailabel/datastore/label?image={image}", files=sent)
    assert client.put(update, data=said).status_code == 200
    info = client.get(f"/monailabel/datastore/label/info?{named}").json()
    assert info["segmentationMeta"] == {"status": "approved"}
    assert (info["client_id"], info["name"]) == ("IT", f"{image}.nii.gz")
    for path in ("datastore/?id=", "datastore/image?id=", "datastore/label?tag=final&id="):
        assert client.delete(f"/monailabel/{path}{image}").status_code == 405
    assert catalogue.images.get(image) is not None


def test_who_finds_the_models_busy_is_asked_to_come_again(
    clinic: Service, catalogue: Catalogue
) -> None:
    client, image = clinic.client("reader"), catalogue.images.all()[0].image_id
    client.get("/monailabel/info/")
    with ExitStack() as others:
        waiting = clinic.app.state.labelling
        for _ in range(4):
            others.enter_context(waiting.place_in_line())
        answer = client.post(f"/monailabel/infer/organ_1?image={image}")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    assert client.post(f"/monailabel/infer/organ_1?image={image}").status_code == 200


def read_seg_of(seg: Any) -> dict[str, int]:
    """Voxels of each segment, counted frame by frame."""
    names = {int(one.SegmentNumber): str(one.SegmentLabel) for one in seg.SegmentSequence}
    counts: dict[str, int] = {}
    for frame, functional in zip(
        seg.pixel_array.reshape(-1, seg.Rows, seg.Columns),
        seg.PerFrameFunctionalGroupsSequence, strict=True,
    ):  # fmt: skip
        number = functional.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        name = names[int(number)]
        counts[name] = counts.get(name, 0) + int(frame.sum())
    return counts
