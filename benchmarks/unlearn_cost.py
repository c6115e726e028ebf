"""What does it cost a run of shards to forget a case, beside training it anew without the case?

    .venv/bin/python benchmarks/unlearn_cost.py -o benchmarks/results/unlearn_cost.json

Shards share no case of training, each has a network of its own, and `predict` averages them (SISA,
arXiv:1912.03817). All shards are trained; one case is unlearned; all shards are trained anew
without it, from nothing, by the same plan; and the weights of every shard are held against each
other bit for bit. Every part counts all that its command does: checking, preparing, training,
predicting and measuring the held-out cases, evidence. CPU seconds stand beside wall seconds, since
only they are the same on a machine that is not quiet.

The expectation is over all cases of the run, each as likely to be withdrawn: one of k shards where
a case was learnt from. Beside it stand designs that would cost more: shards in sequence, each
beginning from the weights of those before it, of which a case's shard and all after it must be
trained again, (k + 1) / 2k in the mean; and the k folds of cross-validation.

What shards cost in quality is measured on the same held-out cases: their average beside one network
that learnt from all their cases for as many steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qinjing.config import read_config, read_json, write_json
from qinjing.data.layouts import open_dataset
from qinjing.data.splits import Split, make_shards, read_splits, write_splits
from qinjing.engine.device import environment
from qinjing.engine.fit import heeds_scores
from qinjing.engine.plan import Plan, make_plan, with_steps
from qinjing.tasks.evaluate import evaluate_files
from qinjing.tasks.planning import measure
from qinjing.tasks.predict import Segmenter, segment_cases
from qinjing.tasks.train import TrainConfig, train
from qinjing.tasks.unlearn import UnlearnConfig, unlearn

PROJECT = Path(__file__).resolve().parent.parent
BAR = 1 / 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("QINJING_DATA", PROJECT.parent / "shared" / "data"))
    parser.add_argument("-i", "--input", type=Path, default=data / "Task04_Hippocampus")
    parser.add_argument("--cases", type=int, default=48, help="the data set's first")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40, help="of each shard")
    parser.add_argument("--case", help="to forget; the first of the middle shard where not given")
    parser.add_argument("--work", type=Path, default=PROJECT / ".scratch" / "unlearn_cost")
    parser.add_argument("-o", "--output", type=Path, help="write the result here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(options.work, ignore_errors=True)
    config = prepare(options)
    splits = read_splits(options.work / "shards.json")
    case_id = options.case or splits[options.shards // 2]["train"][0]
    whole = timed(lambda: train(config))
    forgetting = timed(lambda: unlearn(UnlearnConfig(config.output, case_id)))
    outcome = read_json(config.output / "unlearned.json")["cases"][-1]
    never = without(config, splits, case_id)
    anew = timed(lambda: train(never))
    forgetting["steps"] = sum(steps_of(config.output, k) for k in outcome["retrained"])
    for part, run in ((whole, config.output), (anew, never.output)):
        part["steps"] = sum(steps_of(run, k) for k in range(options.shards))
    same = [bits(config.output, k) == bits(never.output, k) for k in range(options.shards)]
    ratio = {name: round(forgetting[name] / anew[name], 4) for name in ("steps", "cpu_s", "wall_s")}
    result = {
        "dataset": options.input.name,
        "cases": options.cases,
        "shards": options.shards,
        "steps_a_shard": options.steps,
        "net": read_config(config.plan, Plan).model.net,  # type: ignore[arg-type]
        "forgotten": {"case_id": case_id, "shards_retrained": outcome["retrained"]},
        "trained": whole,
        "unlearned": forgetting,
        "trained_anew": anew,
        "ratio": ratio,
        "expected_share_of_steps": expected(config, splits),
        "same_bits": f"{sum(same)} of {len(same)} shards",
        "plan_without_the_case_is_the_same": plans_alike(config, case_id),
        "quality": quality(config, splits),
        "bar": round(BAR, 4),
        "met": all(same) and max(ratio["steps"], ratio["cpu_s"]) <= BAR,
        "environment": environment(),
    }
    print(json.dumps(result, indent=2))
    if options.output:
        write_json(options.output, result)
    return 0 if result["met"] else 1


def prepare(options: argparse.Namespace) -> TrainConfig:
    """The first cases as a data set of their own, its plan and its shards."""
    source, folder = options.input, options.work / "data"
    content = read_json(source / "dataset.json")
    content |= {"training": content["training"][: options.cases], "test": []}
    content |= {"numTraining": len(content["training"]), "numTest": 0}
    write_json(folder / "dataset.json", content)
    for pair in content["training"]:
        for place in pair.values():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / place, folder / place)
    opened = open_dataset(folder)
    write_json(options.work / "plan.json", planned(folder, opened.cases, options.steps))
    write_splits(options.work / "shards.json", make_shards(opened.cases, options.shards))
    return TrainConfig(
        folder,
        options.work / "run",
        fold="all",
        plan=options.work / "plan.json",
        splits=options.work / "shards.json",
    )


def planned(folder: Path, cases: Any, steps: int) -> Plan:
    """A plan with a fixed number of steps that no plateau shortens: one validation, at the end."""
    made = make_plan(measure(open_dataset(folder), cases), device="cpu", threads=1)
    return with_steps(made, steps, None, 1)


def timed(do: Callable[[], Any]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    do()
    return {
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
    }


def without(config: TrainConfig, splits: list[Split], case_id: str) -> TrainConfig:
    """The same training of a data set in which the case never was."""
    work = config.output.parent
    folder = work / "data_without"
    shutil.copytree(config.dataset, folder)
    content = read_json(folder / "dataset.json")
    gone = [pair for pair in content["training"] if case_id in pair["image"]]
    content["training"] = [pair for pair in content["training"] if pair not in gone]
    content["numTraining"] = len(content["training"])
    write_json(folder / "dataset.json", content)
    for pair in gone:
        for place in pair.values():
            (folder / place).unlink()
    kept = [{side: [i for i in ids if i != case_id] for side, ids in s.items()} for s in splits]  # type: ignore[attr-defined]
    write_splits(work / "never.json", kept)  # type: ignore[arg-type]
    return replace(config, dataset=folder, output=work / "never", splits=work / "never.json")


def plans_alike(config: TrainConfig, case_id: str) -> bool:
    """Whether planning anew without the case would have come to the same plan."""
    cases = open_dataset(config.dataset).cases
    kept = [case for case in cases if case.case_id != case_id]
    given = read_config(config.plan, Plan)  # type: ignore[arg-type]
    return planned(config.dataset, kept, given.fit.steps) == given


def steps_of(run: Path, fold: int) -> int:
    return int(read_json(run / f"fold_{fold}" / "result.json")["steps"])


def bits(run: Path, fold: int) -> bytes:
    return (run / f"fold_{fold}" / "weights.safetensors").read_bytes()


def expected(config: TrainConfig, splits: list[Split]) -> dict[str, float]:
    """Share of all steps that forgetting a case costs, in the mean over all cases of the run."""
    k = len(splits)
    learnt, held_out = (sum(len(split[side]) for split in splits) for side in ("train", "val"))  # type: ignore[literal-required]
    decides = heeds_scores(read_config(config.plan, Plan).fit)  # type: ignore[arg-type]
    shards = (learnt + (held_out if decides else 0)) / k / (learnt + held_out)
    return {
        "shards": round(shards, 4),
        "shards_given_that_it_was_learnt_from": round(1 / k, 4),
        "shards_in_sequence_given_that": round((k + 1) / (2 * k), 4),
        "folds_of_cross_validation_given_that": round((k - 1) / k, 4),
    }


def quality(config: TrainConfig, splits: list[Split]) -> dict[str, Any]:
    """Mean Dice on all held-out cases: the shards' average, and one network of as many steps."""
    work = config.output.parent
    left = read_splits(config.output / "splits_final.json")
    train_ids = sorted(i for split in left for i in split["train"])
    val_ids = sorted(i for split in splits for i in split["val"])
    write_splits(work / "one.json", [{"train": train_ids, "val": val_ids}])
    plan = read_config(config.plan, Plan)  # type: ignore[arg-type]
    steps = plan.fit.steps * len(splits)
    write_json(work / "one_plan.json", with_steps(plan, steps, None, 1))
    one = replace(
        config, output=work / "one", fold=0, plan=work / "one_plan.json", splits=work / "one.json"
    )
    train(one)
    cases = [c for c in open_dataset(config.dataset).cases if c.case_id in set(val_ids)]
    found: dict[str, Any] = {"held_out_cases": len(cases), "steps_in_all": steps}
    for name, run in (("shards_averaged", config.output), ("one_network", one.output)):
        place = work / f"predicted_{name}"
        segment_cases(Segmenter.load(run), cases, place)
        metrics = evaluate_files(place, config.dataset, work / f"{name}.json", cases=val_ids)
        found[name] = round(metrics["mean"]["foreground"]["dice"]["mean"], 4)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
