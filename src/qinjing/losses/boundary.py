"""Boundary losses: edges of prediction and truth compared by gradient, or weighed by distance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.losses.classes import class_maps


class GradientBoundaryLoss(nn.Module):
    """Mean over voxels of ‖∇y − ∇ŷ‖₂, averaged over foreground classes.

    Gradients are central differences, one-sided at the border, in units of one over a voxel; axes
    of a single voxel have none. Only voxels near an edge of either map cost anything, each as much
    as the edges there differ in place or sharpness.

    Raises:
        ConfigError: when called, no class is left beside the background.

    Source: the paper, section 3.1.1; arXiv:1511.05440 (the gradient difference loss, of images).
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, K, D, H, W).
            target: (B, D, H, W) int64 class indices, 0 ≤ value < K.
        """
        probability, truth = class_maps(logits, target)
        axes = [axis for axis in (2, 3, 4) if logits.shape[axis] > 1]
        if not axes:
            return probability.sum() * 0
        # The gradient is linear, so that one of the difference does for both maps.
        slopes = torch.gradient(probability - truth.to(probability), dim=axes)
        return torch.linalg.vector_norm(torch.stack(slopes), dim=0).mean()


class DistanceBoundaryLoss(nn.Module):
    """Mean over voxels of φ·(ŷ − y), φ the signed distance to the truth's boundary in voxels.

    φ is positive outside and negative inside, so that false voxels cost in proportion to how far
    off they are. Subtracting y makes a perfect prediction cost 0 and changes no gradient. Classes
    that a sample lacks have no boundary: they count as 0. It tells nothing of region sizes: add it
    to losses that do, as `ShapeLoss(boundary_term="distance")` does.

    Raises:
        ConfigError: when called, SciPy, which computes distances, is not installed, or no class is
            left beside the background.

    Source: Kervadec et al. 2019, arXiv:1812.07032.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, K, D, H, W).
            target: (B, D, H, W) int64 class indices, 0 ≤ value < K.
        """
        probability, truth = class_maps(logits, target)
        masks = truth.flatten(0, 1).cpu().numpy()
        maps = np.stack([signed_distance(mask) for mask in masks]).reshape(truth.shape)
        wrong = probability - truth.to(probability)
        return (wrong * torch.from_numpy(maps).to(probability)).mean()


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Return for each voxel the distance to the nearest voxel across the boundary, in voxels.

    Outside it is the distance to the mask, from 1 upwards; inside 1 minus the distance to the
    outside, from 0 downwards; 0 everywhere where there is no boundary.

    Args:
        mask: (D, H, W) bool.

    Raises:
        ConfigError: SciPy is not installed.

    Source: arXiv:1812.07032 and its authors' code, whose convention at the boundary this is.
    """
    try:
        from scipy.ndimage import distance_transform_edt
    except ModuleNotFoundError as error:
        raise ConfigError("scipy", "installed for the distance boundary loss", "nothing") from error
    if mask.all() or not mask.any():
        return np.zeros(mask.shape)
    outside = distance_transform_edt(~mask)
    inside = distance_transform_edt(mask)
    return np.where(mask, 1 - inside, outside)
