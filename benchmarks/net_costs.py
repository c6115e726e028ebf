"""What each network of the paper's size costs: parameters, FLOPs, inference, memory of a step.

Every figure is taken in a process of its own, so that its peak of memory (VmHWM) is its own; the
inference of all nets is timed once more in one process, net after net, round after round, since
that is what seconds are compared by. Seconds are the process's on a CPU. On a GPU, taken where
there is one, they are the clock's and memory is the device's; each net's first inference does not
count.

    .venv/bin/python benchmarks/net_costs.py -o benchmarks/results/net_costs.json
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from qinjing.config import write_json
from qinjing.engine.device import (
    default_device,
    environment,
    flops,
    forget_peak_memory,
    peak_memory_gib,
)
from qinjing.losses import LOSSES, deep_supervision
from qinjing.nets import NETS

CHANNELS, CLASSES = 4, 4
SIZED = [name for name in NETS if name != "subvoxel_unet"]
BAR = 1.6  # times the U-Net's seconds, for the method
DEVICE = default_device()


def build(name: str, window: int, size: str) -> torch.nn.Module:
    """A net of the size wanted, for windows of so many voxels along each axis."""
    options: dict[str, Any] = {"in_channels": CHANNELS, "classes": CLASSES, "size": size}
    if name == "unetr":
        options["patch_size"] = (window,) * 3
    torch.manual_seed(0)
    return NETS[name](**options).to(DEVICE)


def now() -> float:
    """Seconds of this process, or of the clock once the GPU has done what it was given."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def infer(name: str, window: int, size: str) -> dict[str, float]:
    """Parameters, FLOPs and peak memory of one inference."""
    net = build(name, window, size).eval()
    before = peak_memory_gib(DEVICE)
    image = torch.zeros(1, CHANNELS, window, window, window, device=DEVICE)
    with torch.inference_mode():
        net(image)
    peak = peak_memory_gib(DEVICE)
    operations = flops(net, image)
    return {
        "parameters_million": round(sum(p.numel() for p in net.parameters()) / 1e6, 2),
        "tera_flops": round(operations / 1e12, 3),
        "inference_peak_gib": round(peak, 2),
        "inference_above_weights_gib": round(peak - before, 2),
    }


def step(name: str, window: int, size: str) -> dict[str, float]:
    """Peak memory and seconds of one training step, AdamW included."""
    net = build(name, window, size).train()
    optimiser = torch.optim.AdamW(net.parameters())
    loss = LOSSES["dice_ce"]()
    before = peak_memory_gib(DEVICE)
    image = torch.randn(1, CHANNELS, window, window, window, device=DEVICE)
    target = torch.randint(0, CLASSES, (1, window, window, window), device=DEVICE)
    for _ in range(1 if DEVICE == "cpu" else 3):  # the last counts: the first chooses kernels
        start = now()
        optimiser.zero_grad()
        outputs = net(image)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        multiple = getattr(net, "multiple", None)
        deep_supervision(loss, outputs, target, multiple=multiple).backward()
        optimiser.step()
    return {
        "step_seconds": round(now() - start, 2),
        "step_peak_gib": round(peak_memory_gib(DEVICE), 2),
        "step_above_weights_gib": round(peak_memory_gib(DEVICE) - before, 2),
    }


def seconds(
    names: list[str], window: int, size: str, precision: str, rounds: int
) -> dict[str, Any]:
    """Seconds of one inference of each net, in turns in this process; the median counts."""
    image = torch.randn(1, CHANNELS, window, window, window, device=DEVICE)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            net = build(name, window, size).eval()
            with (
                torch.inference_mode(),
                torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"),
            ):
                if DEVICE == "cuda":  # chooses kernels
                    net(image)
                start = now()
                net(image)
            taken[name].append(round(now() - start, 4))
            del net
            gc.collect()
    return {name: {"median": statistics.median(all_), "all": all_} for name, all_ in taken.items()}


def apart(part: str, name: str, window: int, size: str) -> dict[str, float]:
    """Run one part in a fresh process; on a GPU in this one, which forgets the last peak."""
    if DEVICE == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        forget_peak_memory(DEVICE)
        return {"infer": infer, "step": step}[part](name, window, size)
    command = [sys.executable, __file__, "--part", part, "--nets", name]
    command += ["--window", str(window), "--step-window", str(window), "--size", size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.splitlines() or ["killed"])[-1]}  # type: ignore[dict-item]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--nets", nargs="+", default=SIZED, choices=SIZED)
    parser.add_argument("--size", default="paper")
    parser.add_argument("--window", type=int, default=128, help="of inference; the paper's is 128")
    parser.add_argument("--step-window", type=int, default=96, help="of a training step")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=["infer", "step", "seconds"], help="one part alone")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    if wanted.part in ("infer", "step"):
        measure = {"infer": infer, "step": step}[wanted.part]
        window = wanted.window if wanted.part == "infer" else wanted.step_window
        print(json.dumps(measure(wanted.nets[0], window, wanted.size)))
        return
    result: dict[str, Any] = {
        "environment": environment(),
        "size": wanted.size,
        "inference_input": [CHANNELS, *[wanted.window] * 3],
        "step_input": [CHANNELS, *[wanted.step_window] * 3],
        "nets": {},
    }
    if wanted.part is None:
        for name in wanted.nets:
            costs = apart("infer", name, wanted.window, wanted.size)
            costs |= apart("step", name, wanted.step_window, wanted.size)
            result["nets"][name] = costs
            print(name, costs, file=sys.stderr, flush=True)
    result["inference_seconds"] = {
        precision: seconds(wanted.nets, wanted.window, wanted.size, precision, wanted.rounds)
        for precision in wanted.precisions
    }
    result["verdict"] = verdict(result)
    if wanted.output:
        write_json(wanted.output, result)
    print(json.dumps(result, indent=2))


def verdict(result: dict[str, Any]) -> dict[str, Any]:
    """The two bars: the method's seconds by the U-Net's, the pyramid's memory by Swin UNETR's."""
    said: dict[str, Any] = {"bar_hybrid_by_unet": BAR, "bar_pyramid_by_swin_unetr": 0.6}
    for precision, taken in result["inference_seconds"].items():
        if {"hybrid", "unet"} <= set(taken):
            ratio = taken["hybrid"]["median"] / taken["unet"]["median"]
            said[f"hybrid_by_unet_{precision}"] = round(ratio, 3)
    nets = result["nets"]
    if {"pyramid", "swin_unetr"} <= set(nets):
        peaks = [nets[name].get("step_peak_gib") for name in ("pyramid", "swin_unetr")]
        if all(peaks):
            said["pyramid_by_swin_unetr_memory"] = round(peaks[0] / peaks[1], 3)
    return said


if __name__ == "__main__":
    main()
