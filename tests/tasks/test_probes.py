"""The probe of features: its crops, and what it can and cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.data.cache import CachedCase
from qinjing.tasks.probes import Probe

CROP = (8, 16, 16)


class Features(nn.Module):
    """What stands for a trunk: the grey values, or where a voxel lies in the crop."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one = nn.Parameter(torch.ones(1))
        self.seen: list[Tensor] = []

    def features(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        if self.kind == "grey":
            return torch.cat([image, torch.ones_like(image)], dim=1)
        axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in CROP), indexing="ij")
        return torch.cat([torch.stack(axes)[None], torch.ones_like(image)], dim=1)

    def tokens(self, features: Tensor) -> Tensor:
        return F.avg_pool3d(features, (2, 2, 2)).flatten(2).transpose(1, 2)


def _cases(count: int) -> list[CachedCase]:
    """A bright ball in the middle of each scan, as an organ is in what was cut about it."""
    d, h, w = np.indices((24, 48, 48))
    ball = ((d - 12) * 2) ** 2 + (h - 24) ** 2 + (w - 24) ** 2 < 8**2
    rng = np.random.default_rng(0)
    return [
        CachedCase(
            f"case{number}",
            (4 * ball + rng.normal(0, 0.3, ball.shape)).astype(np.float32)[None],
            ball.astype(np.uint8),
            (np.argwhere(ball).astype(np.int32),),
        )
        for number in range(count)
    ]


def test_every_crop_holds_what_is_labelled_and_every_look_sees_the_same() -> None:
    net = Features("grey")
    probe = Probe(_cases(2), _cases(2), 2, CROP, crops=5)
    first, second = probe.measure(net), probe.measure(net)
    assert first == second
    assert len(net.seen) == 2 * (2 + 2) * 5
    assert all(torch.equal(a, b) for a, b in zip(net.seen[:20], net.seen[20:], strict=True))
    assert all(float(image.max()) > 3 for image in net.seen)
    assert len({float(image.sum()) for image in net.seen[:10]}) == 10


@pytest.mark.parametrize(("kind", "low", "high"), [("grey", 0.9, 1.0), ("place", 0.0, 0.5)])
def test_place_alone_tells_little(kind: str, low: float, high: float) -> None:
    """As a position embedding does; around the middle of the ball it told nearly all."""
    found = Probe(_cases(4), _cases(4), 2, CROP, crops=4).measure(Features(kind))
    assert low <= found["knn_dice"] <= high
