"""What changed between two dates: lesions matched, new and gone ones, and the RECIST sum.

Both segmentations are laid into the patient's millimetres by their affines. They must be of one
frame of reference, or registered: what moved between the scans is otherwise taken for change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qinjing.errors import ConfigError
from qinjing.report.measure import Lesion, Measured, lesion_map
from qinjing.volume import Volume

NEAR_MM = 10.0
# RECIST 1.1: at most five target lesions, two an organ, of at least 10 mm.
MOST_TARGETS, MOST_OF_ONE, LEAST_MM = 5, 2, 10.0
KINDS = ("new", "gone", "grown", "shrunk", "steady")


@dataclass(frozen=True)
class Change:
    """What became of one lesion, or of several that became one or came from one.

    Attributes:
        label: value in the segmentations.
        name: of the label.
        before: numbers of the lesions at the first date, empty where it is new.
        after: at the second, empty where it is gone.
        kind: one of `KINDS`; grown and shrunk only where the intervals of the volumes part.
        matched: "overlap", "distance", or None.
        before_ml, after_ml: volumes, 0 where there is none.
        percent: of the volume at the first date; None for a new one.
        before_mm, after_mm: long axes; of lesions that split, the sum of the parts, of those that
            merged, the one that they make.
    """

    label: int
    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    kind: str
    matched: str | None
    before_ml: float
    after_ml: float
    percent: float | None
    before_mm: float
    after_mm: float


@dataclass(frozen=True)
class Changes:
    """All changes between two dates.

    Attributes:
        changes: in the order of labels and of lesions at the first date, then the new ones.
        targets: (label, number) of the target lesions at the first date: of labels whose name says
            that they are lesions. (Lymph nodes, which RECIST measures across, are none.)
        recist_before_mm: sum of their long axes.
        recist_after_mm: of what became of them.
        recist_percent: change of the sum; None without targets.
        near_mm: how far apart two centroids may lie to be matched without overlap.
        one_frame: whether both scans say that they share a frame of reference; None where one is
            silent.
    """

    changes: tuple[Change, ...]
    targets: tuple[tuple[int, int], ...]
    recist_before_mm: float
    recist_after_mm: float
    recist_percent: float | None
    near_mm: float
    one_frame: bool | None


def find_changes(
    before: tuple[Volume, Measured],
    after: tuple[Volume, Measured],
    *,
    near_mm: float = NEAR_MM,
) -> Changes:
    """Match the lesions of two dates and say what became of each.

    Lesions of one label that share a voxel are the same lesion, however many of them there are on
    either side. Those that are left are matched to the nearest one left, by centroids, within
    `near_mm`.

    Args:
        before: segmentation and what `measure` made of it, at the first date.
        after: at the second date, on any grid.
        near_mm: 0 or more.

    Raises:
        ConfigError: near_mm is below 0, or the two dates measure different labels.

    Source: Eisenhauer et al. 2009, doi:10.1016/j.ejca.2008.10.026 (RECIST 1.1: sums, and lesions
        that split or merge).
    """
    if not near_mm >= 0:
        raise ConfigError("near_mm", "0 or more", near_mm)
    names = [{s.label: s.name for s in measured.structures} for _, measured in (before, after)]
    if names[0] != names[1]:
        raise ConfigError("labels", "the same at both dates", names)
    found: list[Change] = []
    pairs = _overlaps(before[0], after[0], names[0])
    lesions = [
        {(one.label, one.number): one for s in measured.structures for one in s.lesions}
        for _, measured in (before, after)
    ]
    for label, name in names[0].items():
        old, new = ([k for k in side if k[0] == label] for side in lesions)
        groups = _groups(old, new, {pair for pair in pairs if pair[0][0] == label})
        matched = _by_distance(groups, lesions, near_mm)
        found += [_change(name, label, *group, lesions) for group in matched]
    targets = _targets(before[1])
    of_target = [c for c in found if any((c.label, n) in targets for n in c.before)]
    total = sum(lesions[0][key].long_axis_mm for key in targets)
    later = sum(c.after_mm for c in of_target)
    frames = [volume.frame_of_reference for volume, _ in (before, after)]
    return Changes(
        changes=tuple(found),
        targets=targets,
        recist_before_mm=total,
        recist_after_mm=later,
        recist_percent=100 * (later - total) / total if total else None,
        near_mm=near_mm,
        one_frame=frames[0] == frames[1] if all(frames) else None,
    )


Key = tuple[int, int]
Group = tuple[list[Key], list[Key], str | None]


def _overlaps(first: Volume, second: Volume, names: Mapping[int, str]) -> set[tuple[Key, Key]]:
    """Pairs of lesions that share a place, asked from both grids: either may be the finer one."""
    maps = [lesion_map(volume, names) for volume in (first, second)]
    found = set()
    for ours, theirs, swap in ((0, 1, False), (1, 0, True)):
        (here, listed), (there, others) = maps[ours], maps[theirs]
        index = np.argwhere(here.voxels)
        ids = here.voxels[tuple(index.T)]
        across = np.linalg.inv(there.affine) @ here.affine
        place = np.rint(index @ across[:3, :3].T + across[:3, 3]).astype(np.int64)
        inside = ((place >= 0) & (place < there.shape)).all(axis=1)
        met = there.voxels[tuple(place[inside].T)]
        both = np.unique(np.stack([ids[inside], met], axis=1)[met > 0], axis=0)
        for a, b in both.tolist():
            one, other = listed[a - 1], others[b - 1]
            if one[0] == other[0]:
                found.add((other, one) if swap else (one, other))
    return found


def _groups(old: Sequence[Key], new: Sequence[Key], pairs: set[tuple[Key, Key]]) -> list[Group]:
    """Lesions that hang together through overlaps; each of the others alone."""
    left, right = list(old), list(new)
    groups: list[Group] = []
    while left:
        mine, theirs = [left.pop(0)], []
        grown = True
        while grown:
            more = [k for k in right if any((m, k) in pairs for m in mine)]
            right = [k for k in right if k not in more]
            theirs += more
            back = [k for k in left if any((k, t) in pairs for t in theirs)]
            left = [k for k in left if k not in back]
            mine += back
            grown = bool(more or back)
        groups.append((sorted(mine), sorted(theirs), "overlap" if theirs else None))
    return groups + [([], [key], None) for key in right]


def _by_distance(
    groups: list[Group], lesions: Sequence[Mapping[Key, Lesion]], near_mm: float
) -> list[Group]:
    """Join those that are alone to the nearest one of the other date, the nearest pair first."""
    gone = [g[0][0] for g in groups if not g[1]]
    new = [g[1][0] for g in groups if not g[0]]
    apart = sorted(
        (float(np.linalg.norm(np.subtract(lesions[0][a].centroid_mm, lesions[1][b].centroid_mm))),
         a, b)
        for a in gone for b in new
    )  # fmt: skip
    partner: dict[Key, Key] = {}
    for distance, a, b in apart:
        if distance <= near_mm and a not in partner and b not in partner.values():
            partner[a] = b
    joined: list[Group] = []
    for mine, theirs, how in groups:
        if not theirs and mine[0] in partner:
            joined.append((mine, [partner[mine[0]]], "distance"))
        elif mine or theirs[0] not in partner.values():
            joined.append((mine, theirs, how))
    return joined


def _change(
    name: str, label: int, old: list[Key], new: list[Key], how: str | None,
    lesions: Sequence[Mapping[Key, Lesion]],
) -> Change:  # fmt: skip
    was, now = [lesions[0][key] for key in old], [lesions[1][key] for key in new]
    before, after = (sum(one.volume.ml for one in side) for side in (was, now))
    if not was or not now:
        kind = "new" if now else "gone"
    elif sum(one.volume.low_ml for one in now) > sum(one.volume.high_ml for one in was):
        kind = "grown"
    elif sum(one.volume.high_ml for one in now) < sum(one.volume.low_ml for one in was):
        kind = "shrunk"
    else:
        kind = "steady"
    return Change(
        label=label,
        name=name,
        before=tuple(number for _, number in old),
        after=tuple(number for _, number in new),
        kind=kind,
        matched=how,
        before_ml=float(before),
        after_ml=float(after),
        percent=100 * (after - before) / before if was else None,
        before_mm=float(sum(one.long_axis_mm for one in was)),
        after_mm=float(sum(one.long_axis_mm for one in now)),
    )


def _targets(measured: Measured) -> tuple[Key, ...]:
    """The longest lesions at the first date, as many as RECIST takes."""
    from qinjing.report.overlay import LESION_WORDS

    named = [s for s in measured.structures if any(w in s.name.lower() for w in LESION_WORDS)]
    longest = sorted(
        (one for s in named for one in s.lesions if one.long_axis_mm >= LEAST_MM),
        key=lambda one: -one.long_axis_mm,
    )
    taken: list[Key] = []
    for one in longest:
        of_one = sum(label == one.label for label, _ in taken)
        if len(taken) < MOST_TARGETS and of_one < MOST_OF_ONE:
            taken.append((one.label, one.number))
    return tuple(taken)
