"""Does the topology term mend the topology of retinal vessels, at no cost in Dice?

Two networks alike are trained for the same time, with Dice and cross-entropy and with the topology
term added, on eyes of three subjects of CHASE_DB1, and measured on the four eyes of the other two.
The Betti error of an eye is |Δ pieces| + |Δ loops| over the whole picture.

    .venv/bin/python benchmarks/vessel_topology.py -i ../shared/data/chase_db1 --budget 5m \
        -o benchmarks/results/vessel_topology.json

`--tune` holds out a subject of the three instead: the term's weight was chosen there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
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
from qinjing.tasks.ablate import AblateConfig, ablate
from qinjing.tasks.planning import Overrides
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
    parser.add_argument("--budget", type=seconds, default=300.0, help="of each training")
    parser.add_argument("--steps", type=int, help="equal steps instead of equal time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--net", default="subvoxel_unet")
    parser.add_argument("--weight", type=float, default=0.02)
    parser.add_argument("--start", type=float, default=0.5)
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    options = {
        "boundary_weight": 0.0,
        "topology_weight": args.weight,
        "start": args.start,
        "full": min(1.0, args.start + 0.25),
        "topology": {"weights": [1.0, 1.0, 0.0]},
    }
    variants = {
        PLAIN: Overrides(net=args.net, loss="dice_ce", steps=args.steps),
        TOPOLOGY: Overrides(net=args.net, loss="shape", loss_options=options, steps=args.steps),
    }
    budget_s = None if args.steps else args.budget
    with tempfile.TemporaryDirectory() as scratch, watch() as tell:
        folder = args.runs or Path(scratch) / "runs"
        dataset = prepare(args.input, Path(args.runs or scratch) / "data")
        config = AblateConfig(
            dataset, folder / "ablation", variants, budget_s, args.seeds,
            split(dataset, args.tune),
        )  # fmt: skip
        runs = [Path(run) for run in ablate(config, tell)["runs"]]
        compared = compare_files(runs, folder / "ablation", dataset)
        rows = {name: [measured(run) for run in runs if run.parent == runs[at].parent]
                for name, at in ((PLAIN, 0), (TOPOLOGY, args.seeds))}  # fmt: skip
    summary = summarise(rows)
    result = {
        "rows": rows, **summary, "options": options, "net": args.net, "budget_s": budget_s,
        "tests": [r for r in compared["rows"] if r["metric"] in ("dice", "betti_error", "hd95_mm")],
        "environment": environment(),
    }  # fmt: skip
    for name, seeds in rows.items():
        for seed, row in enumerate(seeds):
            print(f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    print(json.dumps(summary, indent=2))
    if args.output:
        write_json(args.output, result)


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
