"""What do 20, 100 and 420 hospitals ask of the coordinator of one federation?

The coordinator is the real one, with the planner's network; the sites are made up: each answers at
once with an update of that network, so that all seconds are the coordinator's own. Every number of
sites runs in a process of its own, whose peak of memory is told. Bytes are of packed messages, all
sites together, in a round between the first and the last. `megabit_s` is what the line must carry
where a round may take `--round-s` seconds.

    .venv/bin/python benchmarks/coordinator_scale.py -i ../shared/data/Task04_Hippocampus \
        -o benchmarks/results/coordinator_scale.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from federation import megabytes_a_round

from qinjing.config import read_config, write_json
from qinjing.engine.device import environment
from qinjing.engine.plan import Plan
from qinjing.federate.coordinator import federate
from qinjing.federate.doors import InProcess
from qinjing.federate.federation import FederationConfig
from qinjing.federate.message import Message
from qinjing.federate.travel import packed
from qinjing.tasks.planning import Overrides, plan_dataset

ROUNDS = 3


def made_up(plan: Plan, codec: str) -> Any:
    """A site that answers with the same update whenever it is asked."""
    torch.manual_seed(1)
    net = plan.model.build().state_dict()
    change = {f"change/{name}": 1e-3 * torch.randn_like(value) for name, value in net.items()}
    bare = {name.partition("/")[2]: value for name, value in change.items()}
    update = packed(change, codec) if codec else {"change": bare}
    learnt = Message("learn", {"cases": 20, "loss": 1.0}, update).pack()
    other = {verb: Message(verb, {"cases": 5}).pack() for verb in ("prepare", "finish")}

    def answer(request: bytes) -> bytes:
        verb = Message.unpack(request).verb
        return learnt if verb == "learn" else other[verb]

    return answer


def one(plan_path: Path, sites: int, codec: str) -> dict[str, Any]:
    """Lead made-up sites through some rounds."""
    plan = read_config(plan_path, Plan)
    answer = made_up(plan, codec)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        write_json(output / "plan.json", plan)
        config = FederationConfig(output, rounds=ROUNDS, steps=1, codec=codec)
        start = time.monotonic()
        federate(config, InProcess({f"site_{k:03d}": answer for k in range(sites)}))
        seconds = (time.monotonic() - start) / ROUNDS
        travelled = megabytes_a_round(output)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {**travelled, "round_s": round(seconds, 2), "peak_gib": round(peak, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".scratch/coordinator_scale"))
    parser.add_argument("--sites", type=int, nargs="+", default=[20, 100, 420])
    parser.add_argument("--codecs", nargs="+", default=["", "spectral"])
    parser.add_argument("--round-s", type=float, default=600.0)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # sites and codec, by itself
    args = parser.parse_args()
    path = args.work / "plan.json"
    if args.one:
        print(json.dumps(one(path, int(args.one[0]), args.one[1])))
        return
    plan = plan_dataset(args.input, overrides=Overrides("subvoxel_unet", steps=ROUNDS))
    write_json(path, plan)
    rows = []
    for codec in args.codecs:
        for sites in args.sites:
            command = [sys.executable, __file__, "-i", str(args.input), "--work", str(args.work)]
            command += ["--one", str(sites), codec]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            row: dict[str, Any] = {"sites": sites, "codec": codec or "float32"}
            if done.returncode:
                row["failed"] = done.stderr.strip().splitlines()[-1:]
            else:
                row |= json.loads(done.stdout.splitlines()[-1])
                both = row["sent"] + row["received"]
                row["megabit_s"] = round(8 * both / args.round_s, 2)
            rows.append(row)
            print(json.dumps(row), flush=True)
    parameters = sum(value.numel() for value in plan.model.build().parameters())
    report = {"parameters": parameters, "round_s_allowed": args.round_s, "rows": rows,
              "environment": environment()}  # fmt: skip
    if args.output:
        write_json(args.output, report)


if __name__ == "__main__":
    main()
