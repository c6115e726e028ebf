"""The attack: it draws the patch from a bare gradient, and nothing from a protected one."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.federate.leakage import gradient_of, invert, leakage_table, likeness
from qinjing.federate.privacy import protected
from qinjing.federate.secure_sum import Terms
from qinjing.federate.secure_sum.ring import masked
from qinjing.nets import NETS
from qinjing.physics.phantom import draw, render

Tensors = dict[str, Tensor]


def network() -> nn.Module:
    """A U-Net's first level: what is quick enough to be attacked in a test."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stages = {"widths": (16,), "strides": ((1, 1, 1),), "kernels": ((1, 3, 3),)}
    return NETS["unet"](in_channels=1, classes=6, **stages)


@pytest.fixture(scope="module")
def patch() -> tuple[Tensor, Tensor]:
    """A slice of 12 by 12 voxels of 3.5 mm: liver, stomach, spine and air."""
    image, label = render(draw(np.random.default_rng(4), "aurora"))
    place = (slice(28, 29), slice(8, 32, 2), slice(8, 32, 2))
    grey = image.voxels[place]
    grey = (grey - grey.mean()) / grey.std()
    return torch.from_numpy(grey)[None], torch.from_numpy(label.voxels[place].astype(np.int64))


def behind_a_mask(gradient: Tensors) -> Tensors:
    """What the server of a secure sum has of one site before the sum is whole."""
    vector = torch.cat([g.flatten() for g in gradient.values()]).numpy()
    keys = {site: os.urandom(32) for site in "abc"}
    terms = Terms("round 1", keys, len(vector), bound=float(np.abs(vector).max()))
    sent = masked(vector, terms, [(bytes(range(32)), 1)])
    seen = torch.frombuffer(sent, dtype=torch.int32, offset=32).float() * terms.step
    parts = seen.split([g.numel() for g in gradient.values()])
    return {n: p.reshape(gradient[n].shape) for n, p in zip(gradient, parts, strict=True)}


def behind_noise(gradient: Tensors) -> Tensors:
    source = torch.Generator().manual_seed(5)
    return protected(gradient, 0.1, 1.0, normal=lambda n: torch.randn(n, generator=source))


def test_the_picture_comes_out_of_a_bare_gradient_alone(patch: tuple[Tensor, Tensor]) -> None:
    image, label = patch
    protections = {"mask": behind_a_mask, "noise": behind_noise}
    rows = {r.name: r for r in leakage_table(network(), image, label, protections, steps=80)}
    # Over three seeds: SSIM 0.46 to 0.66 of the gradient, −0.10 to 0.11 of the others.
    assert rows["gradient"].likeness.ssim > 0.4 and rows["gradient"].likeness.ncc > 0.75
    assert rows["gradient"].stolen.mismatch < 0.05
    for name in ("nothing", "mask", "noise"):
        assert rows[name].likeness.ssim < 0.25 and rows[name].likeness.ncc < 0.5, name
        assert rows[name].likeness.psnr < rows["gradient"].likeness.psnr - 3
        assert rows[name].stolen.mismatch > 0.5


def test_an_update_of_one_step_is_the_gradient_turned(patch: tuple[Tensor, Tensor]) -> None:
    image, label = patch
    net = network()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    found = gradient_of(net, image, label)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    F.cross_entropy(net(image[None]), label[None]).backward()
    optimiser.step()
    for name, parameter in net.named_parameters():
        change = parameter.detach() - before[name]
        assert torch.allclose(-change / 0.05, found[name], atol=1e-5)


def test_it_starts_again_the_same_and_leaves_the_network_alone(
    patch: tuple[Tensor, Tensor],
) -> None:
    image, label = patch
    net = network()
    gradient = gradient_of(net, image, label)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    one = invert(net, gradient, image.shape, label, steps=4)
    # The length of a gradient is of no matter: a rate may have been multiplied in.
    scaled = {n: 3 * g for n, g in gradient.items()}
    two = invert(net, scaled, image.shape, label, steps=4)
    assert torch.allclose(one.image, two.image, atol=1e-4)
    best = invert(net, gradient, image.shape, label, steps=4, restarts=3)
    tries = [invert(net, gradient, image.shape, label, steps=4, seed=s) for s in range(3)]
    assert best.mismatch == min(t.mismatch for t in tries)
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in net.named_parameters())


def test_a_label_can_be_guessed_along(patch: tuple[Tensor, Tensor]) -> None:
    image, label = patch
    net = network()
    gradient = gradient_of(net, image, label)
    found = invert(net, gradient, image.shape, steps=60)
    assert found.label.shape == label.shape
    blind = invert(net, {n: torch.ones_like(g) for n, g in gradient.items()}, image.shape, steps=20)
    right, wrong = (float((s.label == label).float().mean()) for s in (found, blind))
    assert right > max(wrong, 1 / 6)
    assert found.mismatch < blind.mismatch


@pytest.mark.parametrize("shape", [(1, 1, 20, 24), (2, 9, 10, 11)])
def test_likeness_is_scikit_images(shape: tuple[int, ...]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    source = np.random.default_rng(0)
    truth = source.normal(size=shape)
    image = truth + source.normal(size=shape)
    ours = likeness(torch.from_numpy(3 * image - 7), torch.from_numpy(truth))
    a, b = ((x - x.mean()) / x.std() for x in (image, truth))
    span = b.max() - b.min()
    pairs = [(x.squeeze(), y.squeeze()) for x, y in zip(a, b, strict=True)]
    ssim = [metrics.structural_similarity(y, x, data_range=span) for x, y in pairs]
    assert ours.ssim == pytest.approx(np.mean(ssim), abs=1e-9)
    assert ours.psnr == pytest.approx(metrics.peak_signal_noise_ratio(b, a, data_range=span))
    assert ours.ncc == pytest.approx(np.corrcoef(image.ravel(), truth.ravel())[0, 1])
    same = likeness(torch.from_numpy(truth), torch.from_numpy(truth))
    assert same.ssim == pytest.approx(1) and same.ncc == pytest.approx(1)


def test_refusals(patch: tuple[Tensor, Tensor]) -> None:
    image, label = patch
    net = network()
    gradient: Mapping[str, Tensor] = gradient_of(net, image, label)
    with pytest.raises(ConfigError, match="the network's own weights"):
        invert(net, dict(list(gradient.items())[1:]), image.shape, label)
    with pytest.raises(ConfigError, match="positive"):
        invert(net, gradient, image.shape, label, steps=0)
    with pytest.raises(ConfigError, match="at least 7"):
        likeness(image[:, :, :3], image[:, :, :3])
