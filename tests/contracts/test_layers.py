"""Imports go down, those inside functions included; every room has its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.contracts.source import PACKAGE

PROJECT = PACKAGE.parents[1]


def layer_faults(package: Path, contract: Path = PROJECT / "pyproject.toml") -> str:
    """Run import-linter on the package; return what it complains of, "" where all is well."""
    run = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()",
         "--config", str(contract), "--no-cache"],
        cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    return "" if run.returncode == 0 else run.stdout + run.stderr


def test_imports_go_down() -> None:
    faults = layer_faults(PACKAGE)
    assert not faults, faults


def test_the_picture_and_the_contract_name_the_same_rooms() -> None:
    import tomllib

    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    drawn = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")
    (picture,) = [block for block in drawn if block.startswith("\ncli\n")]
    layers = [layer.replace("(", "").replace(")", "") for layer in contract["layers"]]
    assert picture.split("\n")[1:-1] == layers
