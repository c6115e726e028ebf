"""What is measured of the machine."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qinjing.engine.device import Execution, candidates, flops, precisions
from qinjing.nets.transformer import SelfAttention


def test_operations_of_convolutions_and_attention_are_counted() -> None:
    conv = nn.Conv3d(2, 3, 3, padding=1, bias=False)
    assert flops(conv, torch.zeros(1, 2, 4, 5, 6)) == 2 * 27 * 2 * 3 * 4 * 5 * 6

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = SelfAttention(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x)

    n, c = 64, 32
    linear = 4 * 2 * n * c * c  # queries, keys, values, what comes out
    assert flops(Attention(), torch.zeros(1, n, c)) == linear + 4 * n * n * c


def test_channels_last_leaves_kernels_of_slices_as_they_are() -> None:
    net = Execution("cpu", "fp32", True).place(
        nn.Sequential(nn.Conv3d(2, 3, 3), nn.Conv2d(3, 2, 3))
    )
    first, second = (net[0].weight, net[1].weight)  # type: ignore[index]
    assert first.is_contiguous(memory_format=torch.channels_last_3d)
    assert second.is_contiguous()


@pytest.mark.parametrize("known", [False, True])
def test_bfloat16_is_tried_only_where_the_processor_computes_in_it(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: known)
    tried = {one.precision for one in candidates("cpu")}
    assert tried == set(precisions("cpu")) == ({"fp32", "bf16"} if known else {"fp32"})
    trained = Execution("cuda", "bf16", True)
    assert trained.here() == Execution("cpu", "bf16" if known else "fp32", True)
