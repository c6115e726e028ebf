"""The hybrid: paths that add up, gates that tell shares, attention that can be left out."""

from __future__ import annotations

import pytest
import torch

from qinjing.errors import ConfigError
from qinjing.nets import Hybrid


def make(**options: object) -> Hybrid:
    torch.manual_seed(0)
    return Hybrid(size="tiny", **options).eval()  # type: ignore[arg-type]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 1, 16, 16, 24, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_what_the_paths_give_is_what_is_decoded(image: torch.Tensor) -> None:
    net = make()
    paths = net.paths(image)
    assert [tuple(kept.shape[1:]) for kept, _ in paths] == [
        (4, 16, 16, 24),
        (8, 8, 8, 12),
        (16, 4, 4, 6),
    ]
    decoded = net.decode([kept + given for kept, given in paths], image.shape)
    torch.testing.assert_close(decoded, net(image), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_gates_tell_the_share_of_attention(image: torch.Tensor) -> None:
    net = make()
    shares = net.gates(image)
    assert shares.shape == (2, 3) and (shares < 0.1).all()  # convolutions lead at first
    for joint in net.joints:
        torch.nn.init.zeros_(joint.gate.bias)
    assert (net.gates(image) > 0.05).all() and (net.gates(image) < 0.95).all()
    for joint in net.joints:
        torch.nn.init.constant_(joint.gate.bias, -40.0)
    torch.testing.assert_close(net.gates(image), torch.zeros(2, 3))
    for joint in net.joints:
        torch.nn.init.constant_(joint.gate.bias, 40.0)
    torch.testing.assert_close(net.gates(image), torch.ones(2, 3))


@torch.no_grad()
def test_closed_gates_leave_the_network_of_convolutions(image: torch.Tensor) -> None:
    net = make()
    for joint in net.joints:
        torch.nn.init.constant_(joint.gate.bias, -40.0)
    plain = net.decode(net.encode(image), image.shape)
    torch.testing.assert_close(net(image), plain)


def test_stages_are_residual() -> None:
    stage = make().encoders[0]
    for parameter in stage[1].parameters():
        torch.nn.init.zeros_(parameter)
    first = stage[0](torch.randn(1, 1, 4, 4, 4))
    torch.testing.assert_close(stage[1](first.clone()), first)


def test_while_training_coarser_decoders_answer_too(image: torch.Tensor) -> None:
    net = Hybrid(size="small", classes=3)
    shapes = [tuple(output.shape) for output in net.train()(image)]
    assert shapes == [(2, 3, 16, 16, 24), (2, 3, 8, 8, 12), (2, 3, 4, 4, 6)]
    assert net.eval()(image).shape == (2, 3, 16, 16, 24)


def test_identity_leaves_the_transformer_blocks_out(image: torch.Tensor) -> None:
    whole, without = make(), make(attention="identity")
    blocks = sum(p.numel() for p in whole.context.blocks.parameters())
    counts = [sum(p.numel() for p in net.parameters()) for net in (whole, without)]
    assert blocks > 0 and counts[0] - counts[1] == blocks
    sum(output.square().mean() for output in without.train()(image)).backward()
    assert all(p.grad is not None and p.grad.any() for p in without.parameters())


@torch.no_grad()
@pytest.mark.parametrize(("attention", "reaches"), [("identity", False), ("full", True)])
def test_attention_reaches_further_than_convolutions(attention: str, reaches: bool) -> None:
    # GroupNorm of the joints mixes all voxels: compare the tokens before it.
    net = make(attention=attention, widths=(8, 16), strides=((1, 1, 1), (2, 2, 2)))
    maps = [torch.randn(1, 16, 2, 2, 16)]
    before = net.context(maps)[0]
    maps[0][..., 0] += 1
    change = (net.context(maps)[0] - before).abs()[..., -1].max()
    assert bool(change > 1e-6) is reaches


@torch.no_grad()
def test_deformable_attention_reaches_where_its_offsets_point() -> None:
    net = make(widths=(8, 16), strides=((1, 1, 1), (2, 2, 2)))
    offsets = net.context.blocks[0].attention.offsets
    maps = [torch.randn(1, 16, 2, 2, 16)]
    changed = [maps[0].clone()]
    changed[0][..., 0] += 1
    for reach, reaches in ((0.0, False), (-15.0, True)):
        torch.nn.init.zeros_(offsets.bias)
        offsets.bias.view(-1, 3)[:, 2] = reach
        change = (net.context(changed)[0] - net.context(maps)[0]).abs()[..., -1].max()
        assert bool(change > 1e-6) is reaches


def test_the_small_size_joins_from_a_quarter_on() -> None:
    net = Hybrid(size="small").eval()
    assert len(net.joints) == 2 and len(net.rises) == 1
    with torch.no_grad():
        assert net.gates(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2)


def test_an_unknown_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="deformable, full, identity"):
        make(attention="sparse")
