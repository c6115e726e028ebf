"""The pyramid: windows against MONAI's, attention against torch's, weights against the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.nets import PyramidTransformer
from qinjing.nets.pyramid import Attention, unwindows, windows


def peer_of(ours: Attention) -> nn.MultiheadAttention:
    """torch's attention with the same weights."""
    width = ours.out.in_features
    peer = nn.MultiheadAttention(width, ours.heads, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(ours.queries_keys_values.weight)
        peer.in_proj_bias.copy_(ours.queries_keys_values.bias)
    peer.out_proj.load_state_dict(ours.out.state_dict())
    return peer.eval()


def attend(peer: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Let a (tokens, C) group see itself."""
    seen: Tensor = peer(tokens[None], tokens[None], tokens[None], need_weights=False)[0][0]
    return seen


def test_windows_are_monais() -> None:
    monai = pytest.importorskip("monai.networks.nets.swin_unetr")
    x = torch.randn(3, 8, 12, 5)
    theirs = monai.window_partition(x, (4, 6))
    assert torch.equal(windows(x, 4, 6).flatten(0, 1), theirs)
    assert torch.equal(unwindows(windows(x, 4, 6), 4, 6, 8, 12), x)


@torch.no_grad()
def test_one_window_is_full_attention() -> None:
    torch.manual_seed(0)
    ours = Attention(12, 3)
    x = torch.randn(2, 2, 4, 5, 12)
    found = ours.in_windows(x, window=8, shifted=True)
    peer = peer_of(ours)
    for b in range(2):
        for d in range(2):
            expected = attend(peer, ours.norm(x[b, d]).flatten(0, 1)).view(4, 5, 12)
            torch.testing.assert_close(found[b, d], expected)


@torch.no_grad()
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_that_do_not_fit_see_only_the_slice(shifted: bool) -> None:
    torch.manual_seed(0)
    ours, window, (h, w) = Attention(8, 2), 4, (6, 9)
    x = torch.randn(2, 2, h, w, 8)
    found = ours.in_windows(x, window, shifted)
    peer, lead = peer_of(ours), window // 2 if shifted else 0
    for top in range(-lead, h, window):
        for left in range(-lead, w, window):
            box = (slice(max(top, 0), top + window), slice(max(left, 0), left + window))
            inside = ours.norm(x[1, 0][box])
            expected = attend(peer, inside.flatten(0, 1)).view_as(inside)
            torch.testing.assert_close(found[1, 0][box], expected)


@torch.no_grad()
def test_columns_see_all_slices_and_nothing_else() -> None:
    torch.manual_seed(0)
    ours = Attention(8, 2)
    x = torch.randn(2, 5, 3, 4, 8)
    found = ours.along_slices(x)
    peer = peer_of(ours)
    for b, i, j in ((0, 0, 0), (1, 2, 3)):
        torch.testing.assert_close(found[b, :, i, j], attend(peer, ours.norm(x[b, :, i, j])))


@torch.no_grad()
def test_level_weights_follow_the_formula() -> None:
    torch.manual_seed(0)
    net = PyramidTransformer(size="tiny").eval()
    image = torch.randn(2, 1, 8, 16, 16)
    weights = net.level_weights(image)
    assert weights.shape == (2, 3)
    torch.testing.assert_close(weights.mean(1), torch.ones(2))
    first, _, second = net.weigh
    _, maps = net.encode(image)
    s = torch.stack(
        [
            torch.stack([torch.sigmoid((y[b] * conv.weight.view(-1, 1, 1, 1)).sum(0) + conv.bias)
                         .mean().log() for y, conv in zip(maps, net.squeeze, strict=True)])
            for b in range(2)
        ]
    )  # fmt: skip
    hidden = nn.functional.gelu(s @ first.weight.T + first.bias)
    logits = (hidden @ second.weight.T + second.bias).exp()
    torch.testing.assert_close(weights, 3 * logits / logits.sum(1, keepdim=True))


@torch.no_grad()
def test_weights_of_levels_change_with_the_size_of_what_is_seen() -> None:
    net = PyramidTransformer(size="tiny").eval()
    for name, parameter in net.weigh.named_parameters():
        nn.init.constant_(parameter, 0.1 if "weight" in name else 0.0)
    net.weigh[2].weight[0] = -1.0  # the finest level counts more, the smaller the shares
    small, large = (
        net._weights([torch.full((1, width, 2, 2, 2), value) for width in (8, 16, 16)])
        for value in _held(net)
    )
    assert small[0, 0] > large[0, 0]


def _held(net: PyramidTransformer) -> tuple[float, float]:
    """Feature values for which the squeezed shares are small, then large."""
    for layer in net.squeeze:
        nn.init.constant_(layer.weight, 0.5)
        nn.init.zeros_(layer.bias)
    return -2.0, 2.0


def test_a_width_is_of_whole_heads() -> None:
    for widths in ((24, 48), (8, 16)):  # a head of the small size has 16 channels
        with pytest.raises(ConfigError, match="widths must be multiples of the 16 channels of a"):
            PyramidTransformer(widths=widths)


def test_five_levels_are_taken_too() -> None:
    net = PyramidTransformer(widths=(8, 8, 8, 8, 8), size="tiny").train()
    assert len(net(torch.randn(1, 1, 32, 32, 32))) == 5


def test_the_small_size_has_four_levels_and_all_of_them_learn() -> None:
    torch.manual_seed(0)
    net = PyramidTransformer(size="small").train()
    outputs = net(torch.randn(1, 1, 16, 32, 32))
    assert [tuple(o.shape[2:]) for o in outputs] == [
        (16, 32, 32),
        (8, 16, 16),
        (4, 8, 8),
        (2, 4, 4),
    ]
    assert net.eval().level_weights(torch.randn(1, 1, 16, 32, 32)).shape == (1, 4)
    sum(output.square().mean() for output in outputs).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_what_is_computed_again_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    net = PyramidTransformer(size="tiny").train()
    found = []
    for again in (False, True):
        net.encoders[0][-1].recompute = again  # type: ignore[index]
        net.zero_grad()
        net(torch.linspace(-1, 1, 16**3).view(1, 1, 16, 16, 16))[0].square().mean().backward()
        found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert all(torch.equal(ours, plain) for ours, plain in zip(*found, strict=True))


def test_the_papers_size_computes_its_finest_level_again() -> None:
    with torch.device("meta"):
        net = PyramidTransformer(size="paper")
    assert [level[-1].recompute for level in net.encoders] == [True, False, False, False]
