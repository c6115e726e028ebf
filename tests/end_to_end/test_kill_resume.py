"""A killed training resumes to the same bits, and a killed command leaves no half file."""

from __future__ import annotations

import gzip
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

STEPS = 8


@pytest.fixture(scope="module")
def bench(project: Path) -> ModuleType:
    """`benchmarks/kill_resume.py`, which does the same fifty times."""
    spec = importlib.util.spec_from_file_location(
        "kill_resume", project / "benchmarks" / "kill_resume.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_resume"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("kill")
    data = bench.write_phantoms(folder / "data", 5)
    command = bench.train_command(data, bench.write_plan(data, folder / "plan.json", STEPS))
    bench.run(command, cwd=folder / "reference")
    return folder, data, command


# In the middle of the steps, and while the first file after most of them is being written.
@pytest.mark.parametrize("step, aimed", [(3, False), (5, True)])
def test_killed_training_resumes_to_the_same_bits(bench, trained, step, aimed):
    folder, _, command = trained
    reference, killed = folder / "reference" / bench.RUN, folder / f"killed-{step}" / bench.RUN
    kill = bench.kill_training(command, reference, killed, bench.Moment(step=step, aimed=aimed))
    assert step <= kill.step < STEPS
    assert kill.half_files == ()
    assert kill.same, kill.failure


def test_killed_prediction_leaves_no_half_file(bench, trained, tmp_path):
    folder, data, _ = trained
    output = tmp_path / "predictions"
    command = bench.predict_command(folder / "reference" / bench.RUN, data, output)
    bench.run(command)
    wanted = bench.digests(output)
    assert len([name for name in wanted if name.endswith(".nii.gz")]) == 5
    kill = bench.kill_output(command, output, wanted, bench.Moment(aimed=True))
    assert kill.half_files == ()
    assert kill.same, kill.failure


def test_a_half_file_is_seen(bench, tmp_path):
    whole = gzip.compress(np.random.default_rng(0).bytes(10_000))
    (tmp_path / "a.nii.gz").write_bytes(whole[:5000])
    (tmp_path / "b.json").write_text('{"half": ')
    (tmp_path / ".partial-1-c.json").write_text("{")
    assert [name.split(":")[0] for name in bench.half_files(tmp_path)] == ["a.nii.gz", "b.json"]
    assert [path.name for path in bench.unfinished(tmp_path)] == [".partial-1-c.json"]


def test_the_kill_reaches_children(bench, tmp_path):
    """A child that would write a file later must die with its parent."""
    late = tmp_path / "late"
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(late)!r}).touch()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    killed_s = bench.start_and_kill([sys.executable, "-c", parent], tmp_path, bench.Moment(0.5))
    assert 0.5 <= killed_s < 2
    time.sleep(2.5 - killed_s)
    assert not late.exists()
