"""Muon: momentum made orthogonal for matrices and kernels, AdamW for all else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Channels on either side of what is made orthogonal: no heads, and nothing that meets images.
_LEAST = 8
_MOMENTUM = 0.95
_SPREAD = 0.2  # root mean square of an update, as AdamW's are, so that both take one learning rate
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Give every direction of a weight's update the same length.

    Weights with at least 8 channels on either side are updated by the nearest orthogonal matrix to
    their averaged gradient, kernels flattened to (first axis, rest); all others by AdamW.

    Args:
        groups: `{"params": …, "weight_decay": …}`, and what else a caller keeps in them.
        learning_rate: of both.
        betas: of AdamW.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; arXiv:2502.16982 (the scale that
        lets it share AdamW's learning rate).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(groups, {"lr": learning_rate, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            self._adamw([p for p in given if not is_orthogonal(p)], group)
            for weight in filter(is_orthogonal, given):
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                mean = state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
                ahead = weight.grad.lerp(mean, _MOMENTUM)  # as Nesterov looks ahead
                update = orthogonal(ahead.flatten(1).float())
                rate = group["lr"] * _SPREAD * max(update.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.view(weight.shape), alpha=-rate)

    def _adamw(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        if not weights:
            return
        for weight in weights:
            if not self.state[weight]:
                zeros = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                step = torch.zeros((), dtype=torch.float32, device=weight.device)
                self.state[weight] = {"step": step, **zeros}
        states = [self.state[weight] for weight in weights]
        adamw(
            weights,
            [w.grad for w in weights if w.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def is_orthogonal(weight: Tensor) -> bool:
    """Whether a weight's updates are made orthogonal: it has 8 channels or more either way."""
    return weight.ndim > 1 and min(weight.shape[:2]) >= _LEAST


def orthogonal(matrix: Tensor) -> Tensor:
    """Return nearly U·Vᵀ of a matrix U·S·Vᵀ: its singular values come to lie from 0.68 to 1.14.

    Newton and Schulz's iteration X ← (a + b·X·Xᵀ + c·(X·Xᵀ)²)·X multiplies X by polynomials of X·Xᵀ
    alone. They are gathered on that small square matrix, so that the large one takes part in two
    products and not in ten.

    Args:
        matrix: (M, N) float32.

    Source: Jordan et al. 2024 (the coefficients).
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / (torch.linalg.matrix_norm(wide) + 1e-7)
    square = wide @ wide.T
    factor = _factor(square)
    total = factor
    for _ in range(_ROUNDS - 1):
        square = factor @ square @ factor
        factor = _factor(square)
        total = factor @ total
    wide = total @ wide
    return wide if len(matrix) <= matrix.shape[1] else wide.T


def _factor(square: Tensor) -> Tensor:
    """a + b·S + c·S² of a square matrix S."""
    a, b, c = _QUINTIC
    factor = torch.addmm(square, square, square, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor
