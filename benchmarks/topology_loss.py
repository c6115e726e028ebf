"""Forward and backward of the topology loss: our pairs beside GUDHI's and cripser's, one thread.

Run `python benchmarks/topology_loss.py [-o FILE]`; it prints one JSON object. All sides compute the
same loss with the same torch code (softmax, gathering, matching, slope) in one process; only the
pairing differs. The peers are given the truth's diagram for nothing, ours computes it each time.
The rounds go through all sides in turn; the best of each counts, in CPU seconds and wall seconds.
Peers that are not installed are left out; cripser is GPL and stands here as a yardstick only. Bar:
at least 10 times as fast as GUDHI, no slower than cripser, loss equal to 1e-5.

With `--betti` our topology loss and our Betti matching loss are measured instead, without peers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CRIPSER_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.ndimage import gaussian_filter  # noqa: E402

import qinjing.losses.topology as room  # noqa: E402
from qinjing.config import write_json  # noqa: E402
from qinjing.losses import BettiMatchingLoss, TopologyLoss  # noqa: E402
from qinjing.losses.persistence import match_features, persistence_pairs  # noqa: E402

Pairing = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def gudhi_pairs(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """GUDHI's pairs of the superlevel sets, in our form."""
    import gudhi

    cells = gudhi.CubicalComplex(top_dimensional_cells=-image.astype(np.float64))
    cells.compute_persistence(homology_coeff_field=2, min_persistence=0)
    finite, endless = cells.cofaces_of_persistence_pairs()
    found = [np.zeros((0, 2), np.int64)] * 3
    for dimension, pairs in enumerate(finite):
        found[dimension] = np.asarray(pairs, np.int64).reshape(-1, 2)
    found[0] = np.concatenate([[[endless[0][0], -1]], found[0]])
    last_axis_first = np.arange(image.size).reshape(image.shape, order="F").ravel()
    place = np.append(np.argsort(last_axis_first), -1)  # GUDHI counts along the first axis first
    return tuple(place[pairs] for pairs in found)


def cripser_pairs(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """The pairs of cripser's T-construction, voxels as closed cubes, in our form."""
    import cripser

    table = cripser.compute_ph(-image.astype(np.float64), filtration="T", maxdim=2, n_threads=1)
    ends = table[:, 3:9].astype(np.int64)
    births, deaths = (
        np.ravel_multi_index(tuple(part.T), image.shape, mode="clip")
        for part in (ends[:, :3], ends[:, 3:])
    )
    endless = ~np.isfinite(table[:, 2]) | (table[:, 2] > 1e300)
    pairs = np.stack([births, np.where(endless, -1, deaths)], axis=1)
    found = [pairs[table[:, 0] == dimension] for dimension in range(3)]
    found[0] = found[0][np.argsort(found[0][:, 1] >= 0, kind="stable")]
    return tuple(found)


def smooth_field(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Score and truth: two random fields, smoothed over two voxels."""
    rng = np.random.default_rng(seed)
    score, truth = (gaussian_filter(rng.normal(size=(size,) * 3), 2.0) for _ in range(2))
    return 2 * score / score.std(), truth > np.quantile(truth, 0.8)


def tubes(size: int, seed: int, grain: float) -> tuple[np.ndarray, np.ndarray]:
    """Score and truth: wandering tubes, blurred, with noise of a grain in voxels."""
    rng = np.random.default_rng(seed)
    lines = np.zeros((size,) * 3)
    for _ in range(6):
        place, way = rng.uniform(0, size, 3), rng.normal(size=3)
        for _ in range(3 * size):
            way += 0.3 * rng.normal(size=3)
            way /= np.linalg.norm(way)
            place = place + 0.7 * way
            lines[tuple(np.clip(np.rint(place).astype(int), 0, size - 1))] = 1
    blurred = gaussian_filter(lines, 1.5)
    blurred /= blurred.max()
    noise = gaussian_filter(rng.normal(size=lines.shape), grain)
    return 12 * blurred - 4 + 0.5 * noise / noise.std(), blurred > 1 / 3


def step(pairing: Pairing, logits: torch.Tensor, target: torch.Tensor) -> tuple[float, np.ndarray]:
    """The loss and its slope, computed with somebody's pairs."""
    own, room.persistence_pairs = room.persistence_pairs, pairing
    try:
        logits = logits.clone().requires_grad_()
        value = TopologyLoss()(logits, target)
        value.backward()
    finally:
        room.persistence_pairs = own
    assert logits.grad is not None
    return value.item(), logits.grad.numpy()


def measure(score: np.ndarray, truth: np.ndarray, rounds: dict[str, int]) -> dict[str, Any]:
    """Seconds of each side, and how far their losses lie from ours."""
    score = torch.from_numpy(score.astype(np.float32))
    logits = torch.stack([torch.zeros_like(score), score])[None]
    target = torch.from_numpy(truth).long()[None]
    known = persistence_pairs(truth.astype(np.float32))

    def given(pairing: Pairing) -> Pairing:
        return lambda image: known if np.isin(image.flat[:64], (0, 1)).all() else pairing(image)

    sides: dict[str, Pairing] = {"ours": persistence_pairs}
    for name, pairing in (("gudhi", gudhi_pairs), ("cripser", cripser_pairs)):
        if installed(name):
            sides[name] = given(pairing)
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    results = {}
    step(persistence_pairs, logits, target)  # compiled once, like the peers
    for turn in range(max(rounds.values())):
        for name, pairing in sides.items():
            if turn >= rounds[name]:
                continue
            start = time.process_time(), time.perf_counter()
            results[name] = step(pairing, logits, target)
            cpu[name].append(time.process_time() - start[0])
            wall[name].append(time.perf_counter() - start[1])
    best = {name: min(cpu[name]) for name in sides}
    return {
        "pairs": [len(pairs) for pairs in persistence_pairs(torch.sigmoid(score).numpy())],
        "cpu_seconds": best,
        "wall_seconds": {name: min(wall[name]) for name in sides},
        "times_faster_cpu": {name: best[name] / best["ours"] for name in sides if name != "ours"},
        "loss": {name: value for name, (value, _) in results.items()},
        "largest_slope_difference": {
            name: float(np.abs(slope - results["ours"][1]).max())
            for name, (_, slope) in results.items()
            if name != "ours"
        },
    }


def measure_betti(score: np.ndarray, truth: np.ndarray, rounds: int) -> dict[str, Any]:
    """Seconds of a step of our two losses on the same maps."""
    score = torch.from_numpy(score.astype(np.float32))
    logits = torch.stack([torch.zeros_like(score), score])[None].requires_grad_()
    target = torch.from_numpy(truth).long()[None]
    sides = {"topology": TopologyLoss(), "betti_matching": BettiMatchingLoss()}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    values = {}
    for turn in range(rounds + 1):  # the first one compiles
        for name, loss in sides.items():
            start = time.process_time()
            value = loss(logits, target)
            value.backward()
            values[name] = value.item()
            if turn:
                cpu[name].append(time.process_time() - start)
    matches = match_features(torch.sigmoid(score).numpy(), truth)
    return {
        "pairs": [len(match.pairs) for match in matches],
        "matched": [int((match.partners[:, 0] >= 0).sum()) for match in matches],
        "missed": [len(match.missed) for match in matches],
        "cpu_seconds": {name: min(seconds) for name, seconds in cpu.items()},
        "loss": values,
    }


def installed(name: str) -> str | None:
    """The version of a distribution, None without it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 64])
    parser.add_argument("--rounds", type=int, default=5, help="of ours and cripser")
    parser.add_argument("--gudhi-rounds", type=int, default=2)
    parser.add_argument("--betti", action="store_true", help="Betti matching instead of peers")
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds = {
        "ours": arguments.rounds, "cripser": arguments.rounds, "gudhi": arguments.gudhi_rounds,
    }  # fmt: skip
    cases = {}
    for size in arguments.sizes:
        for name, maps in (
            ("smooth random field", smooth_field(size, 0)),
            ("blurred tubes, noise of one voxel's grain", tubes(size, 0, 1.0)),
            ("blurred tubes, white noise", tubes(size, 0, 0.0)),
        ):
            cases[f"{name} {size}³"] = (
                measure_betti(*maps, arguments.rounds)
                if arguments.betti
                else measure(*maps, rounds)
            )
    names = ("numpy", "torch", "numba", "gudhi", "cripser")
    result = {
        "cpu": next(
            (line.split(":", 1)[1].strip() for line in _cpu_lines() if "model name" in line),
            platform.processor(),
        ),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "threads": 1,
        "versions": {name: installed(name) for name in names},
        "cases": cases,
    }
    print(json.dumps(result, indent=2, ensure_ascii=False))
    if arguments.output:
        write_json(arguments.output, result)


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
