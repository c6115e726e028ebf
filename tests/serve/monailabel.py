"""MONAI Label's own client, out of the wheel that `make setup` puts beside the environment."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

VERSION = "0.8.5"


def client_class() -> Any:
    """The unchanged class, of the very version that this service answers; else the test is skipped.

    Its wheel is not installed: it asks for two hundred packages, and brings one called "tests".
    """
    wheels = sorted(Path(sys.prefix, "clients").glob(f"monailabel-{VERSION}-*.whl"))
    if not wheels:
        pytest.skip(f"no wheel of monailabel {VERSION} in {sys.prefix}/clients: see `make setup`")
    pytest.importorskip("cgi", reason="MONAI Label's client needs cgi, which Python 3.13 has not")
    pytest.importorskip("requests")
    if str(wheels[0]) not in sys.path:
        sys.path.append(str(wheels[0]))  # last, so that nothing of ours is another's
    module = importlib.import_module("monailabel.client.client")
    assert str(wheels[0]) in str(module.__file__)
    return module
