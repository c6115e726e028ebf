"""Several readers label one image, blind to one another; then they are compared and decided."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("highdicom")
pytest.importorskip("pynetdicom")

import nibabel as nib

from qinjing.serve.catalogue import Catalogue
from qinjing.serve.drawn import Image
from tests.serve.clinics import LABELS, fill, labelled, packed, say
from tests.serve.conftest import Service

GZ = {"content-type": "application/gzip"}
NAMES = {str(value): name for value, name in LABELS.items()}


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return fill(tmp_path / "clinic")


@pytest.fixture
def clinic(make: Callable[..., Service], catalogue: Catalogue) -> Service:
    return make(folder=catalogue.folder)


@pytest.fixture
def image(catalogue: Catalogue) -> Image:
    return catalogue.images.all()[0]


@pytest.fixture
def route(clinic: Service, image: Image) -> str:
    """A project of Li, Wang and Zhang over one image; where it is."""
    asked = {"name": "Livers", "labels": NAMES, "images": [image.image_id],
             "readers": ["Li", "Wang", "Zhang"]}  # fmt: skip
    made = clinic.client("admin", name="Boss").post("/api/projects", json=asked)
    assert made.status_code == 200, made.text
    return f"/api/projects/{made.json()['project']}"


def shifted(image: Image, by: int) -> np.ndarray:
    return np.roll(labelled(tuple(reversed(image.shape))), by, axis=2)


@pytest.fixture
def submitted(
    clinic: Service, catalogue: Catalogue, image: Image, route: str, tmp_path: Path
) -> list[np.ndarray]:
    """What three readers submitted, each by another token than he had before."""
    drawn = [shifted(image, by) for by in (0, 1, 3)]
    for name, voxels in zip(("Li", "Wang", "Zhang"), drawn, strict=True):
        body = packed(catalogue, image, voxels, tmp_path)
        place = f"{route}/images/{image.image_id}/annotation"
        first = clinic.client("annotator", name=name).put(place, content=body, headers=GZ)
        assert first.json() == {"version": 1, "state": "draft"}
        again = clinic.client("annotator", name=name).put(
            f"{place}?state=submitted", content=body, headers={**GZ, "If-Match": '"1"'}
        )
        assert again.json() == {"version": 2, "state": "submitted"}
    return drawn


def test_labels_come_back_as_they_were_drawn(
    clinic: Service, catalogue: Catalogue, image: Image, route: str, tmp_path: Path
) -> None:
    client = clinic.client("annotator", name="Li")
    assert client.get(f"{route}/next").json() == {"image": image.image_id}
    place = f"{route}/images/{image.image_id}/annotation"
    assert client.get(place).status_code == 404
    voxels = shifted(image, 0)
    kept = client.put(place, content=packed(catalogue, image, voxels, tmp_path), headers=GZ)
    got = client.get(place)
    assert got.headers["etag"] == kept.headers["etag"] == '"1"'
    there = nib.Nifti1Image.from_bytes(gzip.decompress(got.content))
    assert np.array_equal(np.asarray(there.dataobj).T, voxels)
    told = client.get(route).json()
    assert told["images"] == [
        {"image": image.image_id, "name": "CT series 1", "mine": "draft", "version": 1}
    ]
    assert told["readers"] == ["Li"] and told["labels"] == NAMES


def test_two_windows_do_not_overwrite_one_another(
    clinic: Service, catalogue: Catalogue, image: Image, route: str, tmp_path: Path
) -> None:
    client = clinic.client("annotator", name="Li")
    place = f"{route}/images/{image.image_id}/annotation"
    bodies = [packed(catalogue, image, shifted(image, by), tmp_path) for by in range(3)]
    assert client.put(place, content=bodies[0], headers=GZ).json()["version"] == 1
    mine = {**GZ, "If-Match": '"1"'}
    assert client.put(place, content=bodies[1], headers=mine).json()["version"] == 2
    for headers in (mine, GZ, {**GZ, "If-Match": '"7"'}):
        refused = client.put(place, content=bodies[2], headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (409, "version")
    assert gzip.decompress(client.get(place).content) == gzip.decompress(bodies[1])


def test_what_was_submitted_is_closed_until_it_is_reopened(
    clinic: Service, catalogue: Catalogue, image: Image, route: str, submitted: list[np.ndarray],
    tmp_path: Path,
) -> None:  # fmt: skip
    client, boss = clinic.client("annotator", name="Li"), clinic.client("admin", name="Boss")
    place = f"{route}/images/{image.image_id}"
    body = packed(catalogue, image, shifted(image, 5), tmp_path)
    headers = {**GZ, "If-Match": '"2"'}
    refused = client.put(f"{place}/annotation", content=body, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (409, "submitted")
    assert client.post(f"{place}/reopen", json={"reader": "Li"}).status_code == 403
    assert boss.post(f"{place}/reopen", json={"reader": "Li"}).json()["state"] == "draft"
    headers = {**GZ, "If-Match": '"3"'}
    kept = client.put(f"{place}/annotation?state=submitted", content=body, headers=headers)
    assert kept.json() == {"version": 4, "state": "submitted"}
    assert client.get(f"{route}/next").json() == {"image": None}


@pytest.mark.parametrize("fault", ["bomb", "shape", "place", "label", "text", "cut", "empty"])
def test_what_does_not_fit_is_refused_and_nothing_is_kept(
    fault: str, clinic: Service, catalogue: Catalogue, image: Image, route: str, tmp_path: Path
) -> None:
    good = packed(catalogue, image, shifted(image, 0), tmp_path)
    volume = nib.Nifti1Image.from_bytes(gzip.decompress(good))
    voxels, affine = np.asarray(volume.dataobj), volume.affine
    bad: bytes = {
        "bomb": lambda: gzip.compress(gzip.decompress(good) + bytes(1 << 27)),
        "shape": lambda: gzip.compress(nib.Nifti1Image(voxels[:, :, 1:], affine).to_bytes()),
        "place": lambda: gzip.compress(nib.Nifti1Image(voxels, affine + np.eye(4)[3]).to_bytes()),
        "label": lambda: gzip.compress(nib.Nifti1Image(voxels * 7, affine).to_bytes()),
        "text": lambda: b"labels",
        "cut": lambda: good[: len(good) // 2],
        "empty": lambda: gzip.compress(b""),
    }[fault]()
    client = clinic.client("annotator", name="Li")
    place = f"{route}/images/{image.image_id}/annotation"
    refused = client.put(place, content=bad, headers=GZ)
    assert refused.status_code == 400 and refused.json()["code"] in ("labels", "grid")
    assert client.get(place).status_code == 404


def test_agreement_is_what_others_compute(
    clinic: Service, image: Image, route: str, submitted: list[np.ndarray]
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    inter = pytest.importorskip("statsmodels.stats.inter_rater")
    boss = clinic.client("admin", name="Boss")
    told = boss.get(f"{route}/images/{image.image_id}/agreement").json()
    assert told["readers"] == ["Li", "Wang", "Zhang"]
    marked = np.argwhere(np.any(submitted, axis=0))
    margin = np.ceil(10 / np.array([2.5, 0.75, 0.75])).astype(int)
    low = np.maximum(marked.min(axis=0) - margin, 0)
    high = np.minimum(marked.max(axis=0) + margin + 1, submitted[0].shape)
    cut = [one[tuple(map(slice, low, high))].ravel() for one in submitted]
    for entry, (a, b) in zip(told["cohen"], combinations(range(3), 2), strict=True):
        assert entry["kappa"] == pytest.approx(metrics.cohen_kappa_score(cut[a], cut[b]), abs=1e-6)
    table, _ = inter.aggregate_raters(np.stack(cut, axis=1))
    assert told["fleiss"] == pytest.approx(inter.fleiss_kappa(table), abs=1e-6)
    assert told["target_kappa"] == 0.85 and told["reached"] == (told["fleiss"] >= 0.85)
    for value, name in LABELS.items():
        f1 = metrics.f1_score(cut[0] == value, cut[2] == value)
        assert told["dice"][name][0][2] == pytest.approx(f1, abs=1e-6)


def test_the_consensus_is_staple_and_what_is_decided_is_final(
    clinic: Service, catalogue: Catalogue, image: Image, route: str, submitted: list[np.ndarray],
    tmp_path: Path,
) -> None:  # fmt: skip
    sitk = pytest.importorskip("SimpleITK")
    boss, reader = clinic.client("admin", name="Boss"), clinic.client("annotator", name="Li")
    place = f"{route}/images/{image.image_id}"
    made = boss.post(f"{place}/consensus", json={}).json()
    assert (made["kind"], made["author"]) == ("consensus", "STAPLE")
    mask = nib.load(catalogue.images.mask(catalogue.images.segmentation(made["segmentation"])))
    theirs = sitk.MultiLabelSTAPLE([sitk.GetImageFromArray(one) for one in submitted], 0)
    ours = np.asarray(mask.dataobj).T
    assert (ours == sitk.GetArrayFromImage(theirs)).mean() > 0.999
    there = f"/api/segmentations/{made['segmentation']}/mask.nii.gz"
    assert reader.get(there).status_code == 404
    body = packed(catalogue, image, ours, tmp_path)
    assert reader.put(f"{place}/final", content=body, headers=GZ).status_code == 403
    final = boss.put(f"{place}/final", content=body, headers=GZ).json()
    assert (final["kind"], final["state"], final["author"]) == ("final", "final", "Boss")
    other = clinic.client("admin", name="Other").put(f"{place}/final", content=body, headers=GZ)
    assert other.json()["code"] == "version"
    assert boss.get(route).json()["images"][0]["final"] is True


def test_who_is_taken_out_of_a_project_sees_it_no_more(
    clinic: Service, image: Image, route: str, submitted: list[np.ndarray]
) -> None:
    boss, client = clinic.client("admin", name="Boss"), clinic.client("annotator", name="Li")
    place = f"{route}/images/{image.image_id}/annotation"
    assert client.get(place).status_code == 200
    told = boss.post(f"{route}/readers", json={"readers": ["Zhao"], "without": ["Li"]}).json()
    assert told["readers"] == ["Wang", "Zhang", "Zhao"]
    for gone in (place, route, f"/api/images/{image.image_id}"):
        assert client.get(gone).status_code == 404
    agreed = boss.get(f"{route}/images/{image.image_id}/agreement").json()
    assert agreed["readers"] == ["Li", "Wang", "Zhang"]  # what was submitted stays


def test_an_agreement_wants_two(clinic: Service, image: Image, route: str) -> None:
    boss = clinic.client("admin", name="Boss")
    refused = boss.get(f"{route}/images/{image.image_id}/agreement")
    assert (refused.status_code, refused.json()["code"]) == (409, "readers")


OWN = ("GET", "PUT")
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", "", None), ("GET", "/next", None), ("POST", "/images", {"images": []}),
    ("POST", "/readers", {"readers": ["Mallory"]}),
    ("GET", "/images/{image}/annotation", None), ("PUT", "/images/{image}/annotation", b""),
    ("GET", "/images/{image}/proposals", None), ("GET", "/images/{image}/agreement", None),
    ("POST", "/images/{image}/consensus", {}), ("POST", "/images/{image}/reopen", {"reader": "Li"}),
    ("PUT", "/images/{image}/final", b""),
)  # fmt: skip


@pytest.mark.parametrize("role", [None, "patient", "ethics", "annotator", "reader"])
def test_a_project_is_there_for_who_it_names(
    role: str | None, clinic: Service, catalogue: Catalogue, image: Image, route: str,
    submitted: list[np.ndarray], tmp_path: Path,
) -> None:  # fmt: skip
    """Whoever is not named gets the same answers for this project as for one that is not there."""
    more = {"patient_id": "MRN1"} if role == "patient" else {"name": "Mallory"}
    client = clinic.client(role, **more) if role else clinic.client()
    say(catalogue, image, tmp_path, "tool")
    nowhere = f"/api/projects/{'0' * 32}"
    for method, tail, body in ROUTES:
        sent: dict[str, Any] = {"json": body} if isinstance(body, dict) else {}
        if isinstance(body, bytes):
            sent = {"content": packed(catalogue, image, shifted(image, 0), tmp_path), "headers": GZ}
        here, there = (
            client.request(method, f"{start}{tail.format(image=image.image_id)}", **sent)
            for start in (route, nowhere)
        )
        assert here.status_code in (401, 403, 404), (method, tail)
        assert (here.status_code, here.json()) == (there.status_code, there.json()), (method, tail)
    listed = client.get("/api/projects")
    assert listed.status_code in (401, 403) or listed.json() == {"projects": []}


def test_a_reader_of_a_project_sees_his_own_alone(
    clinic: Service, catalogue: Catalogue, image: Image, route: str, submitted: list[np.ndarray]
) -> None:
    client = clinic.client("annotator", name="Wang")
    got = client.get(f"{route}/images/{image.image_id}/annotation").content
    there = nib.Nifti1Image.from_bytes(gzip.decompress(got))
    assert np.array_equal(np.asarray(there.dataobj).T, submitted[1])
    told = client.get(f"/api/images/{image.image_id}/segmentations").json()["segmentations"]
    assert [one["author"] for one in told] == ["Wang"]
    for one in catalogue.images.segmentations(image.image_id):
        answer = client.get(f"/api/segmentations/{one.segmentation_id}/mask.nii.gz")
        assert answer.status_code == (200 if one.author == "Wang" else 404)
    other = catalogue.images.all()[1].image_id
    for place in (f"/api/images/{other}", f"{route}/images/{other}/annotation"):
        assert client.get(place).status_code == 404
    assert client.post("/api/studies", json={}).status_code == 403
