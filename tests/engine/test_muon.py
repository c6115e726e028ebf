"""Muon, against torch's own of matrices, its AdamW, and a singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qinjing.engine.muon import Muon, is_orthogonal, orthogonal


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (8, 8)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = seeded(*shape) @ torch.diag(torch.logspace(0, -2, shape[1]))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    shares = torch.diagonal(u.T @ orthogonal(matrix) @ v.T)
    # What is below a five hundredth of the whole has not the rounds to come up.
    seen = values / values.norm() > 2e-3
    assert seen.sum() > 5 and (shares[seen] > 0.6).all() and (shares < 1.25).all()
    made = u @ torch.diag(shares) @ v
    torch.testing.assert_close(orthogonal(matrix), made, atol=1e-3, rtol=0)


def test_matrices_move_as_with_torchs_muon() -> None:
    ours, theirs = (nn.Parameter(seeded(24, 60)) for _ in range(2))
    start = ours.detach().clone()
    one = Muon([{"params": [ours], "weight_decay": 0.1}], 0.02)
    other = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    for number in range(5):
        for weight, optimiser in ((ours, one), (theirs, other)):
            weight.grad = seeded(24, 60 + number)[:, number:]
            optimiser.step()
    # Torch's works in bfloat16.
    far = torch.linalg.norm(ours - theirs) / torch.linalg.norm(ours - start)
    assert 0 < far < 0.02


def test_all_else_moves_as_with_adamw() -> None:
    shapes = [(16,), (3, 16, 1, 1, 1), (16, 1, 3, 3, 3)]  # a bias, a head, what meets the image
    assert is_orthogonal(seeded(16, 8, 3, 3, 3)) and not any(
        map(is_orthogonal, map(torch.zeros, shapes))
    )
    ours, theirs = ([nn.Parameter(seeded(*shape)) for shape in shapes] for _ in range(2))
    one = Muon([{"params": ours, "weight_decay": 0.1}], 0.02)
    other = torch.optim.AdamW(theirs, lr=0.02, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    for number in range(3):
        for weights, optimiser in ((ours, one), (theirs, other)):
            for weight in weights:
                weight.grad = (number - 1.5) * seeded(*weight.shape)
            optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
