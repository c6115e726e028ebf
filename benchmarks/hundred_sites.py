"""A hundred hospitals on one machine: is the model as good when a third fails and a tenth lies?

Every hospital has a scanner of its own, drawn anew: gain log-normal (0.2), noise uniform (0.03 to
0.09 of the liver), blur uniform (2 to 5 mm), slices of 4.5 or 6 mm, pixels of 3.5 or 4 mm; and
phantoms of its own, log-normal around 5 (0.5), 3 to 20 of them. What is learnt is organ against the
rest: the smallest task on which a federation can be watched failing. `clean` is federated
averaging; in `faulty` a site does not answer with 30 % of requests, and ten send updates turned
round, blown up or of noise; `undefended` is the same with the mean. All are measured on what all
sites hold out.

    .venv/bin/python benchmarks/hundred_sites.py -o benchmarks/results/hundred_sites.json
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from federation import difference, megabytes_a_round

from qinjing.cli.watch import watch
from qinjing.config import read_json, write_json
from qinjing.data.nifti import write_nifti
from qinjing.engine.device import environment
from qinjing.engine.plan import Plan, with_steps
from qinjing.federate.federation import FederationConfig
from qinjing.federate.simulate import SimulationConfig, simulate
from qinjing.physics.anatomy import Vendor, draw
from qinjing.physics.phantom import render
from qinjing.tasks.planning import Overrides, plan_dataset

NET = "residual_unet"
WIDTHS = (8, 16, 32)
BATCH = 2


def draw_sites(folder: Path, sites: int) -> Path:
    """Write each site's phantoms, patients named by site in participants.tsv."""
    if (folder / "dataset.json").exists():
        return folder
    rng = np.random.default_rng(0)
    rows, training = ["participant_id\tgroup"], []
    for number in range(sites):
        vendor = Vendor(
            f"site_{number:03d}", float(np.exp(0.2 * rng.standard_normal())),
            float(rng.uniform(0.03, 0.09)), float(rng.uniform(2, 5)),
            float(rng.choice([4.5, 6.0])), float(rng.choice([3.5, 4.0])),
        )  # fmt: skip
        size = int(np.clip(round(np.exp(np.log(5) + 0.5 * rng.standard_normal())), 3, 20))
        for case in range(size):
            name = f"phantom_{number:03d}_{case:02d}.nii.gz"
            image_path, label_path = folder / "imagesTr" / name, folder / "labelsTr" / name
            if not label_path.exists():
                drawn = draw(np.random.default_rng((0, number, case)), "aurora")
                image, label = render(replace(drawn, vendor=vendor))
                stored = np.clip(np.rint(image.voxels), 0, 32767).astype(np.int16)
                organ = (label.voxels > 0).astype(np.uint8)
                for path, voxels in ((image_path, stored), (label_path, organ)):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_nifti(path, image.with_voxels(voxels))
            rows.append(f"{name.removesuffix('.nii.gz')}\t{vendor.name}")
            training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    about: dict[str, Any] = {"name": "Hundred", "licence": "CC0", "modality": {"0": "MRI"}}
    about |= {"labels": {"0": "background", "1": "organ"}, "training": training}
    write_json(folder / "dataset.json", about)
    return folder


def small_plan(dataset: Path, steps: int, widths: Sequence[int] = WIDTHS) -> Plan:
    """The planner's, of a network and a batch that a hundred sites on two cores can afford."""
    chosen = Overrides(NET, {"widths": list(widths)}, steps=steps)
    plan = plan_dataset(dataset, overrides=chosen)
    return with_steps(replace(plan, batch_size=BATCH), steps, None, plan.fit.validations)


def run(
    name: str, args: argparse.Namespace, dataset: Path, plan: Plan, share: float, **more: Any
) -> dict[str, Any]:
    """Simulate one federation with this plan; Dice, bytes, seconds and memory."""
    output = args.work / name
    write_json(output / "plan.json", plan)
    keys = ("combine", "clip_norm", "noise")
    own = {key: more.pop(key) for key in keys if key in more}
    federation = FederationConfig(
        output, rounds=args.rounds, steps=args.steps, net=NET, share=share, **own
    )
    with watch() as tell:
        result = simulate(SimulationConfig(dataset, federation, beside=False, **more), tell)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = [told["epsilon"] for told in result["sites"].values() if told.get("epsilon")]
    return {
        "dice": read_json(output / "metrics.json")["mean"]["foreground"]["dice"],
        "epsilon": max(spent, default=None),
        "megabytes_a_round": megabytes_a_round(output),
        "seconds": result["seconds"],
        "peak_gib_so_far": round(peak_kib / 2**20, 2),
        "held_out": sum(size["val"] for size in result["sizes"].values()),
        "run": str(output),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".scratch/hundred_sites"))
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.2, help="of the sites asked in a round")
    parser.add_argument("--combine", default="geometric_median")
    parser.add_argument("--failing", type=float, default=0.3)
    parser.add_argument("--liars", type=int, default=10)
    args = parser.parse_args()
    dataset = draw_sites(args.work / "data", args.sites)
    plan = small_plan(dataset, args.rounds * args.steps)
    faults = {"failing": args.failing, "liars": args.liars}
    wanted: dict[str, dict[str, Any]] = {
        "clean": {},
        "faulty": {**faults, "combine": args.combine},
        "undefended": faults,
    }
    rows = {}
    for name, more in wanted.items():
        rows[name] = run(name, args, dataset, plan, args.share, **more)
        print(json.dumps({name: rows[name]}), flush=True)
    clean = Path(rows["clean"]["run"])
    for name in ("faulty", "undefended"):
        rows[name]["over_clean"] = difference(Path(rows[name]["run"]), clean)
    report = {
        "federations": rows, "sites": args.sites, "rounds": args.rounds, "steps": args.steps,
        "share": args.share, "combine": args.combine, "net": NET, "widths": WIDTHS,
        "environment": environment(),
    }  # fmt: skip
    print(json.dumps(report, indent=2))
    if args.output:
        write_json(args.output, report)


if __name__ == "__main__":
    main()
