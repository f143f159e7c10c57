from __future__ import annotations

import math

import numpy as np
import pytest

from tracelab.statistics import (
    flipped_sums,
    mean_interval,
    percentile_interval,
    resample_counts,
    two_sided_p,
    two_stage_means,
)


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


def test_two_stage_means_scatter_around_the_unweighted_mean_of_group_means():
    rng = np.random.default_rng(0)
    groups = [rng.normal(mean, 1.0, size=(n, 2)) for mean, n in ((0, 5), (4, 50), (8, 10))]
    plain = np.mean([group.mean(axis=0) for group in groups], axis=0)
    draws = two_stage_means(groups, seed=0, n_resamples=4000)
    assert draws.shape == (4000, 2)
    assert draws.mean(axis=0) == pytest.approx(plain, abs=0.15)
    pooled = np.concatenate(groups).mean(axis=0)
    assert (abs(plain - pooled) > 0.2).any()  # the two means differ, so the check above can fail


def test_two_stage_spread_is_that_of_a_slow_two_stage_bootstrap():
    rng = np.random.default_rng(1)
    groups = [rng.normal(size=(n, 1)) + 2 * k for k, n in enumerate((3, 8, 5, 4))]
    slow = []
    for _ in range(3000):
        chosen = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        means = [group[rng.integers(len(group), size=len(group))].mean() for group in chosen]
        slow.append(np.mean(means))
    draws = two_stage_means(groups, seed=0, n_resamples=3000)[:, 0]
    assert draws.std() == pytest.approx(np.std(slow), rel=0.08)
    assert draws.mean() == pytest.approx(np.mean(slow), abs=0.15)


def test_two_stages_are_less_certain_than_groups_alone_would_say():
    groups = [np.array([[0.0], [100.0]]), np.array([[0.0], [100.0]])]
    draws = two_stage_means(groups, seed=0)[:, 0]
    assert draws.std() > 10  # resampling groups alone would always give 50
    assert percentile_interval(draws)[0] < 25


def test_one_group_of_one_record_has_no_spread():
    assert (two_stage_means([np.array([[42.0, 7.0]])]) == [42.0, 7.0]).all()


def test_a_metrics_draws_do_not_depend_on_the_other_metrics():
    groups = [np.arange(12.0).reshape(6, 2), np.arange(8.0).reshape(4, 2) ** 2]
    both = two_stage_means(groups, seed=3)
    alone = two_stage_means([group[:, :1] for group in groups], seed=3)
    assert both[:, :1] == pytest.approx(alone)


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


def covered(draw, truth: float, n_simulations: int = 600) -> float:
    """Share of simulated studies whose interval holds the truth."""
    hits = 0
    for seed in range(n_simulations):
        low, high = percentile_interval(two_stage_means(draw(), seed=seed, n_resamples=800)[:, 0])
        hits += low <= truth <= high
    return hits / n_simulations


@pytest.mark.slow
def test_intervals_of_shares_and_of_paired_differences_cover_at_their_nominal_rate():
    rng = np.random.default_rng(0)

    def share():
        return [(rng.random((100, 1)) < 0.6).astype(float)]

    def difference():
        before = rng.random(100)
        after = before + rng.normal(0.1, 0.2, size=100)
        return [(after - before)[:, None]]

    # Of 100 units a percentile interval covers in 94 %; three standard errors of 600 studies are 3
    # points.
    assert 0.91 <= covered(share, 0.6) <= 0.97
    assert 0.91 <= covered(difference, 0.1) <= 0.97


@pytest.mark.slow
def test_intervals_over_groups_of_records_cover_at_least_at_their_nominal_rate():
    rng = np.random.default_rng(1)

    def groups():
        shares = np.clip(0.6 + 0.2 * rng.standard_normal(40), 0, 1)
        return [(rng.random((6, 1)) < share).astype(float) for share in shares]

    truth = np.clip(0.6 + 0.2 * np.random.default_rng(2).standard_normal(10**6), 0, 1).mean()
    # resampling twice makes it a little too wide
    assert 0.94 <= covered(groups, float(truth)) <= 0.995
