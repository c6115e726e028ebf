"""The whole road with real parts: a series, Orthanc, model, Orthanc again, page in Chromium."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
for package in ("highdicom", "pynetdicom", "sqlalchemy", "fpdf", "dicomweb_client", "fastapi"):
    pytest.importorskip(package)

from PIL import Image  # noqa: E402

from qinjing.serve.app import create_app  # noqa: E402
from qinjing.serve.auth import Tokens  # noqa: E402
from qinjing.serve.node import NodeConfig, node  # noqa: E402
from qinjing.serve.send import Destination  # noqa: E402
from qinjing.serve.settings import ServeConfig  # noqa: E402
from qinjing.serve.work import WorkConfig  # noqa: E402
from tests.clinic.answering import get, model_of, post, worked  # noqa: E402
from tests.clinic.orthanc import free_port, started  # noqa: E402
from tests.serve.browser import MISSING, Browser, chromium  # noqa: E402
from tests.serve.conftest import Service, running  # noqa: E402, F401
from tests.serve.test_pages import BUILT  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not chromium(), reason=MISSING),
    pytest.mark.skipif(not BUILT.is_file(), reason="web/ was not built here (npm, esbuild)"),
]
# What was on the screen, to be looked at by people; not in the repository.
ARTEFACTS = Path(__file__).parents[2] / "build" / "artefacts"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as one:
        yield one
        assert one.log == []


def test_from_the_archive_to_the_model_to_the_archive_to_the_page(
    run: Path, study: Path, browser: Browser, running: Callable[[Service], str],  # noqa: F811
    tmp_path: Path,
) -> None:  # fmt: skip
    port = free_port()
    model = model_of(run, "analysis")
    config = ServeConfig(folder=tmp_path / "studies", served=(model,))
    app = create_app(config)
    service = Service(config, app, Tokens(tmp_path / "studies" / "tokens.jsonl"))
    address, catalogue = running(service), app.state.catalogue
    with started(tmp_path / "orthanc", {"qinjing": ("QINJING", port)}) as pacs:
        client = pacs.client()
        client.store_instances([pydicom.dcmread(file) for file in sorted(study.rglob("*.dcm"))])
        (there,) = get(f"{pacs.url}/studies")
        taking = NodeConfig(port=port, quiet_s=0.2, kinds=("predict",), callers=("ORTHANC",))
        back = Destination("ORTHANC", "127.0.0.1", pacs.port)
        with node(taking, catalogue):
            post(f"{pacs.url}/modalities/qinjing/store", there)
            worked(catalogue, WorkConfig(("predict",), models=(model,), destination=back))
        (job,) = catalogue.queue.of()
        found = client.search_for_series(job.study_instance_uid)
        made = sorted(one["00080060"]["Value"][0] for one in found)
        assert made == ["CT", "CT", "DOC", "SEG", "SR"]
    browser.send("Page.navigate", url=address)
    browser.until("document.activeElement?.id === 'token'")
    browser.type(service.token("reader", name="Dr. Li"))
    browser.press("Enter")
    browser.until("document.querySelectorAll('#studies tbody tr').length === 1")
    worklist = browser.run("document.getElementById('studies').innerText")
    assert "Canary Kanarie" in worklist and "done" in worklist.lower()
    _keep(browser, "worklist")
    browser.press("ArrowDown")
    browser.press("Enter")
    browser.until("location.pathname === '/study' && document.querySelector('.labels td.number')")
    browser.until("document.querySelector('.place')?.textContent")
    _keep(browser, "study")
    assert "Class: analysis" in browser.run("document.querySelector('.product').innerText")
    image = next(one for one in catalogue.images.all() if one.shape[2] > 2)
    (said,) = catalogue.images.segmentations(image.image_id)
    reader = service.client("reader", name="Dr. Li")
    figures = reader.get(f"/api/segmentations/{said.segmentation_id}/measures").json()
    shown = browser.run(
        "[...document.querySelectorAll('.labels [data-label]')].map((row) => "
        "[row.dataset.label, row.querySelector('.number').innerText])"
    )
    volumes = {str(one["label"]): one["volume"]["ml"] for one in figures["structures"]}
    assert shown and all(
        float(text.split()[0]) == pytest.approx(volumes[label], rel=0.06) for label, text in shown
    )
    browser.run("document.querySelector('.labels .name').click()")
    with_overlay = _seen(browser)
    browser.press("l")
    without = _seen(browser)
    # Labels tint what is under them: a picture with them differs in colour, not in its greys.
    coloured = np.ptp(with_overlay.astype(int), axis=2) > 40
    assert (coloured & (np.ptp(without.astype(int), axis=2) < 10)).sum() > 100


def _seen(browser: Browser) -> Any:
    """The picture on the page, (rows, columns, 3)."""
    browser.until("new Promise((done) => requestAnimationFrame(() => done(true)))")
    box = browser.run(
        "(() => { const one = document.querySelector('canvas').getBoundingClientRect();"
        "return [one.left, one.top, one.right, one.bottom].map(Math.round); })()"
    )
    path = ARTEFACTS / "picture.png"
    browser.picture(path)
    whole = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
    return whole[box[1] : box[3], box[0] : box[2]]


def _keep(browser: Browser, name: str) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    browser.picture(ARTEFACTS / f"end-to-end-{name}.png")
