"""Kill Qinjing with SIGKILL at random times and look at what it leaves.

    .venv/bin/python benchmarks/kill_resume.py

Training: one uninterrupted run on generated anatomy, with a fixed number of steps, gives the bits
to reach. Then, for each kill, the same run is started anew, killed with all its processes,
checked for half files, and resumed; weights and metrics must equal those bits. Kill times are
spread evenly and at random over the whole life of a run, start-up and validation included, and
every third kill waits from its time on for the next file that is being written and strikes then.

Prediction and evaluation: killed in the same way, after which every file under a final name must be
whole; then run again over what was left, after which the outputs must equal the uninterrupted ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
FOLD = 0
RUN = "run"
CHECKPOINT_S = 0.3
# Every n-th kill is aimed at a write: a file is under its final name within milliseconds of the
# first byte, so that kills at random times alone would seldom meet one.
AIMED_EVERY = 3


class Moment(NamedTuple):
    """When to kill: not before so many seconds and this training step; aimed: at a write."""

    seconds: float = 0.0
    step: int = 0
    aimed: bool = False


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it.

    Attributes:
        planned_s: when the kill was due, seconds from the start of the process.
        killed_s: when it struck.
        aimed: whether it waited for a file that was being written.
        writing: how many unfinished files it left.
        step: the last training step in the log, 0 where there was none.
        half_files: files under a final name that cannot be read whole.
        same: whether the continued run reached the bits of the uninterrupted one.
        litter: unfinished files that are still there after it was continued.
    """

    planned_s: float
    killed_s: float
    aimed: bool
    writing: int
    step: int
    half_files: tuple[str, ...]
    same: bool
    litter: int
    failure: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of training")
    parser.add_argument("--output-kills", type=int, default=20, help="of predict, and of evaluate")
    parser.add_argument("--steps", type=int, default=40, help="training steps of one run")
    parser.add_argument("--cases", type=int, default=6, help="phantoms in the data set")
    parser.add_argument("--seed", type=int, help="of the kill times; drawn and printed by default")
    parser.add_argument("--work", type=Path, default=PROJECT / ".scratch" / "kill_resume")
    parser.add_argument("-o", "--output", type=Path, help="write the result here as well")
    options = parser.parse_args()

    seed = (
        options.seed if options.seed is not None else int(np.random.SeedSequence().entropy % 2**32)
    )
    rng = np.random.default_rng(seed)
    print(f"seed of the kill times: {seed}", file=sys.stderr)
    shutil.rmtree(options.work, ignore_errors=True)
    data = write_phantoms(options.work / "data", options.cases)
    plan = write_plan(data, options.work / "plan.json", options.steps)
    code = code_digest()

    reference = options.work / "reference" / RUN
    train_s = run(train_command(data, plan), cwd=reference.parent)
    result: dict[str, Any] = {"seed": seed, "train_steps": options.steps}
    killed = options.work / "killed" / RUN
    kills = []
    for moment in moments(rng, options.kills, train_s):
        kills.append(kill_training(train_command(data, plan), reference, killed, moment))
        print(f"train: {kills[-1]}", file=sys.stderr, flush=True)
    result["train"] = summary(kills, train_s)
    predictions = options.work / "predictions"
    outputs = {
        "predict": (predict_command(reference, data, predictions), predictions),
        "evaluate": (
            evaluate_command(predictions, data, options.work / "evaluated" / "metrics.json"),
            options.work / "evaluated",
        ),
    }
    for name, (command, folder) in outputs.items():
        life_s = run(command)
        wanted = digests(folder)
        kills = []
        for moment in moments(rng, options.output_kills, life_s):
            kills.append(kill_output(command, folder, wanted, moment))
            print(f"{name}: {kills[-1]}", file=sys.stderr)
        restore(command, folder, wanted)
        result[name] = summary(kills, life_s)
    if code_digest() != code:
        raise SystemExit("the code was changed while it was measured: nothing can be said")
    result["passed"] = all(result[name]["passed"] for name in ("train", *outputs))
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


# The commands ------------------------------------------------------------------------------------


def write_phantoms(folder: Path, cases: int) -> Path:
    from qinjing.physics.phantom import write_dataset

    return write_dataset(folder, cases=cases, seed=0)


def write_plan(data: Path, path: Path, steps: int) -> Path:
    """Write the plan of a small network with a fixed number of steps and checkpoints all the time.

    A plan that times the machine may come out different on the next day; a given one cannot.
    """
    from dataclasses import replace

    from qinjing.config import write_json
    from qinjing.data.fingerprint import fingerprint_dataset
    from qinjing.data.layouts import open_dataset
    from qinjing.data.preprocess import read_pair
    from qinjing.engine.plan import make_plan, with_steps

    dataset = open_dataset(data)
    fingerprint = fingerprint_dataset(dataset, dataset.cases, read_pair)
    plan = make_plan(fingerprint, device="cpu", threads=1)
    plan = with_steps(plan, steps, budget_s=None, validations=2)
    options = {**plan.model.options, "widths": [8 for _ in plan.model.options["widths"]]}
    plan = replace(
        plan,
        patch_size=(32, 32, 32),
        batch_size=2,
        model=replace(plan.model, options=options),
        fit=replace(plan.fit, checkpoint_s=CHECKPOINT_S),
    )
    write_json(path, plan)
    return path


def train_command(data: Path, plan: Path) -> list[str]:
    """Return the command; it makes `RUN` in the current folder, since paths stand in results."""
    where = ("-i", data.resolve(), "-o", RUN, "--plan", plan.resolve())
    return qinjing("train", *where, "--fold", FOLD, "--seed", 0)


def predict_command(model: Path, data: Path, output: Path) -> list[str]:
    return qinjing(
        "predict",
        "-m",
        model.resolve(),
        "-i",
        (data / "imagesTr").resolve(),
        "-o",
        output.resolve(),
    )


def evaluate_command(predictions: Path, data: Path, output: Path) -> list[str]:
    return qinjing(
        "evaluate",
        "-i",
        predictions.resolve(),
        "-r",
        (data / "labelsTr").resolve(),
        "-o",
        output.resolve(),
    )


def qinjing(*words: object) -> list[str]:
    return [str(Path(sys.executable).with_name("qinjing")), *(str(word) for word in words)]


def run(command: Sequence[str], cwd: Path | None = None) -> float:
    """Run to the end and return the seconds it took."""
    if cwd:
        cwd.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise SystemExit(
            f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return time.perf_counter() - started


# Killing -----------------------------------------------------------------------------------------


def moments(rng: np.random.Generator, kills: int, life_s: float) -> list[Moment]:
    """Return one random time in each of `kills` equal parts of a life."""
    times = (np.arange(kills) + rng.random(kills)) / kills * life_s
    aimed = [i % AIMED_EVERY == AIMED_EVERY - 1 for i in range(kills)]
    return [Moment(float(t), aimed=a) for t, a in zip(times, aimed, strict=True)]


def kill_training(command: Sequence[str], reference: Path, folder: Path, moment: Moment) -> Kill:
    """Start a run, kill it at `moment`, resume it, and compare it with `reference`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    killed_s = start_and_kill(command, folder, moment)
    step, writing, half = last_step(folder), len(unfinished(folder)), half_files(folder)
    resumed = subprocess.run(
        [*command, "--resume"], capture_output=True, text=True, cwd=folder.parent
    )
    if resumed.returncode:
        failure = f"resuming ended with {resumed.returncode}: {resumed.stderr[-1000:]}"
    else:
        names = [f"fold_{FOLD}/{name}" for name in ("weights.safetensors", "metrics.json")]
        failure = ", ".join(
            f"{name} differs" for name in names if digest(folder / name) != digest(reference / name)
        )
    if not failure:
        verified = subprocess.run(qinjing("verify", folder), capture_output=True, text=True)
        failure = verified.stderr[-1000:] if verified.returncode else ""
    litter = len(unfinished(folder))
    return Kill(
        moment.seconds, killed_s, moment.aimed, writing, step, half, not failure, litter, failure
    )


def kill_output(
    command: Sequence[str], folder: Path, wanted: dict[str, str], moment: Moment
) -> Kill:
    """Kill a command that writes into an empty `folder`, then run it again over what was left."""
    shutil.rmtree(folder, ignore_errors=True)
    killed_s = start_and_kill(command, folder, moment)
    writing, half = len(unfinished(folder)), half_files(folder)
    again = subprocess.run(command, capture_output=True, text=True)
    same = again.returncode == 0 and digests(folder) == wanted
    failure = "" if same else f"running again ended with {again.returncode}: {again.stderr[-1000:]}"
    litter = len(unfinished(folder))
    return Kill(moment.seconds, killed_s, moment.aimed, writing, 0, half, same, litter, failure)


def start_and_kill(command: Sequence[str], folder: Path, moment: Moment) -> float:
    """Start a command and kill it with all its processes; return when, in seconds of its life.

    A command that had ended before is not a kill: the next try strikes earlier.
    """
    seconds = moment.seconds
    while True:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=folder.parent,
        )
        time.sleep(seconds)
        while process.poll() is None and moment.step and last_step(folder) < moment.step:
            time.sleep(0.005)
        while process.poll() is None and moment.aimed and not unfinished(folder):
            time.sleep(0.0005)
        ended = process.poll() is not None
        killed_s = time.perf_counter() - started
        try:
            os.killpg(process.pid, signal.SIGKILL)  # the process leads a group of its own
        except ProcessLookupError:
            ended = True
        process.wait()
        if not ended:
            return killed_s
        seconds *= 0.7
        shutil.rmtree(folder, ignore_errors=True)


# Looking -----------------------------------------------------------------------------------------


def unfinished(folder: Path) -> list[Path]:
    """Return the temporary files of `qinjing.config.atomic_path` in `folder`."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [Path(parent, name) for name in names if name.startswith(".partial-")]
    return found


def half_files(folder: Path) -> tuple[str, ...]:
    """Return the files under a final name that cannot be read whole."""
    bad = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name.startswith(".partial-"):
            continue
        try:
            read_whole(path)
        except Exception as error:
            bad.append(f"{path.relative_to(folder)}: {error}")
    return tuple(bad)


def read_whole(path: Path) -> None:
    """Read a file by what its name says it is; raise where it is not whole."""
    import nibabel
    from safetensors.numpy import load_file

    if path.name.endswith((".nii.gz", ".nii")):
        np.asarray(nibabel.load(path).dataobj)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".jsonl":
        # A log grows line by line; its last line may be cut, and whoever appends next mends it.
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                json.loads(line)
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix in (".npy", ".npz"):
        np.load(path)


def last_step(folder: Path) -> int:
    log = folder / f"fold_{FOLD}" / "log.jsonl"
    if not log.exists():
        return 0
    lines = [
        x for x in log.read_text(encoding="utf-8").splitlines(keepends=True) if x.endswith("\n")
    ]
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "absent"


def code_digest() -> str:
    """Return the digest of the package's source, since other code may well make other bits."""
    files = sorted((PROJECT / "src").rglob("*.py"))
    return hashlib.sha256("".join(digest(path) for path in files).encode()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every result in `folder`; the record of runs grows and is none."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in (".gz", ".json"))
    return {
        str(path.relative_to(folder)): digest(path)
        for path in files
        if not path.name.startswith(("evidence.", ".partial-"))
    }


def restore(command: Sequence[str], folder: Path, wanted: dict[str, str]) -> None:
    if digests(folder) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        run(command)


def summary(kills: Sequence[Kill], life_s: float) -> dict[str, Any]:
    return {
        "life_s": life_s,
        "kills": len(kills),
        "same_bits": sum(kill.same for kill in kills),
        "with_half_files": sum(bool(kill.half_files) for kill in kills),
        "while_a_file_was_written": sum(kill.writing > 0 for kill in kills),
        "with_litter_left": sum(kill.litter > 0 for kill in kills),
        "killed_between_s": [min(k.killed_s for k in kills), max(k.killed_s for k in kills)],
        "failures": [asdict(k) for k in kills if not k.same or k.half_files],
        "passed": all(kill.same and not kill.half_files for kill in kills),
    }


if __name__ == "__main__":
    sys.exit(main())
