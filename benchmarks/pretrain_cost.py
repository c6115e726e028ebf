"""How soon do features know as much as those of a straightforward masked auto-encoder?

The peer is what one writes with MONAI in an hour: `CacheDataset`, random crops, its
`MaskedAutoEncoderViT` with three quarters of the tokens hidden, AdamW with warm-up and cosine. Both
learn from the same volumes without labels, one after the other with the same threads, and the same
probe measures them: a k-NN vote on tokens of the same size, half of sixteen labelled cases telling
the other half, in crops that hold what is labelled anywhere (in crops around its middle the peer's
position embedding tells a hippocampus before the first step). The clock counts learning alone, not
the probe. The figure is ours at the peer's best score over the peer's time.

    .venv/bin/python benchmarks/pretrain_cost.py -i ../shared/data/Task04_Hippocampus \
        --splits splits.json --budget 8m -o benchmarks/results/pretrain_cost.json
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import CacheDataset, DataLoader
from monai.networks.nets import MaskedAutoEncoderViT
from monai.transforms import (
    Compose,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    RandSpatialCropd,
    SpatialPadd,
)
from torch import Tensor, nn

from qinjing.cli.arguments import seconds
from qinjing.cli.watch import watch
from qinjing.config import read_json, write_json
from qinjing.data import cache
from qinjing.data.layouts import open_dataset
from qinjing.data.preprocess import Normalisation, Preprocessing
from qinjing.data.splits import read_splits
from qinjing.engine.device import default_device, environment
from qinjing.engine.log import read_events
from qinjing.tasks.pretrain import PretrainConfig, pretrain
from qinjing.tasks.pretrain_plan import VOLUMES_A_STEP
from qinjing.tasks.probes import Probe, cases_to_probe

HIDDEN, LAYERS, HEADS = 192, 6, 6
DEVICE = default_device()
BATCH, RATE = VOLUMES_A_STEP[DEVICE], 1e-3
PROBES = 12


class Tokens(nn.Module):
    """The peer's encoder, asked as the probe asks a `Pretrainer`."""

    def __init__(self, net: MaskedAutoEncoderViT, crop: Sequence[int], cell: Sequence[int]) -> None:
        super().__init__()
        self.net, self.cell = net, tuple(cell)
        self.grid = [n // c for n, c in zip(crop, cell, strict=True)]

    def features(self, image: Tensor) -> Tensor:
        """(B, 1, D, H, W) → (B, features, D, H, W), each token repeated over its cell."""
        x = self.net.patch_embedding(image)
        x = torch.cat((self.net.cls_token.expand(len(x), -1, -1), x), dim=1)
        x = self.net.blocks(x)[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(x, scale_factor=self.cell)

    def tokens(self, features: Tensor) -> Tensor:
        """(B, F, D, H, W) → (B, N, F)."""
        return F.avg_pool3d(features, self.cell).flatten(2).transpose(1, 2)


def masked_autoencoder(
    files: list[Path], crop: Sequence[int], cell: Sequence[int], budget_s: float,
    probe: Callable[[Any], float],
) -> list[tuple[float, float]]:  # fmt: skip
    """Learn for so long; (seconds, k-NN Dice) of every probe."""
    keys = {"keys": "image"}
    dataset = CacheDataset(
        [{"image": str(path)} for path in files],
        Compose([
            LoadImaged(**keys, ensure_channel_first=True),
            Orientationd(**keys, axcodes="SPL", labels=None),
            NormalizeIntensityd(**keys),
            SpatialPadd(**keys, spatial_size=crop),
            RandSpatialCropd(**keys, roi_size=crop, random_size=False),
            RandFlipd(**keys, prob=0.5, spatial_axis=2),
        ]),
        progress=False,
    )  # fmt: skip
    torch.manual_seed(0)
    net = MaskedAutoEncoderViT(
        1, tuple(crop), tuple(cell), HIDDEN, 4 * HIDDEN, LAYERS, HEADS,
        decoder_hidden_size=96, decoder_mlp_dim=384, decoder_num_layers=2, decoder_num_heads=4,
    ).to(DEVICE)  # fmt: skip
    adapter = Tokens(net, crop, cell)
    optimiser = torch.optim.AdamW(net.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.05)
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True)
    found: list[tuple[float, float]] = []
    spent = 0.0
    while spent < budget_s:
        for batch in loader:
            start = time.perf_counter()
            share = spent / budget_s
            rate = RATE * min(1.0, share / 0.05) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
            for group in optimiser.param_groups:
                group["lr"] = rate
            image = batch["image"].as_tensor().to(DEVICE)
            cells = image
            for axis, length in enumerate(cell, start=2):
                cells = cells.unfold(axis, length, length)
            wanted = cells.flatten(5).flatten(2, 4)[:, 0]  # (B, tokens, voxels)
            wanted = (wanted - wanted.mean(-1, True)) / (wanted.std(-1, keepdim=True) + 1e-3)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
                told, hidden = net(image)
            each = (told.float() - wanted).square().mean(-1)
            loss = (each * hidden).sum() / hidden.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            float(loss.detach())  # what was asked of a GPU is done
            spent += time.perf_counter() - start
            if spent > budget_s * len(found) / PROBES:
                net.eval()
                found.append((round(spent, 1), probe(adapter)))
                net.train()
            if spent >= budget_s:
                break
    net.eval()
    found.append((round(spent, 1), probe(adapter)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--budget", type=seconds, default=480.0, help="of each")
    parser.add_argument("--net", default="residual_unet")
    args = parser.parse_args()
    fold = read_splits(args.splits)[0]
    opened = open_dataset(args.input)
    cases = [case for case in opened.cases if case.case_id in set(fold["train"])]
    with tempfile.TemporaryDirectory() as scratch, watch() as tell:
        folder = Path(scratch) / "trunk"
        pretrain(
            PretrainConfig(
                (args.input,), folder, budget_s=args.budget, net=args.net, splits=args.splits
            ),
            tell,
        )
        curve = [
            (event["seconds"], event["knn_dice"])
            for event in read_events(folder / "log.jsonl")
            if event["kind"] == "validation"
        ]
        card = read_json(folder / "trunk.json")
        crop, cell = tuple(card["crop"]), tuple(card["cell"])
        grid = Preprocessing(tuple(card["saw"][0]["spacing_mm"]), (Normalisation(),))
        labels = sorted(opened.labels)
        cache.prepare(cases, Path(scratch) / "cache", grid, labels)
        prepared = [cache.load(Path(scratch) / "cache", case.case_id) for case in cases]
        known, asked = cases_to_probe(prepared, {c.case_id: c.patient_id for c in cases})
        probe = Probe(known, asked, len(labels), crop)
        theirs = masked_autoencoder(
            [case.images[0] for case in cases], crop, cell, args.budget,
            lambda net: float(probe.measure(net)["knn_dice"]),
        )  # fmt: skip
    best_s, best = max(theirs, key=lambda one: one[1])
    reached = next((s for s, score in curve if score >= best), None)
    result = {
        "ours": curve,
        "masked_autoencoder": theirs,
        "peers_best": {"seconds": best_s, "knn_dice": best},
        "ours_reached_it_after_s": reached,
        "share_of_the_peers_time": reached and round(reached / best_s, 3),
        "threads": torch.get_num_threads(),
        "environment": environment(),
    }
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
