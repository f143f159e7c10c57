from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tracelab.statistics import (
    flipped_sums,
    mean_interval,
    percentile_interval,
    resample_counts,
    t_interval,
    two_sided_p,
)

first, second = (lambda means: means[..., 0]), (lambda means: means[..., 1])


def test_the_interval_of_a_mean_is_that_of_the_normal_theory():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = mean_interval(values, seed=1)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_the_same_seed_repeats_an_interval_and_another_does_not():
    values = list(np.random.default_rng(0).normal(size=30))
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_values_have_no_interval(values):
    assert all(math.isnan(edge) for edge in mean_interval(values))


def test_equal_values_have_an_interval_without_width():
    assert mean_interval([2.5] * 10) == (2.5, 2.5)


def test_every_resample_draws_as_many_units_as_there_are():
    counts = resample_counts(7, seed=0, n_resamples=5000)
    assert counts.shape == (5000, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.min() == 0
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.05)


def test_of_a_plain_mean_it_is_the_t_interval_of_units_or_of_groups():
    values = np.random.default_rng(0).exponential(size=(12, 2))
    oracle = stats.ttest_1samp(values[:, 1], 0).confidence_interval()
    found = t_interval([values], second)
    assert found[:2] == pytest.approx((oracle.low, oracle.high))
    assert (found.error, found.df) == pytest.approx((stats.sem(values[:, 1]), 11))
    groups = np.split(values, [2, 5, 9])
    oracle = stats.ttest_1samp([group[:, 1].mean() for group in groups], 0).confidence_interval()
    assert t_interval(groups, second)[:2] == pytest.approx((oracle.low, oracle.high))


def test_the_error_of_a_ratio_is_that_of_its_linear_part():
    units = np.random.default_rng(1).uniform(1, 2, size=(2000, 2))
    found = t_interval([units], lambda means: means[..., 0] / means[..., 1])
    a, b = units.mean(axis=0)
    influence = (units[:, 0] - units[:, 1] * a / b) / b
    assert found.error == pytest.approx(stats.sem(influence), rel=1e-3)
    assert (found.low + found.high) / 2 == pytest.approx(a / b)


def test_the_interval_of_a_share_is_one_of_its_logit_and_stays_inside():
    hits = 100.0 * (np.random.default_rng(3).random((60, 1)) < 0.9)
    found = t_interval([hits], first, hit=100.0)
    share = hits.mean() / 100
    half = stats.t.ppf(0.975, 59) * stats.sem(hits[:, 0]) / 100 / (share * (1 - share))
    odds = np.array([found.low, found.high]) / (100 - np.array([found.low, found.high]))
    assert np.log(odds) == pytest.approx(np.log(share / (1 - share)) + np.array([-half, half]))
    few = np.array([[0.0], [0.0], [0.0], [100.0]])
    free, inside = t_interval([few], first), t_interval([few], first, hit=100.0)
    assert free.low < 0
    assert free.high > 100
    assert 0 < inside.low < 25 < inside.high < 100
    assert inside.error == free.error
    assert free.within(0, 100)[:2] == (0, 100)


@pytest.mark.parametrize(
    ("groups", "note"),
    [
        ([[[3.0]]], "one unit"),
        ([[[0.1], [0.1], [0.1]]], "all values equal"),
        ([[[0.0], [2.0]], [[1.0]], [[0.5], [1.5]]], "all values equal"),
        ([[[np.nan], [1.0]]], "not defined"),
    ],
)
def test_where_there_is_no_interval_it_says_why(groups, note):
    found = t_interval([np.array(group) for group in groups], first)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.note == note


def test_a_value_that_hangs_on_one_unit_has_no_interval():
    units = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    with np.errstate(invalid="ignore"):
        found = t_interval([units], lambda means: means[..., 0] / means[..., 1])
    assert found.note == "not defined without one of the units"
    assert math.isnan(found.low)


def test_percentile_interval_holds_the_central_95_percent():
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def test_undefined_draws_are_ignored_and_only_they_give_nan():
    draws = np.concatenate([np.arange(1001.0), np.full(500, np.nan)])
    assert percentile_interval(draws) == pytest.approx((25.0, 975.0))
    assert all(math.isnan(edge) for edge in percentile_interval(np.full(5, np.nan)))


def test_few_units_are_flipped_in_every_way_and_the_observed_sum_comes_first():
    sums = flipped_sums(np.array([[1.0, 10.0], [2.0, 0.0]]))
    assert sums.tolist() == [[3.0, 10.0], [1.0, -10.0], [-1.0, 10.0], [-3.0, -10.0]]


def test_units_without_a_difference_do_not_count():
    assert flipped_sums(np.array([[0.0], [5.0], [0.0]])).tolist() == [[5.0], [-5.0]]
    assert flipped_sums(np.zeros((40, 2))).tolist() == [[0.0, 0.0]]


def test_many_units_are_flipped_at_random_as_the_seed_says():
    values = np.random.default_rng(0).normal(size=(40, 2))
    sums = flipped_sums(values, n_flips=5200)
    assert sums.shape == (5201, 2)
    assert sums[0] == pytest.approx(values.sum(axis=0))
    assert sums[1:].mean(axis=0) == pytest.approx(np.zeros(2), abs=0.3)
    assert sums[1:].std(axis=0) == pytest.approx(np.sqrt((values**2).sum(axis=0)), rel=0.05)
    assert np.array_equal(sums, flipped_sums(values, n_flips=5200))
    assert not np.array_equal(sums, flipped_sums(values, seed=1, n_flips=5200))


def test_an_undefined_statistic_has_no_p():
    assert np.isnan(two_sided_p(np.array([np.nan, 1.0, -1.0])))
    assert np.isnan(two_sided_p(np.array([np.inf, 1.0, -1.0])))


def test_p_counts_both_tails_and_ties():
    assert two_sided_p(np.array([2.0, -2.0 + 1e-12, 1.0, -3.0])) == 0.75
    assert two_sided_p(np.array([0.0, 1.0, -1.0])) == 1.0
    assert two_sided_p(np.array([5.0, 1.0, -1.0, 2.0])) == 0.25


def covered(draw, truth: float, n_simulations: int = 600, **options) -> float:
    """Share of simulated studies whose interval holds the truth."""
    found = [t_interval(draw(), first, **options) for _ in range(n_simulations)]
    return np.mean([interval.low <= truth <= interval.high for interval in found])


# Three standard errors of 600 studies are 2.7 points.


def test_intervals_over_terms_of_records_cover_at_their_nominal_rate():
    rng = np.random.default_rng(1)

    def shares(n_terms, a, b):
        return [100.0 * (rng.random((25, 1)) < share) for share in rng.beta(a, b, size=n_terms)]

    assert 0.923 <= covered(lambda: shares(10, 12, 8), 60) <= 0.977
    assert 0.923 <= covered(lambda: shares(36, 1200, 800), 60) <= 0.977
    assert 0.923 <= covered(lambda: shares(3, 12, 8), 60) <= 0.977
    near = covered(lambda: shares(10, 50, 2.6), 100 * 50 / 52.6, hit=100.0)
    assert 0.923 <= near <= 0.977


def test_intervals_of_shares_and_of_heavy_tailed_differences_cover_at_their_nominal_rate():
    rng = np.random.default_rng(0)
    assert 0.923 <= covered(lambda: [1.0 * (rng.random((262, 1)) < 0.6)], 0.6) <= 0.977
    assert 0.923 <= covered(lambda: [rng.standard_t(3, size=(100, 1))], 0) <= 0.985


def test_records_taken_for_units_where_terms_differ_cover_less():
    """Why terms are the units: the same records, their terms ignored."""
    rng = np.random.default_rng(1)

    def ignored():
        shares = np.repeat(rng.beta(12, 8, size=10), 25)
        return [100.0 * (rng.random((250, 1)) < shares[:, None])]

    assert covered(ignored, 60) < 0.9
