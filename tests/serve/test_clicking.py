"""Clicks over HTTP: the mask lies where the image's voxels do, and only for who sees the image."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sqlalchemy")

from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.drawn import About, Image
from tests.serve.conftest import Service

SHAPE, CENTRE = (40, 36, 14), (14, 20, 7)  # (i, j, k)
AFFINE = np.array([[-1.5, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 4.0, 7], [0, 0, 0, 1]])


@pytest.fixture
def truth() -> np.ndarray:
    axes = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    parts = zip(axes, CENTRE, (1.5, 1.5, 4.0), strict=True)
    return np.asarray(sum(((a - c) * s) ** 2 for a, c, s in parts) <= 12**2)


@pytest.fixture
def catalogue(tmp_path: Path, truth: np.ndarray) -> Catalogue:
    """Two images of a data set: a bright ball off the middle, and nothing."""
    catalogue = open_catalogue(tmp_path / "clinic")
    rng = np.random.default_rng(0)
    for name, bright in (("ball", truth), ("nothing", truth * 0)):
        voxels = (rng.normal(100, 10, SHAPE) + 80 * bright).astype(np.int16)
        file = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, AFFINE), file)
        catalogue.images.add_image(file, About(name=name))
    return catalogue


@pytest.fixture
def clinic(make: Callable[..., Service], catalogue: Catalogue) -> Service:
    return make(folder=catalogue.folder)


@pytest.fixture
def image(catalogue: Catalogue) -> Image:
    return catalogue.images.all()[0]


def asked(*voxels: Any, **more: Any) -> dict[str, Any]:
    return {"points": [{"voxel": one, "inside": True} for one in voxels], **more}


def mask_of(content: bytes) -> Any:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def test_a_click_gives_the_structure_on_the_images_grid(
    clinic: Service, image: Image, truth: np.ndarray
) -> None:
    client = clinic.client("reader", name="Dr. Li")
    got = client.post(f"/api/images/{image.image_id}/click", json=asked(CENTRE))
    assert (got.status_code, got.headers["content-type"]) == (200, "application/gzip")
    mask = mask_of(got.content)
    said = np.asarray(mask.dataobj)
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
    assert said.shape == SHAPE and set(np.unique(said)) == {0, 1}
    assert 2 * (said & truth).sum() / (said.sum() + truth.sum()) > 0.9
    corrected = asked(CENTRE, radius_mm=30)
    corrected["points"].append({"voxel": [20, 20, 7], "inside": False})
    again = client.post(f"/api/images/{image.image_id}/click", json=corrected)
    assert np.asarray(mask_of(again.content).dataobj)[20, 20, 7] == 0 != said[20, 20, 7]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (asked((40, 0, 0)), 400, "click"),  # one beyond the last
        ({"points": [{"voxel": [1, 1, 1], "inside": False}]}, 400, "click"),
        (asked(), 422, "invalid"),
        (asked((-1, 0, 0)), 422, "invalid"),
        (asked((1, 1)), 422, "invalid"),
        (asked(CENTRE, radius_mm=1e9), 422, "invalid"),
        (asked(CENTRE, radius_mm="NaN"), 422, "invalid"),
        (asked(*[CENTRE] * 65), 422, "invalid"),
        (asked(CENTRE, more=1), 422, "invalid"),
    ],
)
def test_what_is_no_click_is_refused(
    body: dict[str, Any], status: int, code: str, clinic: Service, image: Image
) -> None:
    client = clinic.client("admin", name="IT")
    refused = client.post(f"/api/images/{image.image_id}/click", json=body)
    assert (refused.status_code, refused.json()["code"]) == (status, code)


def test_only_who_sees_an_image_clicks_into_it(
    clinic: Service, catalogue: Catalogue, image: Image
) -> None:
    """An image that is not one's own is answered as one that is not there."""
    other = catalogue.images.all()[1].image_id
    made = catalogue.projects.make("Balls", {1: "ball"}, [image.image_id], ["Ann"])
    assert made.readers == ("Ann",)

    def status(client: Any, image_id: str) -> tuple[int, Any]:
        got = client.post(f"/api/images/{image_id}/click", json=asked(CENTRE))
        return got.status_code, None if got.status_code == 200 else got.json()

    nowhere = "0" * 32
    ann = clinic.client("annotator", name="Ann")
    assert status(ann, image.image_id)[0] == 200
    assert status(ann, other) == status(ann, nowhere) and status(ann, other)[0] == 404
    bob = clinic.client("annotator", name="Bob")
    assert status(bob, image.image_id) == status(bob, nowhere) == status(ann, nowhere)
    for role in ("reader", "admin"):
        assert status(clinic.client(role, name="Boss"), other)[0] == 200
    for role, more in ((None, {}), ("ethics", {}), ("patient", {"patient_id": "p-anna"})):
        client = clinic.client(role, **more)
        assert status(client, image.image_id) == status(client, nowhere)
        assert status(client, nowhere)[0] in (401, 403)


def test_a_click_of_another_page_is_refused(clinic: Service, image: Image) -> None:
    client = clinic.client("reader", name="Dr. Li")
    del client.headers["X-Qinjing"]
    refused = client.post(f"/api/images/{image.image_id}/click", json=asked(CENTRE))
    assert (refused.status_code, refused.json()["code"]) == (403, "header")
