"""Sites and a coordinator as processes over TLS, killed with SIGKILL in the middle, against peace.

    .venv/bin/python benchmarks/federation_processes.py -i DATASET

The data set is dealt to the sites as `qinjing federate simulate` deals it; it must declare its
basis in consent.json. Both times all papers are made anew, every process is a command, and
all speak over loopback under mutual TLS. The second time the coordinator and two sites are killed
while those two learn in a round of the middle, and are started again. Both models are measured on
what all sites hold out together.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qinjing.config import read_json, write_json
from qinjing.data.splits import write_splits
from qinjing.engine.checkpoint import load_tensors
from qinjing.engine.log import read_events
from qinjing.federate.federation import FederationConfig
from qinjing.federate.flare import papers
from qinjing.federate.simulate import SimulationConfig, dealt, held_apart
from qinjing.tasks.evaluate import evaluate_files
from qinjing.tasks.planning import silent, sound_cases
from qinjing.tasks.predict import Segmenter, segment_cases

PROJECT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "qinjing", "federate")


class Process:
    """A command of its own process, whose lines and their times are kept."""

    def __init__(self, words: list[str], log: Path, before: Sequence[str] = COMMAND) -> None:
        self.began = time.monotonic()
        self.lines: list[tuple[float, str]] = []
        self.heard = threading.Condition()
        self.process = subprocess.Popen(
            [*before, *words], text=True, stdin=subprocess.DEVNULL, stdout=log.open("a"),
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            with self.heard:
                self.lines.append((time.monotonic() - self.began, line.strip()))
                self.heard.notify_all()
        with self.heard:
            self.heard.notify_all()

    def wait_for(self, words: str, seconds: float) -> float:
        """Seconds from the start to the first line with these words."""

        def found() -> float | None:
            return next((at for at, line in self.lines if words in line), None)

        with self.heard:
            self.heard.wait_for(
                lambda: found() is not None or self.process.poll() is not None, seconds
            )
            at = found()
        if at is None:
            raise SystemExit(f"{words!r} was never said: {self.lines[-5:]}")
        return at

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def make_papers(
    folder: Path, options: argparse.Namespace, splits: dict[str, Any],
    host: str = "localhost", port: int | None = None,
) -> float:  # fmt: skip
    """Everything from the root certificate to the sites' own; seconds of all."""
    began = time.monotonic()
    papers.provision(folder / "p", "benchmark", host, port or free_port())
    write_json(folder / "policy.json", {"minimum_cases": 1})
    asked = []
    for site, split in splits.items():
        place = folder / f"{site}.splits.json"
        write_splits(place, [split])
        invitation = folder / "p" / "invitation.json"
        policy = folder / "policy.json"
        made = papers.request(invitation, site, options.input, folder / site, policy, place)
        asked.append(made)
    papers.approve(tuple(asked), folder / "p")
    return time.monotonic() - began


def run(
    folder: Path, options: argparse.Namespace, splits: dict[str, Any], disturbed: bool
) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    provisioning = make_papers(folder, options, splits)
    words = [
        "coordinate", "-p", str(folder / "p"), "-o", str(folder / "run"),
        "--sites", str(len(splits)), "--rounds", str(options.rounds),
        "--steps", str(options.steps), "--net", options.net, "--seed", str(options.seed),
        "--deadline", str(options.deadline),
    ]  # fmt: skip

    def coordinate() -> Process:
        return Process(words, folder / "coordinator.log")

    def join(site: str) -> Process:
        signed = folder / "p" / "approved" / f"{site}.signed.json"
        return Process(["join", str(signed), "-o", str(folder / site)], folder / f"{site}.log")

    began = time.monotonic()
    leader = coordinate()
    sites = {site: join(site) for site in splits}
    killed: list[str] = []
    try:
        joined = [site.wait_for("joined", options.deadline) for site in sites.values()]
        if disturbed:
            middle = options.rounds // 2 + 1
            killed = sorted(sites)[:2]
            for site in killed:  # the last of them has just begun to learn
                sites[site].wait_for(f"asked learn, round {middle}", options.deadline)
            leader.kill()
            for site in killed:
                sites[site].kill()
            leader = coordinate()
            sites |= {site: join(site) for site in killed}
        if leader.process.wait(options.deadline * (options.rounds + 3)) not in (0, 2):
            raise SystemExit(f"the coordinator failed: {leader.lines[-5:]}")
    finally:
        for process in (leader, *sites.values()):
            process.kill()
    rounds = list(read_events(folder / "run" / "log.jsonl"))
    result = read_json(folder / "run" / "result.json")
    return {
        "papers_s": round(provisioning, 2),
        "joined_s": [round(at, 2) for at in joined],
        "round_s": [event["seconds"] for event in rounds],
        "all_s": round(time.monotonic() - began, 1),
        "killed": ["coordinator", *killed] if disturbed else [],
        "rounds": [event["round"] for event in rounds],
        "bytes": result["bytes"],
        "refused": result["refused"],
        "peers": sorted(result["sites"]),
    }


def measure(run_folder: Path, options: argparse.Namespace, cases: list[Any]) -> float:
    fold = run_folder / "fold_0"
    segment_cases(Segmenter.load(run_folder), cases, fold / "validation")
    ids = [case.case_id for case in cases]
    metrics = evaluate_files(fold / "validation", options.input, fold / "metrics.json", cases=ids)
    return float(metrics["mean"]["foreground"]["dice"]["mean"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True, help="data set")
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--net", default="residual_unet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=1800, help="seconds for one request")
    parser.add_argument("--work", type=Path, default=PROJECT / ".scratch" / "federation_processes")
    parser.add_argument("-o", "--output", type=Path, help="write the result here as well")
    options = parser.parse_args()
    federation = FederationConfig(options.work, seed=options.seed)
    _, cases, _ = sound_cases(options.input, silent, purpose="federated")
    config = SimulationConfig(options.input, federation, options.sites)
    shares = dealt(cases, config)
    splits = {site: held_apart(own, options.seed) for site, own in shares.items()}
    held_out = {i for split in splits.values() for i in split["val"]}
    measured = [case for case in cases if case.case_id in held_out]
    runs: dict[str, Any] = {}
    for name in ("undisturbed", "disturbed"):
        folder = options.work / name
        runs[name] = run(folder, options, splits, name == "disturbed")
        runs[name]["dice"] = measure(folder / "run", options, measured)
    weights = [
        load_tensors(options.work / name / "run" / "fold_0" / "weights.safetensors")[0]
        for name in runs
    ]
    apart = max(float((a - weights[1][n]).abs().max()) for n, a in weights[0].items())
    equal = all(torch.equal(a, weights[1][n]) for n, a in weights[0].items())
    difference = abs(runs["undisturbed"]["dice"] - runs["disturbed"]["dice"])
    versions = {"torch": torch.__version__, "python": re.sub(r"\s.*", "", sys.version)}
    result = {
        "dataset": options.input.name,
        "sizes": {n: {k: len(v) for k, v in s.items()} for n, s in splits.items()},
        "settings": {n: getattr(options, n) for n in ("rounds", "steps", "net", "seed")},
        "runs": runs,
        "dice_difference": difference,
        "weights_equal": equal,
        "largest_weight_difference": apart,
        "met": difference <= 0.005,
        "versions": versions,
    }
    print(json.dumps(result, indent=2))
    if options.output:
        write_json(options.output, result)
    return 0 if result["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
