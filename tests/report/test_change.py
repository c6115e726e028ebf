"""Lesions of two dates: balls whose fate is known."""

from __future__ import annotations

import numpy as np
import pytest

from qinjing.errors import ConfigError
from qinjing.report.change import find_changes
from qinjing.report.measure import measure
from qinjing.volume import Volume

LABELS = {1: "lesion", 2: "node"}


def scan(balls, spacing=1.0, origin=(0.0, 0.0, 0.0), frame=None, size_mm=100):
    """A segmentation of balls: (label, centre in mm (x, y, z), radius in mm)."""
    n = round(size_mm / spacing)
    affine = np.eye(4)[[2, 1, 0, 3]] * np.array([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = origin
    voxels = np.zeros((n, n, n), np.uint8)
    z, y, x = (np.arange(n) * spacing + origin[axis] for axis in (2, 1, 0))
    for label, center, radius in balls:
        squared = [(line - place) ** 2 for line, place in zip((x, y, z), center, strict=True)]
        far = squared[2][:, None, None] + squared[1][:, None] + squared[0]
        voxels[far <= radius**2] = label
    volume = Volume(voxels, affine, frame)
    return volume, measure(volume, LABELS)


def summary(changes):
    return [(c.name, c.before, c.after, c.kind, c.matched) for c in changes.changes]


def test_every_fate_on_two_grids():
    before = scan([(1, (20, 20, 20), 9), (1, (70, 20, 20), 7), (1, (20, 70, 20), 6),
                   (1, (70, 70, 20), 4), (2, (50, 50, 70), 5)])  # fmt: skip
    after = scan([(1, (22, 20, 20), 12), (1, (70, 21, 20), 4), (1, (20, 70, 20), 6),
                  (1, (50, 20, 80), 3), (2, (50, 50, 83), 5)],
                 spacing=1.25, origin=(-3.3, 2.1, -1.7))  # fmt: skip
    found = find_changes(before, after)
    assert summary(found) == [
        ("lesion", (1,), (1,), "grown", "overlap"),
        ("lesion", (2,), (3,), "shrunk", "overlap"),
        ("lesion", (3,), (2,), "steady", "overlap"),
        ("lesion", (4,), (), "gone", None),
        ("lesion", (), (4,), "new", None),
        ("node", (1,), (), "gone", None),
        ("node", (), (1,), "new", None),
    ]
    grown = found.changes[0]
    assert grown.percent == pytest.approx(100 * ((12 / 9) ** 3 - 1), rel=0.06)
    assert found.changes[3].percent == -100 and found.changes[4].percent is None
    # RECIST: two of the lesions, the longest ones; a node is none.
    assert found.targets == ((1, 1), (1, 2))
    assert found.recist_before_mm == pytest.approx(18 + 14, abs=2)
    assert found.recist_after_mm == pytest.approx(24 + 8, abs=2)
    assert found.recist_percent == pytest.approx(0, abs=8)
    nearer = find_changes(before, after, near_mm=14)
    assert ("node", (1,), (1,), "steady", "distance") in summary(nearer)


def test_lesions_that_merge_and_split():
    two = [(1, (30, 30, 30), 8), (1, (50, 30, 30), 7)]
    one = [(1, (30, 30, 30), 9), (1, (50, 30, 30), 9), (1, (40, 30, 30), 5)]
    merged = find_changes(scan(two), scan(one))
    assert summary(merged) == [("lesion", (1, 2), (1,), "grown", "overlap")]
    assert merged.recist_before_mm == pytest.approx(16 + 14, abs=2)
    assert merged.recist_after_mm == pytest.approx(38, abs=2)  # the one that they make
    split = find_changes(scan(one), scan(two))
    assert summary(split) == [("lesion", (1,), (1, 2), "shrunk", "overlap")]
    assert split.recist_after_mm == pytest.approx(16 + 14, abs=2)  # the sum of the parts


def test_the_nearest_pair_is_matched_first():
    before = scan([(1, (30, 30, 30), 3), (1, (40, 30, 30), 2)])
    after = scan([(1, (37, 30, 30), 0.5), (1, (25, 36, 30), 0.5)])
    found = {(c.before, c.after) for c in find_changes(before, after).changes}
    assert len(found) == 2 and all(b and a for b, a in found)
    by_number = {one.number: one.centroid_mm[0] for one in after[1].structures[0].lesions}
    partner = next(a for b, a in found if b == (2,))
    assert by_number[partner[0]] == 37


def test_small_lesions_are_found_from_the_finer_grid():
    small = [(1, (30.4, 30.4, 30.4), 0.6)]
    fine, coarse = scan(small, spacing=0.4, size_mm=60), scan([(1, (30, 30, 30), 4)], spacing=5)
    assert find_changes(fine, coarse).changes[0].matched == "overlap"
    assert find_changes(coarse, fine).changes[0].matched == "overlap"


def test_nothing_and_frames():
    empty = scan([])
    nothing = find_changes(empty, empty)
    assert nothing.changes == () and nothing.recist_percent is None and nothing.one_frame is None
    a, b = scan([], frame="1.2"), scan([], frame="1.3")
    assert find_changes(a, a).one_frame is True and find_changes(a, b).one_frame is False
    with pytest.raises(ConfigError, match="near_mm must be 0 or more"):
        find_changes(a, b, near_mm=-1)
    other = measure(a[0], {1: "tumour"})
    with pytest.raises(ConfigError, match="the same at both dates"):
        find_changes(a, (a[0], other))
