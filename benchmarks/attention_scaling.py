"""How time and memory of deformable attention grow with the voxels, beside full attention.

Deformable attention is measured on one map of 16³ to 64³ voxels, forwards and backwards, each size
in a fresh process whose peak of memory (VmHWM) above the bare process counts; a straight line
through the points, with R², says how linear they are. At 32³ voxels full attention stands beside it
in two forms: with its matrix of weights held, as the formula says, and by torch's fused kernel,
which never holds the matrix and pays with time alone.

    .venv/bin/python benchmarks/attention_scaling.py -o benchmarks/results/attention_scaling.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qinjing.config import write_json
from qinjing.engine.device import environment, peak_memory_gib
from qinjing.nets.deformable import DeformableAttention
from qinjing.nets.transformer import SelfAttention

SIDES = (16, 24, 32, 40, 48, 56, 64)
FULL_AT = 32
CHANNELS, HEADS, POINTS = 32, 1, 4
BAR = 3.0


class HeldMatrix(SelfAttention):
    """Full attention as its formula stands: the N × N weights are held."""

    def forward(self, queries: Tensor, values: Tensor) -> Tensor:
        q, k = self.queries_keys(queries).chunk(2, dim=-1)
        weights = torch.softmax((q / q.shape[-1] ** 0.5) @ k.transpose(1, 2), dim=-1)
        return self.out(weights @ self.values(values))


def run(kind: str, side: int, train: bool, seconds: float) -> dict[str, float]:
    """CPU seconds of the fastest call and peak memory of one attention over side³ tokens."""
    torch.manual_seed(0)
    shapes = ((side,) * 3,)
    attention: torch.nn.Module = {
        "deformable": lambda: DeformableAttention(CHANNELS, HEADS, 1, POINTS),
        "full_fused": lambda: SelfAttention(CHANNELS, HEADS),
        "full_held": lambda: HeldMatrix(CHANNELS, HEADS),
    }[kind]()
    where = (shapes,) if kind == "deformable" else ()

    def once(tokens: Tensor) -> None:
        with torch.set_grad_enabled(train):
            seen = attention(tokens, tokens, *where)
        if train:
            seen.square().mean().backward()

    # One small call, so that what is loaded at first use does not count.
    small = torch.randn(1, 64, CHANNELS, requires_grad=train)
    kept = attention(small, small, *([((4, 4, 4),)] if where else []))
    del kept
    tokens = torch.randn(1, side**3, CHANNELS, requires_grad=train)
    before = peak_memory_gib()
    taken: list[float] = []
    while not taken or (sum(taken) < seconds and len(taken) < 20):
        start = time.process_time()
        once(tokens)
        taken.append(time.process_time() - start)
    return {
        "voxels": side**3,
        "cpu_seconds": round(min(taken), 5),
        "mib": round((peak_memory_gib() - before) * 1024, 1),
    }


def apart(kind: str, side: int, train: bool, seconds: float) -> dict[str, Any]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--one", kind, "--side", str(side)]
    command += ["--seconds", str(seconds), *(["--train"] if train else [])]
    # Every block of 1 MiB or more goes back at once, so that the peak is what is held, not what
    # the allocator kept for later.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        return {"failed": (done.stderr.splitlines() or ["killed"])[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def line(points: list[dict[str, Any]], of: str) -> dict[str, float]:
    """Least-squares line through a figure over voxels, R², and the exponent on logarithmic axes."""
    voxels = np.array([point["voxels"] for point in points], dtype=float)
    found = np.array([point[of] for point in points], dtype=float)
    slope, start = np.polyfit(voxels, found, 1)
    left = found - (slope * voxels + start)
    power, _ = np.polyfit(np.log(voxels), np.log(np.maximum(found, 1e-9)), 1)
    return {
        "per_million_voxels": round(slope * 1e6, 4),
        "intercept": round(float(start), 5),
        "r2": round(float(1 - left.var() / found.var()), 5),
        "exponent": round(float(power), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed calls per size")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--one", choices=["deformable", "full_fused", "full_held"])
    parser.add_argument("--side", type=int)
    parser.add_argument("--train", action="store_true")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    if wanted.one:
        print(json.dumps(run(wanted.one, wanted.side, wanted.train, wanted.seconds)))
        return
    result: dict[str, Any] = {
        "environment": {**environment(), "threads": 1},
        "attention": {"channels": CHANNELS, "heads": HEADS, "points": POINTS},
    }
    for mode in ("inference", "training"):
        train = mode == "training"
        points = [apart("deformable", side, train, wanted.seconds) for side in wanted.sides]
        # A training step that holds the matrix holds it three times over, 13 GB: not run here.
        kinds = ("full_fused",) if train else ("full_held", "full_fused")
        full = {kind: apart(kind, FULL_AT, train, 0.0) for kind in kinds}
        (ours,) = [point for point in points if point["voxels"] == FULL_AT**3] or [{}]
        result[mode] = {
            "deformable": points,
            "time": line(points, "cpu_seconds"),
            "memory": line(points, "mib"),
            f"at_{FULL_AT}": {"deformable": ours, **full},
            "full_held_by_deformable_memory": _ratio(full.get("full_held", {}), ours, "mib"),
            "full_fused_by_deformable_memory": _ratio(full["full_fused"], ours, "mib"),
            "full_fused_by_deformable_time": _ratio(full["full_fused"], ours, "cpu_seconds"),
            "bar_memory": BAR,
        }
    if wanted.output:
        write_json(wanted.output, result)
    print(json.dumps(result, indent=2))


def _ratio(full: dict[str, Any], ours: dict[str, Any], of: str) -> float | None:
    return round(full[of] / ours[of], 2) if of in full and ours.get(of) else None


if __name__ == "__main__":
    main()
