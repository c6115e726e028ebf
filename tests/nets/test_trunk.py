"""Trunks of every network: what is a head, what moves, what low-rank additions change."""

from __future__ import annotations

import pytest
import torch
from tests.nets.test_nets import make, tiny
from torch import Tensor

from qinjing.errors import ConfigError
from qinjing.nets import NETS
from qinjing.nets.low_rank import LowRank, add_low_rank, merged_weights
from qinjing.nets.pretrainer import Pretrainer, first_of
from qinjing.nets.trunk import bring_to_length, class_bound, normalised_kernels, take_over


def before_the_head(net: torch.nn.Module, heads: frozenset[str], image: Tensor) -> list[Tensor]:
    """What goes into the layers that depend on the number of classes."""
    seen: list[Tensor] = []
    owners = {name.rpartition(".")[0] for name in heads}
    for path, module in net.named_modules():
        if path in owners:
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(image)
    return seen


@pytest.mark.parametrize("name", NETS)
def test_a_trunk_moves_whole_to_another_number_of_classes(name: str) -> None:
    options = tiny(name)
    heads = class_bound(NETS, name, options)
    assert heads, "a network whose output does not depend on the number of classes"
    trunk, net = make(name, classes=32).eval(), make(name, classes=3).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    copied = take_over(net, trunk.state_dict(), heads)
    assert set(copied) == set(net.state_dict()) - heads
    image = torch.randn(1, 1, 8, 16, 16)
    ours, theirs = (before_the_head(one, heads, image) for one in (net, trunk))
    assert len(ours) == len(theirs) >= 1
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_equal_images_in_two_channels_give_the_features_of_one() -> None:
    trunk, net = make("unet", classes=8).eval(), make("unet", in_channels=2).eval()
    heads = class_bound(NETS, "unet", tiny("unet"))
    assert "encoders.0.0.0.weight" not in take_over(net, trunk.state_dict(), heads)
    take_over(net, trunk.state_dict(), heads, channels=2)
    image = torch.randn(1, 1, 8, 16, 16)
    (ours,) = before_the_head(net, heads, image.repeat(1, 2, 1, 1, 1))
    (theirs,) = before_the_head(trunk, heads, image)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_kernels_at_the_length_of_fresh_ones_give_the_same_features() -> None:
    net, image = make("residual_unet").eval(), torch.randn(1, 1, 8, 16, 16)
    lengths = [float(kernel.detach().norm()) for kernel in normalised_kernels(net)]
    with torch.no_grad():
        for kernel in normalised_kernels(net):
            kernel.mul_(4)
        longer = net(image)
        bring_to_length(normalised_kernels(net), lengths)
        torch.testing.assert_close(net(image), longer, rtol=1e-3, atol=1e-3)
    found = [float(kernel.detach().norm()) for kernel in normalised_kernels(net)]
    assert found == pytest.approx(lengths, rel=1e-5)
    assert len(found) == sum(isinstance(part, torch.nn.GroupNorm) for part in net.modules())


def test_weights_of_another_shape_stay_behind() -> None:
    net = make("unet")
    weights = {name: torch.zeros(3) for name in net.state_dict()}
    assert take_over(net, weights, frozenset()) == []


@pytest.mark.parametrize("name", NETS)
def test_low_rank_additions_change_nothing_at_first_and_merge(name: str) -> None:
    net = make(name).eval()
    heads = class_bound(NETS, name, tiny(name))
    image = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        before = net(image)
        whole = sum(p.numel() for p in net.parameters())
        add_low_rank(net, heads, rank=2)
        torch.testing.assert_close(net(image), before)
    learning = [p for p in net.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in learning) < whole
    first_of(net(image)).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)
    for module in net.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.up, std=0.1)
    with torch.no_grad():
        changed = net(image)
    plain = make(name).eval()
    plain.load_state_dict(merged_weights(net, net.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(plain(image), changed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed, before)


def test_without_a_planar_twin_no_slice_can_be_seen() -> None:
    net = Pretrainer(torch.nn.Identity(), None, 1, 1, 4, (2, 2, 2))
    with pytest.raises(ConfigError, match="planar must be a network that sees single slices"):
        net.plane_features(torch.randn(1, 1, 4, 4, 4), 0, 1)
