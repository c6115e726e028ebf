"""What does a search for the architecture in a federation cost, and what does it come to?

The sites are those of `federation.py`, and afford shares of the largest network by turns. Three
trainings of as many rounds and steps: the whole network at every site, as if all could; the search,
which spends its first half on slices; and the chosen architecture alone, from chance. All are
measured on the same held-out cases of all sites.

    .venv/bin/python benchmarks/federated_search.py -i ../shared/data/Task04_Hippocampus \
        --rounds 20 -o benchmarks/results/federated_search_hippocampus.json
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from federation import deal, dice, difference

from qinjing.cli.watch import watch
from qinjing.config import read_config, write_json
from qinjing.engine.device import environment
from qinjing.engine.log import read_events
from qinjing.engine.plan import Plan
from qinjing.federate.federation import FederationConfig, SearchConfig
from qinjing.federate.simulate import SimulationConfig, simulate

PLANNED = ("plan.json", "fingerprint.json", "dataset.json")


def row(result: dict[str, Any], run: Path, fixed: Path) -> dict[str, Any]:
    """What a training came to and what it cost."""
    rounds = [e for e in read_events(run / "log.jsonl") if e["kind"] == "round"]
    seconds = sum(e["seconds"] for e in rounds)
    net = read_config(run / "plan.json", Plan).model.build()
    found = result.get("search", {})
    return {
        "dice": dice(run),
        "over_the_fixed": difference(run, fixed) if run != fixed else None,
        "parameters": sum(p.numel() for p in net.parameters()),
        "megabytes": {way: round(n / 1e6, 2) for way, n in result["bytes"].items()},
        "seconds_of_rounds": round(seconds, 1),
        "seconds_of_ranking": found.get("seconds", {}).get("ranking", 0.0),
        "each_site": {site: told.get("dice") for site, told in result["sites"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".scratch/federated_search"))
    parser.add_argument("--net", default="subvoxel_unet")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compute", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--per-site", action="store_true")
    args = parser.parse_args()
    source = args.work / "dealt"
    deal(args.input, source)
    rows: dict[str, Any] = {}
    search = SearchConfig(per_site=args.per_site)
    fixed = args.work / "fixed"
    for name in ("fixed", "search", "chosen"):
        run = args.work / name
        if name == "chosen" and not (run / "plan.json").exists():
            run.mkdir(parents=True)
            for file in PLANNED:  # a plan that is there is kept to
                shutil.copyfile(args.work / "search" / file, run / file)
        federation = FederationConfig(
            run, rounds=args.rounds, steps=args.steps, net=args.net,
            search=search if name == "search" else None,
        )  # fmt: skip
        affords = tuple(args.compute) if name == "search" else ()
        config = SimulationConfig(source, federation, beside=False, compute=affords)
        with watch() as tell:
            result = simulate(config, tell)
        rows[name] = row(result, run, fixed)
        if name == "search":
            rows[name]["found"] = result["search"]
        print(json.dumps({name: rows[name]}, indent=2))
    report = {
        "trainings": rows,
        "sizes": result["sizes"],
        "compute": args.compute,
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
