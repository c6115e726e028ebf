"""One thread a process, and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports torch or NumPy: two workers with two threads each are slower than one.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session", autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the signing key that commands make out of the user's home, which may not exist."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    root = Path(os.environ.get("QINJING_DATA", PROJECT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set QINJING_DATA")
    return root
