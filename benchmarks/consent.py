"""Is every question to a large store of consents answered right, and what does asking it cost?

    .venv/bin/python benchmarks/consent.py -o benchmarks/results/consent.json

A store of 10,000 patients and 100,000 changes is written as the changes come, and is asked at
edges and instants beside them; every answer is held against a plain list of changes that is walked
through for each question (`tests/data/consent_model.py`).

Then a network is trained on real scans behind that very store. All that the gate does from batch to
batch is timed, the first look and one withdrawal in every epoch after the first among it; a
withdrawal makes the gate read all patients anew. The figure is its share of the training's time.
CPU seconds stand beside wall seconds, since only they are the same on a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from qinjing.config import read_json, write_json
from qinjing.data.case import Case
from qinjing.data.consent import VARIABLE, Change, Gate, Store
from qinjing.data.consent import store as store_room
from qinjing.data.layouts import open_dataset
from qinjing.data.splits import write_splits
from qinjing.engine.device import environment
from qinjing.engine.plan import make_plan, with_steps
from qinjing.tasks import train as training
from qinjing.tasks.planning import measure
from qinjing.tasks.train import TrainConfig, train

PROJECT = Path(__file__).resolve().parent.parent
BAR = 0.01
HELD_OUT = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("QINJING_DATA", PROJECT.parent / "shared" / "data"))
    parser.add_argument("-i", "--input", type=Path, default=data / "Task04_Hippocampus")
    parser.add_argument("--store", help="URL of an empty database; a SQLite file where not given")
    parser.add_argument("--patients", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=100_000)
    parser.add_argument("--asked", type=int, default=500, help="questions of each kind")
    parser.add_argument("--parted", type=int, default=40, help="times that all are parted")
    parser.add_argument("--cases", type=int, default=130, help="to train on, the data set's first")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--work", type=Path, default=PROJECT / ".scratch" / "consent")
    parser.add_argument("-o", "--output", type=Path, help="write the result here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    place = options.store or str(options.work / "consent.sqlite")
    result: dict[str, Any] = {
        "patients": options.patients,
        "changes": options.changes,
        "database": place.partition("://")[0] if "://" in place else "sqlite",
        "store": asked(place, options),
        "training": trained(place, options),
        "bar": {"wrong": 0, "share": BAR},
        "environment": environment(),
    }
    right = not result["store"]["wrong"]
    result["met"] = right and max(result["training"]["share"].values()) <= BAR
    print(json.dumps(result, indent=2))
    if options.output:
        write_json(options.output, result)
    return 0 if result["met"] else 1


def asked(place: str, options: argparse.Namespace) -> dict[str, Any]:
    """Write the store, hold its answers against the list, time each kind of question."""
    sys.path.insert(0, str(PROJECT))
    from tests.data.consent_model import Reference, held_against, stream

    draw, reference = random.Random(options.seed), Reference()
    clock, real = [datetime.now(UTC)], store_room.now
    with Store(place, create=True) as store:
        store_room.now = lambda: clock[0]  # type: ignore[assignment]
        batches = list(stream(draw, options.patients, options.changes))

        def write() -> None:
            for moment, batch in batches:
                clock[0] = moment
                store.append(batch)

        seconds = {"append_all": timed(write)}
        store_room.now = real
        for moment, batch in batches:
            reference.record(moment, batch)
        counts = {"asked": options.asked, "parted": options.parted}
        tally = held_against(store, reference, draw, options.patients, **counts)
        faults: list[str] = []
        seconds["walk_the_chain"] = timed(lambda: faults.extend(store.verify()))
        cases = [Case(f"c{k}", f"p{k}", (Path("x"),)) for k in range(options.patients)]
        each: dict[str, Callable[[], object]] = {
            "head": store.head,
            "permitted": lambda: store.permitted("p1", "research"),
            "history": lambda: store.history("p1"),
            "part_all_patients": lambda: Gate("research", store).split(cases),
        }
        for name, ask in each.items():
            times = 5 if name == "part_all_patients" else 200
            seconds[name] = median(timed(ask) for _ in range(times))
    return {
        "batches": len(batches),
        "answers": tally.asked,
        "patients_parted": options.parted * (options.patients + 1),
        "wrong": len(tally.wrong),
        "first_wrong": tally.wrong[:3],
        "chain_faults": len(faults),
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "megabytes": round(Path(place).stat().st_size / 1e6, 1) if "://" not in place else None,
    }


def timed(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


class Timed:
    """What the gate keeps, and the seconds that it took, wall and CPU."""

    def __init__(self, keep: Any) -> None:
        self.keep = keep
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.began = time.perf_counter(), time.process_time()

    def __call__(self, items: Sequence[Any], step: int | None = None) -> Sequence[Any]:
        wall, cpu = time.perf_counter(), time.thread_time()
        kept: Sequence[Any] = self.keep(items, step)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.thread_time() - cpu)
        return kept


def trained(place: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train behind the store, and time what the gate does."""
    folder = first_cases(options)
    opened = open_dataset(folder)
    ids = [case.case_id for case in opened.cases]
    made = make_plan(measure(opened, opened.cases), device="cpu", threads=1)
    an_epoch = -(-(len(ids) - HELD_OUT) // made.batch_size)
    plan = with_steps(made, an_epoch * options.epochs, None, 1)
    write_json(options.work / "plan.json", plan)
    write_splits(options.work / "splits.json", [{"train": ids[HELD_OUT:], "val": ids[:HELD_OUT]}])
    os.environ[VARIABLE] = place
    store = Store(place)
    now = datetime.now(UTC)
    store.append([Change(who, "research", "permit", now) for who in ids])
    gates: list[Timed] = []
    after_change: list[int] = []
    ended: list[tuple[float, float]] = []

    def tell(kind: str, fields: dict[str, Any]) -> None:
        if kind != "step":
            return
        ended[:] = [(time.perf_counter(), time.process_time())]
        if (fields["step"] + 1) % an_epoch == 0 and fields["step"] + 1 < plan.fit.steps:
            who = f"p{len(after_change)}"  # one who is in no case here; all are read anew
            store.append([Change(who, "research", "deny", datetime.now(UTC))])
            after_change.append(len(gates[0].wall))

    keeper = training.keeper

    def timed_keeper(*words: Any) -> Timed:
        gates.append(Timed(keeper(*words)))
        return gates[-1]

    training.keeper = timed_keeper  # type: ignore[assignment]
    try:
        output = options.work / "run"
        splits = options.work / "splits.json"
        train(TrainConfig(folder, output, plan=options.work / "plan.json", splits=splits), tell)
    finally:
        training.keeper = keeper
    gate = gates[0]
    wall, cpu = (end - begin for begin, end in zip(gate.began, ended[0], strict=True))
    looks = [look for k, look in enumerate(gate.wall) if k and k not in after_change]
    return {
        "dataset": options.input.name,
        "cases": len(ids) - HELD_OUT,
        "net": plan.model.net,
        "batch_size": plan.batch_size,
        "steps": read_json(output / "fold_0" / "result.json")["steps"],
        "epochs": options.epochs,
        "withdrawals": len(after_change),
        "epoch_wall_s": round(wall / options.epochs, 3),
        "epoch_cpu_s": round(cpu / options.epochs, 3),
        "looks": len(gate.wall),
        "quiet_look_s": round(median(looks), 6),
        "look_after_a_change_s": [round(gate.wall[k], 4) for k in (0, *after_change)],
        "share": {"wall": round(sum(gate.wall) / wall, 6), "cpu": round(sum(gate.cpu) / cpu, 6)},
        "share_of_quiet_looks": round(sum(looks) / wall, 6),
    }


def first_cases(options: argparse.Namespace) -> Path:
    """The data set's first cases as one of their own."""
    folder: Path = options.work / "data"
    content = read_json(options.input / "dataset.json")
    content |= {"training": content["training"][: options.cases], "test": []}
    content |= {"numTraining": len(content["training"]), "numTest": 0}
    write_json(folder / "dataset.json", content)
    for pair in content["training"]:
        for place in pair.values():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(options.input / place, folder / place)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
