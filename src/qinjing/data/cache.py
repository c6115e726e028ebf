"""Prepared cases on disk: written once, mapped into memory while training.

A case is two raw arrays and one line of JSON. Nothing but NumPy is needed to read them, so that a
bare GPU node can train from a folder that was prepared elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qinjing.config import atomic_path, read_config, write_json
from qinjing.data.case import Case
from qinjing.data.preprocess import INTERPOLATION_ORDER, Preprocessing, read_pair, unlabelled
from qinjing.errors import FormatError, InputError

IGNORED = 255
_FOREGROUND_SAMPLE = 10_000  # voxel places kept per class, for drawing patches around them


@dataclass(frozen=True)
class _CacheKey:
    """What a cache was made from; another key means another cache."""

    preprocessing: Preprocessing
    digest: str
    ignored: int | None = None


@dataclass(frozen=True, eq=False)
class CachedCase:
    """One prepared case.

    Attributes:
        case_id: which case.
        image: (C, D, H, W) float32 on the plan's grid, mapped from disk.
        label: (D, H, W) uint8 class indices, `IGNORED` where nobody labelled, mapped from disk.
        foreground: per class index from 1 on, an (n, 3) int32 array of places of that class.
    """

    case_id: str
    image: np.ndarray
    label: np.ndarray
    foreground: tuple[np.ndarray, ...]


def prepare(
    cases: Sequence[Case],
    folder: Path,
    preprocessing: Preprocessing,
    label_values: Sequence[int],
    ignored: int | None = None,
    progress: Callable[[Case], None] | None = None,
) -> None:
    """Write the cases that `folder` does not hold yet.

    Args:
        cases: checked cases; the label map of an unlabelled one is all background.
        folder: the cache; it may be shared by folds and runs of one plan.
        preprocessing: the plan's.
        label_values: ascending, background first; the index in it is the class.
        ignored: value of voxels that nobody labelled.
        progress: called after each case.
    """
    from qinjing.data.resample import resample_labels, resample_scribbles, resample_volume

    for case in cases:
        key = _key(case, preprocessing, ignored)
        home = folder / case.case_id
        if not _is_current(home, key):
            image, label = read_pair(case) if case.label else unlabelled(case)
            grid = resample_volume(image, preprocessing.spacing_mm, INTERPOLATION_ORDER).voxels
            voxels = torch.from_numpy(np.array(grid, dtype=np.float32))
            label = (
                resample_labels(label, preprocessing.spacing_mm)
                if ignored is None
                else resample_scribbles(label, preprocessing.spacing_mm, ignored)
            )
            classes = np.searchsorted(label_values, label.voxels).astype(np.uint8)
            if ignored is not None:
                classes[label.voxels == ignored] = IGNORED
            _save(home / "image.npy", preprocessing.normalise(voxels).numpy())
            _save(home / "label.npy", classes)
            places, ends = _places(classes, len(label_values))
            _save(home / "places.npy", places)
            _save(home / "ends.npy", ends)
            write_json(home / "key.json", key)  # last: a case without it is not there yet
        if progress:
            progress(case)


def load(folder: Path, case_id: str) -> CachedCase:
    """Map one prepared case into memory.

    Raises:
        FormatError: the case was not prepared here.
    """
    home = folder / case_id
    if not (home / "key.json").exists():
        raise FormatError("cached case", "prepared first", "nothing", where=home)
    places = np.load(home / "places.npy", allow_pickle=False)
    ends = np.load(home / "ends.npy", allow_pickle=False)
    return CachedCase(
        case_id,
        np.load(home / "image.npy", mmap_mode="r", allow_pickle=False),
        np.load(home / "label.npy", mmap_mode="r", allow_pickle=False),
        tuple(np.split(places, ends)[:-1]),
    )


def _places(classes: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of each foreground class, one class after the other, and where each class ends."""
    found = [np.empty((0, 3), np.int32)]
    for index in range(1, n_classes):
        where = np.flatnonzero(classes == index)
        where = where[:: max(1, where.size // _FOREGROUND_SAMPLE)]
        found.append(np.stack(np.unravel_index(where, classes.shape), axis=1).astype(np.int32))
    ends = np.cumsum([len(places) for places in found[1:]], dtype=np.int64)
    return np.concatenate(found), ends


def _key(case: Case, preprocessing: Preprocessing, ignored: int | None = None) -> _CacheKey:
    """Name the sources by place, size and time of change: hashing them again would cost a read."""
    digest = hashlib.sha256()
    for path in (*case.images, case.label):
        if path is None:
            continue
        # A DICOM series is a folder, whose own time of change does not tell that of its files.
        for file in sorted(path.iterdir()) if path.is_dir() else (path,):
            stat = file.stat()
            digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return _CacheKey(preprocessing, digest.hexdigest(), ignored)


def _is_current(home: Path, key: _CacheKey) -> bool:
    try:
        return read_config(home / "key.json", _CacheKey) == key
    except InputError:
        return False


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, array, allow_pickle=False)
