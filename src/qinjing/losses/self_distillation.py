"""Learning from a teacher's assignment to prototypes, without labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float = 0.05, rounds: int = 3) -> Tensor:
    """Assign samples to prototypes so that every prototype gets its equal share of the batch.

    This is the online clustering that keeps features from collapsing: the assignment, not the
    features, is made even.

    Args:
        scores: (N, K) similarities to K prototypes.
        temperature: low makes an assignment nearly one prototype's.
        rounds: of normalising columns, then rows.

    Returns:
        (N, K) float32, rows sum to 1.

    Source: arXiv:2006.09882 (SwAV), arXiv:1911.05371 (self-labelling as optimal transport).
    """
    plan = scores.float() / temperature
    plan = torch.exp(plan - plan.max())
    for _ in range(rounds):
        plan = plan / plan.sum(0, keepdim=True).clamp_min(1e-12)
        plan = plan / plan.sum(1, keepdim=True).clamp_min(1e-12)
    return plan


@torch.no_grad()
def centred_softmax(scores: Tensor, centre: Tensor, temperature: float = 0.05) -> Tensor:
    """Assign samples to prototypes after taking away the prototypes' mean scores.

    Args:
        scores: (N, K).
        centre: (K,), a running mean of scores.
        temperature: of the softmax.

    Returns:
        (N, K) float32, rows sum to 1.

    Source: arXiv:2104.14294 (DINO).
    """
    return ((scores.float() - centre) / temperature).softmax(-1)


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 0.1, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy between the teacher's assignment and the student's softmax.

    Args:
        student: (N, K) scores.
        teacher: (N, K) probabilities.
        temperature: of the student.
        weight: (N,) of each sample, all equal where None; a scalar 0 comes of weights that are 0.

    Source: arXiv:2104.14294 (DINO), arXiv:2111.07832 (iBOT) where samples are masked patches.
    """
    each = -(teacher * F.log_softmax(student.float() / temperature, dim=-1)).sum(-1)
    if weight is None:
        return each.mean()
    return (each * weight).sum() / weight.sum().clamp_min(1e-6)


def koleo_loss(features: Tensor) -> Tensor:
    """Push each sample from its nearest neighbour: minus the mean log distance on the sphere.

    Args:
        features: (N, C); normalised here. 0 for a single sample.

    Source: arXiv:1806.03198 (Sablayrolles et al., KoLeo), as used by arXiv:2304.07193 (DINOv2).
    """
    if len(features) < 2:
        return features.sum() * 0
    x = F.normalize(features.float(), dim=-1)
    likeness = (x @ x.T).detach()
    likeness.fill_diagonal_(-2)
    nearest = x[likeness.argmax(1)]
    return -(torch.linalg.vector_norm(x - nearest + 1e-8, dim=-1) + 1e-8).log().mean()


def masked_reconstruction_loss(predicted: Tensor, image: Tensor, masked: Tensor) -> Tensor:
    """Mean smooth absolute difference over the voxels that were hidden.

    Args:
        predicted: (B, C, D, H, W).
        image: (B, C, D, H, W), of about unit deviation.
        masked: (B, 1, D, H, W), 1 where hidden.

    Source: arXiv:2111.09886 (SimMIM).
    """
    each = F.smooth_l1_loss(predicted.float(), image.float(), reduction="none").mean(
        1, keepdim=True
    )
    return (each * masked).sum() / masked.sum().clamp_min(1.0)
