"""Predict a large CT with a 20-class network, ours beside MONAI's sliding window and Invertd.

    .venv/bin/python benchmarks/predict_ct.py

The CT is generated: a body with 19 ellipsoid organs, each of its own grey value, with noise, int16,
300 × 512 × 512 at 1.0 × 0.8 × 0.8 mm. The network is MONAI's own UNet, the same weights for both,
set so that it sorts voxels by their smoothed grey value and finds the organs as smooth regions;
random weights would give noise that no two programs agree on. It works on a grid of 1.5 mm, in
windows of 96³ with half overlap and Gaussian blending.

The peer is what MONAI's own bundles do: LoadImaged, Orientationd, Spacingd, ScaleIntensityRanged,
SlidingWindowInferer, Invertd (linear), AsDiscreted, SaveImaged. Each side runs in a process of its
own, one after the other; seconds count from the file to the file, imports and weights loaded
before; memory is the process's largest resident size. The peer runs as MONAI's documentation has
it; ours runs the network in channels-last layout, its batch normalisations fused with the
convolutions, and lets torch use huge pages, in float32 as well.

Needs `pip install -e '.[peers]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qinjing.config import write_json

CLASSES = 20
PATCH = (96, 96, 96)
SPACING_MM = (1.5, 1.5, 1.5)
CT_SPACING_MM = (1.0, 0.8, 0.8)
GREY_RANGE = (-1000.0, 1000.0)
NOISE = 15.0
BARS = {"speed_ratio": 5.0, "memory_ratio": 4.0, "labels_equal": 0.9999}


def make_net(residual_units: int) -> torch.nn.Module:
    """Return MONAI's UNet: 2 residual units a level, as in its tutorials, or its default, 0."""
    from monai.networks.nets import UNet

    widths, strides = (16, 32, 64, 128, 256), (2, 2, 2, 2)
    return UNet(3, 1, CLASSES, widths, strides, num_res_units=residual_units, norm="batch")


def grey_of_class() -> np.ndarray:
    """Grey values, far apart: air, then organs in a shuffled order."""
    greys = np.linspace(-700, 900, CLASSES - 1)
    return np.r_[-1000.0, np.random.default_rng(7).permutation(greys)].astype(np.float32)


def paint(rng: np.random.Generator, shape: tuple[int, int, int], scale: float) -> np.ndarray:
    """Draw overlapping ellipsoids of every class into a (D, H, W) uint8 label map.

    The first is the body; `scale` is the largest half axis of the others, as a share of the shape.
    """
    labels = np.zeros(shape, np.uint8)
    for organ in range(1, CLASSES):
        share = rng.uniform(0.4, 1.0, 3) * scale if organ > 1 else np.array([0.6, 0.42, 0.45])
        centre = rng.uniform(0.2, 0.8, 3) if organ > 1 else np.full(3, 0.5)
        low = [max(int((c - s) * n), 0) for c, s, n in zip(centre, share, shape, strict=True)]
        high = [min(int((c + s) * n) + 1, n) for c, s, n in zip(centre, share, shape, strict=True)]
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        d, h, w = (
            ((np.arange(a, b) / n - c) / s).astype(np.float32) ** 2
            for a, b, n, c, s in zip(low, high, shape, centre, share, strict=True)
        )
        labels[box][d[:, None, None] + h[:, None] + w < 1] = organ
    return labels


def write_ct(path: Path, shape: tuple[int, int, int]) -> None:
    """Write the CT as int16 NIfTI, in the common (R, A, S) storage order."""
    import nibabel

    rng = np.random.default_rng(1)
    labels, greys = paint(rng, shape, 0.17), grey_of_class()
    voxels = np.empty(shape[::-1], np.int16)
    for d in range(shape[0]):
        plane = greys[labels[d]] + rng.normal(0, NOISE, shape[1:]).astype(np.float32)
        voxels[..., d] = np.rint(plane).astype(np.int16).T
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*CT_SPACING_MM[::-1], 1.0])), path)


@torch.no_grad()
def write_weights(path: Path, residual_units: int) -> None:
    """Set the weights so that the network sorts voxels by their smoothed grey value.

    score_k = s·(2·g_k·x − g_k²) is linear in the grey x and largest for the nearest g_k, so the
    first convolution smooths, the last transposed one interpolates and scores, and the activations
    on the way pass all. Everything else keeps random weights, at a small share in the scores.
    """
    torch.manual_seed(0)
    net = make_net(residual_units)
    down, up = net.model[0], net.model[2]
    if residual_units:
        smooth, score, passing = down.residual, up[0].conv, up[0].adn.A
        down.conv[-1].adn.N.weight[0] = 0  # nothing is added to the smoothed grey
        up[1].conv.unit0.conv.weight.mul_(1e-3)
        up[1].conv.unit0.conv.bias.zero_()
    else:
        smooth, score, passing = down.conv, up.conv, down.adn.A
    greys, sharpness = normalise(torch.from_numpy(grey_of_class())), 500.0
    smooth.weight[0] = 1 / 27
    smooth.bias[0] = 0
    tent = torch.tensor([0.5, 1.0, 0.5])
    tent = tent[:, None, None] * tent[:, None] * tent
    score.weight[0] = sharpness * 2 * greys[:, None, None, None] * tent
    score.bias[:] = -sharpness * greys**2
    passing.weight.fill_(1.0)
    save_file(net.state_dict(), path)


def normalise(image: Tensor) -> Tensor:
    """ScaleIntensityRanged from GREY_RANGE to −1 … 1, clipped."""
    low, high = GREY_RANGE
    return image.sub_(low).mul_(2 / (high - low)).sub_(1).clamp_(-1, 1)


def run_peer(ct: Path, weights: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Predict with MONAI."""
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import (
        AsDiscreted,
        Compose,
        EnsureChannelFirstd,
        Invertd,
        LoadImaged,
        Orientationd,
        SaveImaged,
        ScaleIntensityRanged,
        Spacingd,
    )

    net = make_net(args.residual_units).eval()
    net.load_state_dict(load_file(weights))
    dtype = np.float64 if args.peer_dtype == "float64" else np.float32
    before = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="SPL"),
            Spacingd("image", SPACING_MM, mode="bilinear", padding_mode="border", dtype=dtype),
            ScaleIntensityRanged("image", *GREY_RANGE, -1.0, 1.0, clip=True),
        ]
    )
    after = Compose(
        [
            Invertd("pred", transform=before, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            SaveImaged(
                "pred",
                output_dir=out.parent,
                output_postfix="peer",
                separate_folder=False,
                output_dtype=np.uint8,
                print_log=False,
            ),
        ]
    )
    inferer = SlidingWindowInferer(PATCH, args.batch, overlap=0.5, mode="gaussian")
    clock = Clock()
    with torch.inference_mode():
        case = before({"image": str(ct)})
        clock.lap("before")
        case["pred"] = inferer(case["image"][None], net)[0]
        clock.lap("windows")
        after(case)
        clock.lap("after")
    return clock.laps


def run_ours(ct: Path, weights: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Predict with Qinjing."""
    from qinjing.data.nifti import read_nifti, write_nifti
    from qinjing.engine.fuse import fuse
    from qinjing.engine.infer import Window, predict_labels_on_grid

    net = make_net(args.residual_units).eval()
    net.load_state_dict(load_file(weights))
    # channels last: oneDNN pads 20 channels to 32 otherwise
    net = fuse(net).to(memory_format=torch.channels_last_3d)
    clock = Clock()
    volume = read_nifti(ct)
    clock.lap("read")
    labels, _ = predict_labels_on_grid(
        [clock.wrap("net", net)],
        volume,
        Window(PATCH, batch_size=args.batch),
        CLASSES,
        spacing_mm=SPACING_MM,
        normalise=normalise,
        precision=args.precision,
    )
    clock.lap("predict")
    write_nifti(out, labels)
    clock.lap("write")
    return clock.laps


class Clock:
    """Wall seconds by part."""

    def __init__(self) -> None:
        self.laps: dict[str, Any] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self.last, 2)
        self.last = now

    def wrap(self, name: str, net: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the net, its seconds added up under `name` (a part of another lap)."""

        def timed(x: Tensor) -> Tensor:
            start = time.perf_counter()
            scores = net(x)
            self.laps[name] = round(self.laps.get(name, 0.0) + time.perf_counter() - start, 2)
            return scores

        return timed


def side(role: str, ct: Path, weights: Path, out: Path, args: argparse.Namespace) -> None:
    """Run one side in this process and print what it took."""
    torch.set_num_threads(args.threads)
    start_cpu = time.process_time()
    laps = (run_peer if role == "peer" else run_ours)(ct, weights, out, args)
    seconds = sum(v for k, v in laps.items() if k != "net")
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(
        json.dumps(
            {
                "seconds": round(seconds, 2),
                "cpu_seconds": round(time.process_time() - start_cpu, 2),
                "peak_gib": round(peak / 2**20, 3),
                "parts_s": laps,
            }
        )
    )


def measure(role: str, ct: Path, weights: Path, out: Path, args: argparse.Namespace) -> Any:
    """Run one side in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--role", role, "--folder", str(ct.parent)]
    for name in ("threads", "batch", "precision", "peer_dtype", "residual_units"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
    if role == "ours":  # huge pages for large tensors: a switch of torch's, read when it starts
        environment["THP_MEM_ALLOC_ENABLE"] = "1"
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        return {"failed": f"exit code {done.returncode} (−9: killed, most likely out of memory)"}
    return json.loads(done.stdout.splitlines()[-1])


def compare(peer: Path, ours: Path) -> dict[str, Any]:
    """Return the share of voxels with equal labels, and whether the grids are equal."""
    import nibabel

    a, b = nibabel.load(peer), nibabel.load(ours)
    equal = np.asarray(a.dataobj).astype(np.uint8) == np.asarray(b.dataobj).astype(np.uint8)
    return {
        "labels_equal": float(equal.mean()),
        "voxels_different": int(equal.size - np.count_nonzero(equal)),
        "grid_equal": bool(a.shape == b.shape and np.allclose(a.affine, b.affine, atol=1e-4)),
        "classes_found": np.unique(np.asarray(b.dataobj)).size,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(300, 512, 512), help="D H W")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=2, help="windows at once, both sides")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="ours")
    parser.add_argument(
        "--peer-dtype", choices=("float64", "float32"), default="float32",
        help="Spacingd's dtype; its default, float64, takes twice the memory and more time",
    )  # fmt: skip
    parser.add_argument(
        "--residual-units", type=int, choices=(0, 2), default=2,
        help="a level of the network; 2 costs some four times as much as MONAI's default, 0",
    )  # fmt: skip
    parser.add_argument("--only", choices=("peer", "ours"), help="run one side")
    parser.add_argument("--folder", type=Path, help="keep the files here, and reuse them")
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here as well")
    parser.add_argument("--role", choices=("peer", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        ct, weights = folder / "ct.nii.gz", folder / f"net_{args.residual_units}.safetensors"
        outputs = {role: folder / f"ct_{role}.nii.gz" for role in ("peer", "ours")}
        if args.role:
            side(args.role, ct, weights, outputs[args.role], args)
            return 0
        result: dict[str, Any] = {
            "shape": list(args.shape),
            "classes": CLASSES,
            "residual_units": args.residual_units,
            "threads": args.threads,
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "precision": args.precision,
            "batch": args.batch,
            "peer_dtype": args.peer_dtype,
        }
        torch.set_num_threads(args.threads)
        if not weights.exists():
            write_weights(weights, args.residual_units)
        if not ct.exists():
            write_ct(ct, tuple(args.shape))
        for role in (args.only,) if args.only else ("ours", "peer"):
            result[role] = measure(role, ct, weights, outputs[role], args)
        met = None
        if all("seconds" in result.get(role, {}) for role in outputs):
            peer, ours = result["peer"], result["ours"]
            result["speed_ratio"] = round(peer["seconds"] / ours["seconds"], 2)
            result["memory_ratio"] = round(peer["peak_gib"] / ours["peak_gib"], 2)
            result |= compare(outputs["peer"], outputs["ours"])
            met = {name: result[name] >= bar for name, bar in BARS.items()}
            result["bars"] = {name: {"at_least": BARS[name], "met": met[name]} for name in BARS}
        print(json.dumps(result, indent=2))
        if args.output:
            write_json(args.output, result)
    return 0 if met is None or all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
