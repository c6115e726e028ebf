"""Clean up a label map by its connected components."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from qinjing.errors import ConfigError
from qinjing.volume import Volume


def largest_piece(labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Find the largest connected piece of everything that is labelled.

    Voxels that touch by a face, an edge or a corner belong together, whatever their labels.

    Args:
        labels: (D, H, W), 0 is background.

    Returns:
        The labels with all other pieces removed, and the piece's share of the labelled voxels,
        0 to 1 (1 where nothing is labelled).
    """
    from scipy import ndimage

    labelled = labels != 0
    boxes = ndimage.find_objects(labelled.view(np.uint8))
    if not boxes:
        return labels.copy(), 1.0
    box = boxes[0]
    pieces, _ = ndimage.label(labelled[box], np.ones((3, 3, 3), bool))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept = np.zeros_like(labels)
    kept[box] = np.where(pieces == np.argmax(sizes), labels[box], 0)
    return kept, float(sizes.max() / sizes.sum())


def keep_components(
    volume: Volume, *, min_volume_ml: float = 0.0, largest: Collection[int] = ()
) -> Volume:
    """Remove components that are too small, or that are not their label's largest.

    Voxels that touch by a face, an edge or a corner belong together. Labels are handled one at a
    time inside their bounding box, so that memory stays at a few bytes for each voxel of the
    largest box. A label whose every component is too small vanishes.

    Args:
        volume: (D, H, W) integer labels, 0 is background.
        min_volume_ml: components below this volume become background.
        largest: labels of which only the largest component stays (the first in scan order at a
            tie).

    Returns:
        A new label map of the same type.

    Raises:
        ConfigError: the labels are not 3-D integers of 0 to 65535, or min_volume_ml is negative.
    """
    from scipy import ndimage

    labels = volume.voxels
    if labels.ndim != 3 or labels.dtype.kind not in "iu":
        raise ConfigError("labels", "(D, H, W) integers", f"{labels.dtype} {labels.shape}")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 1 << 16:
        got = f"{labels.min()} to {labels.max()}"
        raise ConfigError("label values", "0 to 65535", got)
    if not min_volume_ml >= 0:
        raise ConfigError("min_volume_ml", "0 or more", min_volume_ml)
    kept = labels.copy()
    smallest = min_volume_ml / volume.voxel_volume_ml * (1 - 1e-9)
    for value, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None or (min_volume_ml == 0 and value not in largest):
            continue
        components, count = ndimage.label(labels[box] == value, np.ones((3, 3, 3), bool))
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        keep = sizes >= smallest
        if value in largest:
            keep &= np.arange(count + 1) == 1 + int(np.argmax(sizes[1:]))
        keep[0] = True
        if not keep.all():
            kept[box][~keep[components]] = 0
    return volume.with_voxels(kept)
