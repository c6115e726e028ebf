"""Weights for what matters: gradients of important features, voxels of small lesions. Off unless
asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qinjing.errors import ConfigError

_MOST = 4.0  # bound on a channel's weight before all are scaled to mean 1
_STAGES = ("encoders", "decoders")  # where a network lists its stages
# Named, not looked up: losses never import networks. A test holds this against `NETS`.
_HAVE_STAGES = ("subvoxel_unet", "unet", "residual_unet", "transunet", "hybrid", "pyramid")


def reweight_gradients(net: nn.Module, strength: float) -> list[RemovableHandle]:
    """Scale what flows back through each stage of a network by how much each channel matters.

    For a stage's output x and its gradient g the importance of channel c is I_c = Σ |x_c · g_c|,
    summed over batch and voxels: each voxel's part in what the loss would change by, to first
    order, without the channel, signs apart. Then

        g_c ← w_c · g_c,   w_c ∝ clip(I_c / mean(I), 1/4, 4)^strength,   mean(w) = 1.

    Weights are found anew in every step, from nothing but that step, so that a resumed run goes on
    to the same bits. Forward passes do not change.

    Stages are what a network lists in its module lists `encoders` and `decoders`, and nothing
    within them: blocks inside may hold their channels elsewhere than in second place.

    Shapes: outputs of stages (B, C, D, H, W).

    Args:
        net: a network that lists its stages, as all of ours do; MONAI's do not.
        strength: 0 changes nothing; 1 weighs in proportion to importance; negative values favour
            what matters least so far.

    Returns:
        Handles; `remove()` each to undo it.

    Raises:
        ConfigError: the network lists no stages; in training, one of them returns no such map.

    Source: arXiv:1906.10771 (importance, Molchanov et al. 2019); the paper, section 3.2, names
    "dynamic gradient re-weighting" and gives no formula.
    """
    stages = [stage for name in _STAGES for stage in getattr(net, name, ())]
    if not stages:
        raise ConfigError(
            "net", f"one that lists its {' and '.join(_STAGES)} so that gradients can be weighed",
            type(net).__name__, advice=f"{', '.join(_HAVE_STAGES)} do",
        )  # fmt: skip
    return [stage.register_forward_hook(_weigher(strength)) for stage in stages]


def channel_weights(features: Tensor, gradient: Tensor, strength: float) -> Tensor:
    """Return w of `reweight_gradients`, of mean 1; all ones where nothing matters.

    Shapes: two (B, C, …) → (C,).

    Source: arXiv:1906.10771, as in `reweight_gradients`.
    """
    axes = [axis for axis in range(features.ndim) if axis != 1]
    importance = (features.float() * gradient.float()).abs().sum(axes)
    mean = importance.mean()
    relative = torch.where(mean > 0, importance / mean.clamp(min=1e-30), 1.0)
    weights = relative.clamp(1 / _MOST, _MOST) ** strength
    return weights / weights.mean()


def _weigher(strength: float) -> Callable[[nn.Module, object, object], None]:
    def watch(module: nn.Module, inputs: object, output: object) -> None:
        if not module.training:
            return
        if not isinstance(output, Tensor) or output.ndim != 5:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError("a stage's output", "a map (B, C, D, H, W)", got)
        if not output.requires_grad:
            return
        features = output.detach()

        def weigh(gradient: Tensor) -> Tensor:
            weights = channel_weights(features, gradient, strength).to(gradient)
            return gradient * weights.view(1, -1, 1, 1, 1)

        output.register_hook(weigh)

    return watch


def lesion_weights(target: Tensor, most: float = 200.0) -> Tensor:
    """Return weights of voxels by which each lesion counts as much as any other, and as the rest.

    A voxel of component j of K gets w = N / ((K + 1)·|L_j|), N being the voxels of the sample and
    L_0 its background, bounded to 1 … `most`. Components are 26-connected and of one class.

    Args:
        target: (B, D, H, W) int64 class indices.
        most: bound, against lesions of a few voxels.

    Returns:
        (B, D, H, W) float32 on the target's device.

    Source: Shirokikh et al. 2020, arXiv:2007.10033.
    """
    weights = np.stack([_component_weights(one, most) for one in target.cpu().numpy()])
    return torch.from_numpy(weights).to(target.device)


def _component_weights(classes: np.ndarray, most: float) -> np.ndarray:
    from scipy.ndimage import generate_binary_structure, label

    touching = generate_binary_structure(3, 3)
    components = np.zeros(classes.shape, np.int32)
    count = 0
    for value in np.unique(classes[classes > 0]):
        found, n = label(classes == value, touching)
        components[found > 0] = found[found > 0] + count
        count += n
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    weights = classes.size / ((count + 1) * np.maximum(sizes, 1))
    kept: np.ndarray = np.clip(weights, 1.0, most).astype(np.float32)[components]
    return kept
