"""Transforms one after the other, and the list of them that training uses by default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qinjing.data.transforms.transform import Transform, spatial_axes


@dataclass(frozen=True)
class Augmentation:
    """Apply transforms in order to a batch.

    Args:
        transforms: each with `draw` and `apply`.
    """

    transforms: tuple[Transform, ...]

    @property
    def margin(self) -> tuple[int, int, int]:
        """Voxels along (D, H, W) by which a patch must come in larger at either end."""
        margins = [getattr(transform, "margin", (0, 0, 0)) for transform in self.transforms]
        d, h, w = (sum(lengths) for lengths in zip((0, 0, 0), *margins, strict=True))
        return d, h, w

    def draw(self, rng: np.random.Generator, batch: int) -> tuple[Any, ...]:
        """Draw every transform's parameters for `batch` samples.

        Args:
            rng: the only source of chance; the same state gives the same parameters.
            batch: how many samples.
        """
        return tuple(transform.draw(rng, batch) for transform in self.transforms)

    @torch.no_grad()
    def apply(
        self, image: Tensor, label: Tensor, parameters: Sequence[Any]
    ) -> tuple[Tensor, Tensor]:
        """Apply what was drawn, in full precision, on the tensors' own device.

        Args:
            image: `(B, C, D, H, W)` float32, left as it is; it comes back without the margin.
            label: `(B, D, H, W)` of any integer type, left as it is.
            parameters: what `draw` returned for this batch size.
        """
        with torch.autocast(image.device.type, enabled=False):
            for transform, drawn in zip(self.transforms, parameters, strict=True):
                image, label = transform.apply(image, label, drawn)
        return image, label


def default_augmentation(
    patch_size: Sequence[int], anisotropic: bool, mirror_axes: Iterable[int] = (0, 1, 2)
) -> list[dict[str, Any]]:
    """Return the configuration of nnU-Net's augmentation: names and options in its order.

    Probabilities and ranges are nnU-Net's. A transform that nnU-Net decides on anew for each
    channel, with one half, has half its probability here and acts on all channels alike.

    Args:
        patch_size: (D, H, W) in voxels.
        anisotropic: voxels, or the patch, are much longer one way: turn about D only, by
            any angle, and leave slices apart.
        mirror_axes: axes along which anatomy may be mirrored; none for left-right labels.

    Raises:
        ConfigError: a mirror axis that is not 0, 1 or 2.

    Source: nnU-Net, doi:10.1038/s41592-020-01008-z, supplement 4; version 2's values.
    """
    axes = spatial_axes("mirror_axes", tuple(mirror_axes))
    flat = anisotropic or min(patch_size) == 1
    still, tilt = [0.0, 0.0], [-30.0, 30.0]
    turns = [[-180.0, 180.0], still, still] if flat else [tilt, tilt, tilt]
    # What a zoom of 0.7 and a tilt bring into view is cut from the scan, not made up.
    margin = [0 if flat and axis == 0 else ceil(n / 4) for axis, n in enumerate(patch_size)]
    low_resolution = {"axes": [1, 2] if flat else [0, 1, 2], "probability": 0.125}
    configs: list[tuple[str, dict[str, Any]]] = [
        (
            "affine",
            {"rotation_deg": turns, "scale": [0.7, 1.4], "in_plane": flat, "margin": margin},
        ),
        ("noise", {"std": [0.0, 0.1], "probability": 0.1}),
        ("blur", {"sigma": [0.5, 1.0], "probability": 0.1}),
        ("brightness", {"factor": [0.75, 1.25], "probability": 0.15}),
        ("contrast", {"factor": [0.75, 1.25], "probability": 0.15}),
        ("low_resolution", {"zoom": [0.5, 1.0], **low_resolution}),
        ("gamma", _gamma(probability=0.1, invert_probability=1.0)),
        ("gamma", _gamma(probability=0.3, invert_probability=0.0)),
        ("flip", {"axes": list(axes), "probability": 0.5}),
    ]
    if not axes:
        configs.pop()
    return [{"name": name, "options": options} for name, options in configs]


def strong_intensity() -> list[dict[str, Any]]:
    """Return the configuration of changes of grey values that make two views of one crop unlike.

    Source: arXiv:2104.14294 (DINO's colour changes), on grey values.
    """
    often = {"probability": 0.5}
    configs: list[tuple[str, dict[str, Any]]] = [
        ("brightness", {"factor": [0.6, 1.5], **often}),
        ("contrast", {"factor": [0.6, 1.5], **often}),
        ("gamma", {"gamma": [0.6, 1.7], "retain_stats": True, **often}),
        ("noise", {"std": [0.0, 0.2], **often}),
        ("blur", {"sigma": [0.5, 1.0], "probability": 0.3}),
    ]
    return [{"name": name, "options": options} for name, options in configs]


def _gamma(**chances: float) -> dict[str, Any]:
    return {"gamma": [0.7, 1.5], "retain_stats": True, **chances}
