"""What a table of cases supports: intervals of means, paired tests, correction, effect size."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qinjing.errors import InputError

FEWEST_PAIRS = 6  # with 5, the smallest two-sided p of Wilcoxon's test is 0.0625


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval.

    Attributes:
        mean: of the finite values, NaN where there is none.
        low, high: bounds; NaN with fewer than two units to resample.
        n: how many values were finite.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the same cases.

    Attributes:
        n: pairs with finite values on both sides.
        difference: mean of second − first, with its bootstrap interval.
        t_p: two-sided p of the paired t-test; None with fewer than 6 pairs.
        wilcoxon_p: two-sided p of Wilcoxon's signed-rank test; None with fewer than 6 pairs.
        cohens_dz: mean difference over its standard deviation; 0 where no pair differs, NaN where
            all differ by one same amount.
        rank_biserial: −1 to 1, the share of signed ranks for the second minus that for the first.
    """

    n: int
    difference: Interval
    t_p: float | None
    wilcoxon_p: float | None
    cohens_dz: float
    rank_biserial: float


def bootstrap_mean(
    values: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the mean with its bias-corrected and accelerated (BCa) bootstrap interval.

    Args:
        values: (N,) one value per case, or (N, L) one per case and label, when the statistic is the
            mean over labels of each label's mean. Values that are not finite are left out.
        groups: (N,) the patient of each case: whole patients are drawn, since the scans of one
            patient are alike. None draws cases.
        level: the part of the intervals that should hold the truth.
        resamples: how many are drawn.
        seed: of the drawing; the same for every metric, so that all see the same resamples.

    Raises:
        InputError: the lengths differ.

    Source: Efron 1987, doi:10.1080/01621459.1987.10478410.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if groups is not None and len(groups) != len(table):
        raise InputError("groups", f"one for each of {len(table)} cases", len(groups))
    finite = np.isfinite(table)
    n = int(finite.any(axis=1).sum())
    numbers: dict[Hashable, int] = {}
    unit = [numbers.setdefault(g, len(numbers)) for g in (groups or range(len(table)))]
    sums, counts = np.zeros((2, len(numbers), table.shape[1]))
    np.add.at(sums, unit, np.where(finite, table, 0.0))
    np.add.at(counts, unit, finite)
    used = counts.any(axis=1)
    sums, counts = sums[used], counts[used]
    mean = float(_mean_of_means(sums.sum(axis=0), counts.sum(axis=0)))
    if len(sums) < 2:
        return Interval(mean, float("nan"), float("nan"), n)
    drawn = _draws(len(sums), resamples, seed)
    estimates = _mean_of_means(drawn @ sums, drawn @ counts)
    left_out = _mean_of_means(sums.sum(axis=0) - sums, counts.sum(axis=0) - counts)
    low, high = _bca(mean, estimates, left_out, level)
    return Interval(mean, low, high, n)


def _mean_of_means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis of sums / counts, leaving out what was never counted."""
    there = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=there)
    columns = there.sum(axis=-1)
    total = means.sum(axis=-1)
    return np.divide(total, columns, out=np.full_like(total, np.nan), where=columns > 0)


@lru_cache(maxsize=2)
def _draws(units: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each unit is in each resample, (resamples, units)."""
    picks = np.random.default_rng(seed).integers(0, units, (resamples, units))
    picks += np.arange(resamples)[:, None] * units
    counts = np.bincount(picks.reshape(-1), minlength=resamples * units)
    return counts.reshape(resamples, units).astype(np.float64)


def _bca(
    mean: float, estimates: np.ndarray, left_out: np.ndarray, level: float
) -> tuple[float, float]:
    from scipy.special import ndtr, ndtri

    estimates = estimates[np.isfinite(estimates)]
    left_out = left_out[np.isfinite(left_out)]
    if not estimates.size or np.ptp(estimates) <= 1e-12 * max(1.0, abs(mean)):
        return mean, mean  # every resample has the same mean
    below = np.mean(estimates < mean) + np.mean(estimates == mean) / 2
    bias = ndtri(np.clip(below, 1e-9, 1 - 1e-9))
    skew = left_out.mean() - left_out
    spread = float((skew**2).sum())
    acceleration = float((skew**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    z = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(estimates, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def welch_p(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p of Welch's t-test between two groups that are not paired.

    Args:
        first, second: such as one mean for each seed; finite.

    Returns:
        None with fewer than two values in a group.

    Source: Welch 1947, doi:10.1093/biomet/34.1-2.28.
    """
    from scipy.stats import ttest_ind

    if min(len(first), len(second)) < 2:
        return None
    near = 1e-9 * max(np.abs(first).max(), np.abs(second).max())
    if max(np.ptp(first), np.ptp(second)) <= near:  # no spread at all: SciPy divides by zero
        return float(abs(first[0] - second[0]) <= near)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # seeds of one side that are alike
        return float(ttest_ind(first, second, equal_var=False).pvalue)


def paired_test(
    first: np.ndarray,
    second: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> PairedTest:
    """Compare two methods on the same cases, two-sided.

    Args:
        first: (N,) one value per case; a pair with a value that is not finite is left out.
        second: (N,) of the other method, same order.
        groups: (N,) patients. The interval draws whole patients; the tests take the mean
            difference of each patient, so that no patient counts twice.
        seed: of the bootstrap.

    Raises:
        InputError: the lengths differ.

    Source: Wilcoxon 1945, doi:10.2307/3001968; Kerby 2014, doi:10.2466/11.IT.3.1 (rank-biserial);
    Lakens 2013, doi:10.3389/fpsyg.2013.00863 (Cohen's dz).
    """
    if len(first) != len(second):
        raise InputError("second", f"of length {len(first)}", len(second))
    difference = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    interval = bootstrap_mean(difference, groups, seed=seed)
    finite = np.isfinite(difference)
    kept = difference[finite]
    if groups is not None:
        of_patient: dict[Hashable, list[float]] = {}
        for group, value in zip(groups, difference, strict=True):
            if np.isfinite(value):
                of_patient.setdefault(group, []).append(float(value))
        kept = np.array([np.mean(values) for values in of_patient.values()])
    if kept.size and np.abs(kept).max() < 1e-12:
        kept = np.zeros(kept.size)  # rounding of the last bit is no difference
    t_p = _t_p(kept) if kept.size >= FEWEST_PAIRS else None
    wilcoxon_p = _wilcoxon_p(kept) if kept.size >= FEWEST_PAIRS else None
    return PairedTest(
        int(finite.sum()), interval, t_p, wilcoxon_p, _cohens_dz(kept), _rank_biserial(kept)
    )


def _t_p(difference: np.ndarray) -> float:
    """Return the paired t-test's p: 1 where nothing differs, 0 where all differ by one amount."""
    from scipy.special import stdtr

    spread = difference.std(ddof=1)
    if spread <= 1e-12 * np.abs(difference).max():
        return 1.0 if not difference.any() else 0.0
    t = difference.mean() / (spread / np.sqrt(difference.size))
    return float(2 * stdtr(difference.size - 1, -abs(t)))


def _wilcoxon_p(difference: np.ndarray) -> float:
    """Return Wilcoxon's p; pairs that do not differ are left out, and all such give 1."""
    from scipy.stats import wilcoxon

    different = difference[difference != 0]
    return float(wilcoxon(different).pvalue) if different.size else 1.0


def _cohens_dz(difference: np.ndarray) -> float:
    if difference.size < 2:
        return float("nan")
    if not difference.any():
        return 0.0
    spread = float(difference.std(ddof=1))
    return float(difference.mean()) / spread if spread > 0 else float("nan")


def _rank_biserial(difference: np.ndarray) -> float:
    from scipy.stats import rankdata

    different = difference[difference != 0]
    if not different.size:
        return 0.0 if difference.size else float("nan")
    ranks = rankdata(np.abs(different))
    return float((ranks * np.sign(different)).sum() / ranks.sum())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down adjusted p-values, which keep the family-wise error rate.

    Args:
        p_values: of one family; None (not tested) stays None and is not counted.

    Source: Holm 1979, https://www.jstor.org/stable/4615733.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[i] = largest
    return adjusted
