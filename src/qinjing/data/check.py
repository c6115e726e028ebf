"""Read a data set once and name every fault in its own words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qinjing.data.case import Case, Dataset
from qinjing.data.layouts.discover import label_values
from qinjing.data.readers import read_volume
from qinjing.data.splits import Split, split_faults
from qinjing.errors import InputError
from qinjing.volume import Volume

Severity = Literal["refused", "warning"]

# kind → what becomes of the case (or, for "patient on both sides", of the splits).
KINDS: dict[str, Severity] = {
    "missing file": "refused",
    "no label": "refused",
    "damaged file": "refused",
    "channel count": "refused",
    "channel grids": "refused",
    "shape mismatch": "refused",
    "affine mismatch": "refused",
    "label channels": "refused",
    "non-integer label": "refused",
    "unknown label": "refused",
    "not finite": "refused",
    "constant image": "refused",
    "duplicate": "refused",
    "patient on both sides": "refused",
    "unknown case in splits": "refused",
    "empty label": "warning",
    "label never seen": "warning",
}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        case_id: the case, "" where the whole data set is meant.
        path: the file, "" where no single file is meant.
        kind: a key of `KINDS`.
        severity: "refused" takes the case out, "warning" leaves it in.
        message: one sentence.
    """

    case_id: str
    path: str
    kind: str
    severity: Severity
    message: str


@dataclass(frozen=True)
class CheckResult:
    """What `check_dataset` found.

    Attributes:
        good: cases that can be used, in the data set's order.
        faults: in the order of the cases, those of the whole data set last.
    """

    good: tuple[Case, ...]
    faults: tuple[Fault, ...]

    @property
    def refused(self) -> tuple[Fault, ...]:
        """The faults that take something out."""
        return tuple(fault for fault in self.faults if fault.severity == "refused")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON content: {"good": [case ids], "faults": [{...}]}."""
        return {
            "good": [case.case_id for case in self.good],
            "faults": [asdict(fault) for fault in self.faults],
        }


@dataclass
class _Seen:
    """What is remembered from case to case: digests and label values, never pixels."""

    pixels: dict[bytes, tuple[str, Path]] = field(default_factory=dict)
    labels: set[int] = field(default_factory=set)


def check_dataset(
    dataset: Dataset,
    splits: Sequence[Split] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckResult:
    """Read every file of every case once and list what is wrong.

    A bad case is refused and listed, the rest goes on. One case is in memory at a time, and of a
    case with a file per channel one channel and the label.

    Args:
        dataset: as a layout opened it.
        splits: to be looked through for patients on both sides.
        progress: called with (cases done, cases in all) after each case.
    """
    seen, faults, good = _Seen(), [], []
    labelled = any(case.label is not None for case in dataset.cases)
    for done, case in enumerate(dataset.cases):
        found = _check_case(case, dataset, seen)
        if labelled and case.label is None:
            message = f"label must be there for training, got none ({case.images[0]})"
            found.append(_fault(case, case.images[0], "no label", message))
        faults += found
        if not any(fault.severity == "refused" for fault in found):
            good.append(case)
        if progress is not None:
            progress(done + 1, len(dataset.cases))
    faults += _dataset_faults(dataset, seen, splits, any_read=bool(good) and labelled)
    return CheckResult(tuple(good), tuple(faults))


def _fault(case: Case | None, path: str | Path, kind: str, message: str) -> Fault:
    case_id = case.case_id if case is not None else ""
    return Fault(case_id, str(path), kind, KINDS[kind], message)


def _check_case(case: Case, dataset: Dataset, seen: _Seen) -> list[Fault]:
    faults: list[Fault] = []
    grid: Volume | None = None
    n_channels = 0
    digests: dict[bytes, tuple[str, Path]] = {}
    for path in case.images:
        volume = _read(case, path, faults)
        if volume is None:
            continue
        n_channels += 1 if volume.voxels.ndim == 3 else len(volume.voxels)
        faults += _check_pixels(case, path, volume, seen, digests)
        thin = volume.with_voxels(np.broadcast_to(np.uint8(0), volume.shape))
        if grid is None:
            grid = thin
        elif difference := grid.grid_difference(thin):
            message = (
                f"channels must be on one grid, got {difference} ({path} against {case.images[0]})"
            )
            faults.append(_fault(case, path, "channel grids", message))
    expected = len(dataset.channel_names)
    if not faults and n_channels != expected:
        message = f"channels must be {expected}, got {n_channels} ({case.images[0]})"
        faults.append(_fault(case, case.images[0], "channel count", message))
    seen.pixels.update(digests)
    if case.label is not None and (label := _read(case, case.label, faults)) is not None:
        faults += _check_label(case, case.label, label, grid, dataset, seen)
    return faults


def _read(case: Case, path: Path, faults: list[Fault]) -> Volume | None:
    """Read a file, or list why it cannot be read."""
    try:
        if not path.exists():
            message = f"file must be there, got nothing ({path})"
            faults.append(_fault(case, path, "missing file", message))
            return None
        return read_volume(path)
    except (InputError, OSError) as error:
        faults.append(_fault(case, path, "damaged file", str(error)))
        return None


def _check_pixels(
    case: Case, path: Path, volume: Volume, seen: _Seen, digests: dict[bytes, tuple[str, Path]]
) -> list[Fault]:
    """Finite, not constant, and not the pixels of another case or channel."""
    faults = []
    channels = volume.voxels if volume.voxels.ndim == 4 else volume.voxels[None]
    for c, channel in enumerate(channels):
        which = f"channel {c} of {path}" if len(channels) > 1 else str(path)
        n_bad = channel.size - int(np.isfinite(channel).sum()) if channel.dtype.kind == "f" else 0
        if n_bad:
            message = f"image must be finite, got {n_bad} voxels that are NaN or infinite ({which})"
            faults.append(_fault(case, path, "not finite", message))
            continue
        if channel.min() == channel.max():
            value = channel.reshape(-1)[0]
            message = f"image must be more than one value, got {value} everywhere ({which})"
            faults.append(_fault(case, path, "constant image", message))
            continue
        digest = _digest(volume.with_voxels(channel))
        other = seen.pixels.get(digest) or digests.get(digest)
        if other is not None:
            message = f"image must be unlike any other, got the pixels of {other[1]} ({which})"
            faults.append(_fault(case, path, "duplicate", message))
        else:
            digests[digest] = (case.case_id, path)
    return faults


def _digest(volume: Volume) -> bytes:
    """A digest of values and shape that storage type and axis order do not change."""
    with np.errstate(over="ignore"):
        voxels = np.ascontiguousarray(volume.canonical().voxels, dtype=np.float32)
    sha = hashlib.sha256(repr(voxels.shape).encode())
    sha.update(voxels.reshape(-1).view(np.uint8).data)
    return sha.digest()


def _check_label(
    case: Case, path: Path, label: Volume, grid: Volume | None, dataset: Dataset, seen: _Seen
) -> list[Fault]:
    faults = []
    if label.voxels.ndim == 4:
        message = f"label must be one map (D, H, W), got {len(label.voxels)} channels ({path})"
        return [_fault(case, path, "label channels", message)]
    # As training reads them: a label may be stored in another order of axes, if its affine says so.
    thin = label.with_voxels(np.broadcast_to(np.uint8(0), label.shape)).canonical()
    grid = grid.canonical() if grid is not None else thin
    if difference := grid.grid_difference(thin):
        kind = "shape mismatch" if grid.shape != thin.shape else "affine mismatch"
        message = f"label must be on its image's grid, got {difference} ({path})"
        faults.append(_fault(case, path, kind, message))
    values = label_values(label.voxels)
    whole = np.isfinite(values) & (values == np.rint(values))
    if not whole.all():
        message = f"label values must be whole numbers, got {_listed(values[~whole])} ({path})"
        return [*faults, _fault(case, path, "non-integer label", message)]
    if dataset.ignored is not None:
        values = values[values != dataset.ignored]
    unknown = [int(value) for value in values if int(value) not in dataset.labels]
    if unknown:
        rule = ", ".join(str(value) for value in dataset.labels)
        message = f"label values must be among {rule}, got {_listed(unknown)} ({path})"
        faults.append(_fault(case, path, "unknown label", message))
    if not values.any():
        got = "background only" if values.size else "what is ignored only"
        message = f"label should hold more than background, got {got} ({path})"
        faults.append(_fault(case, path, "empty label", message))
    seen.labels.update(int(value) for value in values)
    return faults


def _listed(values: Iterable[Any], most: int = 5) -> str:
    """The first few values in words."""
    values = list(values)
    shown = ", ".join(f"{value:g}" for value in values[:most])
    return shown + (f" and {len(values) - most} more" if len(values) > most else "")


def _dataset_faults(
    dataset: Dataset, seen: _Seen, splits: Sequence[Split] | None, any_read: bool
) -> list[Fault]:
    faults = []
    for value, name in dataset.labels.items():
        if any_read and value not in seen.labels:
            message = f"label {value} ({name}) should be in at least one case, got none"
            faults.append(_fault(None, dataset.root, "label never seen", message))
    for case_id, error in split_faults(splits or (), dataset.cases):
        unknown = error.name.endswith("case")
        kind = "unknown case in splits" if unknown else "patient on both sides"
        faults.append(Fault(case_id, "", kind, KINDS[kind], str(error)))
    return faults
