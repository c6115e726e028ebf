"""Weights by importance and by lesion size, against their formulas worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qinjing.errors import ConfigError
from qinjing.losses import CrossEntropyLoss, lesion_weights, reweight_gradients
from qinjing.losses.weighting import channel_weights
from qinjing.nets import NETS


def test_channel_weights_by_hand() -> None:
    features = torch.ones(1, 3, 1, 1, 2)
    gradient = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1, 1).expand_as(features)
    # Importance 2, 4, 12, of mean 6: relative 1/3, 2/3, 2, of mean 1.
    expected = torch.tensor([1 / 3, 2 / 3, 2.0])
    torch.testing.assert_close(channel_weights(features, gradient, 1.0), expected)
    torch.testing.assert_close(channel_weights(features, gradient, 0.0), torch.ones(3))
    roots = expected.sqrt()
    torch.testing.assert_close(channel_weights(features, gradient, 0.5), roots / roots.mean())
    nothing = torch.zeros_like(features)
    torch.testing.assert_close(channel_weights(nothing, gradient, 1.0), torch.ones(3))


def test_importance_is_what_the_loss_loses_without_a_channel() -> None:
    """To first order; exactly so for a loss that is linear in the features."""
    rng = torch.Generator().manual_seed(0)
    features = torch.rand(2, 3, 2, 2, 2, generator=rng)
    slope = torch.rand(features.shape, generator=rng)
    lost = torch.stack(
        [(slope * features).sum() - (slope * _without(features, c)).sum() for c in range(3)]
    )
    torch.testing.assert_close(channel_weights(features, slope, 1.0), lost / lost.mean())


def _without(features: torch.Tensor, channel: int) -> torch.Tensor:
    left = features.clone()
    left[:, channel] = 0
    return left


class TwoStages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv3d(2, 2, 1)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


def test_gradients_are_scaled_stage_by_stage_as_worked_out_by_hand() -> None:
    x = torch.rand(2, 2, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    net = TwoStages()
    first, second = (stage[0] for stage in net.stages)
    middle = first(x)
    last = second(middle)
    at_last = 2 * last.detach()  # of the loss Σ y²
    at_last = at_last * channel_weights(last.detach(), at_last, 0.7).view(1, -1, 1, 1, 1)
    expected_second = torch.autograd.grad(last, second.weight, at_last, retain_graph=True)[0]
    at_middle = torch.autograd.grad(last, middle, at_last, retain_graph=True)[0]
    at_middle = at_middle * channel_weights(middle.detach(), at_middle, 0.7).view(1, -1, 1, 1, 1)
    expected_first = torch.autograd.grad(middle, first.weight, at_middle)[0]

    handles = reweight_gradients(net, 0.7)
    net(x).square().sum().backward()
    torch.testing.assert_close(second.weight.grad, expected_second)
    torch.testing.assert_close(first.weight.grad, expected_first)

    for handle in handles:
        handle.remove()
    net.zero_grad()
    net(x).square().sum().backward()
    plain = torch.autograd.grad(second(first(x)).square().sum(), second.weight)[0]
    torch.testing.assert_close(second.weight.grad, plain)
    assert not torch.allclose(plain, expected_second)


@pytest.mark.parametrize("name", ["subvoxel_unet", "unet", "transunet", "hybrid", "pyramid"])
def test_every_net_of_ours_has_stages_and_forward_stays_the_same(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name](1, 2)
    x = torch.rand(1, 1, 16, 32, 32)
    before = net(x)
    before = (before if isinstance(before, torch.Tensor) else before[0]).detach()
    assert reweight_gradients(net, 0.5)
    after = net(x)
    torch.testing.assert_close(after if isinstance(after, torch.Tensor) else after[0], before)


def test_a_net_without_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="built of stages"):
        reweight_gradients(nn.Conv3d(1, 1, 1), 0.5)


def authors_weights(cc: np.ndarray, w_min: float, w_max: float) -> np.ndarray:
    """The rule as the authors' README prints it, for one sample's components."""
    items = np.unique(cc)
    weight = np.zeros(cc.shape)
    for i in items:
        weight[cc == i] = cc.size / (len(items) * np.sum(cc == i))
    return np.clip(weight, w_min, w_max)


def test_lesion_weights_follow_the_published_rule() -> None:
    target = torch.zeros(1, 4, 8, 8, dtype=torch.int64)
    target[0, 0, 0, :2] = 1  # two voxels
    target[0, 1, 1, 2] = 1  # touches them at a corner: one lesion of three
    target[0, 3, 4:, 4:] = 1  # sixteen
    target[0, 3, 3, 4:] = 2  # beside it, but of another class
    components = np.zeros((4, 8, 8), int)
    components[0, 0, :2] = components[1, 1, 2] = 1
    components[3, 4:, 4:] = 2
    components[3, 3, 4:] = 3
    expected = authors_weights(components, 1.0, 200.0)
    np.testing.assert_allclose(lesion_weights(target)[0], expected, rtol=1e-6)
    assert float(lesion_weights(target, most=5.0).max()) == 5
    assert (lesion_weights(torch.zeros_like(target)) == 1).all()


def test_weighted_cross_entropy_equals_torchs_with_the_weights_as_counts() -> None:
    target = torch.tensor([[[[1, 0, 0, 0]]]])
    logits = torch.rand(1, 2, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    weights = lesion_weights(target)  # 4/(2·1) = 2 for the lesion, 4/(2·3) → 1 for the rest
    assert weights.flatten().tolist() == [2, 1, 1, 1]
    twice = torch.cat([logits, logits[..., :1]], dim=-1)
    expected = nn.functional.cross_entropy(twice, torch.tensor([[[[1, 0, 0, 0, 1]]]]))
    torch.testing.assert_close(CrossEntropyLoss(lesion_weighting=True)(logits, target), expected)
