"""The hybrid: paths that add up, gates that tell shares, attention that can be left out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qinjing.errors import ConfigError
from qinjing.nets import Hybrid
from qinjing.nets.hybrid import share_of_attention


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


def test_of_nothing_attention_has_no_share() -> None:
    nothing, something = torch.zeros(1, 2, 2, 2, 2), torch.ones(1, 2, 2, 2, 2)
    for kept, given, share in (
        (nothing, nothing, 0.0), (something, nothing, 0.0), (nothing, -something, 1.0),
        (3 * something, -something, 0.25),
    ):  # fmt: skip
        assert share_of_attention(kept, given, (1, 2, 3, 4)).tolist() == [share]
        assert share_of_attention(kept, given, (1,)).flatten().tolist() == [share] * 8


def test_the_small_size_has_one_convolution_at_full_resolution() -> None:
    net = Hybrid(size="small")
    found = [m.out_channels for m in net.modules() if isinstance(m, torch.nn.Conv3d)]
    assert len(net.encoders[0]) == len(net.decoders[0]) == 1 and found[0] == 16
    assert len(net.encoders[1]) == 3 and len(net.decoders[1]) == 2  # with its pooling


def test_while_training_coarser_decoders_answer_too(image: torch.Tensor) -> None:
    net = Hybrid(size="small", classes=3)
    shapes = [tuple(output.shape) for output in net.train()(image)]
    assert shapes == [(2, 3, 16, 16, 24), (2, 3, 8, 8, 12), (2, 3, 4, 4, 6)]
    assert net.eval()(image).shape == (2, 3, 16, 16, 24)


@torch.no_grad()
def test_closed_gates_leave_a_residual_unet(image: torch.Tensor) -> None:
    """Written out by hand, from the weights alone."""
    net = make(widths=(4, 8), strides=((1, 1, 1), (2, 2, 2)))
    for joint in net.joints:
        torch.nn.init.constant_(joint.gate.bias, -40.0)
    own = net.state_dict()

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        y = F.conv3d(x, own[f"{name}.0.weight"], padding=1)
        groups = max(1, y.shape[1] // 4)
        return F.group_norm(y, groups, own[f"{name}.1.weight"], own[f"{name}.1.bias"])

    def stage(x: torch.Tensor, name: str, first: int) -> torch.Tensor:
        y = F.relu(conv(x, f"{name}.{first}"))
        return F.relu(y + conv(y, f"{name}.{first + 1}.body"))

    fine = stage(image, "encoders.0", 0)
    coarse = stage(F.max_pool3d(fine, 2), "encoders.1", 1)
    up = F.conv_transpose3d(coarse, own["ups.0.weight"], own["ups.0.bias"], stride=2)
    last = stage(torch.cat([fine, up], 1), "decoders.0", 0)
    logits = F.conv3d(last, own["head.weight"], own["head.bias"])
    torch.testing.assert_close(net(image), logits)


def five_stages() -> Hybrid:
    """Two scales of tokens, gates half open, places that queries chose."""
    net = make(widths=(4, 4, 4, 8, 8), strides=((1, 1, 1), *[(2, 2, 2)] * 4))
    for joint in net.joints:
        torch.nn.init.zeros_(joint.gate.bias)
    for block in net.context.blocks:
        torch.nn.init.normal_(block.attention.offsets.weight, std=0.3)
    return net


@torch.no_grad()
@pytest.mark.parametrize("changed", [0, 1])
def test_tokens_of_two_scales_see_each_other(changed: int) -> None:
    net = five_stages()
    maps = [torch.randn(1, 8, 4, 4, 4), torch.randn(1, 8, 2, 2, 2)]
    before = net.context(maps)
    assert [tuple(m.shape[2:]) for m in before] == [(4, 4, 4), (2, 2, 2)]
    maps[changed] = maps[changed] + 1
    after = net.context(maps)
    assert (after[1 - changed] - before[1 - changed]).abs().max() > 1e-4


def test_every_weight_of_two_scales_learns() -> None:
    net = five_stages().train()
    outputs = net(torch.randn(1, 1, 32, 32, 32))
    assert [o.shape[-1] for o in outputs] == [32, 16, 8, 4]
    sum(output.square().mean() for output in outputs).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]


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
