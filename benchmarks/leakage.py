"""What does a site's update give away of the patch it came from?

An attack by gradient inversion draws a slice of a generated abdomen from the gradient of one step
on it, as it is and under what may be done to an update before anybody sees it. Beside it stand the
same attack with random numbers in place of the gradient ("nothing"), and two pictures that no
attack made: the true label painted in each class's mean grey, and a slice of another patient. The
network is fresh, the batch one slice, the step plain gradient descent: the best
case for the attack. Bar: SSIM at least 0.5 for the bare gradient, at most 0.1 behind a secure sum's
mask or the noise of differential privacy.

    .venv/bin/python benchmarks/leakage.py -o benchmarks/results/leakage.json \
        --picture benchmarks/results/leakage.png
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.config import atomic_path, write_json
from qinjing.engine.device import environment
from qinjing.federate.compression import compress, decompress
from qinjing.federate.compression.codecs import Quantise, TopK
from qinjing.federate.leakage import Leak, Stolen, gradient_of, invert, leakage_table, likeness
from qinjing.federate.privacy import protected
from qinjing.federate.secure_sum import Terms
from qinjing.federate.secure_sum.ring import masked
from qinjing.nets import NETS
from qinjing.physics.anatomy import LABELS
from qinjing.physics.phantom import draw, render

Tensors = dict[str, Tensor]
RATE = 0.05


def network(name: str, widths: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    strides = ((1, 1, 1), *[(1, 2, 2)] * (len(widths) - 1))
    kernels = ((1, 3, 3),) * len(widths)
    options = {"widths": widths, "strides": strides, "kernels": kernels}
    return NETS[name](in_channels=1, classes=len(LABELS), **options)


def slice_of(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """A slice of `size` by `size` voxels of 3.5 mm somewhere in a body, (1, 1, H, W), and label.

    At the same place one body looks much like the next, so that a picture of another patient would
    seem to be stolen: places are drawn too.
    """
    rng = np.random.default_rng(seed)
    image, label = render(draw(rng, "aurora"))
    depth, height, width = image.voxels.shape
    while True:
        d = rng.integers(depth)
        h, w = (rng.integers(1 + n - 2 * size) for n in (height, width))
        place = (slice(d, d + 1), slice(h, h + 2 * size, 2), slice(w, w + 2 * size, 2))
        classes, counts = np.unique(label.voxels[place], return_counts=True)
        if len(classes) >= 3 and counts.max() < 0.75 * size**2:
            break
    grey = image.voxels[place]
    grey = (grey - grey.mean()) / grey.std()
    return torch.from_numpy(grey)[None], torch.from_numpy(label.voxels[place].astype(np.int64))


def painted(image: Tensor, label: Tensor) -> Tensor:
    """Each class in its own mean grey: what knowing the label is worth by itself."""
    picture = torch.empty_like(image)
    for value in label.unique():
        picture[0][label == value] = image[0][label == value].mean()
    return picture


def behind_a_mask(gradient: Tensors) -> Tensors:
    """What the server of a secure sum has of one site."""
    vector = torch.cat([g.flatten() for g in gradient.values()]).numpy()
    keys = {f"site {i}": os.urandom(32) for i in range(5)}
    terms = Terms("leakage", keys, len(vector), bound=float(np.abs(vector).max()))
    sent = masked(vector, terms, [(os.urandom(32), 1)])
    seen = torch.frombuffer(sent, dtype=torch.int32, offset=32).float() * terms.step
    parts = seen.split([g.numel() for g in gradient.values()])
    return {n: p.reshape(gradient[n].shape) for n, p in zip(gradient, parts, strict=True)}


def behind_noise(noise: float) -> Callable[[Tensors], Tensors]:
    """Clipped to its own length, which is the least that clipping can do, then noised."""
    source = torch.Generator().manual_seed(7)

    def protect(gradient: Tensors) -> Tensors:
        length = float(torch.cat([g.flatten() for g in gradient.values()]).norm())
        drawn = lambda count: torch.randn(count, generator=source)  # noqa: E731
        return protected(gradient, length, noise, normal=drawn)

    return protect


def packed(codec: Any) -> Callable[[Tensors], Tensors]:
    def protect(gradient: Tensors) -> Tensors:
        shapes = {name: g.shape for name, g in gradient.items()}
        return decompress(compress(gradient, codec), shapes)

    return protect


def summed(net: nn.Module, others: list[tuple[Tensor, Tensor]]) -> Callable[[Tensors], Tensors]:
    """What a secure sum of several sites tells: their sum."""

    def protect(gradient: Tensors) -> Tensors:
        parts = [gradient, *(gradient_of(net, image, label) for image, label in others)]
        return {name: torch.stack([p[name] for p in parts]).sum(dim=0) for name in gradient}

    return protect


def after_steps(
    make: Callable[[], nn.Module], patches: list[tuple[Tensor, Tensor]]
) -> Callable[[Tensors], Tensors]:
    """The change of weights after a step on each patch, its sign turned."""

    def protect(gradient: Tensors) -> Tensors:
        net = make()
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        optimiser = torch.optim.SGD(net.parameters(), lr=RATE)
        for image, label in patches:
            optimiser.zero_grad()
            out = net(image[None])
            logits = out[0] if isinstance(out, tuple) else out
            F.cross_entropy(logits, label[None]).backward()
            optimiser.step()
        return {n: before[n] - p.detach() for n, p in net.named_parameters()}

    return protect


def attacks(args: argparse.Namespace, seed: int) -> tuple[Tensor, list[Leak]]:
    def make() -> nn.Module:
        return network(args.net, tuple(args.widths))

    net = make()
    image, label = slice_of(seed, args.size)
    others = [slice_of(seed + 100 + i, args.size) for i in range(4)]
    protections: dict[str, Callable[[Tensors], Any]] = {
        "signs alone": lambda gradient: {n: g.sign() for n, g in gradient.items()},
        "2 bits": packed(Quantise(bits=2)),
        "top 1 %": packed(TopK(share=0.01)),
        "5 steps on it": after_steps(make, [(image, label)] * 5),
        "5 steps, 5 slices": after_steps(make, [(image, label), *others]),
        "sum of 5 sites": summed(net, others),
        "noise 0.01": behind_noise(0.01),
        "noise 0.1": behind_noise(0.1),
        "noise 1": behind_noise(1.0),
        "mask": behind_a_mask,
    }
    rows = leakage_table(net, image, label, protections, args.steps, seed, args.smoothness)
    # The label is the hospital's own too: the same gradient without it.
    blind = invert(net, gradient_of(net, image, label), image.shape, None, args.steps, seed)
    rows.insert(2, Leak("label unknown", likeness(blind.image, image), blind))
    # No attacks: a look at what others know, for the scale.
    for name, picture in (("label painted", painted(image, label)), ("a stranger", others[0][0])):
        rows.insert(0, Leak(name, likeness(picture, image), Stolen(picture, label, 1.0)))
    right = float((blind.label == label).float().mean())
    print(f"slice {seed}: {right:.0%} of voxels of the unknown label guessed", flush=True)
    return image, rows


def draw_pictures(found: list[tuple[Tensor, list[Leak]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    columns = 1 + len(found[0][1])
    size = (1.3 * columns, 1.75 * len(found))
    figure, axes = plt.subplots(len(found), columns, figsize=size, squeeze=False)
    for line, (image, rows) in zip(axes, found, strict=True):
        pictures = [("truth", image, ""), *(
            (row.name, row.stolen.image, f"SSIM {row.likeness.ssim:.2f}") for row in rows
        )]  # fmt: skip
        for place, (name, picture, note) in zip(line, pictures, strict=True):
            place.imshow(picture[0, 0].numpy(), cmap="gray", vmin=-2.5, vmax=2)
            place.set_title(name, fontsize=7)
            place.set_xlabel(note, fontsize=7)
            place.set_xticks([])
            place.set_yticks([])
    figure.tight_layout(pad=0.4)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--picture", type=Path, help="PNG, truth and pictures side by side")
    parser.add_argument("--net", default="residual_unet")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--size", type=int, default=16, help="voxels along each edge of the slice")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--smoothness", type=float, nargs="+", default=[0.01])
    args = parser.parse_args()
    begin = time.perf_counter()
    found = []
    for number in range(args.slices):
        found.append(attacks(args, 4 + number))
        for row in found[-1][1]:
            print(f"  {row.name}: {row.likeness}, mismatch {row.stolen.mismatch:.4f}", flush=True)
    table = {}
    for index, first in enumerate(found[0][1]):
        own = [rows[index] for _, rows in found]
        each = [asdict(row.likeness) for row in own]
        table[first.name] = {
            **{k: round(statistics.mean(e[k] for e in each), 3) for k in each[0]},
            "ssim_of_each": [round(e["ssim"], 3) for e in each],
            "mismatch": round(statistics.mean(row.stolen.mismatch for row in own), 4),
        }
    result = {
        "attacks": table,
        "net": args.net,
        "widths": args.widths,
        "size": args.size,
        "steps": args.steps,
        "smoothness": args.smoothness,
        "seconds": round(time.perf_counter() - begin),
        "environment": environment(),
    }
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)
    if args.picture:
        draw_pictures(found, args.picture)


if __name__ == "__main__":
    main()
