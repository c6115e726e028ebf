"""From a scan to what a network sees: one grid, comparable grey values."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from qinjing.data.case import Case
from qinjing.errors import ConfigError, GeometryError, InputError
from qinjing.volume import Volume

INTERPOLATION_ORDER = 3  # of images on their way to the network's grid, in training and prediction


@dataclass(frozen=True)
class Normalisation:
    """How one channel's grey values become comparable.

    Attributes:
        scheme: "zscore" standardises each image by its own mean and standard deviation; "ct" clips
            to `low`..`high` and standardises by `mean` and `sd` of the data set's foreground, since
            Hounsfield units mean the same everywhere.
        low: "ct" only, Hounsfield units.
        high: "ct" only, Hounsfield units.
        mean: "ct" only, Hounsfield units.
        sd: "ct" only, Hounsfield units.
    """

    scheme: Literal["zscore", "ct"] = "zscore"
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    sd: float = 1.0

    def __post_init__(self) -> None:
        if self.scheme not in ("zscore", "ct"):
            raise ConfigError("normalisation", "zscore or ct", self.scheme)
        if self.scheme == "ct" and (self.sd <= 0 or self.low >= self.high):
            raise ConfigError("ct normalisation", "low < high and sd > 0", self)

    def apply(self, channel: Tensor) -> None:
        """Change one channel (D, H, W) float32 in place, to about zero mean and unit deviation."""
        if self.scheme == "ct":
            channel.clamp_(self.low, self.high).sub_(self.mean).div_(self.sd)
        else:
            deviation, mean = torch.std_mean(channel, correction=0)
            channel.sub_(mean).div_(deviation.clamp_min(1e-8))


@dataclass(frozen=True)
class Preprocessing:
    """The road from a file to the network's input, saved in `plan.json`.

    Attributes:
        spacing_mm: the network's grid along D, H and W.
        normalisation: one entry per channel.
    """

    spacing_mm: tuple[float, float, float]
    normalisation: tuple[Normalisation, ...]

    def normalise(self, image: Tensor) -> Tensor:
        """Make the grey values of (C, D, H, W) float32 on the network's grid comparable, in place.

        Raises:
            GeometryError: another number of channels than planned for.
        """
        if len(image) != len(self.normalisation):
            raise GeometryError("image", f"of {len(self.normalisation)} channels", len(image))
        for step, channel in zip(self.normalisation, image, strict=True):
            step.apply(channel)
        return image


def read_image(case: Case) -> Volume:
    """Read a case's channels as one canonical (C, D, H, W) volume.

    Raises:
        FormatError: a file cannot be read.
        GeometryError: the channels lie on different grids.
        InputError: a grey value is not finite.
    """
    from qinjing.data.readers import read_volume

    channels = [read_volume(path) for path in case.images]
    for path, channel in zip(case.images, channels, strict=True):
        if channel.voxels.dtype.kind == "f" and not np.isfinite(channel.voxels).all():
            missing = int((~np.isfinite(channel.voxels)).sum())
            raise InputError("grey values", "finite", f"{missing} that are not", where=path)
    for path, channel in zip(case.images[1:], channels[1:], strict=True):
        difference = channels[0].grid_difference(channel)
        if difference:
            raise GeometryError("channels", "on one grid", difference, where=path)
    first = channels[0]
    voxels = [channel.voxels.reshape(-1, *channel.shape) for channel in channels]
    stacked = voxels[0] if len(voxels) == 1 else np.concatenate(voxels)
    return Volume(stacked, first.affine, first.frame_of_reference).canonical()


def read_pair(case: Case) -> tuple[Volume, Volume]:
    """Read a case's image and label, both canonical and on one grid.

    Raises:
        FormatError: a file cannot be read, or there is no label.
        GeometryError: image and label lie on different grids.
    """
    from qinjing.data.readers import read_volume

    if case.label is None:
        raise GeometryError("case", "labelled", "no label file", where=case.case_id)
    image, label = read_image(case), read_volume(case.label).canonical()
    difference = image.grid_difference(label)
    if difference:
        raise GeometryError("label", "on its image's grid", difference, where=case.label)
    if label.voxels.size != prod(label.shape):
        raise GeometryError("label", "of one channel", label.voxels.shape, where=case.label)
    return image, label.with_voxels(label.voxels.reshape(label.shape))


def unlabelled(case: Case) -> tuple[Volume, Volume]:
    """Read a case's image, canonical, with a label map that is all background.

    Raises:
        InputError: as `read_image`.
    """
    image = read_image(case)
    return image, image.with_voxels(np.zeros(image.shape, np.uint8))


def read_prepared(case: Case, preprocessing: Preprocessing) -> Tensor:
    """Read a case as a network sees it: (C, D, H, W) float32 on the plan's grid.

    Raises:
        InputError: as `read_image`.
    """
    from qinjing.data.resample import resample_volume

    grid = resample_volume(read_image(case), preprocessing.spacing_mm, INTERPOLATION_ORDER).voxels
    image = torch.from_numpy(np.array(grid, np.float32)).reshape(-1, *grid.shape[-3:])
    return preprocessing.normalise(image)


def read_standardised(case: Case, spacing_mm: tuple[float, float, float]) -> Tensor:
    """Read a case as a trunk sees it: (C, D, H, W) float32 on a grid, every channel standardised.

    Raises:
        InputError: as `read_image`.
    """
    image = read_image(case)
    channels = image.voxels.size // prod(image.shape)
    return read_prepared(case, Preprocessing(spacing_mm, (Normalisation(),) * channels))
