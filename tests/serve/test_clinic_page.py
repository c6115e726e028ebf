"""The clinic's pages in a real browser: the worklist, a study, an annotation drawn and decided."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

import nibabel
import PIL.Image
import pydicom
from scipy import ndimage

from qinjing.serve.catalogue import ABOUT, Instance, study_key
from qinjing.serve.volumes import show
from tests.serve.browser import MISSING, Browser, chromium
from tests.serve.conftest import Service
from tests.serve.dicom import content, instance
from tests.serve.test_pages import BUILT

pytestmark = [
    pytest.mark.skipif(not chromium(), reason=MISSING),
    pytest.mark.skipif(not BUILT.is_file(), reason="web/ was not built here (npm, esbuild)"),
]
AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
SIZE, SLICES = 48, 20
LABELS = {1: "liver", 2: "lesion"}
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)


@dataclass(frozen=True)
class Clinic:
    """A service with two studies of one patient."""

    service: Service
    address: str
    studies: tuple[str, str]
    images: tuple[str, str]

    def client(self, role: str, name: str) -> Any:
        return self.service.client(role, name=name)


def _labels() -> np.ndarray:
    """Two balls, (k, j, i) of the series: a large one and a small one inside it."""
    k, j, i = np.indices((SLICES, SIZE, SIZE))
    far = np.hypot(np.hypot((k - 10) * 2.5, (j - 24) * 0.75), (i - 16) * 0.75)
    near = np.hypot(np.hypot((k - 12) * 2.5, (j - 20) * 0.75), (i - 14) * 0.75)
    return np.where(near < 3.5, 2, np.where(far < 9, 1, 0)).astype(np.uint8)


def _keep(service: Service, number: int, date: str) -> tuple[str, str]:
    """Take a study in; its grey values are the labels', so that pictures can be told apart."""
    catalogue, greys = service.app.state.catalogue, 900 + 120 * _labels().astype(np.int16)
    for slice_ in range(SLICES):
        one = instance(
            number, slice_, SIZE, PatientID="MRN1", PatientName="Li^Mei", StudyDate=date,
            PixelData=greys[slice_].tobytes(),
        )  # fmt: skip
        about = {name: str(one.get(name, "")) for name in ABOUT}
        said = Instance(
            one.SOPInstanceUID, one.SOPClassUID, one.SeriesInstanceUID, one.StudyInstanceUID, about
        )
        catalogue.keep(said, content(one))
    (image,), faults = show(catalogue.place(one.StudyInstanceUID), catalogue.images)
    assert not faults
    return study_key(one.StudyInstanceUID), image.image_id


def _segment(clinic: Clinic, product_class: str, author: str = "organs") -> str:
    """What a model found, on the image's own grid as the service serves it."""
    images = clinic.service.app.state.images
    shown = nibabel.load(images.volume(clinic.images[0]))
    found = np.round((np.asarray(shown.dataobj) - (900 - 1024)) / 120).astype(np.uint8)
    packed = gzip.compress(nibabel.Nifti1Image(found, shown.affine).to_bytes())
    made = images.add_segmentation(
        clinic.images[0], kind="model", author=author, labels=LABELS,
        product_class=product_class, content=packed,
    )  # fmt: skip
    return str(made.segmentation_id)


@pytest.fixture
def clinic(
    make: Callable[..., Service], running: Callable[[Service], str], tmp_path: Path
) -> Clinic:
    service = make(folder=tmp_path / "node")
    first, second = _keep(service, 1, "20250102"), _keep(service, 2, "20260304")
    return Clinic(service, running(service), (first[0], second[0]), (first[1], second[1]))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as one:
        yield one
        assert one.log == []


def enter(browser: Browser, clinic: Clinic, role: str, name: str, path: str = "/") -> None:
    """Open a page and sign in there, as a person does."""
    browser.send("Page.navigate", url=clinic.address + path)
    browser.until("document.activeElement?.id === 'token'")
    browser.type(clinic.service.token(role, name=name))
    browser.press("Enter")


def pixels(browser: Browser, colour: tuple[int, int, int], path: Path) -> int:
    """How many of a screenshot's pixels over the picture half a label's colour tints, half grey."""
    browser.until("new Promise((done) => requestAnimationFrame(() => done(true)))")
    browser.picture(path)
    box = browser.run(
        "(() => { const one = document.querySelector('canvas').getBoundingClientRect();"
        "return [one.left, one.top, one.right, one.bottom]; })()"
    )
    left, top, right, bottom = (round(one) for one in box)
    seen = np.asarray(PIL.Image.open(path).convert("RGB"), float)[top:bottom, left:right]
    rest = seen - 0.5 * np.array(colour)
    grey = (np.ptp(rest, axis=2) < 4) & (rest.min(axis=2) > -3)
    return int((grey & (np.ptp(seen, axis=2) > 40)).sum())


def place(browser: Browser) -> list[int]:
    """The voxel of the file at the crosshair, as the page says it."""
    said = browser.run("document.querySelector('.place').textContent")
    return [int(one) for one in re.findall(r"voxel (\d+), (\d+), (\d+)", said)[0]]


def findings(browser: Browser) -> list[str]:
    """What axe finds serious on the page as it stands."""
    # Halfway from one theme to the other a button's letters are hard to read, for 120 ms.
    browser.until(
        "Promise.all(document.getAnimations().map((one) => one.finished)).then(() => true)"
    )
    browser.run(AXE.read_text(encoding="utf-8") + "; 0")
    told = browser.run(
        "axe.run(document, {resultTypes: ['violations']}).then((all) => JSON.stringify("
        "all.violations.filter((one) => ['serious', 'critical'].includes(one.impact))"
        ".map((one) => [one.id, one.nodes.map((node) => node.html).slice(0, 3)])))"
    )
    return [str(one) for one in json.loads(told)]


def test_the_worklist_is_searched_sorted_and_opened_by_keys(
    clinic: Clinic, browser: Browser
) -> None:
    enter(browser, clinic, "reader", "Dr. Wang")
    browser.until("document.querySelectorAll('#studies tbody tr').length === 2")
    assert browser.run("document.activeElement.id") == "search"
    said = browser.run("document.getElementById('studies').innerText")
    assert "Li Mei" in said and "2026-03-04" in said
    browser.run("document.getElementById('by-study_date').click()")
    dates = "[...document.querySelectorAll('#studies tbody tr')].map((one) => one.innerText)"
    assert "2025-01-02" in browser.run(dates)[0]
    browser.run("document.getElementById('search').focus()")
    browser.type("no such patient")
    browser.until("document.querySelectorAll('#studies tbody tr').length === 0")
    assert "No study is like this" in browser.run("document.body.innerText")
    browser.run("document.getElementById('search').value = ''")
    browser.type("mei")
    browser.until("document.querySelectorAll('#studies tbody tr').length === 2")
    browser.press("ArrowDown")
    browser.press("Enter")
    browser.until("location.pathname === '/study' && document.querySelector('.place')?.textContent")
    assert browser.run("location.hash.slice(1)") == clinic.studies[0]
    assert "Mei" not in browser.run("location.href + document.title")
    # Signed out, nothing of the patient is left in the page.
    browser.run("document.getElementById('leave').click()")
    browser.until("document.activeElement?.id === 'token'")
    assert "Mei" not in browser.run("document.body.innerHTML")


def test_a_studys_overlay_is_drawn_and_a_label_jumps(
    clinic: Clinic, browser: Browser, tmp_path: Path
) -> None:
    made = _segment(clinic, "analysis")
    found = clinic.client("reader", "Dr. Wang").get(f"/api/segmentations/{made}/places").json()
    enter(browser, clinic, "reader", "Dr. Wang", f"/study#{clinic.studies[0]}")
    browser.until("document.querySelector('.labels td.number')")
    assert "Class: analysis" in browser.run("document.querySelector('.product').innerText")
    for one in found["places"]:
        browser.run(f"document.querySelector('[data-label=\"{one['label']}\"] .name').click()")
        assert place(browser) == one["voxel"]
        assert pixels(browser, (ORANGE, BLUE)[one["label"] - 1], tmp_path / "study.png") > 200
    # A ball of 9 mm, less what the small one takes of it, is 2.8 ml; voxels make it rougher.
    volume = browser.run("document.querySelector('[data-label=\"1\"] .number').innerText")
    assert 2.2 < float(volume.split(" ")[0]) < 3.2 and "±" in volume
    browser.run("document.getElementById('view-planes').click()")
    browser.press("l")
    bare = tmp_path / "without.png"
    assert pixels(browser, ORANGE, bare) < 20 and pixels(browser, BLUE, bare) < 20
    browser.press("l")
    # The same patient's other study, beside it: one crosshair moves the other.
    browser.run(
        "(() => { const list = document.getElementById('compareChoice');"
        "list.value = [...list.options].at(-1).value; list.dispatchEvent(new Event('change')); })()"
    )
    browser.until("document.querySelectorAll('.place').length === 2")
    browser.until("[...document.querySelectorAll('.place')].every((one) => one.textContent)")
    before = place(browser)
    browser.press("ArrowUp")
    both = browser.run("[...document.querySelectorAll('.place')].map((one) => one.textContent)")
    assert place(browser)[2] == before[2] + 1
    assert len({re.findall(r"voxel [\d, ]+", one)[0] for one in both}) == 1


def test_the_solid_picture_turns_by_keys(clinic: Clinic, browser: Browser, tmp_path: Path) -> None:
    enter(browser, clinic, "reader", "Dr. Wang", f"/study#{clinic.studies[0]}")
    browser.until("document.querySelector('.place')?.textContent")
    browser.run("document.getElementById('view-all').click()")
    browser.until("document.querySelector('.solid') && !document.querySelector('.solid').hidden")
    box = browser.run(
        "(() => { const one = document.querySelector('.solid').getBoundingClientRect();"
        "return [one.left, one.top, one.right, one.bottom]; })()"
    )

    def looks(unlike: np.ndarray | None = None) -> np.ndarray:
        """The picture once it stands still, and is another."""
        last = None
        for _ in range(100):
            browser.until("new Promise((done) => setTimeout(() => done(true), 100))")
            browser.picture(tmp_path / "solid.png")
            left, top, right, bottom = (round(one) for one in box)
            seen = np.asarray(PIL.Image.open(tmp_path / "solid.png").convert("L"), float)
            seen = seen[top:bottom, left:right]
            other = unlike is None or np.abs(seen - unlike).mean() > 0.5
            if last is not None and np.array_equal(seen, last) and seen.max() > 0 and other:
                return seen
            last = seen
        raise AssertionError("never still")

    begun = looks()
    browser.press("t")
    turned = looks(unlike=begun)
    browser.press("y")
    tilted = looks(unlike=turned)
    browser.press("Y", shift=True)
    np.testing.assert_array_equal(looks(unlike=tilted), turned)
    browser.press("T", shift=True)
    np.testing.assert_array_equal(looks(unlike=turned), begun)


def test_a_tool_gives_no_figures_and_a_finding_waits_for_a_reader(
    clinic: Clinic, browser: Browser
) -> None:
    _segment(clinic, "tool", "outlines")
    waiting = _segment(clinic, "diagnosis", "lesions")
    enter(browser, clinic, "reader", "Dr. Wang", f"/study#{clinic.studies[0]}")
    browser.until(
        "document.getElementById('confirmIt') && document.querySelector('.product.diagnosis')"
    )
    browser.run("document.getElementById('confirmIt').click()")
    browser.until("document.getElementById('dialog').open")
    browser.run("document.getElementById('confirm').click()")
    browser.until("document.querySelector('#panel .note.good')")
    assert "Dr. Wang" in browser.run("document.querySelector('#panel .note.good').innerText")
    kept = clinic.service.app.state.images.segmentation(waiting)
    assert kept.confirmed_by == "Dr. Wang"
    browser.run(
        "(() => { const list = document.getElementById('segmentationChoice'); list.value ="
        "[...list.options].find((one) => one.text.includes('outlines')).value;"
        "list.dispatchEvent(new Event('change')); })()"
    )
    browser.until("document.querySelector('.product.tool') && document.getElementById('noFigures')")
    said = browser.run("document.getElementById('panel').innerText")
    assert "gives no figures" in said and " ml" not in said


def _project(clinic: Clinic) -> str:
    asked = {
        "name": "Liver", "labels": {"1": "liver", "2": "lesion"}, "images": [*clinic.images],
        "readers": ["Dr. Chen", "Dr. Wang"], "target_kappa": 0.85,
    }  # fmt: skip
    answer = clinic.client("admin", "Dr. Li").post("/api/projects", json=asked)
    assert answer.status_code == 200
    return str(answer.json()["project"])


def _annotation(clinic: Clinic, project: str, name: str = "Dr. Chen") -> np.ndarray:
    """A person's labels by REST, (i, j, k)."""
    path = f"/api/projects/{project}/images/{clinic.images[0]}/annotation"
    answer = clinic.client("annotator", name).get(path)
    assert answer.status_code == 200
    stream = io.BytesIO(gzip.decompress(answer.content))
    return np.asarray(nibabel.Nifti1Image.from_stream(stream).dataobj)


def _point(browser: Browser, x: float, y: float) -> list[int]:
    """Look at a place of the picture; return its voxel."""
    browser.press("m")
    browser.drag((x, y))
    return place(browser)


def test_a_case_is_drawn_saved_submitted_decided_and_exported(
    clinic: Clinic, browser: Browser, tmp_path: Path
) -> None:
    project = _project(clinic)
    enter(browser, clinic, "annotator", "Dr. Chen", f"/annotate#{project}/{clinic.images[0]}")
    browser.until(
        "document.getElementById('tool-brush') && document.getElementById('place').textContent"
    )
    assert "MRN1" not in browser.run("document.body.innerText")
    # A stroke of the brush: as far as its radius from the line between two places, no farther.
    one, two = (560.0, 360.0), (700.0, 360.0)
    ends = np.array([_point(browser, *one), _point(browser, *two)])
    assert ends[0, 2] == ends[1, 2] and ends[0, 1] == ends[1, 1]  # one row of one slice
    browser.press("b")
    browser.press("1")
    browser.drag(one, *[(one[0] + 10 * step, one[1]) for step in range(1, 14)], two)
    browser.press("s", ctrl=True)
    browser.until("document.getElementById('saveState').className.includes('saved')")
    drawn = _annotation(clinic, project)
    assert set(np.unique(drawn)) == {0, 1}
    at = np.argwhere(drawn == 1)
    assert set(at[:, 2]) == {ends[0, 2]}
    low, high = sorted(ends[:, 0])
    along = np.clip(at[:, 0], low, high)
    far = np.hypot(at[:, 0] - along, at[:, 1] - ends[0, 1]) * 0.75
    assert far.max() <= 5 + 0.75 and len(at) > 0.85 * (high - low) * 10 / 0.75
    # A polygon by its corners, of another label, two slices up; then between them by itself.
    browser.press("ArrowUp")
    browser.press("ArrowUp")
    browser.press("2")
    browser.press("p")
    corners = [(500.0, 500.0), (620.0, 500.0), (620.0, 600.0), (500.0, 600.0)]
    for corner in corners:
        browser.drag(corner)
    browser.press("Enter")
    voxels = np.array([_point(browser, *corner) for corner in corners])
    browser.press("s", ctrl=True)
    browser.until("document.getElementById('saveState').textContent.startsWith('Draft saved')")
    drawn = _annotation(clinic, project)
    middle = voxels.mean(axis=0).astype(int)
    inner = np.zeros_like(drawn)
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    inner[low[0] + 1 : high[0], low[1] + 1 : high[1], middle[2]] = 2
    assert (drawn[inner == 2] == 2).all() and (drawn == 2).sum() <= np.prod(high[:2] - low[:2] + 1)
    assert middle[2] == ends[0, 2] + 2
    # Undone it is gone, and done again it is there.
    browser.press("z", ctrl=True)
    assert pixels(browser, BLUE, tmp_path / "undone.png") < 20
    browser.press("y", ctrl=True)
    assert pixels(browser, BLUE, tmp_path / "annotate.png") > 200
    browser.press("Enter", ctrl=True)
    browser.until("document.getElementById('dialog').open")
    browser.run("document.getElementById('confirm').click()")
    browser.until("document.getElementById('locked')")
    np.testing.assert_array_equal(_annotation(clinic, project), drawn)
    _decide(clinic, browser, project, drawn)


def _decide(clinic: Clinic, browser: Browser, project: str, drawn: np.ndarray) -> None:
    """Another reader agrees; the administrator sees it, decides, and exports."""
    path = f"/api/projects/{project}/images/{clinic.images[0]}/annotation"
    same = clinic.client("annotator", "Dr. Chen").get(path).content
    answer = clinic.client("annotator", "Dr. Wang").put(
        f"{path}?state=submitted", content=same, headers={"content-type": "application/gzip"}
    )
    assert answer.status_code == 200
    browser.run("document.getElementById('leave').click()")
    browser.until("document.activeElement?.id === 'token'")
    enter(browser, clinic, "admin", "Dr. Li", f"/?#{project}/{clinic.images[0]}")
    browser.until("document.querySelector('#projects .cards')")
    browser.send("Page.navigate", url=f"{clinic.address}/annotate#{project}/{clinic.images[0]}")
    browser.until("document.getElementById('agreement')")
    browser.run("document.getElementById('agreement').click()")
    browser.until("document.getElementById('verdict')")
    said = browser.run("document.getElementById('dialog').innerText")
    assert "0.85 is reached" in said and "1.000" in said and "Dr. Wang" in said
    browser.press("Escape")
    browser.run("document.getElementById('consensus').click()")
    browser.until("document.getElementById('submit')?.textContent === 'Save as final'")
    browser.run("document.getElementById('submit').click()")
    browser.until("document.getElementById('dialog').open")
    browser.run("document.getElementById('confirm').click()")
    browser.until("document.getElementById('exportSeg')")
    href = browser.run("document.getElementById('exportSeg').getAttribute('href')")
    file = clinic.client("admin", "Dr. Li").get(href)
    seg = pydicom.dcmread(io.BytesIO(file.content))
    assert seg.Modality == "SEG" and seg.PatientID == "MRN1"
    assert int(seg.pixel_array.sum()) == int((drawn > 0).sum())


def test_regions_and_slices_between_are_as_scipy_has_them(clinic: Clinic, browser: Browser) -> None:
    project = _project(clinic)
    enter(browser, clinic, "annotator", "Dr. Chen", f"/annotate#{project}/{clinic.images[0]}")
    browser.until("document.getElementById('tool-brush')")
    browser.until("document.getElementById('place').textContent")
    greys = np.asarray(nibabel.load(_volume(clinic)).dataobj)
    # A region in 3-D: what is connected by faces with the voxel at the crosshair, within the range.
    browser.press("r")
    browser.run("document.getElementById('ball').click()")
    browser.run("document.activeElement.blur()")
    while (
        greys[tuple(place(browser))] != -4
    ):  # into the large ball, which is on the patient's right
        browser.press("ArrowRight")
    browser.run("document.querySelector('#panel .windows button').click()")
    bounds = "['low', 'high'].map((one) => Number(document.getElementById(one).value))"
    low, high = browser.run(bounds)
    assert -124 < low <= -4 <= high < 116
    browser.run("document.activeElement.blur()")
    browser.press(" ")
    pieces, _ = ndimage.label((greys >= low) & (greys <= high))
    expected = (pieces == pieces[tuple(place(browser))]).astype(int)
    np.testing.assert_array_equal(_saved(clinic, browser, project), expected)
    # Between two slices: the mixture of signed distances, wherever nothing was drawn.
    browser.press("2")
    browser.press("p")
    for corners in (((460, 520), (520, 520), (520, 600), (460, 600)),
                    ((480, 540), (600, 540), (600, 640), (480, 640))):  # fmt: skip
        for corner in corners:
            browser.drag(corner)
        browser.press("Enter")
        for _ in range(4):
            browser.press("ArrowUp")
    before = _saved(clinic, browser, project)
    browser.press("i")
    first, last = np.unique(np.argwhere(before == 2)[:, 2])
    assert last == first + 4
    expected = before.copy()
    far = [_signed(before[..., one] == 2) for one in (first, last)]
    for part in (1, 2, 3):
        mixed = (1 - part / 4) * far[0] + part / 4 * far[1] > 0
        expected[..., first + part][mixed & (before[..., first + part] == 0)] = 2
    np.testing.assert_array_equal(_saved(clinic, browser, project), expected)


def test_a_click_segments_and_one_outside_takes_back(clinic: Clinic, browser: Browser) -> None:
    project = _project(clinic)
    enter(browser, clinic, "annotator", "Dr. Chen", f"/annotate#{project}/{clinic.images[0]}")
    browser.until("document.getElementById('tool-brush')")
    browser.until("document.getElementById('place').textContent")
    greys = np.asarray(nibabel.load(_volume(clinic)).dataobj)
    said = "document.getElementById('said').textContent"
    browser.press("c")
    while greys[tuple(place(browser))] != -4:
        browser.press("ArrowRight")
    inside = tuple(place(browser))
    browser.press(" ")
    browser.until(f"/^\\d+ voxels drawn/.test({said})")
    drawn = _saved(clinic, browser, project)
    assert drawn[inside] == 1
    truth = greys == -4
    assert 2 * ((drawn == 1) & truth).sum() / ((drawn == 1).sum() + truth.sum()) > 0.8
    # What is drawn already gives way to the answer to both clicks together.
    while drawn[tuple(place(browser))] == 1:
        browser.press("ArrowUp")
    browser.press("ArrowDown")
    outside, before = tuple(place(browser)), browser.run(said)
    browser.press(" ", shift=True)
    browser.until(f"/^\\d+ voxels drawn/.test({said}) && {said} !== '{before}'")
    again = _saved(clinic, browser, project)
    assert again[inside] == 1 and again[outside] == 0 and (again == 1).sum() < (drawn == 1).sum()


def _volume(clinic: Clinic) -> Path:
    return Path(clinic.service.app.state.images.volume(clinic.images[0]))


def _saved(clinic: Clinic, browser: Browser, project: str) -> np.ndarray:
    browser.press("s", ctrl=True)
    browser.until("document.getElementById('saveState').className === 'state saved'")
    return _annotation(clinic, project)


def _signed(inside: np.ndarray) -> np.ndarray:
    """Distance to the outline of a slice, positive inside."""
    inner = ndimage.distance_transform_edt(inside, sampling=0.75)
    outer = ndimage.distance_transform_edt(~inside, sampling=0.75)
    return np.asarray(inner - outer, np.float32)


def test_a_drawing_is_not_lost_when_the_service_is_away(clinic: Clinic, browser: Browser) -> None:
    project = _project(clinic)
    enter(browser, clinic, "annotator", "Dr. Chen", f"/annotate#{project}/{clinic.images[0]}")
    browser.until(
        "document.getElementById('tool-brush') && document.getElementById('place').textContent"
    )
    browser.run(
        "window.fetched = window.fetch; window.fetch = () => Promise.reject(new TypeError()); 0"
    )
    browser.drag((560, 360), (600, 360))
    browser.press("s", ctrl=True)
    browser.until("document.getElementById('saveState').className.includes('kept')")
    assert "cannot be reached" in browser.run("document.getElementById('keep').innerText")
    asked = (
        "(() => { const e = new Event('beforeunload', {cancelable: true});"
        "dispatchEvent(e); return e.defaultPrevented; })()"
    )
    assert browser.run(asked)
    browser.run("window.fetch = window.fetched; 0")
    browser.press("s", ctrl=True)
    browser.until("document.getElementById('saveState').className.includes('saved')")
    assert not browser.run(asked)
    assert (_annotation(clinic, project) == 1).any()
    # Another window saves: neither drawing goes without a word.
    path = f"/api/projects/{project}/images/{clinic.images[0]}/annotation"
    client = clinic.client("annotator", "Dr. Chen")
    there = client.get(path)
    other = bytearray(gzip.decompress(there.content))
    other[-2:] = b"\x01\x00"  # the last voxel, of two bytes
    saved = client.put(
        path, content=gzip.compress(bytes(other)),
        headers={"content-type": "application/gzip", "if-match": there.headers["etag"]},
    )  # fmt: skip
    assert saved.status_code == 200
    browser.drag((560, 420), (600, 420))
    browser.press("s", ctrl=True)
    browser.until("document.getElementById('dialog').open")
    assert "saved first" in browser.run("document.getElementById('dialog').innerText")
    browser.run("document.getElementById('confirm').click()")
    browser.until("document.getElementById('saveState').className.includes('saved')")
    assert client.get(path).headers["etag"] != saved.headers["etag"]
    # The refusal of the first try is in the browser's own log, as it should be.
    assert all("409" in one for one in browser.log)
    browser.log.clear()


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not here (npm ci in web/)")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_accessible(clinic: Clinic, browser: Browser, theme: str) -> None:
    _segment(clinic, "analysis")
    project = _project(clinic)
    browser.send("Page.navigate", url=f"{clinic.address}/")
    browser.until("document.activeElement?.id === 'token'")
    browser.run(f"localStorage.setItem('theme', '{theme}')")
    browser.send("Page.reload")
    browser.until("document.activeElement?.id === 'token'")
    assert findings(browser) == []
    browser.type(clinic.service.token("admin", name="Dr. Li"))
    browser.press("Enter")
    browser.until(
        "document.querySelector('#studies tbody tr') && document.querySelector('.cards li')"
    )
    assert findings(browser) == []
    for path, there in (
        (f"/study#{clinic.studies[0]}", ".labels td.number"),
        (f"/annotate#{project}/{clinic.images[0]}", "#tool-brush"),
    ):
        browser.send("Page.navigate", url=clinic.address + path)
        browser.until(f"document.querySelector('{there}')")
        assert findings(browser) == []
        browser.run("document.activeElement.blur()")
        browser.press("?")
        browser.until("document.getElementById('dialog').open")
        assert findings(browser) == []
