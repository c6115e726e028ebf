"""What mean Dice do networks averaged reach over five folds, every case held out once?

Each network is trained on every fold, a run folder each; a fold's cases are then predicted by the
networks of that fold together. What is trained already in the folder is kept, so that a stopped run
goes on, and one more network can be added later.

    .venv/bin/python benchmarks/five_folds.py -i ../shared/data/Task04_Hippocampus \
        --nets unet subvoxel_unet --budget 90m --work .scratch/five_folds \
        -o benchmarks/results/five_folds.json

`--budget` is for one network, all its folds together; the bar allows 3 hours for everything.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qinjing.cli.arguments import seconds
from qinjing.cli.watch import watch
from qinjing.config import read_json, write_json
from qinjing.data.layouts import open_dataset
from qinjing.data.splits import read_splits
from qinjing.engine.device import environment
from qinjing.tasks.evaluate import evaluate_files, pool
from qinjing.tasks.planning import Overrides
from qinjing.tasks.predict import Segmenter, segment_cases
from qinjing.tasks.train import TrainConfig, train

BAR = 0.8904  # nnU-Net v2's published five folds, on all 260 cases


def together(runs: list[Path], dataset: Path, folder: Path) -> dict[str, Any]:
    """Predict each fold's held-out cases with that fold's networks, and measure all of them."""
    opened = open_dataset(dataset)
    tables = []
    for fold, split in enumerate(read_splits(runs[0] / "splits_final.json", opened.cases)):
        held_out = [case for case in opened.cases if case.case_id in set(split["val"])]
        segmenter = Segmenter.load(*(run / f"fold_{fold}" for run in runs))
        segment_cases(segmenter, held_out, folder / f"fold_{fold}", confidence=True)
        tables.append(folder / f"fold_{fold}" / "metrics.json")
        evaluate_files(tables[-1].parent, dataset, tables[-1], cases=[c.case_id for c in held_out])
    return dict(pool(tables, folder / "metrics.json"))


def reached(metrics: dict[str, Any]) -> dict[str, Any]:
    """Mean Dice of each label and of the foreground, with intervals."""
    return {label: entry["dice"] for label, entry in metrics["mean"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="a run folder for each network")
    parser.add_argument("--nets", nargs="+", default=["unet", "subvoxel_unet"])
    parser.add_argument("--budget", type=seconds, default=5400.0, help="of each network")
    args = parser.parse_args()
    rows, runs, spent = {}, [], 0.0
    for net in args.nets:
        run = args.work / net
        with watch() as tell:
            config = TrainConfig(
                args.input, run, budget_s=args.budget, fold="all", resume=run.exists(),
                overrides=Overrides(net=net),
            )  # fmt: skip
            if not (run / "measured.json").exists():
                train(config, tell)
        runs.append(run)
        spent += read_json(run / "measured.json")["seconds"]
        rows[net] = reached(read_json(run / "metrics.json"))
    if len(runs) > 1:
        rows["together"] = reached(together(runs, args.input, args.work / "together"))
    best = max(row["foreground"]["mean"] for row in rows.values())
    result = {"dice": rows, "training_s": round(spent, 1), "bar": BAR, "met": best >= BAR,
              "environment": environment()}  # fmt: skip
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
