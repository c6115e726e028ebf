"""Schemathesis asks every route of the OpenAPI document, with sound requests and unsound ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("schemathesis")
pytest.importorskip("highdicom")
pytest.importorskip("pynetdicom")

from qinjing.serve.auth import Throttle
from tests.serve.clinics import fill, say
from tests.serve.conftest import Service

# It knows of no way to write what is gzipped; what it thinks of is sent as it is.
HOOKS = """
import schemathesis

@schemathesis.serializer("application/gzip")
def as_it_is(_, value):
    return value if isinstance(value, bytes) else str(value).encode()
"""


@pytest.mark.parametrize(
    ("phases", "examples"),
    [("fuzzing", 3), pytest.param("examples,coverage,fuzzing", 100, marks=pytest.mark.slow)],
)
def test_every_route_answers_as_the_document_says(
    phases: str,
    examples: int,
    make: Callable[..., Service],
    running: Callable[[Service], str],
    tmp_path: Path,
) -> None:
    catalogue = fill(tmp_path / "clinic", studies=1)
    (image,) = catalogue.images.all()
    say(catalogue, image, tmp_path, "analysis")
    service = make(folder=catalogue.folder)
    # It shows wrong tokens by the hundred, which the brake on guessing would answer by itself.
    service.app.state.throttle = Throttle(failures=1_000_000)
    address = running(service)
    words = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{address}/api/openapi.json",
        "--header", f"Authorization: Bearer {service.token('admin', name='IT')}",
        # A period that ends before it begins is as its schema says, and refused all the same.
        "--checks", "all", "--exclude-checks", "positive_data_acceptance",
        "--phases", phases, "--max-examples", str(examples), "--seed", "1", "--workers", "1",
        "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    if examples < 10:  # chains of requests take minutes
        words += ["--phases", "examples,coverage,fuzzing"]
    (tmp_path / "hooks.py").write_text(HOOKS)
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
