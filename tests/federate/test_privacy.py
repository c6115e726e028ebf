"""Differential privacy: sensitivity, the account beside other accounts, a ledger that holds."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import kstest, norm
from torch import Tensor, nn

from qinjing.config import read_config
from qinjing.errors import ConfigError, FormatError
from qinjing.federate.privacy import (
    Ledger,
    Spending,
    clipped_gradients,
    epsilon_of,
    noise_for,
    protected,
    secure_normal,
    spend,
)
from qinjing.nets import NETS

DELTA = 1e-5


def normal(seed: int = 0) -> Callable[[int], Tensor]:
    source = torch.Generator().manual_seed(seed)
    return lambda count: torch.randn(count, generator=source)


def length(tensors: dict[str, Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in tensors.values()]).norm())


def update(scale: float = 1.0) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(3)
    return {
        "a": scale * torch.randn(40, 50, generator=source),
        "b": scale * torch.randn(7, generator=source),
    }


def test_long_updates_are_shortened_and_short_ones_left_alone() -> None:
    long, short = update(), update(1e-4)
    clipped = protected(long, clip_norm=2.0, noise=0.0)
    assert length(clipped) == pytest.approx(2.0)
    ratio = 2.0 / length(long)  # in direction unchanged, over all weights together
    assert all(torch.allclose(clipped[n], long[n] * ratio) for n in long)
    kept = protected(short, clip_norm=2.0, noise=0.0)
    assert all(torch.equal(kept[n], short[n]) for n in short)
    zero = {n: torch.zeros_like(v) for n, v in long.items()}
    assert length(protected(zero, clip_norm=2.0, noise=0.0)) == 0


def test_the_sum_of_sites_has_the_noise_that_the_account_is_of() -> None:
    sites, clip_norm, noise = 5, 0.5, 1.5
    zero = {"w": torch.zeros(40_000)}
    drawn = normal()
    parts = [protected(zero, clip_norm, noise, sites, drawn)["w"] for _ in range(sites)]
    assert float(parts[0].std()) == pytest.approx(noise * clip_norm / sqrt(sites), rel=0.02)
    total = torch.stack(parts).sum(dim=0).numpy()
    assert kstest(total, norm(0, noise * clip_norm).cdf).pvalue > 0.01


def test_noise_of_real_use_is_normal_and_never_the_same() -> None:
    first, second = secure_normal(100_001), secure_normal(100_001)
    assert first.shape == (100_001,) and first.dtype == torch.float32
    # Right in all but one of ten million runs.
    assert kstest(first.numpy(), norm.cdf).pvalue > 1e-7
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.02
    assert abs(float(np.corrcoef(first[1:], first[:-1])[0, 1])) < 0.02
    zero = {"w": torch.zeros(10)}
    assert not torch.equal(protected(zero, 1.0, 1.0)["w"], protected(zero, 1.0, 1.0)["w"])


def small_net() -> nn.Module:
    torch.manual_seed(0)
    options = {"widths": (4, 8), "strides": ((1, 1, 1), (1, 2, 2)), "kernels": ((1, 3, 3),) * 2}
    return NETS["unet"](in_channels=1, classes=3, **options)


def batch(count: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, 1, 2, 8, 8), torch.randint(0, 3, (count, 2, 8, 8))


def gradient(net: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    nn.functional.cross_entropy(net(inputs), targets).backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def test_without_clipping_it_is_the_batchs_gradient() -> None:
    net, (inputs, targets) = small_net(), batch(3)
    whole = gradient(net, inputs, targets)
    loss = clipped_gradients(
        net, lambda x, y: nn.functional.cross_entropy(net(x), y), (inputs, targets), 1e6, 0.0
    )
    whole_loss = nn.functional.cross_entropy(net(inputs), targets).item()
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    for name, parameter in net.named_parameters():
        assert torch.allclose(parameter.grad, whole[name], atol=1e-6)


def test_one_sample_more_moves_the_sum_by_no_more_than_the_clipping_length() -> None:
    net, (inputs, targets) = small_net(), batch(3)
    inputs[2] *= 1000

    def total(count: int) -> dict[str, Tensor]:
        clipped_gradients(
            net, lambda x, y: 1e3 * nn.functional.cross_entropy(net(x), y),
            (inputs[:count], targets[:count]), clip_norm=0.25, noise=0.0, expected=1.0,
        )  # fmt: skip
        return {n: p.grad.clone() for n, p in net.named_parameters()}

    two, three = total(2), total(3)
    assert length({n: three[n] - two[n] for n in two}) == pytest.approx(0.25, rel=1e-4)
    assert length(total(0)) == 0


def test_each_samples_gradient_is_clipped_by_itself_as_opacus_does() -> None:
    opacus = pytest.importorskip("opacus")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2))
    inputs, targets = torch.randn(4, 1, 6, 6), torch.randint(0, 2, (4,))
    peer = opacus.GradSampleModule(net, loss_reduction="sum")
    seen = inputs.clone().requires_grad_()  # opacus' hooks warn where no input learns
    nn.functional.cross_entropy(peer(seen), targets, reduction="sum").backward()
    samples = [p.grad_sample for p in peer.parameters()]
    lengths = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
    clip_norm = float(lengths.median()) * 0.99
    assert (lengths > clip_norm).any() and (lengths < clip_norm).any()
    scale = (clip_norm / lengths).clamp(max=1)
    expected = [torch.tensordot(scale, s, dims=1) / 4 for s in samples]
    peer.remove_hooks()
    clipped_gradients(
        net, lambda x, y: nn.functional.cross_entropy(net(x), y), (inputs, targets), clip_norm, 0.0
    )
    for parameter, peers in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, peers, atol=1e-6)


def test_a_steps_noise_is_on_the_sum() -> None:
    net, data = small_net(), batch(2)

    def step(noise: float) -> Tensor:
        clipped_gradients(
            net, lambda x, y: nn.functional.cross_entropy(net(x), y), data, 0.5, noise,
            expected=4.0, normal=normal(),
        )  # fmt: skip
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    added = step(2.0) - step(0.0)
    assert float(added.std()) == pytest.approx(2.0 * 0.5 / 4.0, rel=0.05)


def test_batch_statistics_and_wrecks_are_refused() -> None:
    net = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    with pytest.raises(ConfigError, match="without batch normalisation"):
        clipped_gradients(net, lambda x, y: net(x).sum(), batch(1), 1.0, 1.0)
    with pytest.raises(ConfigError, match="finite"):
        protected({"w": torch.tensor([float("nan")])}, 1.0, 1.0)
    with pytest.raises(ConfigError, match="clip_norm"):
        protected(update(), 0.0, 1.0)


# dp-accounting 0.6.0 (Google): its RDP and its PLD accountant, Poisson samples, add or remove one.
PEERS = {
    "Abadi et al. 2016": (4.0, 0.01, 10_000, 1.0354900660, 0.9469993060),
    "MNIST of TF Privacy": (1.3, 256 / 60_000, 3515, 0.9544295087, 0.8644586715),
    "small and noisy": (1.5, 0.1, 300, 6.8735927723, 6.2905611431),
    "all sites, 20 rounds": (8.0, 1.0, 20, 2.4515063862, 2.2581455018),
}


@pytest.mark.parametrize("name", PEERS)
def test_epsilon_is_the_peers(name: str) -> None:
    pytest.importorskip("opacus")
    noise, rate, steps, peer, tight = PEERS[name]
    ours = epsilon_of([Spending("a", noise, rate, steps)], DELTA)
    assert ours == pytest.approx(peer, rel=0.01)
    assert tight < ours < 1.2 * tight  # an upper bound, and not a lazy one


def test_epsilon_is_below_what_was_published_with_the_looser_conversion() -> None:
    pytest.importorskip("opacus")
    # Moments accountant, σ = 4, q = 0.01, 10,000 steps: 1.26 (Abadi et al. 2016, figure 2), which
    # TensorFlow Privacy's test writes as 1.258575. Its conversion is RDP + ln(1/δ)/(α − 1).
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = list(range(2, 33))
    curve = compute_rdp(q=0.01, noise_multiplier=4.0, steps=10_000, orders=orders)
    loose = min(r + log(1 / DELTA) / (a - 1) for r, a in zip(curve, orders, strict=True))
    assert loose == pytest.approx(1.258575, abs=1e-5)
    assert 0.8 * loose < epsilon_of([Spending("a", 4.0, 0.01, 10_000)], DELTA) < loose


def test_epsilon_from_the_definition_by_quadrature() -> None:
    pytest.importorskip("opacus")
    noise, rate, steps = 2.0, 0.05, 400

    def rdp(order: int) -> float:
        def term(x: float) -> float:
            ratio = 1 - rate + rate * exp((2 * x - 1) / (2 * noise**2))
            return float(norm.pdf(x, scale=noise)) * ratio**order

        moment, _ = quad(term, -40, 40 + order, limit=400, points=[0, order], epsabs=0)
        return log(moment) / (order - 1)

    def converted(order: int) -> float:  # Balle et al. 2020, theorem 21
        return steps * rdp(order) + log((order - 1) / order) - log(DELTA * order) / (order - 1)

    independent = min(converted(order) for order in range(2, 40))
    assert epsilon_of([Spending("a", noise, rate, steps)], DELTA) == pytest.approx(
        independent, rel=0.005
    )


def test_one_release_against_the_analytic_gaussian_mechanism() -> None:
    pytest.importorskip("opacus")
    # Balle and Wang 2018, theorem 8: δ(ε) = Φ(1/2σ − εσ) − e^ε Φ(−1/2σ − εσ).
    for sigma in (1.0, 3.73, 10.0):

        def excess(epsilon: float, s: float = sigma) -> float:
            head = norm.cdf(1 / (2 * s) - epsilon * s)
            return float(head - exp(epsilon) * norm.cdf(-1 / (2 * s) - epsilon * s) - DELTA)

        exact = brentq(excess, 1e-6, 50)
        ours = epsilon_of([Spending("a", sigma, 1.0, 1)], DELTA)
        assert exact < ours < 1.15 * exact


def test_noise_for_is_the_least_that_is_enough() -> None:
    pytest.importorskip("opacus")
    for epsilon, rate, steps in ((1.0, 0.05, 500), (3.0, 1.0, 20), (0.1, 1.0, 1)):
        noise = noise_for(epsilon, DELTA, rate, steps)
        assert epsilon_of([Spending("a", noise, rate, steps)], DELTA) <= epsilon
        assert epsilon_of([Spending("a", noise * 0.995, rate, steps)], DELTA) > epsilon
    with pytest.raises(ConfigError, match="within reach of some noise"):
        noise_for(1e-3, DELTA, 1.0, 10_000)


def test_the_ledger_counts_all_trainings_and_refuses_in_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    path = tmp_path / "site" / "privacy.json"
    first, second = Spending("liver", 2.0, 0.05, 100), Spending("spine", 1.5, 0.1, 100)
    ledger = spend(path, first, maximum_epsilon=6.0, delta=1e-6)
    assert ledger.delta == 1e-6
    for _ in range(2):  # the same again is more steps of it, in any process
        ledger = spend(path, first, 6.0)
    assert ledger.spendings == (Spending("liver", 2.0, 0.05, 300),)
    ledger = spend(path, second, 6.0)
    assert read_config(path, Ledger) == ledger
    whole, parts = ledger.epsilon(), [ledger.epsilon(name) for name in ("liver", "spine")]
    assert max(parts) < whole < sum(parts)
    before = path.read_bytes()
    with pytest.raises(ConfigError) as refusal:
        spend(path, Spending("spine", 0.5, 0.5, 50), 6.0)
    sentence = str(refusal.value)
    assert sentence.startswith("ε of a case over all trainings must be at most 6, got ")
    assert "with spine" in sentence and "\n" not in sentence
    assert path.read_bytes() == before
    assert spend(path, second, None).epsilon() > whole


def test_a_ledger_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "privacy.json"
    path.write_text("{")
    with pytest.raises(FormatError, match="JSON"):
        spend(path, Spending("a", 1.0, 1.0, 1), None)
    for noise, rate, steps in ((0.0, 1.0, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 1.0, 0)):
        with pytest.raises(ConfigError):
            Spending("a", noise, rate, steps)
    with pytest.raises(ConfigError, match="delta"):
        Ledger(delta=0.0)
    assert Ledger().epsilon() == 0
