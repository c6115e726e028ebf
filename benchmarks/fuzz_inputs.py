"""Mutate NIfTI and JSON inputs and look at how Qinjing refuses them.

    .venv/bin/python benchmarks/fuzz_inputs.py [--inputs 2000] [--seed 0]

Each input is a small sound file with something wrong done to it: bits flipped, the end cut off,
header fields set to extremes, JSON values of the wrong type, deep nesting, huge numbers, NaN. It
goes through the doors that the command line uses: `open_dataset`, `list_images` and `check_dataset`
for data sets, `read_splits` and `read_config` for the others. It may be accepted, or refused with
an `InputError`, or listed as a fault; a refusal must name the file and the rule. Anything else is
counted as a traceback, a warning of Python included, and more than the time limit as a hang.

Prints one JSON object; exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qinjing.config import read_config, write_json
from qinjing.data.case import Case
from qinjing.data.check import check_dataset
from qinjing.data.layouts import list_images, open_dataset
from qinjing.data.nifti import write_nifti
from qinjing.data.splits import make_splits, read_splits, write_splits
from qinjing.errors import InputError
from qinjing.volume import Volume

LIMIT_S = 10.0
LAYOUTS = ("msd", "nnunet", "monai", "plain", "bids")


@dataclass(frozen=True)
class Inner:
    """Every kind of field that a configuration has, nested."""

    patch: tuple[int, int, int] = (32, 32, 32)
    rates: tuple[float, ...] = (0.1, 0.2)
    names: dict[int, str] | None = None


@dataclass(frozen=True)
class Config:
    """A configuration with one field of each type."""

    seed: int
    rate: float
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: bool = True
    inner: Inner = Inner()
    budget_s: float | None = None


class Hang(BaseException):
    """Raised by the alarm; not an Exception, so that nothing in between may swallow it."""


def _ring(*_: object) -> None:
    raise Hang


# -- sound inputs ------------------------------------------------------------------------------


def make_dataset(root: Path, layout: str) -> None:
    """Three cases of 8×9×10 voxels, two with gzip and plain, labels 0, 1, 2."""
    rng = np.random.default_rng(5)
    affine = np.array([[0.0, 0.2, 1.5, -3], [0, 1, 0, 4], [2.5, 0, 0, 9], [0, 0, 0, 1]])
    folders = {
        "msd": ("imagesTr/p{}.nii.gz", "labelsTr/p{}.nii.gz"),
        "nnunet": ("imagesTr/p{}_0000.nii.gz", "labelsTr/p{}.nii.gz"),
        "monai": ("p{}/t1.nii.gz", "p{}/seg.nii.gz"),
        "plain": ("p{}.nii", "p{}_label.nii"),
        "bids": ("sub-p{0}/anat/sub-p{0}_T1w.nii.gz", "sub-p{0}/anat/sub-p{0}_dseg.nii.gz"),
    }
    image, label = folders[layout]
    for i in range(3):
        voxels = (rng.normal(size=(8, 9, 10)) * 500).astype(np.int16 if i else np.float32)
        write_nifti(root / image.format(i), Volume(voxels, affine))
        values = rng.integers(0, 3, (8, 9, 10)).astype(np.uint8)
        write_nifti(root / label.format(i), Volume(values, affine))
    names = {"0": "background", "1": "liver", "2": "lesion"}
    entries = [{"image": image.format(i), "label": label.format(i)} for i in range(3)]
    if layout == "msd":
        content: dict[str, Any] = {"name": "Fuzz", "licence": "CC0", "modality": {"0": "CT"}}
        write_json(root / "dataset.json", {**content, "labels": names, "training": entries})
    elif layout == "nnunet":
        content = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 3}
        values_of = {name: int(value) for value, name in names.items()}
        write_json(root / "dataset.json", {**content, "labels": values_of})
    elif layout == "monai":
        write_json(root / "datalist.json", {"training": entries, "labels": names})
    elif layout == "bids":
        rows = "".join(f"sub-p{i}\t{'AB'[i % 2]}\n" for i in range(3))
        (root / "participants.tsv").write_text("participant_id\tgroup\n" + rows)
        (root / "dseg.tsv").write_text("index\tname\n1\tliver\n2\tlesion\n")
        write_json(root / "dataset_description.json", {"Name": "Fuzz", "BIDSVersion": "1.10.0"})


# -- mutations ---------------------------------------------------------------------------------

EXTREMES = {
    "b": (-128, -1, 0, 1, 127),
    "h": (-32768, -1, 0, 1, 2, 7, 8, 128, 255, 256, 32767),
    "i": (-(2**31), -1, 0, 1, 540, 2**31 - 1),
    "f": (0.0, -0.0, -1.0, 1e-45, 1e-38, 1e38, 352.0, 353.0, math.inf, -math.inf, math.nan),
}
# (offset, type, how many) of NIfTI-1: every field that has a meaning here.
FIELDS = [
    (0, "i", 1), (39, "b", 1), (40, "h", 8), (56, "f", 3), (68, "h", 1), (70, "h", 1),
    (72, "h", 1), (74, "h", 1), (76, "f", 8), (108, "f", 1), (112, "f", 1), (116, "f", 1),
    (120, "h", 1), (122, "b", 1), (123, "b", 1), (124, "f", 2), (140, "i", 2), (252, "h", 1),
    (254, "h", 1), (256, "f", 6), (280, "f", 12), (344, "i", 1), (348, "i", 1),
]  # fmt: skip


def mutate_bytes(raw: bytes, rng: np.random.Generator, window: int | None = None) -> bytes:
    """Flip bits, cut the end off, overwrite, insert, remove or repeat a piece."""
    data = bytearray(raw)
    reach = min(window or len(data), len(data)) or 1
    match rng.integers(0, 6):
        case 0:
            for _ in range(rng.integers(1, 9)):
                data[rng.integers(reach)] ^= 1 << int(rng.integers(8))
        case 1:
            del data[rng.integers(len(data) + 1) :]
        case 2:
            start = int(rng.integers(reach))
            piece = rng.bytes(int(rng.integers(1, 40)))
            data[start : start + len(piece)] = piece
        case 3:
            start = int(rng.integers(reach))
            data[start:start] = rng.bytes(int(rng.integers(1, 40)))
        case 4:
            start = int(rng.integers(reach))
            del data[start : start + int(rng.integers(1, 40))]
        case _:
            start = int(rng.integers(reach))
            data += data[start:] * int(rng.integers(1, 4))
    return bytes(data)


def mutate_nifti(raw: bytes, rng: np.random.Generator) -> bytes:
    """Mutate the stored bytes, or unpack, mutate header or pixels, and pack again."""
    packed = raw[:2] == b"\x1f\x8b"
    if packed and rng.random() < 0.3:
        return mutate_bytes(raw, rng)
    data = gzip.decompress(raw) if packed else raw
    chance = rng.random()
    if chance < 0.6:
        header = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            offset, kind, count = FIELDS[rng.integers(len(FIELDS))]
            at = offset + struct.calcsize(kind) * int(rng.integers(count))
            value = EXTREMES[kind][rng.integers(len(EXTREMES[kind]))]
            struct.pack_into(("<", ">")[rng.random() < 0.1] + kind, header, at, value)
        data = bytes(header)
    elif chance < 0.85:
        data = mutate_bytes(data, rng, window=352)
    else:
        data = mutate_bytes(data, rng)
    return gzip.compress(data, 1) if packed else data


def strange_value(rng: np.random.Generator) -> Any:
    """A JSON value that is not what anybody expects."""
    deep: Any = 0
    for _ in range(500):
        deep = [deep]
    values = [
        None, True, False, 0, -1, 1.5, 10**400, -(10**30), math.nan, math.inf, 1e308, "", " ",
        "x" * 5000, "../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "秦镜", "\n", "1", "-0",
        [], {}, [[]], [None], {"": None}, [1, 2], {"0": "background"}, {"a": {"b": []}}, deep,
        "imagesTr", ".", "..", "~", "nan", {"image": "x", "label": "y"}, list(range(3000)),
    ]  # fmt: skip
    return values[rng.integers(len(values))]


def mutate_tree(content: Any, rng: np.random.Generator) -> Any:
    """Replace, remove, rename, repeat or add something at a random place of a JSON tree."""
    if isinstance(content, dict) and content and rng.random() < 0.8:
        key = list(content)[rng.integers(len(content))]
        match rng.integers(0, 6):
            case 0:
                return {k: v for k, v in content.items() if k != key}
            case 1:
                return {(str(strange_value(rng)) if k == key else k): v for k, v in content.items()}
            case 2:
                return {**content, str(strange_value(rng))[:50]: strange_value(rng)}
            case _:
                return {**content, key: mutate_tree(content[key], rng)}
    if isinstance(content, list) and content and rng.random() < 0.8:
        i = int(rng.integers(len(content)))
        match rng.integers(0, 5):
            case 0:
                return content[:i] + content[i + 1 :]
            case 1:
                return [*content, content[i]]
            case _:
                return [*content[:i], mutate_tree(content[i], rng), *content[i + 1 :]]
    return strange_value(rng)


def mutate_json(raw: bytes, rng: np.random.Generator) -> bytes:
    """Mutate the tree, the text, or replace it by nesting without end."""
    chance = rng.random()
    if chance < 0.7:
        tree = json.loads(raw)
        for _ in range(rng.integers(1, 4)):
            tree = mutate_tree(tree, rng)
        return json.dumps(tree).encode()
    if chance < 0.95:
        return mutate_bytes(raw, rng)
    return [b"[" * 200_000, b'{"a":' * 100_000, b"", b"\xef\xbb\xbf{}", b"9" * 100_000, b"nul"][
        rng.integers(6)
    ]


# -- the doors ---------------------------------------------------------------------------------


@dataclass
class Trial:
    """What became of one input."""

    outcome: str
    seconds: float
    detail: str = ""


def _names(message: str, path: Path, root: Path) -> bool:
    """Whether a refusal names the file, or its folder, and says the rule in one line."""
    named = str(path) in message or str(root) in message
    return named and "must be" in message and "\n" not in message


def through_dataset(root: Path, mutated: Path, layout: str) -> str:
    """Open, list and check; a mutated image must never harm the other cases."""
    is_image = mutated.name.endswith((".nii", ".nii.gz"))
    try:
        list_images(root)
        dataset = open_dataset(root)
        result = check_dataset(dataset)
    except InputError as error:
        if is_image and layout != "plain":
            return f"unnamed: one bad image refused the whole data set: {error}"
        return "refused" if _names(str(error), mutated, root) else f"unnamed: {error}"
    for fault in result.faults:
        if fault.severity == "refused" and not _names(fault.message, Path(fault.path), root):
            return f"unnamed: {fault.message}"
    if is_image and layout != "plain" and len(result.good) < len(dataset.cases) - 1:
        return f"unnamed: one bad image harmed another case: {result.refused}"
    return "listed" if result.refused else "accepted"


def through_reader(path: Path, read: Callable[[], object]) -> str:
    """Read a JSON file of ours."""
    try:
        read()
    except InputError as error:
        return "refused" if _names(str(error), path, path) else f"unnamed: {error}"
    return "accepted"


def attempt(work: Callable[[], str]) -> Trial:
    """Run one input under the time limit."""
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outcome = work()
        detail = ""
        if outcome.startswith("unnamed"):
            outcome, _, detail = outcome.partition(": ")
    except Hang:
        outcome, detail = "hang", "".join(traceback.format_exc()[-1500:])
    except Exception:
        outcome, detail = "traceback", "".join(traceback.format_exc()[-1500:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Trial(outcome, time.perf_counter() - start, detail)


def run(n_inputs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Try `n_inputs` mutants and return the summary."""
    sound: list[tuple[str, Path, Path]] = []
    for layout in LAYOUTS:
        root = folder / layout
        make_dataset(root, layout)
        dataset = open_dataset(root)
        if dataset.layout != layout or check_dataset(dataset).faults:
            raise SystemExit(f"the sound {layout} data set is not sound")
        sound += [(layout, root, file) for file in sorted(root.rglob("*")) if file.is_file()]
    images = [entry for entry in sound if entry[2].name.endswith((".nii", ".nii.gz"))]
    texts = [entry for entry in sound if entry not in images]
    cases = [Case(f"p{i}", f"p{i // 2}", ()) for i in range(12)]
    write_splits(folder / "splits_final.json", make_splits(cases, 3))
    write_json(folder / "config.json", Config(1, 0.5, inner=Inner(names={1: "a", 2: "b"})))

    again = folder / "again.json"  # an accepted configuration must be fit to be written, too
    trials: list[tuple[str, Trial]] = []
    for i in range(n_inputs):
        rng = np.random.default_rng([seed, i])
        chance = rng.random()
        if chance < 0.7:
            pool = images if chance < 0.4 else texts
            layout, root, file = pool[rng.integers(len(pool))]
            kind = f"{layout} {'image' if pool is images else file.name}"
        else:
            file = folder / ("splits_final.json" if chance < 0.8 else "config.json")
            layout, root, kind = "", folder, file.name
        raw = file.read_bytes()
        if file.suffix == ".json":
            mutant = mutate_json(raw, rng)
        else:
            mutant = mutate_bytes(raw, rng) if file.suffix == ".tsv" else mutate_nifti(raw, rng)
        file.write_bytes(mutant)
        if layout:
            trial = attempt(lambda r=root, f=file, k=layout: through_dataset(r, f, k))
        elif file.name == "config.json":
            trial = attempt(
                lambda f=file: through_reader(f, lambda: write_json(again, read_config(f, Config)))
            )
        else:
            trial = attempt(lambda f=file: through_reader(f, lambda: read_splits(f, cases)))
        file.write_bytes(raw)
        trials.append((f"input {i}, {kind}", trial))
    return summarise(trials, seed)


def summarise(trials: list[tuple[str, Trial]], seed: int) -> dict[str, Any]:
    """Counts, the slowest, and every miss in full."""
    outcomes = Counter(trial.outcome for _, trial in trials)
    slowest_name, slowest = max(trials, key=lambda item: item[1].seconds)
    misses = [
        {"input": name, "outcome": trial.outcome, "detail": trial.detail}
        for name, trial in trials
        if trial.outcome in ("traceback", "hang", "unnamed")
    ]
    return {
        "inputs": len(trials),
        "seed": seed,
        **{
            k: outcomes[k]
            for k in ("accepted", "refused", "listed", "traceback", "hang", "unnamed")
        },
        "slowest_s": round(slowest.seconds, 3),
        "slowest": slowest_name,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "misses": misses,
    }


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="qinjing-fuzz-"))
    try:
        summary = run(options.inputs, options.seed, folder)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(summary, indent=2))
    return 1 if summary["misses"] else 0


if __name__ == "__main__":
    sys.exit(main())
