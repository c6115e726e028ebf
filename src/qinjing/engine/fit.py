"""The training loop: one screen, no medicine in it.

Chance is a function of seed, step and rank, so that the whole state of a run is its weights, their
average, the optimiser's moments and the step: a run killed at any point resumes to the same bits.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qinjing.engine import parallel
from qinjing.engine.checkpoint import load_tensors, load_weights, save_tensors
from qinjing.engine.device import Execution, peak_memory_gib
from qinjing.engine.log import EventLog
from qinjing.engine.optimiser import make_optimiser, memory_of, remember
from qinjing.engine.task import Task
from qinjing.errors import ConfigError

_SETTLED = 0.3  # share of the schedule before which a score says nothing of a plateau


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    Attributes:
        steps: optimiser steps.
        learning_rate: the peak of the one-cycle schedule.
        optimiser: "adamw", or "muon", which makes the updates of kernels and matrices orthogonal.
        weight_decay: on weights of two or more dimensions.
        warm_up: share of the steps in which the learning rate rises.
        ema_decay: of the weights' moving average, which is what gets saved.
        clip_norm: bound on the gradient's length.
        layer_decay: each layer below the last learns this much slower than the one above it; 1
            lets all learn alike, less keeps what a pre-trained trunk knows.
        validations: how many times to validate, evenly spread; the last is at the end.
        patience: validations without a better score after which the cool-down starts early.
        budget_s: wall seconds for fitting; None leaves the steps as they are.
        checkpoint_s: wall seconds between checkpoints.
    """

    steps: int
    learning_rate: float = 4e-3
    optimiser: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 1e-2
    warm_up: float = 0.1
    ema_decay: float = 0.995
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    validations: int = 10
    patience: int = 6
    budget_s: float | None = None
    checkpoint_s: float = 30.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.validations < 1 or self.patience < 1:
            raise ConfigError("steps, validations and patience", "at least 1", self)
        if self.learning_rate <= 0 or not 0 <= self.ema_decay < 1:
            raise ConfigError("learning_rate and ema_decay", "positive and below 1", self)
        if self.optimiser not in ("adamw", "muon"):
            raise ConfigError("optimiser", "adamw or muon", self.optimiser)
        if not 0 < self.layer_decay <= 1:
            raise ConfigError("layer_decay", "above 0 and at most 1", self.layer_decay)


@dataclass
class Progress:
    """Where a run stands; saved in its checkpoint.

    Attributes:
        step: steps done.
        steps: steps in all, fewer than planned where the budget or a plateau says so.
        anchor_step: the step at which `steps` was last changed.
        anchor: the share of the schedule that was behind it then.
        best: the best score so far.
        stale: validations since then.
        ending: a plateau has begun the cool-down, which nothing lengthens any more.
        score: the last validation's.
        seconds: wall time spent, over all resumptions.
    """

    steps: int
    step: int = 0
    anchor_step: int = 0
    anchor: float = 0.0
    best: float = -math.inf
    stale: int = 0
    ending: bool = False
    score: float = math.nan
    seconds: float = 0.0

    def share(self, step: int) -> float:
        """Share of the schedule that lies before `step`, 0 to 1."""
        ahead = max(1, self.steps - self.anchor_step)
        return self.anchor + (1 - self.anchor) * (step - self.anchor_step) / ahead

    def end_after(self, steps: int) -> None:
        """End after `steps` steps in all, without a jump of the learning rate."""
        self.anchor = self.share(self.step)
        self.anchor_step, self.steps = self.step, max(self.step + 1, steps)


@dataclass(frozen=True)
class FitResult:
    """What a fit ended with.

    Attributes:
        weights: the averaged weights.
        steps: steps done.
        seconds: wall time, over all resumptions.
        score: the last validation's.
        peak_memory_gib: of the device, since `forget_peak_memory`.
    """

    weights: dict[str, Tensor] = field(repr=False)
    steps: int = 0
    seconds: float = 0.0
    score: float = math.nan
    peak_memory_gib: float = 0.0


def learning_rate(share: float, config: FitConfig) -> float:
    """One cycle: a linear rise, then half a cosine down to a hundredth.

    Args:
        share: of the schedule done, 0 to 1.
        config: gives the peak and the rise's share.

    Source: arXiv:1708.07120 (Smith and Topin, Super-Convergence).
    """
    if share < config.warm_up:
        return config.learning_rate * max(share / config.warm_up, 0.01)
    down = (share - config.warm_up) / (1 - config.warm_up)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(down, 1.0))))


def fit(
    task: Task,
    config: FitConfig,
    execution: Execution,
    folder: Path,
    resume: bool = False,
    report: Callable[[Progress, dict[str, Any]], None] | None = None,
) -> FitResult:
    """Train `task.net` and return its averaged weights.

    Args:
        task: batches, loss and validation.
        config: how.
        execution: device, precision and memory format.
        folder: takes `log.jsonl` and `checkpoint/state.safetensors`.
        resume: go on from the checkpoint, if there is one.
        report: told of every event, for a progress bar or a tracker.

    Raises:
        FormatError: the checkpoint is damaged or another network's.
    """
    net = execution.place(task.net)
    average = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = optimiser_for(net, config)
    state_path = folder / "checkpoint" / "state.safetensors"
    progress = Progress(config.steps)
    if resume and state_path.exists():
        progress = _restore(state_path, net, average, optimiser)
    task.follow(average)
    before, start = progress.seconds, (saved := time.monotonic())
    with EventLog(folder / "log.jsonl", progress.step or None) as log:

        def tell(kind: str, **fields: Any) -> None:
            progress.seconds = before + time.monotonic() - start
            if parallel.is_first():
                event = {"step": progress.step, **fields, "seconds": round(progress.seconds, 2)}
                log.write(kind, **event)
                if report:
                    report(progress, {"kind": kind, **event})

        while progress.step < progress.steps:
            net.train()
            rate = learning_rate(progress.share(progress.step), config)
            value = one_step(task, net, optimiser, execution, progress, rate, config)
            _average(average, net, config.ema_decay, progress.step)
            tell("step", loss=round(value, 6), lr=round(rate, 8))
            due = _is_due(progress, config) and parallel.is_first()
            measures = _validate(task, net, average) if due else None
            if measures:
                tell("validation", **measures)
            progress.step += 1
            if measures:
                _watch_plateau(progress, measures["score"], config)
            _watch_budget(progress, config)
            parallel.same_progress(progress)
            if time.monotonic() - saved > config.checkpoint_s or progress.step == progress.steps:
                _save(state_path, net, average, optimiser, progress)
                saved = time.monotonic()
    measured = (progress.seconds, progress.score, peak_memory_gib(execution.device))
    return FitResult(average, progress.step, *measured)


def timed_steps(task: Task, config: FitConfig, execution: Execution, seconds: float) -> float:
    """Run a few steps and return the typical wall seconds of one.

    Args:
        task: as for `fit`.
        config: as for `fit`.
        execution: as for `fit`.
        seconds: how long to go on, after two steps that warm up and two that count.
    """
    net = execution.place(task.net).train()
    optimiser = optimiser_for(net, config)
    average = {name: value.clone() for name, value in net.state_dict().items()}
    task.follow(average)
    times: list[float] = []
    while len(times) < 4 or sum(times[2:]) < seconds:
        start = time.perf_counter()
        # By turns in the first and the second half of the schedule, since a loss may grow with it.
        progress = Progress(4, step=1 + 2 * (len(times) % 2))
        one_step(task, net, optimiser, execution, progress, 0.0, config)
        _average(average, net, config.ema_decay, len(times))
        times.append(time.perf_counter() - start)
    return statistics.mean(statistics.median(times[2 + half :: 2]) for half in (0, 1))


def optimiser_for(net: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """Return the optimiser that a configuration names."""
    rates = (config.learning_rate, config.weight_decay, config.layer_decay)
    return make_optimiser(net, config.optimiser, *rates)


def one_step(
    task: Task,
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    execution: Execution,
    progress: Progress,
    rate: float,
    config: FitConfig,
    correct: Callable[[nn.Module], None] | None = None,
) -> float:
    """Take one step and return the loss before it.

    Args:
        task: batches and loss.
        net: the task's, placed and in training mode.
        optimiser: as `make_optimiser` makes it.
        execution: device, precision and memory format.
        progress: which step of how many.
        rate: learning rate.
        config: how.
        correct: changes the gradients in place before their length is bounded.
    """
    inputs, targets = task.batch(progress.step, parallel.rank())
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]
    optimiser.zero_grad(set_to_none=True)
    with execution.autocast():
        share = progress.share(progress.step)
        loss = task.loss(execution.send(inputs), targets.to(execution.device), share)
    loss.backward()
    parallel.average_gradients(net)
    if correct:
        correct(net)
    nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
    optimiser.step()
    return float(loss.detach())


@torch.no_grad()
def _average(average: dict[str, Tensor], net: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the weights, faster in the first steps, when it knows little."""
    now = net.state_dict()
    share = 1 - min(decay, (1 + step) / (10 + step))
    floating = [name for name, value in average.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[n] for n in floating], [now[n] for n in floating], share)
    for name, value in average.items():
        if not value.is_floating_point():
            value.copy_(now[name])


@torch.no_grad()
def _validate(task: Task, net: nn.Module, average: dict[str, Tensor]) -> dict[str, float]:
    """Measure the averaged weights, then put the trained ones back."""
    trained = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(average)
    net.eval()
    measures = task.validate(net)
    net.load_state_dict(trained)
    return measures


def _is_due(progress: Progress, config: FitConfig) -> bool:
    """Whether the schedule passes one of its evenly spread validations with this step."""
    passed = [math.floor(progress.share(progress.step + ahead) * config.validations + 1e-9)
              for ahead in (0, 1)]  # fmt: skip
    return passed[1] > passed[0] or progress.step + 1 == progress.steps


def heeds_scores(config: FitConfig) -> bool:
    """Whether what validations find may end the training early, and so change its weights."""
    return config.validations * (1 - _SETTLED) + 1 >= config.patience


def _watch_plateau(progress: Progress, score: float, config: FitConfig) -> None:
    """Cool down at once where the score has stopped rising."""
    progress.score = score
    if progress.share(progress.step) < _SETTLED:
        return
    progress.stale = 0 if score > progress.best else progress.stale + 1
    progress.best = max(progress.best, score)
    if progress.stale >= config.patience and progress.step < progress.steps:
        end = progress.step + max(1, progress.steps // 10)
        progress.end_after(min(end, progress.steps))
        progress.stale, progress.ending = 0, True


def _watch_budget(progress: Progress, config: FitConfig) -> None:
    """End sooner where the machine is slower than planned, and as planned once it no longer is."""
    if config.budget_s is None or progress.step % 20 or progress.step >= progress.steps:
        return
    per_step = progress.seconds / progress.step
    affordable = progress.step + int((config.budget_s - progress.seconds) / per_step)
    most = progress.steps if progress.ending else config.steps
    wanted = min(affordable, most)
    if abs(wanted - progress.steps) > 0.02 * progress.steps:
        progress.end_after(wanted)


def _save(
    path: Path,
    net: nn.Module,
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    if not parallel.is_first():
        return
    tensors = {f"net/{name}": value for name, value in net.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in average.items()}
    tensors |= memory_of(optimiser)
    # NaN and infinity are not JSON; they stand as null.
    plain = {k: v if math.isfinite(v) else None for k, v in asdict(progress).items()}
    save_tensors(path, tensors, plain)


def _restore(
    path: Path, net: nn.Module, average: dict[str, Tensor], optimiser: torch.optim.Optimizer
) -> Progress:
    tensors, saved = load_tensors(path)
    load_weights(net, _part(tensors, "net/"), path)
    for name, value in _part(tensors, "average/").items():
        average[name].copy_(value)
    remember(optimiser, tensors)
    fresh = Progress(saved["steps"])
    return replace(fresh, **{key: value for key, value in saved.items() if value is not None})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
