"""How near does a federation come to all cases pooled, and how far above each site alone?

The cases of a data set are dealt to five sites of unequal size; the scans of one are given other
grey values (each voxel's share of the 99.5th percentile to the power of 0.5, as another scanner's
display curve might). Each line trains with the same plan, network and steps a site: the federation
by each strategy and codec asked for, all cases pooled, and each site alone. All are measured on
the same held-out cases of all sites.

    .venv/bin/python benchmarks/federation.py -i ../shared/data/Task04_Hippocampus \
        --strategies fedavg --codecs spectral --rounds 20 \
        -o benchmarks/results/federation_hippocampus.json
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.cli.watch import watch
from qinjing.config import read_json, write_json
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import read_nifti, write_nifti
from qinjing.engine.device import environment
from qinjing.engine.log import read_events
from qinjing.federate.federation import FederationConfig
from qinjing.federate.simulate import SimulationConfig, simulate
from qinjing.report.compare import compare

SHARES = (0.36, 0.26, 0.18, 0.12, 0.08)
ALTERED = 2  # which site's greys are others


def deal(source: Path, target: Path) -> None:
    """Copy a data set, patients named by site in participants.tsv, one site's greys changed."""
    if (target / "participants.tsv").exists():
        return
    dataset = open_dataset(source)
    patients = sorted({case.patient_id for case in dataset.cases})
    order = np.random.default_rng(0).permutation(len(patients))
    ends = np.round(np.cumsum(SHARES) * len(patients)).astype(int)
    site = {patients[i]: int(np.searchsorted(ends, k, side="right")) for k, i in enumerate(order)}
    for case in dataset.cases:
        for channel, path in enumerate(case.images):
            place = target / "imagesTr" / f"{case.case_id}_{channel:04d}.nii.gz"
            place.parent.mkdir(parents=True, exist_ok=True)
            if site[case.patient_id] == ALTERED:
                image = read_nifti(path)
                grey = image.voxels.astype(np.float32)
                top = float(np.percentile(grey, 99.5))
                write_nifti(place, image.with_voxels(top * (grey.clip(0) / top) ** 0.5))
            else:
                shutil.copyfile(path, place)
        assert case.label
        label = target / "labelsTr" / f"{case.case_id}.nii.gz"
        label.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(case.label, label)
    channels = {str(k): name for k, name in enumerate(dataset.channel_names)}
    labels = {name: value for value, name in dataset.labels.items()}
    about = {"channel_names": channels, "labels": labels, "file_ending": ".nii.gz"}
    write_json(target / "dataset.json", {**about, "numTraining": len(dataset.cases)})
    lines = [f"{patient}\tsite_{number}" for patient, number in sorted(site.items())]
    text = "participant_id\tgroup\n" + "\n".join(lines) + "\n"
    (target / "participants.tsv").write_text(text, encoding="utf-8")


def dice(run: Path) -> dict[str, Any]:
    """Mean Dice of a run's held-out cases, and by site where they can be told."""
    found: dict[str, Any] = read_json(run / "metrics.json")["mean"]["foreground"]["dice"]
    return found


def difference(run: Path, other: Path) -> Mapping[str, Any]:
    """A run's Dice over another's on the same cases, with the interval of the mean."""
    rows = compare([other, run])["rows"]
    row = next(r for r in rows if r["metric"] == "dice" and r["label"] == "foreground")
    return {**row["difference"], "verdict": row["verdict"]}


def megabytes_a_round(run: Path) -> dict[str, float]:
    """What travels in a round between the first and the last, all sites together, the median."""
    events = [e for e in read_events(run / "log.jsonl") if e["kind"] == "round"][1:]
    return {
        way: round(float(np.median(np.diff([e[way] for e in events]))) / 1e6, 3)
        for way in ("sent", "received")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".scratch/federation"))
    parser.add_argument(
        "--as-it-is", action="store_true", help="sites as participants.tsv has them"
    )
    parser.add_argument("--strategies", nargs="+", default=["fedavg"])
    parser.add_argument("--codecs", nargs="*", default=[], help="each with the first strategy")
    parser.add_argument("--net", default="subvoxel_unet")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    source = args.input
    if not args.as_it_is:
        source = args.work / "dealt"
        deal(args.input, source)
    wanted = [(name, "") for name in args.strategies]
    wanted += [(args.strategies[0], codec) for codec in args.codecs]
    rows: dict[str, Any] = {}
    beside: dict[str, str] = {}
    first: Path | None = None
    for strategy, codec in wanted:
        name = f"{strategy}-{codec}" if codec else strategy
        federation = FederationConfig(
            args.work / name, rounds=args.rounds, steps=args.steps, strategy=strategy,
            codec=codec, net=args.net,
        )  # fmt: skip
        with watch() as tell:
            result = simulate(SimulationConfig(source, federation, beside=not beside), tell)
        beside = beside or {n: r for n, r in result["runs"].items() if n != "federated"}
        run = Path(result["runs"]["federated"])
        first = first or run
        rows[name] = {
            "dice": dice(run),
            "over_pooled": difference(run, Path(beside["pooled"])),
            "over_each_alone": {
                site: difference(run, Path(alone))
                for site, alone in beside.items() if site != "pooled"
            },
            "each_site": {site: told.get("dice") for site, told in result["sites"].items()},
            "over_the_first": difference(run, first) if run != first else None,
            "megabytes_a_round": megabytes_a_round(run),
            "megabytes": {way: round(n / 1e6, 2) for way, n in result["bytes"].items()},
            "seconds": result["seconds"],
        }  # fmt: skip
        print(json.dumps({name: rows[name]}, indent=2))
    report = {
        "federations": rows,
        "pooled": dice(Path(beside["pooled"])),
        "alone": {site: dice(Path(run)) for site, run in beside.items() if site != "pooled"},
        "sizes": result["sizes"],
        "net": args.net,
        "rounds": args.rounds,
        "steps": args.steps,
        "environment": environment(),
    }
    print(json.dumps(report, indent=2))
    if args.output:
        write_json(args.output, report)


if __name__ == "__main__":
    main()
