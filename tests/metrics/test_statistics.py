"""Intervals and tests against scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qinjing.errors import InputError
from qinjing.metrics.statistics import bootstrap_mean, holm, paired_test, welch_p


def test_interval_equals_scipys_bca():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    values = rng.beta(9, 1.2, 60)  # skewed as Dice is
    ours = bootstrap_mean(values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1)
    assert ours.mean == pytest.approx(values.mean()) and ours.n == 60
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        interval = bootstrap_mean(rng.normal(1, 1, 30), resamples=1000)
        held += interval.low <= 1 <= interval.high
    assert 0.90 <= held / 400 <= 0.98


def test_whole_patients_are_drawn():
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(12), 5)
    values = rng.normal(0, 1, 12)[patients] + rng.normal(0, 0.01, 60)
    by_case = bootstrap_mean(values)
    by_patient = bootstrap_mean(values, patients.tolist())
    assert by_patient.mean == pytest.approx(by_case.mean)
    ratio = (by_patient.high - by_patient.low) / (by_case.high - by_case.low)
    assert 1.6 < ratio < 2.8  # about √5, five scans of a patient say no more than one
    alone = bootstrap_mean(values, [f"case {i}" for i in range(60)])
    assert alone == by_case


def test_mean_over_labels_is_the_mean_of_label_means():
    values = np.array([[0.9, np.nan], [0.7, 0.5], [0.8, np.nan], [np.nan, np.nan]])
    interval = bootstrap_mean(values)
    assert interval.mean == pytest.approx((0.8 + 0.5) / 2)  # nnU-Net's foreground mean
    assert interval.n == 3 and interval.low < interval.mean < interval.high


def test_same_seed_same_interval_and_edge_cases():
    values = np.random.default_rng(0).random(20)
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)
    nothing = bootstrap_mean(np.array([np.nan, np.inf]))
    assert nothing.n == 0 and math.isnan(nothing.mean) and math.isnan(nothing.low)
    single = bootstrap_mean(np.array([0.5, np.nan]))
    assert (single.mean, single.n) == (0.5, 1) and math.isnan(single.low)
    same = bootstrap_mean(np.full(7, 0.1))
    assert same.low == same.high == same.mean == pytest.approx(0.1)
    with pytest.raises(InputError, match="groups"):
        bootstrap_mean(values, ["a"])


def test_tests_equal_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n in (6, 11, 40, 120):
        first = rng.random(n)
        second = first + rng.normal(0.05, 0.1, n)
        second[0] = first[0]  # a pair that does not differ
        ours = paired_test(first, second)
        assert ours.t_p == pytest.approx(stats.ttest_rel(second, first).pvalue)
        difference = (second - first)[1:]
        assert ours.wilcoxon_p == pytest.approx(stats.wilcoxon(difference).pvalue)
        full = second - first
        assert ours.cohens_dz == pytest.approx(full.mean() / full.std(ddof=1))
        # independent formula: (W+ − W−) / (W+ + W−) from scipy's own rank sums
        plus = stats.wilcoxon(difference, alternative="greater").statistic
        total = difference.size * (difference.size + 1) / 2
        assert ours.rank_biserial == pytest.approx(2 * plus / total - 1)


def test_no_claim_from_few_pairs_or_from_nothing():
    rng = np.random.default_rng(0)
    few = paired_test(rng.random(5), rng.random(5))
    assert few.t_p is None and few.wilcoxon_p is None and few.n == 5
    values = rng.random(9)
    same = paired_test(values, values)
    assert (same.t_p, same.wilcoxon_p, same.cohens_dz, same.rank_biserial) == (1, 1, 0, 0)
    gaps = np.where(np.arange(9) < 4, np.nan, values)
    assert paired_test(gaps, values).n == 5 and paired_test(gaps, values).t_p is None
    nothing = paired_test(np.array([]), np.array([]))
    assert nothing.n == 0 and math.isnan(nothing.cohens_dz)
    with pytest.raises(InputError):
        paired_test(values, values[1:])


def test_a_patient_counts_once_in_the_tests():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(8), 3)
    first, second = rng.random((2, 24))
    ours = paired_test(first, second, patients.tolist())
    means = [(second - first)[patients == p].mean() for p in range(8)]
    assert ours.t_p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert ours.wilcoxon_p == pytest.approx(stats.wilcoxon(means).pvalue)
    five = paired_test(first[:15], second[:15], patients[:15].tolist())
    assert five.n == 15 and five.t_p is None


def test_holm_equals_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 50):
        p = rng.random(n) ** 3
        np.testing.assert_allclose(holm(p.tolist()), multitest.multipletests(p, method="holm")[1])


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([]) == [] and holm([None]) == [None]


def test_welch_equals_scipy_and_knows_its_limits():
    stats = pytest.importorskip("scipy.stats")
    first, second = [0.871, 0.874, 0.869], [0.881, 0.880, 0.8805]
    expected = stats.ttest_ind(first, second, equal_var=False).pvalue
    assert welch_p(first, second) == pytest.approx(expected)
    assert welch_p(first, second[:1]) is None
    assert welch_p([0.5, 0.5], [0.5, 0.5]) == 1 and welch_p([0.5, 0.5], [0.6, 0.6]) == 0
