"""The clinic's routes: who sees what, what each class lets out, and what stands in a log."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("highdicom")
pytest.importorskip("pynetdicom")

import nibabel as nib
import pydicom

from qinjing.data.dicom.read_seg import read_seg
from qinjing.evidence import verify
from qinjing.serve.catalogue import Catalogue
from tests.serve.clinics import LABELS, fill, labelled, say
from tests.serve.conftest import Service
from tests.serve.dicom import instance

FIGURE = re.compile(r"\d\s*(ml|mm|cm|%)|_ml|axis_mm|diameter|volume|confidence", re.IGNORECASE)
SECRETS = ("Canary", "Kanarie", "MRN1", "19500203", instance(0, 0).StudyInstanceUID)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return fill(tmp_path / "clinic")


@pytest.fixture
def clinic(make: Callable[..., Service], catalogue: Catalogue) -> Service:
    return make(folder=catalogue.folder)


def test_the_worklist_finds_studies_and_pages_them(clinic: Service, catalogue: Catalogue) -> None:
    client = clinic.client("reader", name="Dr. Li")
    told = client.post("/api/studies", json={}).json()
    assert [one["study_date"] for one in told["studies"]] == ["20250102", "20250101"]
    first = told["studies"][0]
    assert (first["patient_id"], first["patient_name"]) == ("MRN1", "Canary^Kanarie1")
    assert (first["instances"], first["images"], first["segmentations"]) == (12, 1, 0)
    assert first["state"] == "received" and told["counts"]["received"] == 2
    page = client.post("/api/studies", json={"limit": 1}).json()
    rest = client.post("/api/studies", json={"limit": 1, "after": page["next"]}).json()
    assert [page["studies"][0], rest["studies"][0]] == told["studies"] and rest["next"] is None
    for search, count in (("kanarie0", 1), ("acc1", 1), ("abdomen", 2), ("100%", 0), ("_", 0)):
        found = client.post("/api/studies", json={"search": search}).json()["studies"]
        assert len(found) == count, search
    assert client.post("/api/studies", json={"state": "failed"}).json()["studies"] == []
    opened = client.get(f"/api/studies/{first['study']}").json()
    assert [one["study_date"] for one in opened["others"]] == ["20250101"]
    assert [one["name"] for one in opened["images"]] == ["CT series 1"]


def test_states_follow_the_jobs(clinic: Service, catalogue: Catalogue) -> None:
    client = clinic.client("admin", name="IT")
    study = client.post("/api/studies", json={}).json()["studies"][0]["study"]
    uid = instance(1, 0).StudyInstanceUID

    def state() -> str:
        return str(client.get(f"/api/studies/{study}").json()["state"])

    assert client.post(f"/api/studies/{study}/again", json={}).json() == {"queued": 1}
    assert state() == "waiting"
    job = catalogue.queue.take("one", ["show"])
    assert job is not None and job.study_instance_uid == uid and state() == "working"
    assert catalogue.queue.failed(job, "no", again=False) == "failed" and state() == "failed"
    assert client.post(f"/api/studies/{study}/again", json={}).json() == {"queued": 1}
    job = catalogue.queue.take("one", ["show"])
    assert job is not None and catalogue.queue.done(job, {}) and state() == "done"


def test_an_image_comes_as_it_is(clinic: Service, catalogue: Catalogue) -> None:
    client = clinic.client("reader", name="Dr. Li")
    (image,) = catalogue.images.of_study(instance(0, 0).StudyInstanceUID)
    told = client.get(f"/api/images/{image.image_id}").json()
    assert (told["shape"], told["spacing_mm"], told["units"]) == (
        [32, 32, 12],
        [0.75, 0.75, 2.5],
        "HU",
    )
    assert told["window"][0] == ["soft tissue", -160.0, 240.0]
    got = client.get(f"/api/images/{image.image_id}/volume.nii.gz")
    assert got.headers["content-type"] == "application/gzip"
    volume = nib.Nifti1Image.from_bytes(gzip.decompress(got.content))
    expected = instance(0, 3).pixel_array.astype(float) - 1024
    assert np.array_equal(volume.get_fdata()[:, :, 3].T, expected)


def test_places_are_inside_their_labels(
    clinic: Service, catalogue: Catalogue, tmp_path: Path
) -> None:
    (image,) = catalogue.images.of_study(instance(0, 0).StudyInstanceUID)
    one = say(catalogue, image, tmp_path, "tool")
    client = clinic.client("reader", name="Dr. Li")
    got = client.get(f"/api/segmentations/{one.segmentation_id}/places").json()["places"]
    mask = nib.load(catalogue.images.mask(one))
    assert [place["name"] for place in got] == list(LABELS.values())
    for place in got:
        assert mask.get_fdata()[tuple(place["voxel"])] == place["label"]
        np.testing.assert_allclose(
            mask.affine @ [*place["voxel"], 1], [*place["world_mm"], 1], atol=1e-3
        )


def test_a_tool_cannot_be_made_to_give_a_figure(
    clinic: Service, catalogue: Catalogue, tmp_path: Path
) -> None:
    """Every route that knows a segmentation is asked; none says a volume, length or finding."""
    (image,) = catalogue.images.of_study(instance(0, 0).StudyInstanceUID)
    one = say(catalogue, image, tmp_path, "tool")
    drawn = catalogue.images.add_segmentation(
        image.image_id, kind="reader", author="Dr. Li", labels=LABELS, state="submitted",
        product_class=clinic.config.product_class, content=catalogue.images.mask(one).read_bytes(),
    )  # fmt: skip
    client = clinic.client("admin", name="Dr. Li")
    for segmentation in (one.segmentation_id, drawn.segmentation_id):
        refused = client.get(f"/api/segmentations/{segmentation}/measures")
        assert (refused.status_code, refused.json()["code"]) == (403, "class")
        for route in clinic.app.openapi()["paths"]:
            if "{segmentation}" not in route:
                continue
            place = route.replace("{segmentation}", segmentation).replace("{form}", "html")
            said = client.get(f"{place}?class=analysis&product_class=diagnosis").text
            assert not FIGURE.search(_text(said)), route
    seg = client.get(f"/api/segmentations/{one.segmentation_id}/seg.dcm").content
    names = {element.keyword for element in pydicom.dcmread(io.BytesIO(seg)).iterall()}
    assert not names & {"MeasuredValueSequence", "ContentSequence"}
    made = [json.loads(file.read_text()) for file in catalogue.folder.rglob("case.json")]
    assert made and all(entry["measured"] is None and not entry["findings"] for entry in made)


def test_an_analysis_gives_figures_and_no_finding(
    clinic: Service, catalogue: Catalogue, tmp_path: Path
) -> None:
    (image,) = catalogue.images.of_study(instance(0, 0).StudyInstanceUID)
    one = say(catalogue, image, tmp_path, "analysis")
    client = clinic.client("reader", name="Dr. Li")
    told = client.get(f"/api/segmentations/{one.segmentation_id}/measures").json()
    voxel_ml = 0.75 * 0.75 * 2.5 / 1000
    shape = tuple(reversed(image.shape))
    volumes = {entry["label"]: entry["volume"]["ml"] for entry in told["structures"]}
    for value in LABELS:
        assert volumes[value] == pytest.approx((labelled(shape) == value).sum() * voxel_ml)
    assert told["findings"] == []
    page = client.get(f"/api/segmentations/{one.segmentation_id}/report.html")
    assert "ml" in page.text and "Product class: analysis" in page.text
    assert "script" not in page.headers["content-security-policy"]
    pdf = client.get(f"/api/segmentations/{one.segmentation_id}/report.pdf").content
    assert pdf.startswith(b"%PDF")
    zh = client.get(f"/api/segmentations/{one.segmentation_id}/report.html?language=zh").text
    assert "产品类别：分析类" in zh


def test_a_diagnosis_waits_for_a_named_reader(
    clinic: Service, catalogue: Catalogue, tmp_path: Path
) -> None:
    (image,) = catalogue.images.of_study(instance(0, 0).StudyInstanceUID)
    one = say(catalogue, image, tmp_path, "diagnosis")
    route = f"/api/segmentations/{one.segmentation_id}"
    nobody = clinic.client("reader")
    asked = {"version": 1}
    assert nobody.post(f"{route}/confirm", json=asked).json()["code"] == "name"
    reader = clinic.client("reader", name="Dr. Li")
    (told,) = reader.get(f"/api/images/{image.image_id}/segmentations").json()["segmentations"]
    assert told["needs_confirmation"] and told["confirmed"] is None
    assert "Not confirmed" in reader.get(f"{route}/report.html").text
    seen = reader.get(f"{route}/measures").json()["findings"]
    assert seen == [{"text": "liver tumor: 1", "confidence": 0.81}]
    assert catalogue.queue.of() == []
    other = {"version": told["version"] + 1}
    assert reader.post(f"{route}/confirm", json=other).json()["code"] == "confirmed"
    told = reader.post(f"{route}/confirm", json={"version": told["version"]}).json()
    assert told["confirmed"]["by"] == "Dr. Li" and not told["needs_confirmation"]
    (job,) = catalogue.queue.of()
    assert job.kind == "release"
    assert "Confirmed by Dr. Li" in reader.get(f"{route}/report.html").text
    other = clinic.client("reader", name="Dr. Wang")
    assert other.post(f"{route}/confirm", json=asked).status_code == 409


def test_a_segmentation_goes_out_as_dicom_on_its_voxels(
    clinic: Service, catalogue: Catalogue, tmp_path: Path
) -> None:
    (image,) = catalogue.images.of_study(instance(0, 0).StudyInstanceUID)
    one = say(catalogue, image, tmp_path, "tool")
    client = clinic.client("reader", name="Dr. Li")
    got = client.get(f"/api/segmentations/{one.segmentation_id}/seg.dcm")
    file = tmp_path / "seg.dcm"
    file.write_bytes(got.content)
    assert got.headers["content-type"] == "application/dicom"
    said = read_seg(file)
    assert {one.name for one in said.segments} == set(LABELS.values())
    assert pydicom.dcmread(file).PatientID == "MRN1"
    again = client.get(f"/api/segmentations/{one.segmentation_id}/seg.dcm").content
    assert pydicom.dcmread(io.BytesIO(again)).SOPInstanceUID == pydicom.dcmread(file).SOPInstanceUID


ROUTES = (
    ("POST", "/api/studies"),
    ("GET", "/api/studies/{study}"),
    ("POST", "/api/studies/{study}/again"),
    ("GET", "/api/images/{image}"),
    ("GET", "/api/images/{image}/volume.nii.gz"),
    ("GET", "/api/images/{image}/segmentations"),
    ("GET", "/api/segmentations/{segmentation}/mask.nii.gz"),
    ("GET", "/api/segmentations/{segmentation}/places"),
    ("GET", "/api/segmentations/{segmentation}/measures"),
    ("GET", "/api/segmentations/{segmentation}/report.html"),
    ("GET", "/api/segmentations/{segmentation}/seg.dcm"),
    ("POST", "/api/segmentations/{segmentation}/confirm"),
)


@pytest.mark.parametrize("role", [None, "ethics", "annotator", "patient"])
def test_who_has_no_right_learns_nothing(
    role: str | None, clinic: Service, catalogue: Catalogue, tmp_path: Path
) -> None:
    uid = instance(0, 0).StudyInstanceUID
    (image,) = catalogue.images.of_study(uid)
    one = say(catalogue, image, tmp_path, "analysis")
    there = {
        "study": catalogue.place(uid).name, "image": image.image_id,
        "segmentation": one.segmentation_id,
    }  # fmt: skip
    nowhere = {name: "0" * len(value) for name, value in there.items()}
    more = {"patient_id": "MRN1"} if role == "patient" else {}
    client = clinic.client(role, **more)
    for method, route in ROUTES:
        answers = [
            client.request(method, route.format(**ids), json=_body(method, route))
            for ids in (there, nowhere)
        ]
        assert answers[0].status_code in (401, 403, 404), route
        # What is there and what is not are answered alike.
        assert answers[0].status_code == answers[1].status_code, route
        assert answers[0].json() == answers[1].json(), route


def test_readers_are_blind_to_one_another(
    clinic: Service, catalogue: Catalogue, tmp_path: Path
) -> None:
    (image,) = catalogue.images.of_study(instance(0, 0).StudyInstanceUID)
    content = catalogue.images.mask(say(catalogue, image, tmp_path, "tool")).read_bytes()
    for kind, author in (("reader", "Li"), ("reader", "Wang"), ("consensus", "STAPLE")):
        catalogue.images.add_segmentation(
            image.image_id, kind=kind, author=author, labels=LABELS, product_class="tool",
            content=content,
        )  # fmt: skip

    def seen(role: str, name: str) -> list[tuple[str, str]]:
        client = clinic.client(role, name=name)
        told = client.get(f"/api/images/{image.image_id}/segmentations").json()["segmentations"]
        for one in catalogue.images.segmentations(image.image_id):
            got = client.get(f"/api/segmentations/{one.segmentation_id}/mask.nii.gz").status_code
            shown = any(entry["segmentation"] == one.segmentation_id for entry in told)
            assert got == (200 if shown else 404)
        return [(entry["kind"], entry["author"]) for entry in told]

    assert seen("reader", "Li") == [("model", "liver 1"), ("reader", "Li")]
    assert len(seen("admin", "Boss")) == 4


@pytest.mark.parametrize(
    "bad", ["..%2f..%2fetc%2fpasswd", "../../catalogue.sqlite", "0" * 39, "g" * 40, "%00" * 40]
)
def test_no_path_gets_anywhere(bad: str, clinic: Service) -> None:
    client = clinic.client("admin", name="IT")
    for place in ("studies", "images", "segmentations"):
        for tail in ("", "/volume.nii.gz", "/mask.nii.gz"):
            answer = client.get(f"/api/{place}/{bad}{tail}")
            assert answer.status_code in (404, 405, 422), answer.text
            assert b"SQLite" not in answer.content


def test_who_looked_is_on_record_and_no_patient_is(
    clinic: Service, catalogue: Catalogue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (image,) = catalogue.images.of_study(instance(0, 0).StudyInstanceUID)
    client = clinic.client("reader", name="Dr. Li")
    study = client.post("/api/studies", json={"search": "Canary"}).json()["studies"][0]["study"]
    client.get(f"/api/studies/{study}")
    client.get(f"/api/images/{image.image_id}/volume.nii.gz")
    (day,) = (catalogue.folder / "audit").iterdir()
    assert verify(day).faults == ()
    payloads = [_payload(line) for line in (day / "evidence.jsonl").read_text().splitlines()]
    said = [json.loads(one)["predicate"]["configuration"]["content"] for one in payloads]
    did = [one["did"] for one in said if one["did"] != "day begun"]
    assert did == ["worklist read", "study opened", "image opened"]
    assert {one["person"] for one in said if "person" in one} == {"Dr. Li"}
    for secret in SECRETS:
        assert secret not in caplog.text and secret not in str(payloads)


def _body(method: str, route: str) -> dict[str, int] | None:
    return None if method == "GET" else {"version": 1} if route.endswith("confirm") else {}


def _text(page: str) -> str:
    """What a page says, without its style and pictures."""
    return re.sub(r"<style.*?</style>|data:[^'\"]*", "", page, flags=re.DOTALL)


def _payload(line: str) -> str:
    return base64.b64decode(json.loads(line)["payload"]).decode()


def test_a_session_tells_the_rights_over_what_is_served(
    make: Callable[..., Service], catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QINJING_CONSENT", raising=False)
    both = make(folder=catalogue.folder).client("reader", name="Li")
    assert {"consent.read", "study.read"} <= set(both.get("/api/session").json()["rights"])
    consents = make().client("reader", name="Li").get("/api/session").json()["rights"]
    assert consents == ["consent.read"]


def test_the_openapi_document_says_what_there_is(clinic: Service) -> None:
    paths: dict[str, Any] = clinic.app.openapi()["paths"]
    for method, route in ROUTES:
        assert method.lower() in paths[route.replace("report.html", "report.{form}")], route
