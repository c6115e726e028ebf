"""MONAI Label's protocol, asked by its own unchanged client; and what its plug-ins do beside it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("highdicom")
pytest.importorskip("multipart")
itk = pytest.importorskip("SimpleITK")
requests = pytest.importorskip("requests")

from qinjing.config import read_json, write_json
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import read_nifti
from qinjing.engine.plan import make_plan, with_steps
from qinjing.report.declared import Declaration, ServedModel, declare, served
from qinjing.serve import labelling
from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.images import About, Image
from qinjing.tasks.planning import measure
from qinjing.tasks.predict import Segmenter
from qinjing.tasks.train import TrainConfig, train
from tests.serve.conftest import Service, say
from tests.serve.monailabel import client_class
from tests.tasks.test_train import write_case

# The client leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
FIGURE = re.compile(r"\d\s*(ml|mm|cm)\b|_ml|axis_mm|diameter|volume_|finding", re.IGNORECASE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for number in range(5):
        write_case(folder, f"case{number}", number)
    return folder


@pytest.fixture(scope="module")
def model(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    opened = open_dataset(dataset)
    plan = make_plan(measure(opened, opened.cases), device="cpu", threads=1, net="subvoxel_unet")
    output = tmp_path_factory.mktemp("run")
    write_json(output / "plan.json", with_steps(plan, 40, None, 1))
    train(TrainConfig(dataset, output / "run", plan=output / "plan.json"))
    declare(output / "run", Declaration("organ 1", "CT", "tool"))
    return served(output / "run")


@dataclass
class Named:
    """The images that projects name, by person."""

    images: dict[str, set[str]]

    def sees(self, person: str, image_id: str) -> bool:
        return image_id in self.images.get(person, set())


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
    service.app.include_router(labelling.router)
    service.app.state.projects = Named({"Ann": {catalogue.images.all()[1].image_id}})
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
    assert list(info["models"]) == ["organ_1"] and info["labels"] == ["label 2", "label 5"]
    assert info["models"]["organ_1"]["labels"] == {"label 2": 2, "label 5": 5}
    assert info["datastore"] == {"total": 4, "completed": 0, "label_tags": {}}
    assert {"first", "random", "uncertainty"} == set(info["strategies"]) and "config" not in info

    sample = client.next_sample("first", {})
    first = catalogue.images.all()[0]
    assert sample["id"].startswith(first.image_id) and sample["name"].endswith(".nii.gz")

    answered, params = client.infer("organ_1", sample["id"], {"result_extension": ".nrrd"})
    expected, _ = Segmenter.load(model.run).segment(
        read_nifti(catalogue.images.volume(first.image_id)).canonical()
    )
    got = itk.GetArrayFromImage(itk.ReadImage(answered))
    ours = expected.restore_axes(read_nifti(catalogue.images.volume(first.image_id)))
    assert np.array_equal(got, ours.voxels) and len(np.unique(got)) > 1
    assert set(params["label_names"].values()) == set(np.unique(got)) - {0}
    image = itk.ReadImage(str(catalogue.images.volume(first.image_id)))
    assert np.allclose(itk.ReadImage(answered).GetOrigin(), image.GetOrigin(), atol=1e-4)
    assert np.allclose(itk.ReadImage(answered).GetDirection(), image.GetDirection(), atol=1e-6)

    names = [{"name": "rim", "idx": 2}, {"name": "core", "idx": 5}]
    client.save_label(sample["id"], str(label_of(dataset, 0)), params={"label_info": names})
    assert client.info()["datastore"] == {"total": 4, "completed": 1, "label_tags": {"final": 1}}
    store = client.datastore()["objects"][sample["id"]]
    assert store["labels"]["final"]["info"]["label_info"] == names
    fetched = nib.load(client.download_label(sample["id"], "final"))
    assert np.array_equal(fetched.get_fdata(), nib.load(label_of(dataset, 0)).get_fdata())
    (kept,) = catalogue.images.segmentations(first.image_id)
    assert (kept.kind, kept.author, kept.state) == ("reader", "Dr. Li", "submitted")
    assert (dict(kept.labels), kept.product_class) == ({2: "rim", 5: "core"}, "tool")

    assert not client.next_sample("first", {})["id"].startswith(first.image_id)
    for strategy in ("random", "uncertainty"):
        assert client.next_sample(strategy, {})["id"][:32] != first.image_id
    with pytest.raises(client_class().MONAILabelClientException) as refused:
        client.next_sample("lucky", {})
    assert refused.value.status_code == 404
