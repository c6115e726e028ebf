"""Weights by importance and by lesion size, against their formulas worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qinjing.errors import ConfigError
from qinjing.losses import CrossEntropyLoss, lesion_weights, reweight_gradients, weighting
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
        self.encoders = nn.ModuleList(nn.Sequential(nn.Conv3d(2, 2, 1)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.encoders:
            x = stage(x)
        return x


def test_gradients_are_scaled_stage_by_stage_as_worked_out_by_hand() -> None:
    x = torch.rand(2, 2, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    net = TwoStages()
    first, second = (stage[0] for stage in net.encoders)
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


@pytest.mark.parametrize("name", NETS)
def test_every_net_has_the_channels_of_its_stages_weighed_or_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if not isinstance(NETS[name], type):  # another package's
        pytest.importorskip("monai")
        pytest.importorskip("einops")
        assert name not in weighting._HAVE_STAGES
        with pytest.raises(ConfigError, match=r"encoders and decoders .*, hybrid, pyramid do$"):
            reweight_gradients(NETS[name](1, 2, size="tiny"), 0.5)
        return
    assert name in weighting._HAVE_STAGES
    seen = []

    def watched(features: torch.Tensor, gradient: torch.Tensor, strength: float) -> torch.Tensor:
        weights = channel_weights(features, gradient, strength)
        seen.append((len(weights), features.shape))
        return weights

    monkeypatch.setattr(weighting, "channel_weights", watched)
    widths = (8, 16, 24)  # none is a length of a map of 20 voxels, or of 24 where they are padded
    options = {} if name == "subvoxel_unet" else {"size": "tiny"}
    net = NETS[name](1, 2, widths=widths, **options)
    x = torch.rand(2, 1, 20, 20, 20)
    before = _finest(net(x)).detach()
    handles = reweight_gradients(net, 0.5)
    after = _finest(net(x))
    torch.testing.assert_close(after, before)
    after.square().sum().backward()
    # Three stages down, two up, each once, channels on axis 1.
    assert sorted(count for count, _ in seen) == [8, 8, 16, 16, 24] and len(handles) == 5
    assert all(shape[:2] == (2, count) for count, shape in seen)
    assert not {n for _, shape in seen for n in shape[2:]} & set(widths)


def _finest(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def test_nets_without_stages_and_stages_without_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoders and decoders .* got Conv3d"):
        reweight_gradients(nn.Conv3d(1, 1, 1), 0.5)
    net = TwoStages()
    net.encoders[1].append(nn.Flatten(2))
    reweight_gradients(net, 0.5)
    with pytest.raises(ConfigError, match=r"a map \(B, C, D, H, W\), got \(1, 2, 8\)"):
        net(torch.rand(1, 2, 2, 2, 2))


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
