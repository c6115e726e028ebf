"""How long from opening a study to its picture, and from a brush's move to the screen?

A CT of 256 x 256 x 240 voxels of 16 bits (31 MB as it is shown; generated, with noise, so that it
packs like a real one) lies in a folder; `qinjing serve` is a process of its own and Chromium draws
without a graphics card (SwiftShader). `first_picture_ms` is from the beginning of the navigation to
the frame after the three planes were drawn, each time with an empty cache. `stroke_ms` is from the
mouse's event, as the browser timed it, to the end of the frame that shows what it drew; the picture
is then looked at for the label's colour. `move_cpu_ms` is the page's own share of that, the time of
its thread on a processor, which other work on the machine does not lengthen.

    .venv/bin/python benchmarks/page.py -o benchmarks/results/page.json
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from qinjing.config import write_json
from qinjing.engine.device import environment
from qinjing.serve.auth import Tokens
from qinjing.serve.catalogue import ABOUT, Instance, open_catalogue, study_key
from qinjing.serve.drawn import About
from qinjing.serve.settings import tokens_file

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.serve.browser import Browser  # noqa: E402
from tests.serve.dicom import content, instance  # noqa: E402

SHAPE = (256, 256, 240)
READER = "Dr. Wang"
# Runs before the page: notes when a place is told, which is after the planes were drawn, and, for
# each move with the button down, how long it took until the frame with its work was done.
WATCH = """
const look = () => {
  if (document.querySelector('.place')?.textContent) requestAnimationFrame(() => {
    window.seenAt = performance.now();
  });
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
window.strokes = [];
addEventListener('pointermove', (event) => {
  if (!event.buttons) return;
  const begun = event.timeStamp;
  requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => window.strokes.push(performance.now() - begun);
    port2.postMessage(0);
  });
}, true);
"""


def fill(folder: Path) -> tuple[str, str, str]:
    """Make the folder; return the study's key, the image's id and a project's."""
    catalogue = open_catalogue(folder)
    one = instance(1, 1, 16)
    about = {name: str(one.get(name, "")) for name in ABOUT}
    said = Instance(
        one.SOPInstanceUID, one.SOPClassUID, one.SeriesInstanceUID, one.StudyInstanceUID, about
    )
    catalogue.keep(said, content(one))
    x, y, z = np.ogrid[:256, :256, :240]
    body = ((x - 128) / 110) ** 2 + ((y - 128) / 80) ** 2 < 1
    liver = (x - 90) ** 2 + (y - 120) ** 2 + (z - 120) ** 2 < 50**2
    noise = np.random.default_rng(0).normal(0, 12, SHAPE)
    voxels = (np.where(body, np.where(liver, 110, 40), -1000) + noise).astype(np.int16)
    file = folder / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.4, -1.2, 1.4, 1])), file)
    known = About(
        study=one.StudyInstanceUID, series=one.SeriesInstanceUID, name="CT series 1",
        modality="CT", units="HU", window=(("soft tissue", -160.0, 240.0),),
    )  # fmt: skip
    image = catalogue.images.add_image(file, known)
    file.unlink()
    project = catalogue.projects.make("Liver", {1: "liver"}, [image.image_id], [READER])
    return study_key(one.StudyInstanceUID), image.image_id, project.project_id


def serve(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the service; return it and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "qinjing", "serve", "-o", str(folder), "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(f"{address}/consent").close()
            return process, address
        except OSError:
            time.sleep(0.1)


def opened(browser: Browser, address: str, token: str, path: str) -> float:
    """Sign in, open a page with an empty cache; return when its picture was there, in ms."""
    browser.send("Page.navigate", url=f"{address}/")
    browser.until("document.activeElement?.id === 'token'")
    browser.type(token)
    browser.press("Enter")
    browser.until("document.querySelector('#studies tbody tr')")
    browser.send("Network.clearBrowserCache")
    browser.send("Page.navigate", url="about:blank")
    browser.send("Page.navigate", url=address + path)
    browser.until("window.seenAt")
    return float(browser.run("window.seenAt"))


def spent(browser: Browser) -> float:
    """Milliseconds of a processor that the page's thread has worked."""
    told = browser.send("Performance.getMetrics")["metrics"]
    return 1000 * next(float(one["value"]) for one in told if one["name"] == "TaskDuration")


def stroked(browser: Browser) -> tuple[list[float], float]:
    """Draw a stroke of 60 moves; return how long each took to the screen, and its work, in ms."""
    browser.until("document.getElementById('tool-brush')")
    browser.drag((520, 400))
    browser.run("window.strokes.length = 0")
    browser.send("Performance.enable", timeDomain="threadTicks")
    before = spent(browser)
    browser.drag(*[(500 + 5 * step, 380 + 30 * (step % 3)) for step in range(61)])
    browser.until("window.strokes.length >= 55")
    work = (spent(browser) - before) / int(browser.run("window.strokes.length"))
    green = browser.run(
        "(() => { const one = document.querySelector('canvas');"
        "const [r, g, b] = one.getContext('2d').getImageData("
        "650 - one.getBoundingClientRect().x, 380 - one.getBoundingClientRect().y, 1, 1).data;"
        "return r - b; })()"
    )
    assert green > 50, "the stroke must be seen"  # half of the label's orange
    return [float(one) for one in browser.run("window.strokes")], work


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    rounded = {"median": statistics.median(ordered), "p95": p95, "most": ordered[-1]}
    return {"n": len(ordered), **{name: round(value, 1) for name, value in rounded.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    pictures: list[float] = []
    strokes: list[float] = []
    work: list[float] = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "node"
        study, image, project = fill(folder)
        token = Tokens(tokens_file(None, None, folder)).make("reader", name=READER)[1]
        process, address = serve(folder)
        try:
            for repeat in range(given.repeats):
                with Browser(Path(place) / f"profile{repeat}") as browser:
                    browser.send("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
                    pictures.append(opened(browser, address, token, f"/study#{study}"))
                    browser.send("Page.navigate", url=f"{address}/annotate#{project}/{image}")
                    moves, each = stroked(browser)
                    strokes, work = strokes + moves, [*work, each]
                    assert browser.log == [], browser.log
        finally:
            process.terminate()
            process.wait(20)
    result: dict[str, Any] = {
        "volume": {"shape": SHAPE, "bits": 16}, "first_picture_ms": summary(pictures),
        "stroke_ms": summary(strokes), "move_cpu_ms": summary(work), "window": [1280, 800],
        "load_average_before": round(load, 2),
        "environment": environment(),
    }  # fmt: skip
    write_json(given.output, result)
    print(result)


if __name__ == "__main__":
    main()
