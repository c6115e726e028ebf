"""How near does one click come to a structure, and each click that corrects it?

The first click is the deepest point of a structure; each further one the deepest point of the
largest piece of what is wrong, as the protocol of arXiv:1603.04042 has it. Every method gets the
same rule and the same part of the volume, 40 mm around the clicks. The cases are those that our
constants were not chosen on: every second one, of the heart every second patient.

    .venv/bin/python benchmarks/clicks.py -o benchmarks/results/clicks.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from qinjing.config import read_json, write_json
from qinjing.data.nifti import read_nifti
from qinjing.engine.device import environment
from qinjing.tasks.click import RADIUS_MM, Click, segment_click
from qinjing.volume import Volume

CLICKS = 6
SETS = ("Task04_Hippocampus", "Dataset027_ACDC")
Method = Callable[[Volume, Sequence[Click]], np.ndarray]


def ours(volume: Volume, points: Sequence[Click]) -> np.ndarray:
    return segment_click(volume, points)


def part(volume: Volume, points: Sequence[Click]) -> tuple[slice, ...]:
    """What lies within the radius of the clicks inside."""
    inside = np.array([point.voxel for point in points if point.inside])
    reach = np.ceil(RADIUS_MM / np.array(volume.spacing_mm)).astype(int)
    low = np.maximum(inside.min(axis=0) - reach, 0)
    high = np.minimum(inside.max(axis=0) + reach + 1, volume.shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def confidence_connected(volume: Volume, points: Sequence[Click], multiplier: float) -> np.ndarray:
    """SimpleITK's; it knows no clicks outside."""
    import SimpleITK as sitk  # noqa: N813 - as its own pages have it

    box = part(volume, points)
    image = sitk.GetImageFromArray(volume.voxels[box].astype(np.float32))
    starts = [part_.start for part_ in box]
    seeds = [[int(a - s) for a, s in zip(point.voxel, starts, strict=True)][::-1]
             for point in points if point.inside]  # fmt: skip
    grown = sitk.ConfidenceConnected(
        image, seedList=seeds, numberOfIterations=1, multiplier=multiplier,
        initialNeighborhoodRadius=1, replaceValue=1,
    )  # fmt: skip
    said = np.zeros(volume.shape, bool)
    said[box] = sitk.GetArrayFromImage(grown) > 0
    return said


def random_walker(volume: Volume, points: Sequence[Click], beta: float) -> np.ndarray:
    """scikit-image's; the rim of the part is outside, as with ours.

    Grey values are brought to -1 to 1, as in its own example: with thousands its solver does not
    come to an end.
    """
    from skimage.segmentation import random_walker as walk

    box = part(volume, points)
    seeds = np.full(volume.voxels[box].shape, 2, np.int32)
    seeds[tuple(slice(1, -1) if n > 2 else slice(None) for n in seeds.shape)] = 0
    for point in points:
        at = tuple(a - b.start for a, b in zip(point.voxel, box, strict=True))
        if all(0 <= a < n for a, n in zip(at, seeds.shape, strict=True)):
            seeds[at] = 1 if point.inside else 2
    grey = volume.voxels[box].astype(np.float64)
    low, high = np.quantile(grey, [0.005, 0.995])
    grey = 2 * np.clip((grey - low) / max(high - low, 1e-6), 0, 1) - 1
    said = np.zeros(volume.shape, bool)
    spacing = np.array(volume.spacing_mm) / min(volume.spacing_mm)
    said[box] = (
        walk(grey, seeds, beta=beta, mode="cg_j", tol=1e-3, spacing=spacing, prob_tol=1.0) == 1
    )
    return said


METHODS: dict[str, Method] = {
    "ours": ours,
    **{
        f"SimpleITK ConfidenceConnected, {factor:g}": partial(
            confidence_connected, multiplier=factor
        )
        for factor in (1.5, 2.0, 2.5)
    },
    **{
        f"scikit-image random_walker, {beta:g}": partial(random_walker, beta=beta)
        for beta in (130.0, 1000.0)  # its own, and one that edges stop sooner
    },
}


def deepest(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), spacing_mm)[1:-1, 1:-1, 1:-1]
    d, h, w = np.unravel_index(int(depth.argmax()), mask.shape)
    return int(d), int(h), int(w)


def correction(truth: np.ndarray, said: np.ndarray, spacing_mm: Sequence[float]) -> Click | None:
    """The middle of the largest piece of what is missing or too much."""
    largest, found = 0, None
    for wrong, inside in ((truth & ~said, True), (said & ~truth, False)):
        pieces, count = ndimage.label(wrong, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        if count and int(sizes.max()) > largest:
            largest = int(sizes.max())
            found = Click(deepest(pieces == 1 + int(sizes.argmax()), spacing_mm), inside)
    return found


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def cases(root: Path, count: int) -> list[tuple[Path, Path]]:
    """Images and labels that nothing was chosen on, spread over the set."""
    labels = sorted((root / "labelsTr").glob("[!.]*.nii.gz"))
    people = sorted({path.name.split("_")[0] for path in labels})
    apart = set(people[1::2]) if len(people) > 1 else set(people)
    kept = [p for p in labels if p.name.split("_")[0] in apart] if len(people) > 1 else labels[1::2]
    kept = [kept[round(k)] for k in np.linspace(0, len(kept) - 1, min(count, len(kept)))]
    single = (root / "imagesTr" / kept[0].name).exists()
    names = [p.name if single else p.name.replace(".nii.gz", "_0000.nii.gz") for p in kept]
    return [(root / "imagesTr" / name, p) for name, p in zip(names, kept, strict=True)]


def clicked(
    method: Method, volume: Volume, truth: np.ndarray, seconds: list[float]
) -> Iterator[float]:
    """Dice after each click."""
    points: list[Click] = []
    said = np.zeros_like(truth)
    for _ in range(CLICKS):
        more = correction(truth, said, volume.spacing_mm) if points else Click(
            deepest(truth, volume.spacing_mm))  # fmt: skip
        if more is not None:
            points.append(more)
            begin = time.process_time()
            said = method(volume, points)
            seconds.append(time.process_time() - begin)
        yield dice(said, truth)


def measure(method: Method, pairs: Sequence[tuple[Path, Path]], names: dict[int, str]) -> Any:
    rows: dict[int, list[list[float]]] = {value: [] for value in names}
    seconds: list[float] = []
    for image, label in pairs:
        volume, labels = read_nifti(image), read_nifti(label).voxels
        for value in names:
            if (labels == value).any():
                rows[value].append(list(clicked(method, volume, labels == value, seconds)))
    every = [row for own in rows.values() for row in own]

    def mean(some: list[list[float]]) -> list[float]:
        return [round(statistics.mean(column), 4) for column in zip(*some, strict=True)]

    return {
        "dice_after_clicks": mean(every),
        "structures": {names[value]: mean(own) for value, own in rows.items()},
        "spread_after_last": round(statistics.stdev(row[-1] for row in every), 4),
        "n_structures": len(every),
        "cpu_seconds_a_click": {"median": round(statistics.median(seconds), 3),
                                "longest": round(max(seconds), 3)},
    }  # fmt: skip


def cost() -> dict[str, float]:
    """A click on 1 mm voxels in the middle of a large volume: CPU seconds, and memory more."""
    rng = np.random.default_rng(0)
    voxels = rng.normal(100, 30, (128, 128, 128)).astype(np.int16)
    axes = np.ogrid[:128, :128, :128]
    voxels[sum((axis - 64.0) ** 2 for axis in axes) < 15**2] += 80
    volume = Volume(voxels, np.eye(4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = []
    for _ in range(5):
        begin = time.process_time()
        segment_click(volume, [Click((64, 64, 64)), Click((64, 64, 90), False)])
        taken.append(time.process_time() - begin)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"cpu_seconds": round(statistics.median(taken), 3),
            "memory_more_mib": round((after - before) / 1024, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("QINJING_DATA", "../shared/data"))
    parser.add_argument("-i", "--input", type=Path, default=data)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--cases", type=int, default=40, help="of each set")
    args = parser.parse_args()
    result: dict[str, Any] = {"clicks": CLICKS, "radius_mm": RADIUS_MM, "at_1_mm": cost()}
    for name in SETS:
        root = args.input / name
        declared = read_json(root / "dataset.json")["labels"]
        pairs = [(v, n) if str(n).isdigit() else (n, v) for n, v in declared.items()]
        names = {int(value): str(label) for label, value in pairs if int(value)}
        found = result[name] = {}
        for method, run in METHODS.items():
            found[method] = measure(run, cases(root, args.cases), names)
            print(name, method, found[method]["dice_after_clicks"], flush=True)
    result["environment"] = environment()
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
