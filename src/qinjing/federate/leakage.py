"""What an update gives away: an attack that draws the patch which a gradient came from.

The attack plays a coordinator that keeps to the rules and is curious. It knows the network with its
weights before the step, the loss, the size of the patch, and either the patch's label or nothing of
it. It has one update, made by one step of plain gradient descent on one patch: that is −rate times
the gradient, and since only the direction counts, the update with its sign turned is the gradient.
After several steps, several patches or an optimiser with a memory it is only like it, and the
picture gets worse; a failure there is no protection that anyone has proved.

A network whose normalisation takes grey level and contrast away gives neither back: pictures are
compared after both are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log10

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.errors import ConfigError

Update = Mapping[str, Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]
_WINDOW = 7


@dataclass(frozen=True)
class Stolen:
    """What the attack came to.

    Attributes:
        image: (C, D, H, W) float32, mean 0 and deviation 1.
        label: (D, H, W) int64, guessed where it was not known.
        mismatch: 0 for a picture whose gradient has the right direction in every weight, 1 for one
            that knows nothing of it. The attack sees it, and no truth is needed.
    """

    image: Tensor
    label: Tensor
    mismatch: float


@dataclass(frozen=True)
class Likeness:
    """How much of a picture is in another, grey level and contrast apart.

    Attributes:
        psnr: decibels.
        ssim: structural similarity, 1 for the same picture.
        ncc: correlation, 1 for the same picture.
    """

    psnr: float
    ssim: float
    ncc: float


@dataclass(frozen=True)
class Leak:
    """One row of `leakage_table`.

    Attributes:
        name: what was done to the update.
        likeness: of the attack's picture and the truth.
        stolen: the picture.
    """

    name: str
    likeness: Likeness
    stolen: Stolen


def gradient_of(
    net: nn.Module, image: Tensor, label: Tensor, criterion: Criterion = F.cross_entropy
) -> dict[str, Tensor]:
    """Return what one step on one patch tells: the gradient of every weight that learns.

    Args:
        net: (1, C, D, H, W) → logits (1, K, D, H, W), or a tuple that begins with them.
        image: (C, D, H, W).
        label: (D, H, W) int64.
        criterion: logits and label → scalar.
    """
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    loss = criterion(_logits(net, image[None]), label[None])
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


def invert(
    net: nn.Module,
    gradient: Update,
    shape: Sequence[int],
    label: Tensor | None = None,
    steps: int = 300,
    seed: int = 0,
    smoothness: float = 0.01,
    restarts: int = 1,
    criterion: Criterion = F.cross_entropy,
) -> Stolen:
    """Look for the patch whose gradient points where the given one does.

    From noise, signed steps of Adam on the cosine distance, each weight tensor for itself, plus the
    picture's total variation. The network's gradients are left alone.

    Args:
        net: as it was before the step; see the top of this file for what else is known.
        gradient: by parameter name, of any length; turn the sign of an update.
        shape: of the patch, (C, D, H, W).
        label: (D, H, W) int64; guessed along with the picture where None.
        steps: of each attempt.
        seed: of the noise to begin with.
        smoothness: weight of the total variation.
        restarts: attempts, from other noise each; the one with the least mismatch counts.
        criterion: logits and label → scalar; where the label is guessed, it is given probabilities
            (1, K, D, H, W).

    Returns:
        The picture and how well it fits the gradient.

    Raises:
        ConfigError: the gradient's names or shapes are not the network's, or a number is not
            positive.

    Source: arXiv:2003.14053 (Geiping et al., Inverting Gradients); arXiv:1906.08935 (Zhu et al., a
        label guessed along).
    """
    if steps < 1 or restarts < 1:
        raise ConfigError("steps and restarts", "positive", f"{steps}, {restarts}")
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in named.items()} != {n: g.shape for n, g in gradient.items()}:
        raise ConfigError("gradient", "of the network's own weights", "others")
    learns = list(named.values())
    wanted = [_unit(gradient[name].detach().to(p.device)) for name, p in named.items()]
    tries = []
    for number in range(restarts):
        noise = torch.Generator().manual_seed(seed + number)
        picture = torch.randn(1, *shape, generator=noise).to(learns[0].device)
        tries.append(_attempt(net, learns, wanted, picture, label, steps, smoothness, criterion))
    return min(tries, key=lambda one: one.mismatch)


def leakage_table(
    net: nn.Module,
    image: Tensor,
    label: Tensor,
    protections: Mapping[str, Callable[[dict[str, Tensor]], Update]],
    steps: int = 300,
    seed: int = 0,
    smoothness: Sequence[float] = (0.01,),
    restarts: int = 1,
    criterion: Criterion = F.cross_entropy,
) -> list[Leak]:
    """Attack one gradient as it is, under each protection, and with nothing of it to go by.

    Args:
        net: as for `invert`.
        image: the truth, (C, D, H, W).
        label: (D, H, W) int64, which the attack knows.
        protections: name → gradient → what the coordinator sees of it.
        steps: of each attempt.
        seed: of all noise here.
        smoothness: weights to try, the same for all; the picture most like the truth counts, which
            is more than an attack could choose.
        restarts: as for `invert`.
        criterion: logits and label → scalar.

    Returns:
        "nothing" (random numbers in place of the gradient), "gradient", then the protections.
    """
    true = gradient_of(net, image, label, criterion)
    noise = torch.Generator().manual_seed(seed)
    seen: dict[str, Update] = {
        "nothing": {n: torch.randn(g.shape, generator=noise).to(g) for n, g in true.items()},
        "gradient": true,
    }
    seen |= {name: protect(dict(true)) for name, protect in protections.items()}
    rows = []
    for name, update in seen.items():
        found = [
            invert(net, update, image.shape, label, steps, seed, weight, restarts, criterion)
            for weight in smoothness
        ]
        all_ = [Leak(name, likeness(one.image, image), one) for one in found]
        rows.append(max(all_, key=lambda row: row.likeness.ssim))
    return rows


def likeness(image: Tensor, truth: Tensor) -> Likeness:
    """Compare two pictures after giving both mean 0 and deviation 1.

    Args:
        image: (C, D, H, W).
        truth: the same shape; each of D, H and W is 1 or at least 7.

    Raises:
        ConfigError: shapes differ or are too small.

    Source: doi:10.1109/TIP.2003.819861 (Wang et al., SSIM), over blocks of 7 voxels along each
        axis, with the truth's range.
    """
    if image.shape != truth.shape or any(1 < n < _WINDOW for n in truth.shape[1:]):
        raise ConfigError(
            "pictures", f"of one shape, of 1 or at least {_WINDOW} voxels along each axis",
            f"{tuple(image.shape)} and {tuple(truth.shape)}",
        )  # fmt: skip
    a, b = (_standard(one.detach().cpu().double()).numpy() for one in (image, truth))
    span = float(b.max() - b.min())
    error = float(((a - b) ** 2).mean())
    psnr = 10 * log10(span**2 / error) if error and span else inf
    ssim = float(
        np.mean([_ssim(x.squeeze(), y.squeeze(), span) for x, y in zip(a, b, strict=True)])
    )
    return Likeness(psnr, ssim, float((a * b).mean()))


def _attempt(
    net: nn.Module,
    learns: Sequence[Tensor],
    wanted: Sequence[Tensor],
    picture: Tensor,
    label: Tensor | None,
    steps: int,
    smoothness: float,
    criterion: Criterion,
) -> Stolen:
    picture.requires_grad_()
    free = [picture]
    if label is None:
        with torch.no_grad():
            guess = torch.zeros_like(_logits(net, picture))
        free.append(guess.requires_grad_())
    optimiser = torch.optim.Adam(free, lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    mismatch = torch.ones(())
    for _ in range(steps):
        target = label[None].to(picture.device) if label is not None else guess.softmax(dim=1)
        loss = criterion(_logits(net, picture), target)
        own = torch.autograd.grad(loss, learns, create_graph=True)
        pairs = zip(own, wanted, strict=True)
        mismatch = 1 - torch.stack([(_unit(g) * w).sum() for g, w in pairs]).mean()
        cost = mismatch + smoothness * _total_variation(picture)
        slopes = torch.autograd.grad(cost, free)
        # The picture's slope is spread over many sizes, of which only the direction is of use.
        picture.grad = slopes[0].sign()
        if label is None:
            guess.grad = slopes[1]
        optimiser.step()
        schedule.step()
    found = label.cpu() if label is not None else guess.detach()[0].argmax(dim=0).cpu()
    return Stolen(_standard(picture.detach()[0].cpu()), found, float(mismatch.detach()))


def _logits(net: nn.Module, image: Tensor) -> Tensor:
    out = net(image)
    logits: Tensor = out[0] if isinstance(out, tuple) else out
    return logits


def _unit(value: Tensor) -> Tensor:
    return value / (value.square().sum() + 1e-24).sqrt()


def _total_variation(picture: Tensor) -> Tensor:
    """Mean absolute step along every axis with more than one voxel."""
    along = [d for d in (2, 3, 4) if picture.shape[d] > 1]
    return torch.stack([picture.diff(dim=d).abs().mean() for d in along]).sum()


def _standard(image: Tensor) -> Tensor:
    return (image - image.mean()) / image.std(correction=0).clamp_min(1e-12)


def _ssim(a: np.ndarray, b: np.ndarray, span: float) -> float:
    from scipy.ndimage import uniform_filter

    def mean(values: np.ndarray) -> np.ndarray:
        smooth: np.ndarray = uniform_filter(values, _WINDOW)
        # Where a whole window lies in the picture.
        return smooth[(slice(_WINDOW // 2, -(_WINDOW // 2)),) * values.ndim]

    count = _WINDOW**a.ndim
    unbiased = count / (count - 1)
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = (unbiased * (mean(x * x) - m * m) for x, m in ((a, mean_a), (b, mean_b)))
    both = unbiased * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())
