"""Every network for the same training time, several seeds: the survey's second table.

Machines are noisy, and a network that is timed in a busy minute loses. So a training step of each
network is timed in turns with the others and the U-Net in one process, and each gets as many steps
as fit into the time of so many of the U-Net's. What the folder has, plans and trainings, is kept.

    .venv/bin/python benchmarks/networks.py -i ../shared/data/Task04_Hippocampus --steps 400 \
        --work .scratch/networks_hippocampus -o benchmarks/results/networks_hippocampus.json

`--jobs 0/2` and, once that one trains, `--jobs 1/2` share the trainings between two processes; the
last command, without it, compares. `--only` names networks; `hybrid:identity` is the hybrid without
its attention, `unet+muon` and `unet+adamw` another optimiser than the one that the plan takes.

On a GPU networks have the survey's widths, on as many stages as the patch allows, and each runs in
the memory format that is faster for it. A table with no `--jobs` takes every seed that is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qinjing.cli.watch import watch
from qinjing.config import read_json, write_json
from qinjing.data.cache import CachedCase
from qinjing.data.splits import write_splits
from qinjing.engine.device import Execution, default_device
from qinjing.engine.fit import timed_steps
from qinjing.engine.plan import Plan, make_plan, with_steps
from qinjing.engine.trial import gradient_fault
from qinjing.report.compare import compare_files
from qinjing.tasks.planning import default_splits, measure, silent, sound_cases
from qinjing.tasks.segment import SegmentTask
from qinjing.tasks.train import TrainConfig, train

NETS = ("unet", "hybrid", "hybrid:identity", "residual_unet", "pyramid", "transunet",
        "segresnet", "unetr", "swin_unetr")  # fmt: skip
# What the attention of the method is worth, then what else it has beyond the residual U-Net.
CONTRASTS = (("hybrid:identity", "hybrid"), ("residual_unet", "hybrid:identity"))
EXACT = ("swin_unetr",)  # in bfloat16 a training ended in values that are not finite
ROUNDS = 5
TURN_S = {"cpu": 1.0, "cuda": 0.3}


def plans_of(dataset: Path, names: list[str], threads: int) -> dict[str, Plan]:
    """What the data decide for each network; bfloat16 for all whose gradients are right in it."""
    opened, cases, _ = sound_cases(dataset, silent)
    fingerprint = measure(opened, cases)
    plans = {}
    device = default_device()
    for name in names:
        net, attention, optimiser = parts_of(name)
        plan = make_plan(fingerprint, device=device, threads=threads, net=net)
        options = plan.model.options | ({"attention": attention} if attention else {})
        model = replace(plan.model, options=options)
        fit = replace(plan.fit, optimiser=optimiser or plan.fit.optimiser)
        plan = replace(plan, model=model, fit=fit, execution=Execution(device, "bf16", False))
        if net in EXACT or gradient_fault(task_of(plan), plan.execution):
            plan = replace(plan, execution=Execution(device, "fp32", False))
        plans[name] = in_faster_format(plan) if device == "cuda" else plan
    return plans


def in_faster_format(plan: Plan) -> Plan:
    """The plan with channels last, if a step is faster so."""
    ways = [replace(plan.execution, channels_last=last) for last in (False, True)]
    best = min(ways, key=lambda way: timed_steps(task_of(plan), plan.fit, way, TURN_S["cuda"]))
    return replace(plan, execution=best)


def parts_of(name: str) -> tuple[str, str, str]:
    """Network, attention and optimiser of a row's name, "" where the plan decides."""
    name, _, optimiser = name.partition("+")
    net, _, attention = name.partition(":")
    return net, attention, optimiser


def task_of(plan: Plan) -> SegmentTask:
    """A fresh network with a case that stands for any."""
    torch.manual_seed(0)
    return SegmentTask(plan.model.build().train(), plan, *[[made_up(plan)]] * 2, 0)


def step_seconds(plans: dict[str, Plan]) -> dict[str, float]:
    """Seconds of a training step of each, in turns; the best turn counts, since noise only adds."""
    tasks = {name: task_of(plan) for name, plan in plans.items()}
    taken: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(ROUNDS):
        for name, plan in plans.items():
            taken[name].append(
                timed_steps(tasks[name], plan.fit, plan.execution, TURN_S[plan.execution.device])
            )
    return {name: min(all_) for name, all_ in taken.items()}


def plan_trainings(
    dataset: Path, folder: Path, names: list[str], steps: int, threads: int, part: int, fold: int
) -> None:
    """Write a plan for each network that has none yet, with the steps that its time allows."""
    known = folder / "steps.json"
    table: dict[str, Any] = read_json(known) if known.exists() else {}
    begun = table.get("unet", {"steps": steps})["steps"]
    if begun != steps:
        raise SystemExit(f"{folder} was begun with --steps {begun}: say so again, or take another")
    new = [name for name in dict.fromkeys(["unet", *names]) if name not in table]
    if not new:
        return
    if part:
        raise SystemExit("the plans are not all there: start --jobs 0/N first")
    plans = plans_of(dataset, list(dict.fromkeys(["unet", *new])), threads)
    taken = step_seconds(plans)
    for name in new:
        of_time = max(10, round(steps * taken["unet"] / taken[name]))
        plan = with_steps(plans[name], of_time, None, 1)
        write_json(folder / f"{file_of(name)}.json", plan)
        table[name] = {
            "of_unet": round(taken[name] / taken["unet"], 3),
            "steps": of_time,
            "optimiser": plan.fit.optimiser,
            "precision": plan.execution.precision,
        }
    _, cases, _ = sound_cases(dataset, silent)
    write_splits(folder / "splits.json", [default_splits(cases)[fold]])
    write_json(known, table)  # last: what it does not name is not there yet


def made_up(plan: Plan) -> CachedCase:
    """A case larger than a patch, with every class in it."""
    rng = np.random.default_rng(0)
    shape = tuple(n + 8 for n in plan.patch_size)
    image = rng.standard_normal((len(plan.preprocessing.normalisation), *shape), dtype=np.float32)
    label = rng.integers(0, plan.classes, shape, dtype=np.uint8)
    places = [np.argwhere(label == k)[:50].astype(np.int32) for k in range(1, plan.classes)]
    return CachedCase("made up", image, label, tuple(places))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400, help="of the U-Net")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fold", type=int, default=0, help="1 to choose on, 0 to report")
    parser.add_argument("--only", nargs="+", default=list(NETS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", help="K/N: the K-th of N parts of the trainings, no comparison")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = args.work / "plans"
    part, parts = map(int, (args.jobs or "0/1").split("/"))
    plan_trainings(args.input, folder, args.only, args.steps, args.threads, part, args.fold)
    trainings = [(seed, name) for seed in range(args.seeds) for name in args.only]
    for seed, name in trainings[part::parts]:
        run = run_of(args.work, name, seed)
        if not (run / "measured.json").exists():
            config = TrainConfig(
                args.input, run, seed=seed, resume=True, splits=folder / "splits.json",
                plan=folder / f"{file_of(name)}.json",
            )  # fmt: skip
            with watch() as tell:
                train(config, tell)
    if args.jobs:
        return
    names = [name for name in ("unet", *args.only) if finished(args.work, name)]
    names = list(dict.fromkeys(names))  # the U-Net first: it is what the others are compared with
    rows, tests = compared(names, args.work, args.input)
    result = {
        "command": f"benchmarks/networks.py --steps {args.steps} --fold {args.fold} "
        f"--only {' '.join(names)}",
        "dataset": args.input.name,
        "test_cases": len(read_json(folder / "splits.json")[0]["val"]),
        "rows": [
            row_of(name, args.work, costs, tests) for name, costs in zip(names, rows, strict=True)
        ],
        "contrasts": [
            contrast(pair, args.work, args.input) for pair in CONTRASTS if set(pair) <= set(names)
        ],
        # where it trained
        "environment": read_json(finished(args.work, names[0])[0] / "measured.json")["environment"],
    }
    print(json.dumps(result["rows"], indent=2))
    if args.output:
        write_json(args.output, result)


def compared(
    names: Sequence[str], work: Path, dataset: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Costs of each network, and the paired tests of all against the first."""
    runs = [run for name in names for run in finished(work, name)]
    found = compare_files(runs, work / "_".join(["comparison", *map(file_of, names)]), dataset)
    return found["costs"], found["rows"]


def row_of(
    name: str, work: Path, costs: dict[str, Any], tests: list[dict[str, Any]]
) -> dict[str, Any]:
    """Size, steps, every seed's Dice and HD95, and the paired tests against the first network."""
    means = [read_json(run / "metrics.json")["mean"]["foreground"] for run in finished(work, name)]
    return {
        "net": name,
        "parameters_million": round(costs["parameters_million"], 2),
        "giga_flops": costs["giga_flops"] and round(costs["giga_flops"], 1),
        **read_json(work / "plans" / "steps.json")[name],
        **{key: [rounded(one[key]["mean"], 4) for one in means] for key in ("dice", "hd95_mm")},
        "against": tested(costs["name"], tests),
    }


def contrast(pair: tuple[str, str], work: Path, dataset: Path) -> dict[str, Any]:
    """The paired tests of the second of two networks against the first."""
    costs, tests = compared(pair, work, dataset)
    return {"baseline": pair[0], "net": pair[1], "against": tested(costs[1]["name"], tests)}


def tested(run: str, tests: list[dict[str, Any]]) -> dict[str, Any]:
    """What the paired tests say of a run's foreground."""
    wanted = ("difference", "wilcoxon_p_holm", "seeds_p", "verdict", "n", "left_out", "partly")
    return {
        row["metric"]: {key: row[key] for key in wanted}
        for row in tests
        if (row["run"], row["label"]) == (run, "foreground")
        and row["metric"] in ("dice", "hd95_mm")
    }


def rounded(value: float | None, digits: int) -> float | None:
    """The value rounded; None, for a distance to what was never predicted, stays."""
    return value if value is None else round(value, digits)


def file_of(name: str) -> str:
    """A row's name without signs."""
    return name.replace(":", "_").replace("+", "_")


def run_of(work: Path, name: str, seed: int) -> Path:
    """Where a training lies."""
    return work / file_of(name) / f"seed_{seed}"


def finished(work: Path, name: str) -> list[Path]:
    """Every training of a network that came to its end; some may have more seeds than others."""
    return sorted(path.parent for path in (work / file_of(name)).glob("seed_*/measured.json"))


if __name__ == "__main__":
    main()
