"""A small share of benchmarks/fuzz_inputs.py, and that it does see what it looks for."""

from __future__ import annotations

import importlib.util
import sys
import time
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def fuzz(project) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "fuzz_inputs", project / "benchmarks/fuzz_inputs.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_inputs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_200_mutants(fuzz, tmp_path):
    summary = fuzz.run(200, seed=1, folder=tmp_path)
    assert not summary["misses"]
    assert min(summary[outcome] for outcome in ("accepted", "refused", "listed")) > 20


def test_it_sees_tracebacks_hangs_and_unnamed_refusals(fuzz, tmp_path, monkeypatch):
    from qinjing.errors import LayoutError

    def crash(*_):
        raise KeyError("image")

    def hang(*_):
        time.sleep(10)

    def mumble(*_):
        raise LayoutError("thing", "better")

    monkeypatch.setattr(fuzz, "LIMIT_S", 0.05)
    for door, outcome in ((crash, "traceback"), (hang, "hang"), (mumble, "unnamed")):
        trial = fuzz.attempt(lambda door=door: fuzz.through_reader(tmp_path / "x.json", door))
        assert trial.outcome == outcome and trial.detail
