"""Rules against liars: NumPy, SciPy, the papers' formulas written out, and sites that do lie."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import trim_mean
from torch import Tensor

from qinjing.errors import ConfigError, FormatError
from qinjing.federate import robust
from qinjing.federate.robust import AGGREGATORS

ROBUST = [name for name in AGGREGATORS if name not in ("mean", "norm_clipped")]
Update = dict[str, Tensor]


def sites(values: np.ndarray) -> list[Update]:
    """Updates of two weights, whose numbers one after the other are the rows of (K, n)."""
    rows = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return [{"a": row[:3].clone(), "b": row[3:].reshape(-1, 1).clone()} for row in rows]


def flat(update: Update) -> np.ndarray:
    return torch.cat([update["a"].flatten(), update["b"].flatten()]).double().numpy()


def drawn(count: int, length: int = 11, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, length)).astype(np.float32)


@pytest.fixture(params=[None, 8], ids=["whole", "blocks of one"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(robust, "_BLOCK", request.param)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_with_equal_weights_they_are_numpys_and_scipys(count: int, blocks: None) -> None:
    values = drawn(count)
    updates, cases = sites(values), [3.0] * count
    median = np.median(values, axis=0)
    assert flat(robust.median(updates, cases)) == pytest.approx(median, abs=1e-7)
    for share in (0.0, 0.2, 0.3, 0.49):
        ours = flat(robust.trimmed_mean(updates, cases, share=share))
        assert ours == pytest.approx(trim_mean(values, share, axis=0), abs=1e-6)
    assert flat(AGGREGATORS["mean"](updates, cases)) == pytest.approx(values.mean(0), abs=1e-6)


def test_a_weight_is_as_many_sites_with_the_same_values(blocks: None) -> None:
    values, cases = drawn(5), [1, 4, 2, 2, 3]
    repeated = np.repeat(values, cases, axis=0)
    ours = flat(robust.median(sites(values), cases))
    assert ours == pytest.approx(np.median(repeated, axis=0), abs=1e-7)
    one = flat(robust.geometric_median(sites(values), cases))
    assert one == pytest.approx(flat(robust.geometric_median(sites(repeated), [1] * 12)), abs=1e-6)


def test_trimmed_mean_by_hand() -> None:
    # One of five goes at either end: 1·2 + 2·3 + 4·7 over 7 cases.
    updates = [{"w": torch.tensor([value])} for value in (7.0, -90.0, 2.0, 1e6, 3.0)]
    result = robust.trimmed_mean(updates, [4, 50, 1, 50, 2])
    assert float(result["w"]) == pytest.approx(36 / 7)


def test_norm_clipping_by_hand() -> None:
    # Lengths 5, 1 and 50 are shortened to 5: (3, 4), (0, 1) and (3, -4), weights 1, 1 and 2 of 4.
    updates = [{"w": torch.tensor(v)} for v in ([3.0, 4.0], [0.0, 1.0], [30.0, -40.0])]
    result = robust.norm_clipped(updates, [1, 1, 2])["w"]
    assert result.tolist() == pytest.approx([9 / 4, -3 / 4])
    assert robust.norm_clipped(updates, [1, 1, 2], limit=0.1)["w"].norm() <= 0.1


@pytest.mark.parametrize("cases", [[1] * 6, [5, 1, 1, 2, 3, 1]])
def test_geometric_median_is_scipys_least_sum_of_distances(cases: list[int], blocks: None) -> None:
    values = drawn(6, length=5).astype(float)
    weights = np.array(cases, dtype=float)

    def total(point: np.ndarray) -> float:
        return float(weights @ np.linalg.norm(values - point, axis=1))

    best = minimize(total, values.mean(axis=0), method="BFGS", options={"gtol": 1e-9})
    ours = flat(robust.geometric_median(sites(values), cases))
    assert total(ours) <= best.fun * (1 + 1e-7)
    assert ours == pytest.approx(best.x, abs=1e-3)


def test_geometric_median_on_an_update_itself() -> None:
    # Most of the weight lies on one point, which is then the median, and no distance is 0 enough.
    values = drawn(4)
    assert flat(robust.geometric_median(sites(values), [9, 1, 1, 1])) == pytest.approx(
        values[0], abs=1e-4
    )


def krum_scores(values: np.ndarray, f: int) -> list[float]:
    """Section 4: the sum of squared distances to the n − f − 2 closest of the others."""
    scores = []
    for i, own in enumerate(values):
        others = [float(((own - v) ** 2).sum()) for j, v in enumerate(values) if j != i]
        scores.append(min(sum(near) for near in combinations(others, len(values) - f - 2)))
    return scores


@pytest.mark.parametrize(("count", "f"), [(7, 2), (7, 1), (9, 3), (5, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_krum_is_the_papers(count: int, f: int, seed: int, blocks: None) -> None:
    values = drawn(count, seed=seed)
    order = np.argsort(krum_scores(values.astype(float), f))
    cases = list(range(1, count + 1))
    assert flat(robust.krum(sites(values), cases, liars=f)) == pytest.approx(values[order[0]])
    chosen = order[: count - f]
    expected = np.average(values[chosen], axis=0, weights=np.array(cases)[chosen])
    ours = flat(robust.multi_krum(sites(values), cases, liars=f))
    assert ours == pytest.approx(expected, abs=1e-6)


def lies() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    return {
        "huge": lambda honest: np.full((2, honest.shape[1]), 1e30),
        "flipped": lambda honest: -10 * honest[:2],
        "noise": lambda honest: 50 * drawn(2, honest.shape[1], seed=9),
        "not a number": lambda honest: np.full((2, honest.shape[1]), np.nan),
    }


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("lie", lies())
def test_two_liars_of_seven_move_it_little_and_the_mean_far(name: str, lie: str) -> None:
    honest = 1 + 0.1 * drawn(5, length=40)
    lied = lies()[lie](honest)
    values = np.concatenate([lied[:1], honest, lied[1:]])
    cases = [20] * 7
    options = {"share": 0.3} if name == "trimmed_mean" else {}
    result = flat(AGGREGATORS[name](sites(values), cases, **options))
    # As far off as the honest sites are from each other, and no further.
    reach = max(float(np.linalg.norm(a - b)) for a, b in combinations(honest, 2))
    assert np.linalg.norm(result - honest.mean(axis=0)) < reach
    mean = flat(AGGREGATORS["mean"](sites(values), cases))
    assert not np.linalg.norm(mean - honest.mean(axis=0)) < 5 * reach


def test_a_clipped_mean_is_moved_by_a_liars_share_alone() -> None:
    honest = 1 + 0.1 * drawn(5, length=40)
    values = np.concatenate([honest, np.full((2, 40), -1e30)])
    result = flat(robust.norm_clipped(sites(values), [1] * 7))
    length = np.median(np.linalg.norm(values, axis=1))
    assert np.linalg.norm(result - honest.mean(axis=0)) < length * (2 * 2 / 7 + 0.1)


@pytest.mark.parametrize("name", AGGREGATORS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_order_of_sites_is_of_no_matter(name: str, data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 7))
    # Few values, so that many are equal.
    numbers = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0]), min_size=5, max_size=5)
    values = np.array(data.draw(st.lists(numbers, min_size=count, max_size=count)))
    cases = data.draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    order = data.draw(st.permutations(range(count)))
    first = flat(AGGREGATORS[name](sites(values), cases))
    second = flat(AGGREGATORS[name](sites(values[order]), [cases[i] for i in order]))
    assert second == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("name", [*ROBUST, "norm_clipped"])
def test_shapes_stay_and_nothing_given_is_changed(name: str) -> None:
    updates = sites(drawn(5))
    before = [{n: v.clone() for n, v in update.items()} for update in updates]
    result = AGGREGATORS[name](updates, [1] * 5)
    assert {n: (v.shape, v.dtype) for n, v in result.items()} == {
        n: (v.shape, torch.float32) for n, v in updates[0].items()
    }
    assert all(torch.equal(b[n], u[n]) for b, u in zip(before, updates, strict=True) for n in u)


def test_what_is_not_finite_is_named() -> None:
    updates = sites(drawn(4))
    updates[2]["b"][1] = float("inf")
    assert robust.finite(updates) == [0, 1, 3]
    with pytest.raises(ConfigError, match="finite"):
        robust.median([updates[2]], [1])


def test_refusals() -> None:
    updates = sites(drawn(4))
    with pytest.raises(ConfigError, match="at least 5 for 1 liars, got 4"):
        robust.krum(updates, [1] * 4, liars=1)
    with pytest.raises(ConfigError, match="at least 3"):
        robust.krum(updates[:2], [1] * 2)
    with pytest.raises(ConfigError, match="above 0 for each"):
        robust.median(updates, [1, 1, 0, 1])
    with pytest.raises(ConfigError, match=r"below 0\.5"):
        robust.trimmed_mean(updates, [1] * 4, share=0.5)
    with pytest.raises(FormatError, match="update 3"):
        robust.median([*updates[:3], {"a": updates[3]["a"]}], [1] * 4)
