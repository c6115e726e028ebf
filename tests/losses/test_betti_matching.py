"""Betti matching against boundary matrices reduced over GF(2), finite differences and by hand."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from tests.losses.test_topology import logits_of, ring

from qinjing.errors import ConfigError, GeometryError
from qinjing.losses import BettiMatchingLoss, TopologyLoss
from qinjing.losses.persistence import match_features, persistence_pairs

pytest.importorskip("numba")


class Cells:
    """All cells of the closed cubes that are an image's voxels, and what bounds them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.cells = list(product(*(range(2 * n + 1) for n in shape)))
        number = {cell: n for n, cell in enumerate(self.cells)}
        self.dimension = np.array([sum(i % 2 for i in cell) for cell in self.cells])
        self.faces: list[list[int]] = []
        self.voxels: list[list[int]] = []
        for cell in self.cells:
            odd = [axis for axis, i in enumerate(cell) if i % 2]
            faces = [
                (*cell[:axis], cell[axis] + step, *cell[axis + 1 :])
                for axis in odd
                for step in (-1, 1)
            ]
            self.faces.append([number[face] for face in faces])
            near = product(
                *(
                    {min(max((i - 1 + even) // 2, 0), n - 1) for even in (0, 1 - i % 2)}
                    for i, n in zip(cell, shape, strict=True)
                )
            )
            self.voxels.append([int(np.ravel_multi_index(v, shape)) for v in near])

    def owners(self, *keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first voxel of each cell in superlevel order, and when it comes in.

        The last of the keys counts most; ties go to the later voxel.
        """
        rank = np.empty(keys[0].size, int)
        rank[np.lexsort([np.arange(rank.size), *(key.ravel() for key in keys)])] = np.arange(
            rank.size
        )
        owner = np.array([max(voxels, key=lambda v: rank[v]) for voxels in self.voxels])
        return owner, rank.size - rank[owner]

    def pairs(self, rows: np.ndarray, columns: np.ndarray) -> dict[int, int]:
        """Death → birth: reduce the boundary matrix, its columns and rows in two orders."""
        every = np.arange(len(self.cells))
        position = np.empty(len(every), int)
        row_order = np.lexsort([every, self.dimension, rows])
        position[row_order] = every
        kept: dict[int, int] = {}
        found = {}
        for cell in np.lexsort([every, self.dimension, columns]):
            column = sum(1 << int(position[face]) for face in self.faces[cell])
            while column and column.bit_length() - 1 in kept:
                column ^= kept[column.bit_length() - 1]
            if column:
                kept[column.bit_length() - 1] = column
                found[int(cell)] = int(row_order[column.bit_length() - 1])
        return found


def by_definition(
    image: np.ndarray, truth: np.ndarray
) -> tuple[list[Counter], list[Counter], list[int], list[bool]]:
    """Per dimension: bars of the image with a mark where matched, its image bars, the truth's bars
    that are left, and whether cells that come in together leave no choice.

    Bars are pairs of voxels. All three images, the comparison image and both inclusions are paired
    by themselves.
    """
    cells = Cells(image.shape)
    union = np.maximum(image, truth)
    own, own_time = cells.owners(image)
    true, true_time = cells.owners(image, truth)
    both, both_time = cells.owners(image, union)
    bars = {birth: death for death, birth in cells.pairs(own_time, own_time).items()}
    true_bars = {birth: death for death, birth in cells.pairs(true_time, true_time).items()}
    both_bars = cells.pairs(both_time, both_time)
    image_bars = cells.pairs(own_time, both_time)
    true_image_bars = cells.pairs(true_time, both_time)
    value, true_value, both_value = (x.ravel() for x in (image, truth.astype(float), union))
    partner = {}
    reaching = [Counter() for _ in range(3)]
    for death in both_bars:
        birth, other, end = image_bars[death], true_image_bars[death], both_value[both[death]]
        if value[own[birth]] > end:
            reaching[cells.dimension[birth]][own[birth], both[death]] += 1
            if true_value[true[other]] > end:
                partner[birth] = other
    marked = [Counter() for _ in range(3)]
    births = [Counter() for _ in range(3)]
    for birth, death in bars.items():
        if value[own[birth]] > value[own[death]]:
            marked[cells.dimension[birth]][own[birth], own[death], birth in partner] += 1
            births[cells.dimension[birth]][own[birth]] += 1
    left, deaths = [0, 0, 0], [Counter() for _ in range(3)]
    for birth, death in true_bars.items():
        real = true_value[true[birth]] > true_value[true[death]]
        left[cells.dimension[birth]] += real and birth not in partner.values()
    for death, birth in both_bars.items():
        if both_value[both[birth]] > both_value[both[death]]:
            deaths[cells.dimension[birth]][both[death]] += 1
    clear = [max([*b.values(), *d.values(), 1]) == 1 for b, d in zip(births, deaths, strict=True)]
    return marked, reaching, left, clear


def random_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A small map, often with few values, 0 and 1 among them, and a truth that is like it."""
    shape = rng.integers(3, 9, 2) if rng.random() < 0.5 else rng.integers(2, 6, 3)
    image = rng.random(shape)
    if rng.random() < 0.4:
        image = np.round(image * 4) / 4
    truth = image + rng.uniform(0, 0.5) * rng.normal(size=shape) > rng.uniform(0.2, 0.8)
    return image, truth


def check_against_definition(seeds: range) -> Counter:
    """Compare, and count the dimensions that were compared to the end and matched something."""
    seen: Counter = Counter()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        image, truth = random_pair(rng)
        marked, reaching, left, clear = by_definition(image, truth)
        own_reaching = image_bars_of(image, truth)
        for dimension, (pairs, partners, missed) in enumerate(match_features(image, truth)):
            endless = int(dimension == 0)
            matched = partners[endless:, 0] >= 0
            ours = Counter(
                (*pair, bool(m)) for pair, m in zip(pairs[endless:].tolist(), matched, strict=True)
            )
            assert own_reaching[dimension] == reaching[dimension], (seed, dimension)
            assert Counter(x[:2] for x in ours) == Counter(x[:2] for x in marked[dimension])
            if clear[dimension]:
                assert ours == marked[dimension], (seed, dimension)
                assert len(missed) == left[dimension], (seed, dimension)
                seen[dimension] += matched.any()
                seen["unmatched"] += not matched.all()
            flat = truth.ravel()
            assert flat[partners[endless:][matched, 0]].all() and flat[missed[:, 0]].all()
            assert not flat[partners[endless:][matched, 1]].any() and not flat[missed[:, 1]].any()
    return seen


def image_bars_of(image: np.ndarray, truth: np.ndarray) -> list[Counter]:
    """What our pairing says of the inclusion in the comparison image."""
    from qinjing.losses import persistence
    from qinjing.losses.persistence import _induced

    rank = np.unique(image, return_inverse=True)[1].reshape(image.shape).astype(np.int32)
    level = persistence._padded(rank)
    union = persistence._padded(rank + truth.astype(np.int32) * (rank.max() + 1))
    found = []
    for pairs, through, bars in _induced.pair_both(level, union, persistence._steps(level.shape)):
        reach = through >= 0
        ends = np.stack([pairs[reach, 0], bars[through[reach], 1]], axis=1)
        found.append(Counter(map(tuple, persistence._inner(ends, level.shape).tolist())))
    return found


def test_matching_equals_the_definition() -> None:
    seen = check_against_definition(range(400))
    assert min(seen[0], seen[1], seen["unmatched"]) > 20 and seen[2] > 3, seen


@pytest.mark.slow
def test_matching_equals_the_definition_on_many_images() -> None:
    check_against_definition(range(400, 4000))


def prices(*parts: float) -> float:
    return pytest.approx(sum(parts), abs=1e-6)


def test_a_ring_and_a_broken_ring_by_hand() -> None:
    loss, closed = BettiMatchingLoss(), torch.from_numpy(ring() > 0.5).long()[None]
    # Loop (0.6, 0.2) belongs to (1, 0); component 0.9 to 1.
    assert float(loss(logits_of(ring(0.6)), closed)) == prices(0.4**2 + 0.2**2, 0.1**2)
    # The truth's ring is broken: the loop is one too many.
    broken = closed.clone()
    broken[..., 1, 3] = 0
    assert float(loss(logits_of(ring(0.6)), broken)) == prices(0.4**2 / 2, 0.1**2)
    # The prediction's is: one is missing.
    assert float(loss(logits_of(ring(0.2)), closed)) == prices(1 / 2, 0.1**2)
    # Its loop is closed later than the truth's has vanished beside it: they never meet.
    beside = torch.nn.functional.pad(closed, (0, 7))
    elsewhere = np.pad(ring(0.6), ((0, 0), (0, 0), (7, 0)), constant_values=0.2)
    assert float(BettiMatchingLoss((0, 1, 0))(logits_of(elsewhere), beside)) == prices(0.08, 0.5)


def at(image: np.ndarray, corner: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The image in a larger one."""
    larger = np.zeros(shape)
    larger[tuple(slice(i, i + n) for i, n in zip(corner, image.shape, strict=True))] = image
    return larger


SHELL = np.pad(np.zeros((1, 1, 1)), 1, constant_values=1.0)
RING = np.pad(np.zeros((1, 1, 1)), ((0, 0), (1, 1), (1, 1)), constant_values=1.0)


@pytest.mark.parametrize(
    ("part", "dimension"), [(np.ones((1, 1, 1)), 0), (RING, 1), (SHELL, 2)],
    ids=["blob", "ring", "shell"],
)  # fmt: skip
def test_what_has_changed_places_costs_twice_and_nothing_by_wasserstein(
    part: np.ndarray, dimension: int
) -> None:
    shape, corners = (5, 7, 13), ((1, 1, 1), (1, 3, 5), (1, 2, 9))
    here, middle, there = (at(part, corner, shape) for corner in corners)
    logits, target = logits_of(here + middle), torch.from_numpy(middle + there).long()[None]
    weights = [float(k == dimension) for k in range(3)]
    assert float(TopologyLoss(weights)(logits, target)) == prices(0)
    assert float(BettiMatchingLoss(weights)(logits, target)) == prices(1 / 2, 1 / 2)
    match = match_features((here + middle).astype(np.float32), (middle + there) > 0)[dimension]
    (end,) = np.flatnonzero(match.partners[:, 0] >= 0)
    assert len(match.missed) == 1 and (match.partners[:, 0] < 0).sum() == 1
    assert match.pairs[end, 1] == match.partners[end, 1]


def test_a_right_answer_costs_nothing_and_the_slope_mends_what_is_wrong() -> None:
    target = torch.randint(0, 3, (2, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    sure = torch.nn.functional.one_hot(target, 3).movedim(-1, 1) * 200.0
    assert float(BettiMatchingLoss()(sure, target)) == 0
    probability = np.pad(ring(0.4), ((0, 0), (0, 3), (0, 3)), constant_values=0.2)
    probability[0, 8, 8] = 0.7  # a speck
    target = torch.nn.functional.pad(torch.from_numpy(ring() > 0.5).long(), (0, 3, 0, 3))[None]
    logits = logits_of(probability).requires_grad_()
    BettiMatchingLoss()(logits, target).backward()
    slope = logits.grad[0, 1, 0]
    assert slope[1, 3] < 0 < slope[8, 8]  # closes the gap, takes away the speck
    assert (slope != 0).sum() <= 8


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 6, 7)], ids=["3-D", "one slice"])
def test_slope_equals_finite_differences(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(1, 3, *shape))).requires_grad_()
    target = torch.from_numpy(rng.integers(0, 3, (1, *shape)))
    loss = BettiMatchingLoss((0.5, 1.0, 2.0))
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))


def test_pairs_are_those_of_each_map_alone() -> None:
    rng = np.random.default_rng(3)
    image, truth = rng.random((12, 13, 14)).astype(np.float32), rng.random((12, 13, 14)) > 0.6
    for match, own, true in zip(
        match_features(image, truth), persistence_pairs(image), persistence_pairs(truth),
        strict=True,
    ):  # fmt: skip
        assert sorted(match.pairs.tolist()) == sorted(own.tolist())
        assert (match.partners[:, 0] >= 0).sum() + len(match.missed) == len(true)


def test_a_matching_of_a_map_with_itself_is_the_whole() -> None:
    truth = np.random.default_rng(0).random((10, 9, 16))
    truth = truth > np.where(np.arange(16) < 8, 0.97, 0.3)  # specks, and pores
    for pairs, partners, missed in match_features(truth.astype(np.float32), truth):
        assert len(pairs) > 1 and (pairs == partners).all() and not len(missed)


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights"):
        BettiMatchingLoss((1, 1))
    with pytest.raises(ConfigError, match="betti_matching"):
        BettiMatchingLoss((1, -1, 1))
    image = np.zeros((3, 3))
    with pytest.raises(GeometryError, match="truth"):
        match_features(image, np.zeros((3, 4), bool))
    with pytest.raises(GeometryError, match="NaN"):
        match_features(image * np.nan, image > 0)
    with pytest.raises(GeometryError, match="probability"):
        match_features(image + 2, image > 0)
