"""Seven scans of five persons at five hospitals: what can a federation of so few show?

Two questions, each with one plan, network and number of steps for all its lines:

* `unseen`: every site in turn takes no part; a federation of the four others and a training on
  their scans pooled are measured on it. One or two scans each: all seven together are compared.
* `again`: all sites take part. Two of them scanned their person twice; the second scans are held
  out. Each rule of averaging, all pooled, and each site alone are measured on them; rules with
  layers of a site's own by that site's model. The person is the same in both scans, so this says
  what a site gains at home, not on somebody new.

All use one plan, made from all seven scans, of a network and a batch that these many trainings can
afford on two cores.

    .venv/bin/python benchmarks/federation_spinal.py -i ../shared/data/spinal_gm \
        -o benchmarks/results/federation_spinal.json
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from federation import dice
from hundred_sites import NET, small_plan

from qinjing.cli.watch import watch
from qinjing.config import plain, read_json, write_json
from qinjing.data.splits import Split, write_splits
from qinjing.engine.device import environment
from qinjing.engine.plan import Plan
from qinjing.federate.federation import FederationConfig
from qinjing.federate.simulate import SimulationConfig, simulate
from qinjing.metrics.statistics import bootstrap_mean
from qinjing.tasks.train import TrainConfig, train

SECOND = "Ses2"
WIDTHS = (8, 16, 32, 64)


def lay_out(source: Path, target: Path) -> dict[str, list[str]]:
    """Copy labelled scans into nnU-Net's layout; site → its cases."""
    rows = list(csv.DictReader((source / "index.csv").open(encoding="utf-8")))
    sites: dict[str, list[str]] = {}
    for row in rows:
        label = source / f"{row['id']}_label.nii.gz"
        if not label.exists():
            continue  # its mask is kept apart
        case = row["id"].replace("-", "_")
        sites.setdefault(row["site"], []).append(case)
        for folder, name, file in (
            ("imagesTr", f"{case}_0000.nii.gz", source / f"{row['id']}_run1.nii.gz"),
            ("labelsTr", f"{case}.nii.gz", label),
        ):
            (target / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / folder / name)
    labels = {"background": 0, "white_matter": 1, "grey_matter": 2}
    about = {"channel_names": {"0": "T2star"}, "labels": labels, "file_ending": ".nii.gz"}
    write_json(target / "dataset.json", {**about, "numTraining": sum(map(len, sites.values()))})
    lines = [f"{case}\t{site}" for site, cases in sites.items() for case in cases]
    text = "participant_id\tgroup\n" + "\n".join(lines) + "\n"
    (target / "participants.tsv").write_text(text, encoding="utf-8")
    return sites


def cases_dice(run: Path) -> dict[str, dict[str, float]]:
    """Case → label → Dice."""
    metrics = read_json(run / "metrics.json")
    return {
        case["case_id"]: {label: own["dice"] for label, own in case["labels"].items()}
        for case in metrics["cases"]
    }


def together(
    options: argparse.Namespace, plan: Plan, name: str, fold: Split,
    strategy: str = "fedavg", beside: bool = False,
) -> dict[str, Any]:  # fmt: skip
    splits = options.work / f"{name}.splits.json"
    write_splits(splits, [fold])
    write_json(options.work / name / "plan.json", plan)
    federation = FederationConfig(
        options.work / name, rounds=options.rounds, steps=options.steps, strategy=strategy, net=NET
    )
    config = SimulationConfig(
        options.work / "data", federation, beside=beside, splits=splits, spread=0.0
    )
    with watch() as tell:
        return simulate(config, tell)


def pooled(options: argparse.Namespace, name: str) -> Path:
    run = options.work / f"{name}-pooled"
    if not (run / "measured.json").exists():
        plan = options.work / f"{name}.plan.json"
        shutil.copyfile(options.work / name / "plan.json", plan)
        splits = options.work / f"{name}.splits.json"
        with watch() as tell:
            train(
                TrainConfig(options.work / "data", run, resume=True, splits=splits, plan=plan), tell
            )
    return run


def difference(one: dict[str, dict[str, float]], other: dict[str, dict[str, float]]) -> Any:
    """Mean of the scans' differences of mean Dice; whole persons are drawn for the interval."""
    gaps = [
        sum(own.values()) / len(own) - sum(other[case].values()) / len(own)
        for case, own in one.items()
    ]
    found = bootstrap_mean(np.array(gaps), [re.sub("Ses.*", "", case) for case in one])
    return {**plain(found), "n": len(gaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".scratch/federation_spinal"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--strategies", nargs="+", default=["fedavg", "fedbn"])
    options = parser.parse_args()
    sites = lay_out(options.input, options.work / "data")
    every = [case for cases in sites.values() for case in cases]
    plan = small_plan(options.work / "data", options.rounds * options.steps, WIDTHS)
    report: dict[str, Any] = {"sites": sites, "again": {}, "unseen": {}}

    second = [case for case in every if case.endswith(SECOND)]
    fold = Split(train=[case for case in every if case not in second], val=second)
    beside: dict[str, str] = {}
    for number, strategy in enumerate(options.strategies):
        result = together(options, plan, f"again-{strategy}", fold, strategy, beside=not number)
        beside = beside or result["runs"]
        told = {site: own.get("dice") for site, own in result["sites"].items()}
        report["again"][strategy] = {
            "coordinators_model": dice(options.work / f"again-{strategy}"),
            "each_sites_model": {site: own for site, own in told.items() if own},
        }
        print(json.dumps({strategy: report["again"][strategy]}, indent=2))
    report["again"]["others"] = {
        name: {"mean": dice(Path(run)), "cases": cases_dice(Path(run))}
        for name, run in beside.items()
    }

    federated: dict[str, dict[str, float]] = {}
    all_pooled: dict[str, dict[str, float]] = {}
    for site, cases in sites.items():
        name = f"without-{site}"
        fold = Split(train=[case for case in every if case not in cases], val=cases)
        together(options, plan, name, fold)
        federated |= cases_dice(options.work / name)
        all_pooled |= cases_dice(pooled(options, name))
    report["unseen"] = {
        "federated": federated,
        "pooled": all_pooled,
        "federated_over_pooled": difference(federated, all_pooled),
    }
    settings = {"net": NET, "widths": WIDTHS, "rounds": options.rounds, "steps": options.steps}
    report |= {**settings, "environment": environment()}
    print(json.dumps(report, indent=2))
    if options.output:
        write_json(options.output, report)


if __name__ == "__main__":
    main()
