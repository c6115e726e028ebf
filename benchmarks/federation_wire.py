"""Bytes that a federation puts on the wire, what secure sums cost in time, and who drops out.

    .venv/bin/python benchmarks/federation_wire.py -i DATASET \
        -o benchmarks/results/federation_wire.json

Wants Linux, root and Debian's package iproute2. Coordinator and sites are commands, each site in a
network namespace of its own, under mutual TLS. Bytes are those of the network cards, Ethernet, IP
and TCP headers included, all sites together: `up` in a round is what they sent from the end of the
round before to the end of this one, `down` what they received from the moment that all had begun
to learn in the round before to that in this one. Medians leave out the first round, in which all
get the plan and a codec has nothing to begin from.

The secure rounds train a network of about 60 MB, by turns with rounds of plain updates. CPU seconds
are those of all processes together, to which a busy machine adds little. Then, with the network of
the first part, two sites are killed while they learn in the last round: the model must be the one
before plus the weighted mean of what the others kept of their updates, and the round over soon
after its deadline.

The data set must declare its basis in consent.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import namespaces
from federation_processes import PROJECT, Process, make_papers

from qinjing.cli import main as qinjing
from qinjing.config import read_config, read_json, write_json
from qinjing.data.splits import Split
from qinjing.engine.checkpoint import load_tensors
from qinjing.engine.device import environment
from qinjing.engine.log import read_events
from qinjing.engine.plan import Plan
from qinjing.federate.compression import CODECS
from qinjing.federate.compression.codecs import Quantise
from qinjing.federate.federation import FederationConfig
from qinjing.federate.message import Message
from qinjing.federate.simulate import SimulationConfig, dealt, held_apart
from qinjing.federate.strategies import Strategy, Update
from qinjing.federate.travel import grouped
from qinjing.tasks.planning import silent, sound_cases

LINES = {"none": "", "8 bits": "quantise8", "4 bits": "quantise", "spectral": "spectral"}
EIGHT_BITS = {"quantise8": partial(Quantise, bits=8)}  # no name of ours has this option
LEARNT, HELD_OUT = 6, 2  # cases of a site; bytes and time of a round do not hang on their number
WIDE = (72, 144, 288)  # 60 MB of float32
PLANNED = ("plan.json", "fingerprint.json", "dataset.json")
BAR = 1.2
GRACE_S = 60.0  # after a deadline, for the small messages of a sum on a busy machine


class Federation:
    """Coordinator and sites at work, for one training.

    Args:
        folder: of this line; papers and sites lie in it.
        network: a leaf for each site.
        splits: of the sites.
        words: more of the coordinator's.
        options: of the command line.
    """

    def __init__(
        self, folder: Path, network: namespaces.Network, splits: dict[str, Split],
        words: Sequence[str], options: argparse.Namespace,
    ) -> None:  # fmt: skip
        self.folder, self.network, self.patience = folder, network, options.patience
        self.rounds = int(words[words.index("--rounds") + 1])
        make_papers(folder, options, splits, namespaces.HUB, 8443)
        peers = ["--peers", str(folder / "p" / "identities.json")]
        lead = ["-p", str(folder / "p"), "-o", str(folder / "run"), "--sites", str(len(splits))]
        lead += ["--net", options.net, "--seed", "0", *words]
        self.leader = self._process(network.hub, ["coordinate", *lead], "coordinator")
        self.sites = {}
        for site, leaf in zip(splits, network.leaves, strict=True):
            signed = str(folder / "p" / "approved" / f"{site}.signed.json")
            join = ["join", signed, "-o", str(folder / site), *peers]
            self.sites[site] = self._process(leaf, join, site)

    def _process(self, namespace: str, words: list[str], name: str) -> Process:
        before = [*namespaces.inside(namespace), sys.executable, __file__, "command", "federate"]
        return Process(words, self.folder / f"{name}.log", before)

    def counted(self) -> namespaces.Counted:
        """Of all sites together."""
        sent, received = zip(*self.network.counted(), strict=True)
        return namespaces.Counted(sum(sent), sum(received))

    def worked(self) -> float:
        """CPU seconds of all processes together, which a busy machine does not add to."""
        seconds = 0.0
        for process in (self.leader, *self.sites.values()):
            told = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")
        return seconds

    def watch(self) -> dict[str, list[Any]]:
        """Bytes of each round, up and down, and CPU seconds."""
        up, down, cpu = [0], [0], [0.0]
        for number in range(1, self.rounds + 1):
            for site in self.sites.values():
                site.wait_for(f"asked learn, round {number}", self.patience)
            down.append(self.counted().received)
            self.leader.wait_for(f"round {number} of {self.rounds}", self.patience)
            up.append(self.counted().sent)
            cpu.append(round(self.worked(), 2))
        return {"up": differences(up), "down": differences(down), "cpu_s": differences(cpu)}

    def end(self) -> dict[str, Any]:
        """Wait for the end; the result."""
        if self.leader.process.wait(self.patience) != 0:
            raise SystemExit(f"the coordinator failed: {self.leader.lines[-5:]}")
        return dict(read_json(self.folder / "run" / "result.json"))

    def log(self) -> list[dict[str, Any]]:
        """The rounds."""
        events = read_events(self.folder / "run" / "log.jsonl")
        return [event for event in events if event["kind"] == "round"]


def differences(values: Sequence[float]) -> list[Any]:
    return [round(after - before, 2) for before, after in pairwise(values)]


@contextmanager
def running(
    folder: Path, splits: dict[str, Split], words: Sequence[object], options: argparse.Namespace,
    plan: Path | None = None,
) -> Iterator[Federation]:  # fmt: skip
    """Yield a federation of its own network, which is over with the block."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if plan:
        shutil.copytree(plan, folder / "run")
    with namespaces.joined(len(splits)) as network:
        one = Federation(folder, network, splits, [str(word) for word in words], options)
        try:
            yield one
        finally:
            for process in (one.leader, *one.sites.values()):
                process.kill()


def bytes_of(name: str, splits: dict[str, Split], options: argparse.Namespace) -> dict[str, Any]:
    """What a codec puts on the wire."""
    words = ["--rounds", options.rounds, "--steps", 1, "--deadline", options.patience]
    words += ["--codec", LINES[name]] if LINES[name] else []
    with running(options.work / name.replace(" ", "_"), splits, words, options) as federation:
        wire = federation.watch()
        federation.end()
        log = federation.log()
    told = {way: differences([0, *(event[way] for event in log)]) for way in ("sent", "received")}
    return {
        "up": round(statistics.median(wire["up"][1:])),
        "down": round(statistics.median(wire["down"][1:])),
        "each_round": {way: wire[way] for way in ("up", "down")},
        # What the coordinator says itself: messages, before NVFlare, HTTP/2, TLS and TCP.
        "messages": {
            "up": round(statistics.median(told["received"][1:])),
            "down": round(statistics.median(told["sent"][1:])),
        },
    }


def widened(made: Path, folder: Path) -> tuple[Path, float]:
    """The plan of a run that is over with a network of about 60 MB, and how many MB it has."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = read_config(made / "plan.json", Plan)
    options = {**plan.model.options, "widths": WIDE[: len(plan.model.options["widths"])]}
    plan = replace(plan, model=replace(plan.model, options=options))
    write_json(folder / "plan.json", plan)
    for name in PLANNED[1:]:
        shutil.copyfile(made / name, folder / name)
    state = plan.model.build().state_dict().values()
    return folder, sum(value.numel() * value.element_size() for value in state) / 1e6


def timed(
    name: str, plan: Path, splits: dict[str, Split], options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of rounds with or without secure sums."""
    words = ["--rounds", options.timed_rounds, "--steps", options.steps]
    words += ["--deadline", options.patience, *(["--secure"] if name == "secure" else [])]
    with running(options.work / name, splits, words, options, plan) as federation:
        wire = federation.watch()
        federation.end()
        seconds = [event["seconds"] for event in federation.log()]
    return {"round_s": seconds, **wire}


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median seconds of rounds after the first, and what secure sums add."""
    found: dict[str, Any] = {}
    for kind in ("round_s", "cpu_s"):
        middle = {
            name: statistics.median(s for run in own for s in run[kind][1:])
            for name, own in runs.items()
        }
        found[kind] = middle | {"ratio": round(middle["secure"] / middle["plain"], 3)}
    return found | {"met": found["round_s"]["ratio"] <= BAR}


def dropping(made: Path, splits: dict[str, Split], options: argparse.Namespace) -> dict[str, Any]:
    """Two sites are killed while they learn in the last of two rounds, planned as a run before."""
    plan = options.work / "narrow"
    shutil.rmtree(plan, ignore_errors=True)
    plan.mkdir()
    for name in PLANNED:
        shutil.copyfile(made / name, plan / name)
    words = ["--rounds", 2, "--steps", options.steps, "--deadline", options.deadline, "--secure"]
    folder = options.work / "dropping"
    with running(folder, splits, words, options, plan) as federation:
        federation.leader.wait_for("round 1 of 2", options.patience)
        state = folder / "run" / "rounds" / "state.safetensors"
        shutil.copyfile(state, folder / "before.safetensors")
        gone = list(splits)[:2]
        for site in gone:
            federation.sites[site].wait_for("asked learn, round 2", options.patience)
            federation.sites[site].kill()
        federation.end()
        last = federation.log()[-1]
    stayed = sorted(set(splits) - set(gone))
    before, after = (
        grouped(load_tensors(path)[0])["weights"] for path in (folder / "before.safetensors", state)
    )
    updates = []
    for site in stayed:
        (kept,) = (folder / site / "work" / "rounds").glob("*/answer_1.safetensors")
        update = Message.unpack(kept.read_bytes())
        updates.append(Update(dict(update.tensors), update.fields["cases"]))
    expected = Strategy().merge({"weights": before}, updates, 1.0)["weights"]
    apart = max(float((value - after[name]).abs().max()) for name, value in expected.items())
    moved = max(float((value - before[name]).abs().max()) for name, value in expected.items())
    # The sum's own step is 2·bound·n/2³², far below this; the update itself far above.
    right = last["sites"] == stayed and apart <= 1e-5 < 1e-4 < moved
    in_time = last["seconds"] <= options.deadline + GRACE_S
    return {
        "killed": gone, "in_the_sum": last["sites"], "deadline_s": options.deadline,
        "round_s": last["seconds"], "largest_difference": apart, "largest_update": moved,
        "met": bool(right and in_time),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True, help="data set")
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4, help="for bytes, of one step each")
    parser.add_argument("--timed-rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of a round that is timed")
    parser.add_argument("--turns", type=int, default=1, help="with and without secure sums")
    parser.add_argument("--deadline", type=float, default=300, help="of the round with dropouts")
    parser.add_argument("--patience", type=float, default=1800, help="for anything else")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=("bytes", "time", "dropping"),
        help="keep the rest of what is written there",
    )
    parser.add_argument("--net", default="subvoxel_unet")
    parser.add_argument("--work", type=Path, default=PROJECT / ".scratch" / "federation_wire")
    parser.add_argument("-o", "--output", type=Path, help="write the result here as well")
    options = parser.parse_args()
    wanted = options.only or ("bytes", "time", "dropping")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or namespaces would stay
    _, cases, _ = sound_cases(options.input, silent, purpose="federated")
    config = SimulationConfig(options.input, FederationConfig(options.work), options.sites)
    splits = {}
    for site, own in dealt(cases, config).items():
        split = held_apart(own, 0)
        splits[site] = Split(train=split["train"][:LEARNT], val=split["val"][:HELD_OUT])
    result: dict[str, Any] = {}
    if options.only and options.output and options.output.exists():
        result = read_json(options.output)
    result |= {"environment": environment(), "dataset": options.input.name}
    result |= {n: getattr(options, n) for n in ("sites", "net")}
    if "bytes" in wanted:
        lines = {name: bytes_of(name, splits, options) for name in LINES}
        result["bytes_a_round"] = lines
        result["bytes_settings"] = {"rounds": options.rounds, "steps": 1}
        result["share_of_none"] = {
            name: {way: round(own[way] / lines["none"][way], 4) for way in ("up", "down")}
            for name, own in lines.items()
        }
    elif not (options.work / "none" / "run" / "result.json").exists():
        bytes_of("none", splits, options)  # whose plan the others widen
    plan, size = widened(options.work / "none" / "run", options.work / "plan")
    result["wide_model_megabytes"] = round(size, 1)
    if "time" in wanted:
        runs: dict[str, list[dict[str, Any]]] = {"plain": [], "secure": []}
        for _ in range(options.turns):
            for name, own in runs.items():
                own.append(timed(name, plan, splits, options))
        result["secure"] = {"steps": options.steps, "runs": runs} | compared(runs)
        if options.output:
            write_json(options.output, result)
    if "dropping" in wanted:
        result["dropping"] = dropping(options.work / "none" / "run", splits, options)
    print(json.dumps(result, indent=2))
    if options.output:
        write_json(options.output, result)
    return 0 if all(part.get("met", True) for part in result.values() if type(part) is dict) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["command"]:
        CODECS.update(EIGHT_BITS)  # type: ignore[attr-defined]
        raise SystemExit(qinjing(sys.argv[2:]))
    raise SystemExit(main())
