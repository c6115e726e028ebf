"""Attention over all tokens against torch's own, positions against the formula."""

from __future__ import annotations

from math import cos, pi, sin

import pytest
import torch

from qinjing.errors import ConfigError
from qinjing.nets.transformer import SelfAttention, attend, sine_positions, to_map, to_tokens


def test_self_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours, peer = SelfAttention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([ours.queries_keys.weight, ours.values.weight]))
        peer.in_proj_bias.copy_(torch.cat([ours.queries_keys.bias, ours.values.bias]))
        peer.out_proj.load_state_dict(ours.out.state_dict())
    queries, values = torch.randn(2, 2, 7, 12)
    torch.testing.assert_close(ours(queries, values), peer(queries, queries, values)[0])


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_and_its_gradient_are_the_formulas(autocast: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 4, requires_grad=True) for _ in range(3))
    mask = torch.rand(1, 3, 1, 9) > 0.3
    scores = (q @ k.mT / 2).masked_fill(~mask, -torch.inf)
    expected = scores.softmax(-1) @ v
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attend(q, k, v, mask)
    weigh = torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    for ours, formula in zip(
        torch.autograd.grad((found * weigh).sum(), (q, k, v)),
        torch.autograd.grad((expected * weigh).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, formula)


def test_positions_are_the_formulas() -> None:
    encoded = sine_positions((2, 3, 4), 14, torch.device("cpu")).view(2, 3, 4, 14)
    # Voxel (1, 0, 3): places 0.75, 1/6 and 7/8 of 2π, wavelengths 1 and 100, sines first.
    expected = []
    for place in (0.75, 1 / 6, 7 / 8):
        angle = 2 * pi * place
        expected += [sin(angle), sin(angle / 100), cos(angle), cos(angle / 100)]
    torch.testing.assert_close(encoded[1, 0, 3], torch.tensor([*expected, 0.0, 0.0]))


def test_tokens_are_undone() -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    assert to_tokens(x).shape == (2, 120, 3)
    assert torch.equal(to_tokens(x)[1, 4 * 30 - 1], x[1, :, 3, 4, 5])
    assert torch.equal(to_map(to_tokens(x), (4, 5, 6)), x)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads must be a divisor of the 12 channels, got 5"):
        SelfAttention(12, 5)
