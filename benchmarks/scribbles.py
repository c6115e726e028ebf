"""How far do strokes lead that an annotator draws in a minute?

The training cases of a fold get strokes instead of their labels: one for each class and one for
the background, in every few slices. A network is trained on all labels, on the strokes, and on the
strokes with the moving average of its weights as a teacher of the rest; steps, batch and seeds are
the same. All are measured on the fold's other cases, which are labelled in full.

    .venv/bin/python benchmarks/scribbles.py -i ../shared/data/Task04_Hippocampus \
        -o benchmarks/results/scribbles.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.cli.watch import watch
from qinjing.config import read_json, write_json
from qinjing.data.case import Case, Dataset
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import write_nifti
from qinjing.data.preprocess import read_pair
from qinjing.data.readers import suffix
from qinjing.data.splits import write_splits
from qinjing.engine.device import environment
from qinjing.physics.scribbles import draw_scribbles
from qinjing.tasks.planning import Overrides, default_splits
from qinjing.tasks.train import TrainConfig, train

# Weight of the teacher. Strokes come first: the plan is what they alone allow to know.
METHODS = {"strokes": 0.0, "strokes and teacher": 1.0, "all labels": 0.0}


def write_scribbled(dataset: Dataset, cases: list[Case], val: set[str], root: Path,
                    every: int) -> float:  # fmt: skip
    """Write nnU-Net's layout, strokes for what trains; the share of its voxels that got a label."""
    ignored = max(dataset.labels) + 1
    classes = [value for value in dataset.labels if value]
    said = whole = 0
    (root / "imagesTr").mkdir(parents=True)
    for number, case in enumerate(cases):
        for channel, path in enumerate(case.images):
            name = f"{case.case_id}_{channel:04d}{suffix(path)}"
            shutil.copyfile(path, root / "imagesTr" / name)
        _, label = read_pair(case)
        voxels = label.voxels.astype(np.uint8)
        if case.case_id not in val:
            voxels = draw_scribbles(voxels, classes, ignored, every=every, seed=number)
            said, whole = said + int((voxels != ignored).sum()), whole + voxels.size
        write_nifti(root / "labelsTr" / f"{case.case_id}.nii.gz", label.with_voxels(voxels))
    write_json(root / "dataset.json", {
        "channel_names": {str(n): name for n, name in enumerate(dataset.channel_names)},
        "labels": {name: value for value, name in dataset.labels.items()} | {"ignore": ignored},
        "file_ending": ".nii.gz", "numTraining": len(cases),
    })  # fmt: skip
    return said / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".scratch/scribbles"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=3, help="slices from stroke to stroke")
    args = parser.parse_args()
    opened = open_dataset(args.input)
    split = default_splits(opened.cases)[0]
    own = {case.case_id: case for case in opened.cases}
    cases = [own[i] for i in (*split["train"], *split["val"])]
    shutil.rmtree(args.work / "data", ignore_errors=True)
    share = write_scribbled(opened, cases, set(split["val"]), args.work / "data", args.every)
    write_splits(args.work / "splits.json", [split])
    rows: dict[str, list[float]] = {name: [] for name in METHODS}
    plan: Any = None
    for seed in range(args.seeds):
        for name, weight in METHODS.items():
            run = args.work / f"{name.replace(' ', '_')}_{seed}"
            config = TrainConfig(
                args.input if name == "all labels" else args.work / "data",
                run, seed=seed, resume=True, splits=args.work / "splits.json",
                overrides=Overrides(net="subvoxel_unet", steps=args.steps),
            )  # fmt: skip
            if plan is not None:  # the first training's, but for what makes the method
                loss = {} if name == "all labels" else {"ignored": 255}
                changed = {**plan, "unlabelled_weight": weight, "loss_options": loss}
                write_json(run.with_suffix(".plan.json"), changed)
                config = replace(config, plan=run.with_suffix(".plan.json"), overrides=Overrides())
            if not (run / "measured.json").exists():
                with watch() as tell:
                    train(config, tell)
            plan = plan or read_json(run / "plan.json")
            dice = read_json(run / "metrics.json")["mean"]["foreground"]["dice"]["mean"]
            rows[name].append(round(dice, 4))
            print(f"{name}, seed {seed}: {dice:.4f}", flush=True)
    result = {
        "dice": rows,
        "mean": {name: round(statistics.mean(values), 4) for name, values in rows.items()},
        "voxels_with_a_label": round(share, 5),
        "steps": args.steps,
        "every": args.every,
        "environment": environment(),
    }
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
