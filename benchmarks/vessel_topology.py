"""Does the topology term mend the topology of retinal vessels, at no cost in Dice?

Two networks alike are trained for the same time, with Dice and cross-entropy and with the topology
term added, on eyes of three subjects of CHASE_DB1, and measured on the four eyes of the other two.
The Betti error of an eye is |Δ pieces| + |Δ loops| over the whole picture.

    .venv/bin/python benchmarks/vessel_topology.py -i ../shared/data/chase_db1 --budget 10m \
        -o benchmarks/results/vessel_topology.json

`--tune` holds out a subject of the three instead: the term's weight was chosen there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread

from qinjing.cli.arguments import seconds
from qinjing.cli.watch import watch
from qinjing.config import read_json, write_json
from qinjing.data.nifti import write_nifti
from qinjing.engine.device import environment
from qinjing.report.compare import compare_files
from qinjing.tasks.planning import Overrides, plan_dataset
from qinjing.tasks.train import TrainConfig, train
from qinjing.volume import Volume

TRAIN, TEST = ("01", "02", "03"), ("04", "05")
PLAIN, TOPOLOGY = "Dice and cross-entropy", "with topology"
BAR_BETTI, BAR_DICE = 0.5, -0.005


def prepare(source: Path, folder: Path) -> Path:
    """Write the eyes as slices of 1 mm voxels, image and vessels."""
    for label in sorted(source.glob("Image_*_1stHO.png")):
        name = label.name.removesuffix("_1stHO.png")
        image = np.round(255 * imread(source / f"{name}_green.png")).astype(np.uint8)
        vessels = (imread(label) > 0.5).astype(np.uint8)
        for kind, pixels in (("images", image), ("labels", vessels)):
            place = folder / kind / f"{name}.nii.gz"
            write_nifti(place, Volume(pixels[None], np.eye(4)[[2, 1, 0, 3]]))
    return folder


def split(folder: Path, tune: bool) -> Path:
    """One fold by subject: the name's number."""
    names = sorted(p.name.removesuffix(".nii.gz") for p in (folder / "images").iterdir())
    train, test = (TRAIN[:-1], TRAIN[-1:]) if tune else (TRAIN, TEST)
    fold = {part: [n for n in names if n.split("_")[1][:2] in subjects]
            for part, subjects in (("train", train), ("val", test))}  # fmt: skip
    path = folder / "splits.json"
    path.write_text(json.dumps([fold]), encoding="utf-8")
    return path


def measured(run: Path) -> dict[str, float]:
    """Mean Dice, summed Betti error and HD95 over the held-out eyes."""
    rows = [case["labels"]["1"] for case in read_json(run / "metrics.json")["cases"]]
    found = {key: [row[key] for row in rows] for key in ("dice", "betti_error", "hd95_mm")}
    plan, result = read_json(run / "plan.json"), read_json(run / "fold_0" / "result.json")
    return {
        **{key: statistics.mean(values) for key, values in found.items()},
        "steps": result["steps"],
        "planned_steps": plan["fit"]["steps"],
        "training_s": result["training_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--runs", type=Path, help="keep the runs and their comparison here")
    parser.add_argument("--budget", type=seconds, default=600.0, help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--net", default="subvoxel_unet")
    parser.add_argument("--weight", type=float, default=0.1)
    parser.add_argument("--start", type=float, default=0.6)
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    options = {
        "boundary_weight": 0.0,
        "topology_weight": args.weight,
        "start": args.start,
        "full": min(1.0, args.start + 0.25),
        "topology": {"weights": [1.0, 1.0, 0.0]},
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.runs or Path(scratch) / "runs"
        dataset = prepare(args.input, Path(args.runs or scratch) / "data")
        splits = split(dataset, args.tune)
        plan = folder / "plan.json"
        if not plan.exists():
            usual = Overrides(net=args.net, loss="dice_ce")
            write_json(plan, plan_dataset(dataset, budget_s=args.budget, overrides=usual))
        runs: dict[str, list[Path]] = {PLAIN: [], TOPOLOGY: []}
        for seed in range(args.seeds):
            for name in runs:
                run = folder / name.lower().replace(" ", "-") / f"seed_{seed}"
                config = TrainConfig(
                    dataset, run, budget_s=args.budget, seed=seed, resume=True, splits=splits
                )
                train_once(config, plan, options if name == TOPOLOGY else None)
                runs[name].append(run)
                print(f"{name}, seed {seed}: {measured(run)}", flush=True)
        compared = compare_files([*runs[PLAIN], *runs[TOPOLOGY]], folder / "comparison", dataset)
        rows = {name: [measured(run) for run in own] for name, own in runs.items()}
    summary = summarise(rows)
    result = {
        "rows": rows, **summary, "options": options, "net": args.net, "budget_s": args.budget,
        "tests": [r for r in compared["rows"] if r["metric"] in ("dice", "betti_error", "hd95_mm")],
        "environment": environment(),
    }  # fmt: skip
    print(json.dumps(summary, indent=2))
    if args.output:
        write_json(args.output, result)


def train_once(config: TrainConfig, plan: Path, options: dict[str, Any] | None) -> None:
    """Train by the plan unless it is done, with or without the term.

    The budget rules the schedule, so that dearer steps mean fewer of them in equal time.
    """
    if (config.output / "measured.json").exists():
        return
    content = read_json(plan)
    if options:
        content |= {"loss": "shape", "loss_options": options}
    path = config.output.with_suffix(".plan.json")
    write_json(path, content)
    with watch() as tell:
        train(replace(config, plan=path), tell)


def summarise(rows: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Means over the seeds, and whether the bar is met."""
    means = {name: {key: statistics.mean(seed[key] for seed in seeds) for key in seeds[0]}
             for name, seeds in rows.items()}  # fmt: skip
    ratio = means[TOPOLOGY]["betti_error"] / means[PLAIN]["betti_error"]
    gain = means[TOPOLOGY]["dice"] - means[PLAIN]["dice"]
    met = ratio <= BAR_BETTI and gain >= BAR_DICE
    return {"means": means, "betti_ratio": ratio, "dice_difference": gain, "met": met}


if __name__ == "__main__":
    main()
