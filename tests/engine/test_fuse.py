"""Fused networks against the same networks as they were, MONAI's among them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qinjing.engine.fuse import fuse


def unlike_the_start(net: nn.Module) -> nn.Module:
    """Give every normalisation statistics and weights of its own, as training does."""
    for i, module in enumerate(net.modules()):
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)) and module.track_running_stats:
            draw = torch.Generator().manual_seed(i)
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=draw))
            module.running_var.copy_(torch.rand(module.num_features, generator=draw) + 0.5)
            nn.init.normal_(module.weight, 1.0, 0.2, generator=draw)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=draw)
    return net.eval()


@torch.inference_mode()
def scores(net: nn.Module, x: Tensor) -> Tensor:
    kept = x.clone()
    found = net(x)
    assert torch.equal(x, kept), "the network changed its input"
    return torch.as_tensor(found)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("units", [0, 2])
@pytest.mark.parametrize("act", ["PRELU", "RELU", ("leakyrelu", {"negative_slope": 0.2})])
def test_monai_unet(dimensions: int, units: int, act: str) -> None:
    """MONAI's UNet with batch norm: transposed convolutions, residual units and dropout too."""
    UNet = pytest.importorskip("monai.networks.nets").UNet
    torch.manual_seed(1)
    net = UNet(
        dimensions, 2, 5, (4, 8, 16), (2, 2), num_res_units=units, norm="batch", act=act,
        dropout=0.1,
    )  # fmt: skip
    net = unlike_the_start(net)
    x = torch.randn(2, 2, *[16] * dimensions)
    expected = scores(net, x)
    fused = fuse(copy.deepcopy(net))
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)) for m in fused.modules())
    assert not any(p.requires_grad for p in fused.parameters())
    torch.testing.assert_close(scores(fused, x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores(fuse(fused), x), expected, rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """One activation, one convolution and one normalisation in several places."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.norm = nn.ReLU(), nn.BatchNorm3d(4)
        conv = nn.Conv3d(4, 4, 3, padding=1)
        self.first = nn.Sequential(conv, self.norm, self.act)
        self.second = nn.Sequential(self.act, conv, self.act, self.norm)
        up = nn.ConvTranspose3d(4, 4, 2, 2, groups=2)
        self.up = nn.Sequential(up, nn.BatchNorm3d(4), nn.PReLU(4))
        self.plain = nn.Sequential(nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4, track_running_stats=False))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        kept = first - 0.5
        second = self.second(first) + self.act(kept) + kept
        return torch.as_tensor(self.up(second) + self.plain(x).mean())


def test_layers_in_several_places() -> None:
    torch.manual_seed(2)
    net = unlike_the_start(Shared())
    x = torch.randn(2, 4, 6, 6, 6)
    expected = scores(net, x)
    torch.testing.assert_close(scores(fuse(net), x), expected, rtol=1e-4, atol=1e-5)


def test_an_activation_first_in_a_chain_keeps_its_input() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Conv3d(1, 1, 1)).eval()
    scores(fuse(net), torch.randn(1, 1, 4, 4, 4))


def test_a_network_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"net\.eval\(\)"):
        fuse(nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1)))
