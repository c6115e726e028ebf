"""The tools of `make lint`, each as one test, with what they found as the message."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.contracts.source import PACKAGE

PROJECT = PACKAGE.parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check"],
        ["ruff", "format", "--check"],
        ["mypy"],
        ["codespell_lib"],
    ],
    ids=lambda command: " ".join(command),
)
def test_clean(command: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=PROJECT, capture_output=True, text=True, timeout=400
    )
    assert run.returncode == 0, run.stdout + run.stderr
