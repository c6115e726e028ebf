"""HD95 and NSD of five organs at 256³: ours against MONAI's, and DeepMind's for information.

Run `python benchmarks/surface_metrics.py [--threads N]`; it prints one JSON object. All sides get
the same arrays in the same process. MONAI wants one-hot masks; making them is timed apart. Bar: at
least 10 times faster, equal to 1e-6 mm.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--size", type=int, default=256)
arguments = parser.parse_args()
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = str(arguments.threads)

import numpy as np  # noqa: E402
from scipy import ndimage  # noqa: E402

from qinjing.metrics.surface import hd95_mm, nsd, surface_distances  # noqa: E402

SPACING_MM = (1.0, 0.8, 0.8)
TOLERANCE_MM = 1.0
LABELS = (1, 2, 3, 4, 5)


def organs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Five lumpy ellipsoids, and a prediction whose surface wanders by some voxels."""
    rng = np.random.default_rng(0)
    grid = np.indices((size,) * 3, dtype=np.float32)
    lumps = ndimage.zoom(rng.normal(size=(10,) * 3), size / 10, order=1)
    reference = np.zeros((size,) * 3, np.uint8)
    for label in LABELS:
        centre, radius = rng.uniform(0.25, 0.75, 3) * size, rng.uniform(0.12, 0.22, 3) * size
        distance = sum(((grid[a] - centre[a]) / radius[a]) ** 2 for a in range(3))
        reference[(distance + 0.4 * lumps < 1) & (reference == 0)] = label
    shift = [ndimage.zoom(rng.normal(size=(12,) * 3), size / 12, order=1) for _ in range(3)]
    moved = [np.clip(np.rint(grid[a] + 3 * shift[a]), 0, size - 1).astype(int) for a in range(3)]
    return reference[tuple(moved)], reference


def timed(function, repeats: int) -> tuple[object, float, float]:
    """The result, and the least CPU and wall seconds; the first run warms up and is not counted."""
    result = function()
    cpu, wall = [], []
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        result = function()
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return result, min(cpu), min(wall)


def main() -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice
    from monai.metrics.utils import get_edge_surface_distance

    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    prediction, reference = organs(arguments.size)

    def one_hot() -> list[torch.Tensor]:
        return [
            torch.stack([torch.from_numpy(voxels == label) for label in LABELS])[None]
            for voxels in (prediction, reference)
        ]

    def ours() -> tuple[list[float], list[float]]:
        distances = surface_distances(prediction, reference, LABELS, SPACING_MM).values()
        return [hd95_mm(d) for d in distances], [nsd(d, TOLERANCE_MM) for d in distances]

    def ours_hd95() -> list[float]:
        distances = surface_distances(prediction, reference, LABELS, SPACING_MM).values()
        return [hd95_mm(d) for d in distances]

    def ours_nsd() -> list[float]:
        distances = surface_distances(prediction, reference, LABELS, SPACING_MM).values()
        return [nsd(d, TOLERANCE_MM) for d in distances]

    repeats = arguments.repeats
    (our_hd, our_nsd), *both = timed(ours, repeats)
    _, *hd_alone = timed(ours_hd95, repeats)
    _, *nsd_alone = timed(ours_nsd, repeats)
    masks, *conversion = timed(one_hot, repeats)
    their_hd, *monai_hd = timed(
        lambda: compute_hausdorff_distance(*masks, True, percentile=95, spacing=list(SPACING_MM)),
        repeats,
    )
    their_nsd, *monai_nsd = timed(
        lambda: compute_surface_dice(*masks, [TOLERANCE_MM] * 5, True, spacing=list(SPACING_MM)),
        repeats,
    )
    exact = []  # MONAI's own distances with the percentile in float64: torch.quantile has float32
    for label in range(len(LABELS)):
        pair = (masks[0][0, label], masks[1][0, label])
        _, distances, _ = get_edge_surface_distance(*pair, spacing=list(SPACING_MM), symmetric=True)
        exact.append(max(np.percentile(d.double().numpy(), 95) for d in distances))
    result = {
        "shape": list(reference.shape),
        "labels": len(LABELS),
        "spacing_mm": list(SPACING_MM),
        "tolerance_mm": TOLERANCE_MM,
        "threads": arguments.threads,
        "cpu_seconds": {
            "ours_hd95_and_nsd": both[0], "ours_hd95": hd_alone[0], "ours_nsd": nsd_alone[0],
            "monai_hd95": monai_hd[0], "monai_nsd": monai_nsd[0], "monai_one_hot": conversion[0],
        },
        "wall_seconds": {
            "ours_hd95_and_nsd": both[1], "ours_hd95": hd_alone[1], "ours_nsd": nsd_alone[1],
            "monai_hd95": monai_hd[1], "monai_nsd": monai_nsd[1], "monai_one_hot": conversion[1],
        },
        "ratio_cpu": {
            "hd95": monai_hd[0] / hd_alone[0],
            "nsd": monai_nsd[0] / nsd_alone[0],
            "both": (monai_hd[0] + monai_nsd[0]) / both[0],
            "both_from_label_maps": (monai_hd[0] + monai_nsd[0] + conversion[0]) / both[0],
        },
        "ratio_wall": {
            "hd95": monai_hd[1] / hd_alone[1],
            "nsd": monai_nsd[1] / nsd_alone[1],
            "both": (monai_hd[1] + monai_nsd[1]) / both[1],
        },
        "largest_difference": {
            "hd95_mm": float(np.abs(np.array(our_hd) - exact).max()),
            "hd95_mm_with_torch_quantile": float(
                np.abs(np.array(our_hd) - their_hd[0].double().numpy()).max()
            ),
            "nsd": float(np.abs(np.array(our_nsd) - their_nsd[0].double().numpy()).max()),
        },
        "hd95_mm": our_hd,
        "nsd": our_nsd,
        "deepmind": deepmind(prediction, reference),
    }  # fmt: skip
    print(json.dumps(result, indent=2))


def deepmind(prediction: np.ndarray, reference: np.ndarray) -> dict[str, object] | None:
    """DeepMind's surface-distance, another definition (areas on voxel corners): for information."""
    try:
        import surface_distance
    except ImportError:
        return None
    start = time.process_time()
    hd, dice = [], []
    for label in LABELS:
        distances = surface_distance.compute_surface_distances(
            reference == label, prediction == label, SPACING_MM
        )
        hd.append(float(surface_distance.compute_robust_hausdorff(distances, 95)))
        dice.append(
            float(surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM))
        )
    return {"cpu_seconds_both": time.process_time() - start, "hd95_mm": hd, "nsd": dice}


if __name__ == "__main__":
    main()
