"""What a layout does not declare, read from the files themselves."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qinjing.data.case import Case
from qinjing.data.readers import find_reader, read_volume
from qinjing.errors import InputError

MAX_LABELS = 256  # a map of more values than these is an image by mistake


def discover_labels(cases: Iterable[Case]) -> dict[int, str]:
    """Return every value that the label maps hold, background included, with made-up names.

    Damaged label maps are passed over: `check_dataset` names them.
    """
    values: set[int] = {0}
    for case in cases:
        if case.label is None:
            continue
        try:
            found = label_values(read_volume(case.label).voxels)
        except InputError:
            continue
        whole = found[np.isfinite(found) & (found == np.rint(found))]
        if len(whole) == len(found) <= MAX_LABELS and whole.min() >= 0 and whole.max() <= 65535:
            values.update(int(value) for value in whole)
    return {value: f"label {value}" if value else "background" for value in sorted(values)}


def label_values(voxels: np.ndarray) -> np.ndarray:
    """Return the different values of a label map, ascending.

    Args:
        voxels: any shape and numeric type; counting replaces sorting for small integers.
    """
    flat = voxels.reshape(-1)
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2:
        low, high = int(flat.min()), int(flat.max())
        counts = np.zeros(high - low + 1, np.int64)
        for start in range(0, len(flat), 1 << 20):  # a piece at a time: bincount works in 64 bits
            piece = flat[start : start + (1 << 20)].astype(np.int64) - low
            counts += np.bincount(piece, minlength=len(counts))
        return np.flatnonzero(counts) + low
    # One voxel per run of equal neighbours is enough to know the values, and far fewer to sort.
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.unique(flat[np.concatenate([[0], changes])])


def count_channels(cases: Iterable[Case]) -> int:
    """Return the number of channels of the first case whose header can be read; 1 without one."""
    for case in cases:
        if len(case.images) > 1:
            return len(case.images)
        try:
            shape = find_reader(case.images[0]).read_header(case.images[0]).shape
        except InputError:
            continue
        return shape[0] if len(shape) == 4 else 1
    return 1
