"""The loop: same seed same bits, resumed or not, one process or two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qinjing.engine.checkpoint import load_tensors, save_tensors
from qinjing.engine.device import Execution, forget_peak_memory, peak_memory_gib
from qinjing.engine.fit import FitConfig, Progress, _watch_budget, fit, learning_rate
from qinjing.engine.log import read_events
from qinjing.errors import ConfigError, FormatError
from qinjing.nets import UNet


class Balls:
    """Tell a bright ball from its background."""

    def __init__(self, stop_at: int | None = None, scores: list[float] | None = None) -> None:
        torch.manual_seed(0)
        self.net = UNet(1, 2, (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)))
        self.stop_at = stop_at
        self.scores = scores

    def batch(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
        if step == self.stop_at:
            raise KeyboardInterrupt
        rng = np.random.default_rng((7, step, rank))
        label = rng.random((2, 8, 8, 8)) < 0.3
        image = label + 0.3 * rng.standard_normal(label.shape)
        return torch.from_numpy(image[:, None]).float(), torch.from_numpy(label).long()

    def loss(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        return nn.functional.cross_entropy(self.net(inputs).float(), targets)

    def follow(self, average: Mapping[str, Tensor]) -> None:
        self.teacher = average

    def validate(self, net: nn.Module) -> dict[str, float]:
        if self.scores is not None:
            return {"score": self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]}
        image, label = self.batch(10_000, 0)
        with torch.no_grad():
            right = net(image).argmax(1) == label
        return {"score": float(right.float().mean())}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_stopped_run_resumes_to_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, optimiser: Literal["adamw", "muon"], precision: str, channels_last: bool
) -> None:
    config = FitConfig(steps=12, optimiser=optimiser, validations=3, checkpoint_s=0.0)
    execution = Execution("cpu", precision, channels_last)  # type: ignore[arg-type]
    whole = fit(Balls(), config, execution, tmp_path / "whole")
    for stop in (1, 5, 9):
        with pytest.raises(KeyboardInterrupt):
            fit(Balls(stop), config, execution, tmp_path / "cut", resume=True)
    resumed = fit(Balls(), config, execution, tmp_path / "cut", resume=True)
    assert same(whole.weights, resumed.weights)
    assert whole.score == resumed.score

    def told(name: str) -> list[dict[str, object]]:
        events = read_events(tmp_path / name / "log.jsonl")
        return [{k: v for k, v in event.items() if k != "seconds"} for event in events]

    assert told("whole") == told("cut")


def test_it_learns_and_the_average_is_what_is_returned(tmp_path: Path) -> None:
    config = FitConfig(steps=150, learning_rate=2e-2, ema_decay=0.9)
    result = fit(Balls(), config, Execution(), tmp_path)
    assert result.score > 0.9
    events = read_events(tmp_path / "log.jsonl")
    assert [e["step"] for e in events if e["kind"] == "step"] == list(range(150))


def test_a_finished_run_resumes_without_another_step(tmp_path: Path) -> None:
    config = FitConfig(steps=4)
    first = fit(Balls(), config, Execution(), tmp_path)
    again = fit(Balls(stop_at=4), config, Execution(), tmp_path, resume=True)
    assert same(first.weights, again.weights)


def test_a_plateau_cools_down_early(tmp_path: Path) -> None:
    config = FitConfig(steps=200, validations=20, patience=3)
    result = fit(Balls(scores=[0.5]), config, Execution(), tmp_path)
    assert result.steps < 150
    rates = [e["lr"] for e in read_events(tmp_path / "log.jsonl") if e["kind"] == "step"]
    assert rates[-1] < 0.05 * max(rates)  # cooled down, not cut off


def test_a_budget_ends_the_run(tmp_path: Path) -> None:
    config = FitConfig(steps=10**6, validations=1, budget_s=3.0)
    result = fit(Balls(), config, Execution(), tmp_path)
    assert 1.5 < result.seconds < 6.0


def test_a_slow_start_does_not_cost_the_rest_of_the_budget() -> None:
    config = FitConfig(steps=1000, budget_s=100.0)
    progress = Progress(1000, step=20, seconds=20.0)  # one second a step
    _watch_budget(progress, config)
    assert progress.steps == 100
    progress.step, progress.seconds = 80, 24.0  # since then fifteen steps a second
    _watch_budget(progress, config)
    assert progress.steps == 80 + int(76 / 0.3)
    before = learning_rate(progress.share(80), config)
    progress.ending, progress.seconds = True, 9.0
    _watch_budget(progress, config)
    assert progress.steps == 80 + int(76 / 0.3)  # a cool-down is not taken back
    progress.ending = False
    _watch_budget(progress, config)
    assert progress.steps == 80 + int(91 / (9 / 80))
    progress.seconds = 1.0
    _watch_budget(progress, config)
    assert progress.steps == 1000  # never more than planned
    assert learning_rate(progress.share(80), config) == pytest.approx(before)


def test_another_end_keeps_the_learning_rate_continuous() -> None:
    config = FitConfig(steps=1000)
    progress = Progress(1000, step=400)
    before = learning_rate(progress.share(400), config)
    progress.end_after(500)
    assert learning_rate(progress.share(400), config) == pytest.approx(before)
    assert progress.share(500) == pytest.approx(1.0)
    progress.step = 450
    before = learning_rate(progress.share(450), config)
    progress.end_after(900)
    assert learning_rate(progress.share(450), config) == pytest.approx(before)
    assert progress.share(900) == pytest.approx(1.0)
    progress.end_after(10)
    assert progress.steps == 451


def test_the_learning_rate_is_torchs_cosine_after_the_rise() -> None:
    config = FitConfig(steps=100, learning_rate=1.0, warm_up=0.0)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 100, eta_min=0.01)
    for step in range(100):
        assert learning_rate(step / 100, config) == pytest.approx(peer.get_last_lr()[0])
        optimiser.step()
        peer.step()


def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    config = FitConfig(steps=3)
    fit(Balls(), config, Execution(), tmp_path)
    state = tmp_path / "checkpoint" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"state\.safetensors"):
        fit(Balls(), config, Execution(), tmp_path, resume=True)
    with pytest.raises(ConfigError, match="steps"):
        FitConfig(steps=0)


def test_tensors_round_trip_with_their_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).reshape(2, 3), "b": torch.randn(2).to(torch.bfloat16)}
    save_tensors(tmp_path / "x.safetensors", tensors, {"step": 3})
    loaded, metadata = load_tensors(tmp_path / "x.safetensors")
    assert same(tensors, loaded)
    assert metadata == {"step": 3}


_WORKER = """
import sys
from pathlib import Path
import torch
from qinjing.engine import parallel
from qinjing.engine.checkpoint import save_tensors
from qinjing.engine.device import Execution, forget_peak_memory, peak_memory_gib
from qinjing.engine.fit import FitConfig, fit
sys.path.insert(0, sys.argv[2])
from test_fit import Balls
torch.set_num_threads(1)
with parallel.group():
    rank = parallel.rank()
    result = fit(Balls(), FitConfig(steps=6), Execution(), Path(sys.argv[1]) / "run")
    save_tensors(Path(sys.argv[1]) / f"rank{rank}.safetensors", result.weights, {})
"""


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    command = [  # `--standalone` looks "localhost" up, which a bare root cannot
        sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", "--nproc-per-node=2",
        str(script), str(tmp_path), str(Path(__file__).parent),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    first, _ = load_tensors(tmp_path / "rank0.safetensors")
    second, _ = load_tensors(tmp_path / "rank1.safetensors")
    assert same(first, second)

    class BothRanks(Balls):  # the mean of two ranks' losses has the mean of their gradients
        def loss(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
            other = self.batch(self.step, 1)
            mine = super().loss(inputs, targets, share)
            return (mine + super().loss(*other, share)) / 2

        def batch(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
            self.step = step if step < 10_000 else getattr(self, "step", 0)
            return super().batch(step, rank)

    alone = fit(BothRanks(), FitConfig(steps=6), Execution(), tmp_path / "alone")
    for name, value in alone.weights.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)


def test_kill_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_WORKER.replace("steps=6", "steps=100000, checkpoint_s=0.0"))
    command = [sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(command)
    state = tmp_path / "run" / "checkpoint" / "state.safetensors"
    while not state.exists():
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, saved = load_tensors(state)
    json.dumps(saved, allow_nan=False)
    assert saved["step"] >= 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone can")
def test_memory_is_that_of_the_training_and_not_of_what_was_before(tmp_path: Path) -> None:
    config = FitConfig(steps=2, validations=1)
    forget_peak_memory()
    first = fit(Balls(), config, Execution("cpu", "fp32", False), tmp_path / "first")
    large = torch.ones(2**28)  # 1 GiB
    assert peak_memory_gib() > first.peak_memory_gib + 0.9
    del large
    forget_peak_memory()
    second = fit(Balls(), config, Execution("cpu", "fp32", False), tmp_path / "second")
    assert second.peak_memory_gib < first.peak_memory_gib + 0.2
