"""Measure a data set once: what a plan needs to know, and no pixel more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from qinjing.data.case import Case, Dataset
from qinjing.data.components import largest_piece
from qinjing.volume import Volume

_SAMPLE = 20_000  # voxels per case that stand for its grey values


@dataclass(frozen=True)
class ChannelIntensity:
    """Grey values of one channel, pooled over cases.

    Attributes:
        mean: over the labelled foreground (the whole image where nothing is labelled).
        sd: likewise.
        percentile_00_5: likewise.
        percentile_99_5: likewise.
    """

    mean: float
    sd: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class CaseFingerprint:
    """One case, measured in canonical axis order.

    Attributes:
        case_id: which case.
        shape: voxels along D, H and W.
        spacing_mm: along D, H and W.
        label_voxels: label value → number of voxels.
        extent: voxels along D, H and W of the box around everything labelled; the shape where
            nothing is.
        largest_piece: share of the labelled voxels that hang together as one piece, 0 to 1.
    """

    case_id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    label_voxels: dict[int, int]
    extent: tuple[int, int, int]
    largest_piece: float


@dataclass(frozen=True)
class Fingerprint:
    """What planning knows of a data set.

    Attributes:
        dataset: the data set's name.
        channel_names: one per input channel.
        labels: value → name, background included.
        cases: one entry per measured case, ordered by case_id.
        intensities: one entry per channel.
        ignored: value of voxels that nobody labelled; they count as background here.
    """

    dataset: str
    channel_names: tuple[str, ...]
    labels: dict[int, str]
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[ChannelIntensity, ...]
    ignored: int | None = None

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.labels)


def measure_case(case_id: str, image: Volume, label: Volume) -> tuple[CaseFingerprint, np.ndarray]:
    """Measure one case.

    Args:
        case_id: which case.
        image: (C, D, H, W) or (D, H, W), canonical.
        label: (D, H, W) on the same grid.

    Returns:
        The fingerprint, and up to 20,000 foreground grey values per channel, shape (C, n).
    """
    voxels = image.voxels.reshape(-1, *image.shape)
    values, counts = np.unique(label.voxels, return_counts=True)
    extent = _extent(label.voxels)
    where = np.flatnonzero(label.voxels)
    if where.size == 0:
        where = np.arange(label.voxels.size)
    # Evenly spread instead of drawn: a measurement needs no seed.
    where = where[:: max(1, -(-where.size // _SAMPLE))]  # rounded up
    sample = np.stack([channel.reshape(-1)[where] for channel in voxels]).astype(np.float32)
    found = {int(v): int(c) for v, c in zip(values, counts, strict=True)}
    _, piece = largest_piece(label.voxels)
    fingerprint = CaseFingerprint(case_id, image.shape, image.spacing_mm, found, extent, piece)
    return fingerprint, sample


def _extent(label: np.ndarray) -> tuple[int, int, int]:
    """Lengths of the box around all that is not background."""
    lengths = []
    for axis in range(3):
        rest = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(label.any(axis=rest))
        lengths.append(int(where[-1] - where[0] + 1) if where.size else label.shape[axis])
    d, h, w = lengths
    return d, h, w


def fingerprint_dataset(
    dataset: Dataset,
    cases: Iterable[Case],
    read: Callable[[Case], tuple[Volume, Volume]],
) -> Fingerprint:
    """Measure every case of a data set, reading one at a time.

    Args:
        dataset: names the channels and labels.
        cases: those that passed the check.
        read: case → image and label, both canonical.
    """
    measured, samples = [], []
    for case in cases:
        image, label = read(case)
        if dataset.ignored is not None:
            label = label.with_voxels(np.where(label.voxels == dataset.ignored, 0, label.voxels))
        fingerprint, sample = measure_case(case.case_id, image, label)
        measured.append(fingerprint)
        samples.append(sample)
    pooled = np.concatenate(samples, axis=1)
    return Fingerprint(
        dataset=dataset.name,
        channel_names=dataset.channel_names,
        labels=dict(dataset.labels),
        cases=tuple(sorted(measured, key=lambda case: case.case_id)),
        intensities=tuple(
            ChannelIntensity(
                float(values.mean()),
                float(values.std()),
                *(float(p) for p in np.percentile(values, (0.5, 99.5))),
            )
            for values in pooled
        ),
        ignored=dataset.ignored,
    )
