"""A model that answers studies, a study for it, and what waits for the answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from qinjing.config import write_json
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import read_nifti
from qinjing.engine.plan import make_plan, with_steps
from qinjing.report.declared import Declaration, ServedModel
from qinjing.serve.catalogue import Catalogue
from qinjing.serve.work import WorkConfig, work
from qinjing.tasks.planning import measure
from qinjing.tasks.train import TrainConfig, train
from tests.data.dicom.series import uid, write_series
from tests.tasks.test_train import write_case


def write_dataset(folder: Path) -> Path:
    """Five small scans with labels."""
    for number in range(5):
        write_case(folder, f"case{number}", number)
    return folder


def trained(dataset: Path, output: Path) -> Path:
    """A run that has learnt to find the labels of `write_dataset`."""
    opened = open_dataset(dataset)
    plan = make_plan(measure(opened, opened.cases), device="cpu", threads=1, net="subvoxel_unet")
    write_json(output / "plan.json", with_steps(plan, 40, None, 1))
    train(TrainConfig(dataset, output / "run", plan=output / "plan.json"))
    return output / "run"


def write_study(dataset: Path, folder: Path) -> Path:
    """A scan that the model saw, as a scanner sends it, and a localiser beside it."""
    image = read_nifti(dataset / "images" / "case0.nii.gz").canonical()
    spacing = image.spacing_mm
    origin = image.affine[:3, 3].tolist()
    assert np.allclose(image.affine[:3, :3], np.diag(spacing[::-1])[:, ::-1])
    write_series(
        folder / "scan", image.voxels.astype(np.int16), spacing=spacing, origin=origin,
        intercept=0.0, edit=_named,
    )  # fmt: skip

    def localiser(file: Any, d: int) -> None:
        _named(file, d)
        file.SeriesInstanceUID, file.SOPInstanceUID = uid("localiser"), uid("localiser", d)

    write_series(folder / "localiser", np.zeros((2, 8, 8), np.int16), edit=localiser)
    return folder


def _named(file: Any, _: int) -> None:
    file.PatientName, file.StudyDate, file.StudyID = "Canary^Kanarie", "20250102", "S1"
    file.PatientBirthDate = "19500203"


def model_of(run: Path, product_class: str, **more: Any) -> ServedModel:
    known = {"modality": "CT", "intended_use": "tests", "limits": ("phantoms",), **more}
    return ServedModel(run, Declaration("phantom", product_class=product_class, **known))


def soon(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until, "not within a minute"
        time.sleep(0.05)


def get(url: str) -> Any:
    with urlopen(url, timeout=30) as answered:
        return json.loads(answered.read())


def post(url: str, body: str) -> Any:
    with urlopen(Request(url, body.encode(), method="POST"), timeout=60) as answered:
        return json.loads(answered.read())


def worked(catalogue: Catalogue, config: WorkConfig) -> None:
    """Work until one job has come to its end."""
    ended = threading.Event()
    became: list[str] = []

    def tell(_: Any, word: str) -> None:
        became.append(word)
        ended.set()

    soon(lambda: bool(catalogue.queue.of()))
    work(catalogue, config, ended, tell)
    assert became == ["done"], [job.reason for job in catalogue.queue.of()]
