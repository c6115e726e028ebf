"""What augmentation costs: each transform, the default list, and ways to turn a patch.

Run `python benchmarks/augment.py [--nnunet-python PYTHON]`; it prints one JSON object, in CPU
milliseconds per batch on one thread. With the Python of an environment that has nnunetv2, its own
default augmentation is timed on the same shapes, from its own larger patch, as it trains. Bar: the
default list within 60 ms for four patches of 40×56×40.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--draws", type=int, default=30, help="batches that a mean is taken over")
parser.add_argument("--repeats", type=int, default=5, help="runs of each, the least is kept")
parser.add_argument("--nnunet-python", help="a Python that can import nnunetv2")
parser.add_argument("--side", choices=("ours", "nnunet"), default="ours", help=argparse.SUPPRESS)
arguments = parser.parse_args()
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

SHAPES = ((4, 1, 40, 56, 40), (2, 1, 96, 96, 96))


def batch(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Texture, and two touching organs that fill 4 % of the patch."""
    image = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    spatial = np.array(shape[2:]).reshape(3, 1, 1, 1)
    at = (np.indices(shape[2:]) / (spatial - 1) - 0.5) / np.array((0.17, 0.3, 0.19)).reshape(
        3, 1, 1, 1
    )
    label = np.where((at**2).sum(0) < 1, 1 + (at[1] > 0), 0).astype(np.uint8)
    return image, torch.from_numpy(np.stack([label] * shape[0]))


def cpu_ms(function: Callable[[], Any], repeats: int) -> float:
    """The least CPU time of some runs, since a busy machine only adds."""
    seen = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        seen.append(time.process_time() - start)
    return min(seen) * 1e3


def transforms(shape: tuple[int, ...]) -> dict[str, Any]:
    """Each transform where every sample draws it, and the default lists as they are drawn."""
    from qinjing.data.transforms import (
        TRANSFORMS,
        augmentation_from_config,
        default_augmentation,
    )
    from qinjing.recipes import RECIPES

    image, label = batch(shape)
    always: dict[str, Any] = {
        name: make(probability=1.0) for name, make in TRANSFORMS.items() if name != "affine"
    }
    affine = TRANSFORMS["affine"]
    turns = [[-180, 180], [0, 0], [0, 0]]
    always["affine"] = affine(rotation_probability=1.0)
    always["affine, in plane"] = affine(turns, rotation_probability=1.0, in_plane=True)
    always["affine, elastic"] = affine(elastic_probability=1.0)
    patch = shape[2:]
    lists = {
        "default": default_augmentation(patch, False),
        "default, anisotropic": default_augmentation(patch, True, (1, 2)),
        "paper": RECIPES["paper"]().augmentation,
    }

    def mean_ms(transform: Any, draws: int) -> float:
        rows = [transform.draw(np.random.default_rng(seed), shape[0]) for seed in range(draws)]
        transform.apply(image, label, rows[0])
        costs = [
            cpu_ms(lambda row=row: transform.apply(image, label, row), arguments.repeats)
            for row in rows
        ]
        return round(float(np.mean(costs)), 2)

    return {
        "every_sample": {name: mean_ms(transform, 3) for name, transform in always.items()},
        "as_drawn": {
            name: mean_ms(augmentation_from_config(configs), arguments.draws)
            for name, configs in lists.items()
        },
    }


def ways_to_turn(shape: tuple[int, ...]) -> dict[str, float]:
    """Ours against `grid_sample`, which needs a second call for the label."""
    from qinjing.data.transforms.affine import Affine

    image, label = batch(shape)
    affine = Affine(rotation_probability=1.0, scale_probability=0.0)
    drawn = affine.draw(np.random.default_rng(0), shape[0])
    lengths = np.array(shape[2:], np.float64)
    # `grid_sample` wants (x, y, z), from −1 to 1.
    theta = (drawn.matrix * (lengths[None, None] - 1) / (lengths[None, :, None] - 1))[:, ::-1, ::-1]
    theta = torch.from_numpy(np.concatenate([theta, np.zeros((shape[0], 3, 1))], 2)).float()
    options = {"padding_mode": "border", "align_corners": True}

    def grid() -> torch.Tensor:
        return functional.affine_grid(theta, shape, align_corners=True)

    def nearest() -> torch.Tensor:
        where = grid()
        functional.grid_sample(label[:, None].float(), where, mode="nearest", **options)
        return functional.grid_sample(image, where, **options)

    def one_hot() -> torch.Tensor:
        planes = functional.one_hot(label.long(), 3).movedim(-1, 1).float()
        both = functional.grid_sample(torch.cat((image, planes), 1), grid(), **options)
        both[:, 1:].argmax(1)
        return both[:, :1]

    ours = affine.apply(image, label, drawn)[0]
    return {
        "ours, label by vote": cpu_ms(lambda: affine.apply(image, label, drawn), 15),
        "grid_sample, label nearest": cpu_ms(nearest, 15),
        "grid_sample, label by one-hot arg-max": cpu_ms(one_hot, 15),
        "largest difference of images": float((ours - nearest()).abs().max()),
    }


def nnunet(shape: tuple[int, ...]) -> float:
    """The default augmentation of nnU-Net v2, sample after sample as its loader does."""
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    tilt = (-np.pi / 6, np.pi / 6)
    larger = get_patch_size(shape[2:], tilt, tilt, tilt, (0.85, 1.25))
    chain = nnUNetTrainer.get_training_transforms(np.array(shape[2:]), tilt, None, (0, 1, 2), False)
    image, label = batch((*shape[:2], *map(int, larger)))

    def one_batch(seed: int) -> None:
        np.random.seed(seed)  # noqa: NPY002 - nnU-Net draws from the global generators
        torch.manual_seed(seed)
        for x, y in zip(image, label, strict=True):
            chain(image=x.clone(), segmentation=y[None].to(torch.int16))

    one_batch(0)
    costs = [
        cpu_ms(lambda seed=seed: one_batch(seed), arguments.repeats)
        for seed in range(arguments.draws)
    ]
    return round(float(np.mean(costs)), 2)


def main() -> None:
    torch.set_num_threads(1)
    # Once a block of 32 MB was freed, the allocator keeps smaller ones, as it does in training.
    torch.empty(7_900_000).zero_()
    if arguments.side == "nnunet":
        print(json.dumps({"×".join(map(str, shape)): nnunet(shape) for shape in SHAPES}))
        return
    measured: dict[str, Any] = {"unit": "CPU ms per batch, one thread", "torch": torch.__version__}
    for shape in SHAPES:
        rounded = {name: round(value, 5) for name, value in ways_to_turn(shape).items()}
        measured["×".join(map(str, shape))] = {**transforms(shape), "turning": rounded}
    if arguments.nnunet_python:
        command = [arguments.nnunet_python, __file__, "--side", "nnunet"]
        command += ["--draws", str(arguments.draws), "--repeats", str(arguments.repeats)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for shape, cost in json.loads(done.stdout.splitlines()[-1]).items():
            measured[shape]["as_drawn"]["nnU-Net v2"] = cost
    print(json.dumps(measured, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
