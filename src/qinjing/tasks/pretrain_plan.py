"""What a plan decides of a pre-training: the trunk and its twin, crops, cells and views."""

from __future__ import annotations

import numpy as np

from qinjing.engine.checkpoint import ModelCard
from qinjing.engine.plan import Plan, patch_size
from qinjing.errors import ConfigError
from qinjing.nets.blocks import Triple, total_stride

FEATURES = 32
# By device: many small crops tell apart more than few large ones.
VOLUMES_A_STEP = {"cpu": 4, "cuda": 16}
_CROP_VOXELS = {"cpu": 32_000, "cuda": 500_000}
_CELL_VOXELS = 4


def trunk_card(plan: Plan) -> ModelCard:
    """Return the trunk's card: the plan's network with features for classes, one image channel."""
    options = {**plan.model.options, "in_channels": 1, "classes": FEATURES}
    return ModelCard(plan.model.net, options)


def planar_card(card: ModelCard) -> ModelCard:
    """Return the card of the planar twin: no stride and no kernel reaches across slices.

    Raises:
        ConfigError: the network takes no strides and kernels.
    """
    options = dict(card.options)
    if "strides" not in options or "kernels" not in options:
        raise ConfigError(
            "planes", "left out with a network that takes no strides and kernels", card.net,
            advice="choose another network, or pre-train without planes",
        )  # fmt: skip
    for name in ("strides", "kernels"):
        # In slices across another axis the thick one lies in the plane: squares, then.
        options[name] = tuple((1, max(o), max(o)) for o in (tuple(one) for one in options[name]))
    return ModelCard(card.net, options)


def cell_of(plan: Plan) -> Triple:
    """Return the voxels of a token along D, H and W: four, fewer along a thick axis."""
    spacing = plan.preprocessing.spacing_mm
    edge = _CELL_VOXELS * min(spacing)
    lengths = []
    for mm, size in zip(spacing, crop_of(plan), strict=True):
        length = max(1, min(_CELL_VOXELS, round(edge / mm)))
        while size % length:
            length -= 1
        lengths.append(length)
    d, h, w = lengths
    return d, h, w


def crop_of(plan: Plan) -> Triple:
    """Return the voxels of a crop: the plan's patch, shrunk to what a step affords."""
    return patch_size(
        np.array(plan.patch_size), stride_of(plan), _CROP_VOXELS[plan.execution.device]
    )


def stride_of(plan: Plan) -> Triple:
    """Return how many voxels one of the network's coarsest map stands for, along D, H and W."""
    return total_stride(plan.model.options.get("strides", ((4, 4, 4),)))
