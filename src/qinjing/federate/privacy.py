"""Differential privacy: what a site's update may tell of a case or of the site, and its account.

Two units can be protected. A *site*: its whole update is clipped and noise is added before it
leaves (`protected`). A *case*: every step clips each case's gradient and adds noise to their sum
(`clipped_gradients`), so that the update needs no more. Both are Gaussian mechanisms, so that one
account fits both; their ε stand for different things and are kept in different ledgers.

What ε does not cover: whatever else was looked at in the data, such as a choice of learning rate
by its results, pooled fingerprints, or how many cases a site has. Noise is float32, whose gaps a
reader of the bare update could use in theory (doi:10.1145/2382196.2382264); the rounding of the
secure sum is coarser than these.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, pi, sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qinjing.config import read_config, write_json
from qinjing.errors import ConfigError
from qinjing.evidence.envelope import locked

Normal = Callable[[int], Tensor]
LEAST_NOISE = 0.3  # below, ε is in the hundreds after few steps and protects nobody
MOST_NOISE = 1e3
_ORDERS = [1.25, 1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, 4, 4.5, *range(5, 64), 72, 96, 128, 256, 384]
_BLOCK = 2**20


def protected(
    update: Mapping[str, Tensor],
    clip_norm: float,
    noise: float,
    sites: int = 1,
    normal: Normal | None = None,
) -> dict[str, Tensor]:
    """Clip a site's update and add its part of the noise that protects the site.

    The sum over `sites` such updates has noise of deviation `noise` · `clip_norm`, which is what
    the account is of: only the sum may be seen, as in a secure sum. With `sites` = 1 every update
    is protected by itself. The sum must give all sites the same weight: a weight by cases would let
    one site move it by more than `clip_norm`, and tell its size.

    Args:
        update: changes of weights, float32.
        clip_norm: C, the largest Euclidean length over all weights together, above 0.
        noise: σ, the deviation of the sum's noise as a multiple of C, at least 0.
        sites: that surely are in the sum and keep their noise to themselves: the least number
            with which a round counts, less those who might tell each other theirs.
        normal: count → standard normal float32 (count,); from the operating system's entropy
            where None. Another one is for tests and simulations alone.

    Returns:
        A new update of the same names and shapes.

    Raises:
        ConfigError: a number is out of range, or a weight is not finite.

    Source: arXiv:1710.06963 (McMahan et al., algorithm 1), arXiv:2102.06387 (noise shared by the
        sites of a secure sum).
    """
    _positive("clip_norm", clip_norm)
    if noise < 0 or sites < 1:
        raise ConfigError("noise and sites", "at least 0 and at least 1", f"{noise}, {sites}")
    scale = _scale(update.values(), clip_norm)
    deviation = noise * clip_norm / sqrt(sites)
    return {
        name: _noisy(value.detach() * scale, deviation, normal) for name, value in update.items()
    }


def clipped_gradients(
    net: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    clip_norm: float,
    noise: float,
    expected: float | None = None,
    normal: Normal | None = None,
) -> float:
    """Write into `.grad` the mean of clipped gradients of single cases, with noise on their sum.

    Every sample goes through the network by itself, so that any network will do, batch statistics
    apart: those of other samples would pass the clipping by. The account takes for granted that a
    step draws each case with the same probability whatever the others do, and has no more than one
    sample of a case.

    Args:
        net: what learns; gradients that it holds are replaced.
        loss_of: inputs (1, C, D, H, W) and targets (1, D, H, W) → scalar.
        batch: inputs (B, C, D, H, W) and targets (B, D, H, W); B may be 0, which leaves noise.
        clip_norm: C, the largest Euclidean length of one sample's gradient, above 0.
        noise: σ, the deviation of the noise as a multiple of C, at least 0.
        expected: what the sum is divided by: probability of a case times cases; B where None.
        normal: as for `protected`.

    Returns:
        The samples' mean loss, which is not protected and must stay at the site; 0 for B = 0.

    Raises:
        ConfigError: a number is out of range, the net has batch statistics, or a gradient is not
            finite.

    Source: arXiv:1607.00133 (Abadi et al., DP-SGD, algorithm 1).
    """
    _positive("clip_norm", clip_norm)
    inputs, targets = batch
    divisor = float(len(inputs)) if expected is None else expected
    if noise < 0 or not divisor > 0:
        raise ConfigError("noise and expected", "at least 0 and above 0", f"{noise}, {divisor}")
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in net.modules()):
        raise ConfigError(
            "net", "without batch normalisation", type(net).__name__,
            advice="its statistics mix cases, which no clipping undoes",
        )  # fmt: skip
    learns = [p for p in net.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in learns]
    losses = 0.0
    for i in range(len(inputs)):
        loss = loss_of(inputs[i : i + 1], targets[i : i + 1])
        found = torch.autograd.grad(loss, learns, allow_unused=True)
        scale = _scale((g for g in found if g is not None), clip_norm)
        for total, gradient in zip(sums, found, strict=True):
            if gradient is not None:
                total.add_(gradient, alpha=scale)
        losses += float(loss.detach())
    for p, total in zip(learns, sums, strict=True):
        p.grad = _noisy(total, noise * clip_norm, normal).div_(divisor)
    return losses / max(len(inputs), 1)


def secure_normal(count: int) -> Tensor:
    """Return `count` standard normal numbers that nobody can draw again, float32 (count,).

    Source: Box and Muller 1958, doi:10.1214/aoms/1177706645, over AES-256 in counter mode with a
        key of the operating system's entropy.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR

    stream = Cipher(AES(os.urandom(32)), CTR(bytes(16))).encryptor()
    result = torch.empty(count)
    for start in range(0, count, _BLOCK):
        part = result[start : start + _BLOCK]
        half = (len(part) + 1) // 2
        words = torch.frombuffer(bytearray(stream.update(bytes(8 * half))), dtype=torch.int32)
        # (0, 1], so that its logarithm is finite; 32 bits reach to 6.8 deviations.
        uniform = ((words.double() + (2**31 + 0.5)) / 2**32).reshape(2, half)
        radius, angle = (-2 * uniform[0].log()).sqrt(), 2 * pi * uniform[1]
        part.copy_(torch.cat([radius * angle.cos(), radius * angle.sin()])[: len(part)])
    return result


@dataclass(frozen=True)
class Spending:
    """Steps of one kind.

    Attributes:
        training: whose they are.
        noise: σ, as a multiple of the clipping length.
        rate: probability that a case is in a step, or a site in a round; 1 where all are.
        steps: of a case's gradients, or rounds of a site's updates.
    """

    training: str
    noise: float
    rate: float
    steps: int

    def __post_init__(self) -> None:
        if not LEAST_NOISE <= self.noise <= MOST_NOISE:
            raise ConfigError("noise", f"from {LEAST_NOISE} to {MOST_NOISE:g}", self.noise)
        if not 0 < self.rate <= 1 or self.steps < 1:
            raise ConfigError(
                "rate and steps", "above 0 to 1, and at least 1", f"{self.rate}, {self.steps}"
            )


@dataclass(frozen=True)
class Ledger:
    """What was spent of one unit's privacy over all trainings.

    Attributes:
        delta: δ, the probability with which ε may fail; below one over the number of cases.
        unit: what is protected.
        spendings: in the order in which they were made.
    """

    delta: float = 1e-5
    unit: Literal["case", "site"] = "case"
    spendings: tuple[Spending, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ConfigError("delta", "above 0 and below 1", self.delta)

    def epsilon(self, training: str | None = None) -> float:
        """Return ε of all spendings, or of one training's."""
        return epsilon_of([s for s in self.spendings if training in (None, s.training)], self.delta)

    def spend(self, spending: Spending, maximum_epsilon: float | None = None) -> Ledger:
        """Return the ledger with a spending added.

        Args:
            spending: before it is made.
            maximum_epsilon: of everything together; None for no bound.

        Raises:
            ConfigError: it would go beyond.
        """
        *before, last = self.spendings or (None,)
        if last is not None and replace(last, steps=spending.steps) == spending:
            rows = (*before, replace(last, steps=last.steps + spending.steps))
        else:
            rows = (*self.spendings, spending)
        after = replace(self, spendings=tuple(row for row in rows if row))
        if maximum_epsilon is not None and (asked := after.epsilon()) > maximum_epsilon:
            raise ConfigError(
                f"ε of a {self.unit} over all trainings", f"at most {maximum_epsilon:g}",
                f"{asked:.3g} with {spending.training} ({self.epsilon():.3g} before it)",
                advice="ask for more noise or fewer steps",
            )  # fmt: skip
        return after


def spend(
    path: str | Path, spending: Spending, maximum_epsilon: float | None, **new: Any
) -> Ledger:
    """Enter a spending into a ledger's file, which no other process can do at the same time.

    It is on the disk when this returns. Call it before the noise is drawn: a training that is
    killed and draws noise again has spent twice.

    Args:
        path: of the ledger, JSON; made where it is not there.
        spending: before it is made.
        maximum_epsilon: of everything together; None for no bound.
        **new: fields of a ledger that is made here.

    Returns:
        The ledger as it is now.

    Raises:
        ConfigError: it would go beyond; nothing is written.
        FormatError: the file is not a ledger.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        ledger = read_config(path, Ledger) if path.exists() else Ledger(**new)
        ledger = ledger.spend(spending, maximum_epsilon)
        write_json(path, ledger)
    return ledger


def epsilon_of(spendings: Sequence[Spending], delta: float) -> float:
    """Return ε at δ of Gaussian noise on sums of random samples, an upper bound.

    Args:
        spendings: in any order.
        delta: δ.

    Raises:
        ConfigError: opacus is not installed.

    Source: arXiv:1908.10530 (Mironov et al., Rényi differential privacy of the sampled Gaussian),
        arXiv:1905.09982 (Balle et al., theorem 21), as opacus computes them.
    """
    if not spendings:
        return 0.0
    try:
        from opacus.accountants import RDPAccountant
    except ModuleNotFoundError as error:
        raise ConfigError(
            "accountant", "installed", error.name, advice="pip install 'qinjing[federate]'"
        ) from None
    accountant = RDPAccountant()
    accountant.history = [(s.noise, s.rate, s.steps) for s in spendings]
    with warnings.catch_warnings():
        # The best order may be the first or the last: a bound all the same, only less tight.
        warnings.simplefilter("ignore", UserWarning)
        epsilon, _ = accountant.get_privacy_spent(delta=delta, alphas=_ORDERS)
    return max(float(epsilon), 0.0)


def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Return the least σ with which so many steps stay within ε.

    Args:
        epsilon: above 0.
        delta: δ, as in a ledger.
        rate: probability of a case in a step, or of a site in a round.
        steps: at least 1.

    Returns:
        σ to one part in a thousand, on the safe side; at least `LEAST_NOISE`.

    Raises:
        ConfigError: no noise is enough.
    """
    _positive("epsilon", epsilon)

    def enough(noise: float) -> bool:
        return epsilon_of([Spending("", noise, rate, steps)], delta) <= epsilon

    low, high = LEAST_NOISE, 1.0
    if enough(low):
        return low
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise ConfigError(
                "epsilon",
                "within reach of some noise",
                epsilon,
                advice="allow more, or fewer steps",
            )
    while high > low * 1.001:
        middle = sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _scale(values: Any, clip_norm: float) -> float:
    """What shortens tensors to a length over all of them; 1 for those within it."""
    length = sqrt(sum(float(v.detach().double().square().sum()) for v in values))
    if not isfinite(length):
        raise ConfigError(
            "update", "finite", length, advice="the training diverged: do not send it"
        )
    return min(1.0, clip_norm / length) if length else 1.0


def _noisy(value: Tensor, deviation: float, normal: Normal | None) -> Tensor:
    if deviation:
        drawn = (normal or secure_normal)(value.numel()).reshape(value.shape)
        value = value + drawn.to(value.device, value.dtype) * deviation
    return value


def _positive(name: str, value: float) -> None:
    if not 0 < value < inf:
        raise ConfigError(name, "above 0 and finite", value)
