"""Make and use a virtual environment of its own for one peer, so that peers cannot disturb us."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PEERS = Path(__file__).resolve().parent
PROJECT = PEERS.parent.parent


def ensure(folder: Path, package: str, release: str) -> Path:
    """Return the Python of the environment in `folder`, which then holds `package` at `release`."""
    python = folder.absolute() / "bin" / "python"
    if not python.exists():
        print(f"making {folder} for {package} {release}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    found = subprocess.run([str(python), "-c", ask], capture_output=True, text=True)
    if found.returncode or found.stdout.strip() != release:
        install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
        constraints = PROJECT / "constraints.txt"
        torch = constraints.read_text(encoding="utf-8").split("torch==")[1].split()[0]
        pip = {"env": {**os.environ, "PIP_CONSTRAINT": str(constraints)}, "stdout": sys.stderr}
        # The CPU build where the index has one: it saves gigabytes. Else the package takes its own.
        subprocess.run([*install, f"torch=={torch}+cpu"], stderr=subprocess.DEVNULL, **pip)
        subprocess.run([*install, f"{package}=={release}"], check=True, **pip)
    return python


def variables(python: Path, own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables to run a peer with.

    Beside the CPU build of torch, torchvision's own library may not load; timm then cannot be
    imported either. Only in that case is timm replaced by a stub (see `stubs/sitecustomize.py`).
    """
    result = {**os.environ, **own}
    result.pop("PYTHONPATH", None)
    works = subprocess.run([str(python), "-c", "import timm.layers"], capture_output=True)
    if works.returncode:
        result["PYTHONPATH"] = str(PEERS / "stubs")
        result["PEER_STUB_MODULES"] = "timm"
    return result
