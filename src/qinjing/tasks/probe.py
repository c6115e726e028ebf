"""Measure what a plan costs here, in a process of its own.

A fresh process shows the true peak of memory, and leaves nothing behind in the one that trains.
It is started with a request as JSON on standard input, and answers with JSON on standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qinjing.config import from_json
from qinjing.data.case import Case
from qinjing.engine.device import Execution, candidates
from qinjing.engine.plan import Plan, Predicted
from qinjing.errors import QinjingError

_SECONDS = 3.0  # of timed steps per way of running, one at least
_CASE_OVERHEAD_S = 0.02  # reading and writing a small case


@dataclass(frozen=True)
class _Request:
    """What a probing process is asked.

    Attributes:
        kind: what to time; "model" predicts files with a trained one.
        plan: with the execution to try.
        shape: of the largest case on the plan's grid ("train") or its own ("predict").
        spacing_mm: of that case, "predict" only.
        model: folder of a trained fold, "model" only.
        images: one file per channel, "model" only.
    """

    kind: Literal["train", "predict", "model"]
    plan: Plan
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    model: str = ""
    images: tuple[str, ...] = ()


def fastest(plan: Plan, shape: tuple[int, int, int]) -> Plan:
    """Time a step in every precision and memory format and return the plan with the fastest.

    Args:
        plan: with everything decided but the execution.
        shape: of the largest case on the plan's grid.

    Raises:
        QinjingError: no way of running works on this machine.
    """
    timings, why = [], ""
    for execution in candidates(plan.execution.device):
        trial = replace(plan, execution=execution, timings=(), predicted=None)
        answer = _ask(_Request("train", trial, shape, plan.preprocessing.spacing_mm))
        if isinstance(answer, str):
            why = answer
        else:
            timings.append({**asdict(execution), **answer})
    if not timings:
        raise QinjingError(f"no precision or memory format could run one training step: {why}")
    best = min(timings, key=lambda timing: timing["step_s"])
    names = Execution.__dataclass_fields__
    execution = Execution(**{name: best[name] for name in names})
    return replace(plan, execution=execution, timings=tuple(timings))


def predict_costs(
    plan: Plan,
    largest: tuple[tuple[int, int, int], tuple[float, float, float]],
    typical: float,
    cache_gib: float,
    training_s: float,
) -> Plan:
    """Return the plan with its predicted costs.

    Args:
        plan: as `fastest` returned it.
        largest: shape and spacing of the largest case as it lies on disk.
        typical: mean voxels of a case, as a share of the largest's.
        cache_gib: of prepared cases, which are mapped into memory.
        training_s: wall seconds of one fold.
    """
    answer = _ask(_Request("predict", plan, *largest))
    best = min(plan.timings, key=lambda timing: timing["step_s"])
    on_device_gib = cache_gib if plan.execution.device == "cpu" else 0.0
    if isinstance(answer, str):
        raise QinjingError(
            f"a trial prediction failed ({answer}); is there memory for the largest case?"
        )
    return replace(
        plan,
        predicted=Predicted(
            step_s=best["step_s"],
            training_s=round(training_s, 1),
            training_memory_gib=round(best["memory_gib"] + on_device_gib, 3),
            predicting_s=round(answer["seconds"] * typical + _CASE_OVERHEAD_S, 3),
            predicting_memory_gib=answer["memory_gib"],
        ),
    )


def prediction_memory_gib(plan: Plan, model: Path, cases: Sequence[Case]) -> float | None:
    """Predict the largest of some cases in a fresh process; its peak memory, None if it failed.

    Args:
        plan: of the model.
        model: folder of a trained fold.
        cases: whose first image can be read.
    """
    from qinjing.data.readers import find_reader

    headers = {c.case_id: find_reader(c.images[0]).read_header(c.images[0]) for c in cases}
    largest = max(cases, key=lambda case: prod(headers[case.case_id].shape[-3:]))
    images = tuple(str(path) for path in largest.images)
    answer = _ask(_Request("model", plan, (1, 1, 1), (1.0, 1.0, 1.0), str(model), images))
    return None if isinstance(answer, str) else float(answer["memory_gib"])


def _ask(request: _Request) -> dict[str, Any] | str:
    """Answer of a fresh process, or its last words where it died (out of memory, unsupported)."""
    done = subprocess.run(
        [sys.executable, "-m", "qinjing.tasks.probe"],
        input=json.dumps(asdict(request)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return (done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _answer(request: _Request) -> dict[str, Any]:
    import torch

    from qinjing.engine.device import peak_memory_gib

    torch.set_num_threads(request.plan.threads)
    measure = {"train": _time_steps, "predict": _time_case, "model": _predict_files}
    measured = measure[request.kind](request)
    memory_gib = peak_memory_gib(request.plan.execution.device)
    return {**measured, "memory_gib": round(memory_gib, 3)}


def _time_steps(request: _Request) -> dict[str, float]:
    """Seconds of a training step and of validating the largest case."""
    import qinjing.tasks.train  # noqa: F401  (its imports are part of the memory)
    from qinjing.engine.fit import timed_steps
    from qinjing.engine.trial import gradient_fault
    from qinjing.tasks.mean_teacher import learning_task
    from qinjing.tasks.transfer import starting_net

    case = _made_up_case(request)
    task = learning_task(starting_net(request.plan), request.plan, [case], [], [case], seed=0)
    fault = gradient_fault(task, request.plan.execution)
    if fault:
        raise SystemExit(fault)
    step_s = timed_steps(task, request.plan.fit, request.plan.execution, _SECONDS)
    start = time.perf_counter()
    task.validate(task.net.eval())
    return {"step_s": round(step_s, 4), "validation_s": round(time.perf_counter() - start, 4)}


def _time_case(request: _Request) -> dict[str, float]:
    """Seconds to segment the largest case from its own grid and back."""
    import qinjing.data.nifti  # noqa: F401  (its imports are part of the memory)
    from qinjing.tasks.predict import Segmenter
    from qinjing.volume import Volume

    plan = request.plan
    net = plan.execution.place(plan.model.build()).eval()
    rng = np.random.default_rng(0)
    channels = len(plan.preprocessing.normalisation)
    voxels = rng.standard_normal((channels, *request.shape), dtype=np.float32)
    volume = Volume(voxels, np.diag([*request.spacing_mm, 1.0])[[2, 1, 0, 3]])
    segmenter = Segmenter((net,), plan, plan.execution.device)
    segmenter.segment(volume, confidence=True)  # the first call also compiles kernels
    start = time.perf_counter()
    segmenter.segment(volume, confidence=True)
    return {"seconds": round(time.perf_counter() - start, 4)}


def _predict_files(request: _Request) -> dict[str, float]:
    """Seconds to predict files as `qinjing predict` does, into a folder that is thrown away."""
    from qinjing.tasks.predict import Segmenter, segment_cases

    with tempfile.TemporaryDirectory() as folder:
        case = Case("largest", "largest", tuple(map(Path, request.images)))
        done = segment_cases(Segmenter.load(request.model), [case], Path(folder), confidence=True)
    if done["refused"]:
        raise SystemExit(done["refused"][0]["reason"])
    return {"seconds": done["seconds"]}


def _made_up_case(request: _Request) -> Any:
    """A case of the largest size with every class in it."""
    from qinjing.data.cache import CachedCase

    rng = np.random.default_rng(0)
    channels = len(request.plan.preprocessing.normalisation)
    image = rng.standard_normal((channels, *request.shape), dtype=np.float32)
    label = rng.integers(0, request.plan.classes, request.shape, dtype=np.uint8)
    places = tuple(
        np.argwhere(label == index)[:100].astype(np.int32)
        for index in range(1, request.plan.classes)
    )
    return CachedCase("probe", image, label, places)


if __name__ == "__main__":
    print(json.dumps(_answer(from_json(json.load(sys.stdin), _Request))))
