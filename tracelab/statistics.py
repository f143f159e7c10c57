"""Intervals and tests: every score gets an interval, every before/after difference a p-value.

Both take the unit that a benchmark averages over: a target term or concept with its records, a
pair, a text. :func:`t_interval` is that of all benchmarks. Means over traced cases and probed
concepts have a percentile bootstrap (``transformer_lens.utilities.bootstrap_ci`` or
:func:`percentile_interval` of any statistic of the resamples). Sign flips are for paired
permutation tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from scipy.special import expit, logit
from statsmodels.stats.multitest import multipletests
from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

from tracelab.gradients import measuring
from tracelab.ranges import require_seed

N_RESAMPLES = 2000
CONFIDENCE = 0.95
N_FLIPS = 9999


@measuring()
def mean_interval(
    values: Sequence[float] | Float[np.ndarray, "n"],
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; (nan, nan) of fewer than two values."""
    require_seed(seed)
    if len(values) < 2:
        return float("nan"), float("nan")
    tensor = torch.tensor(np.asarray(values, dtype=np.float64))
    low, high = bootstrap_ci(
        tensor,
        confidence=CONFIDENCE,
        n_resamples=n_resamples,
        generator=derive_generator(seed, "mean"),
    )
    return float(low), float(high)


def resample_counts(
    n_units: int, *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> Int[np.ndarray, "resamples units"]:
    """How often each unit is drawn in each bootstrap resample (rows sum to ``n_units``)."""
    require_seed(seed)
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_resamples)


class Interval(NamedTuple):
    """A 95 % interval.

    Attributes:
        low, high: its ends; not a number where there is none.
        error: standard error of the value.
        df: degrees of freedom, one less than the units.
        note: why there is no interval; empty where there is one.
    """

    low: float
    high: float
    error: float
    df: int
    note: str = ""

    def p(self, value: float) -> float:
        """Two-sided p of the hypothesis that the value is 0: below .05 where the interval of a
        difference excludes it."""
        return float(2 * stats.t.sf(abs(value) / self.error, self.df))

    def within(self, lowest: float, highest: float) -> Interval:
        """The same, cut where the value cannot go."""
        low, high = np.clip([self.low, self.high], lowest, highest)
        return self._replace(low=float(low), high=float(high))


def t_interval(
    groups: Sequence[Float[np.ndarray, "_units columns"]],
    function: Callable[[np.ndarray], Any],
    *,
    hit: float = 0.0,
) -> Interval:
    """Interval of ``function`` of the unweighted mean over groups of each group's mean.

    The delete-one jackknife with a t quantile: with f the function, u_1 … u_n the means of the
    groups (of one group: its units) and f_i its value without u_i,

        error = sqrt( (n - 1) / n · Σ_i (f_i - mean f_i)² )      interval = f(mean) ± t(n - 1) · error

    which for a plain mean is the t interval. That of a share of hits is made on the logit scale,
    with error / (share · (1 - share)): it stays between 0 and 1, and holds the truth near them as
    often as elsewhere. ``analyses/coverage.py`` measures how often that is.

    Args:
        function: from means ``[..., columns]`` to values ``[...]``.
        hit: what a hit counts (1 or 100), where the value is a share of hits.
    """  # noqa: E501
    units = np.stack([group.mean(axis=0) for group in groups]) if len(groups) > 1 else groups[0]
    n = len(units)
    if n < 2:
        return Interval(np.nan, np.nan, np.nan, 0, "one unit")
    value = float(function(units.mean(axis=0)))
    others = function((units.sum(axis=0) - units) / (n - 1))
    if not np.isfinite([value, *others]).all():
        why = "not defined without one of the units" if np.isfinite(value) else "not defined"
        return Interval(np.nan, np.nan, np.nan, n - 1, why)
    error = float(np.sqrt((n - 1) * others.var()))
    if error <= 1e-12 * np.abs(units).max():  # rounding
        return Interval(np.nan, np.nan, 0.0, n - 1, "all values equal")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    if not hit:
        return Interval(value - half, value + half, error, n - 1)
    share = value / hit
    low, high = hit * expit(logit(share) + np.array([-half, half]) / (hit * share * (1 - share)))
    return Interval(float(low), float(high), error, n - 1)


def percentile_interval(draws: Float[np.ndarray, "resamples"]) -> tuple[float, float]:
    """The central 95 % of bootstrap draws, ignoring draws in which the statistic is undefined."""
    if np.isnan(draws).all():
        return float("nan"), float("nan")
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def flipped_sums(
    values: Float[np.ndarray, "units columns"], *, seed: int = 0, n_flips: int = N_FLIPS
) -> Float[np.ndarray, "flips columns"]:
    """Sums over units under random sign flips of whole units: what differences would be if order
    meant nothing.

    The first row is the sum as observed. All ``2 ** units`` patterns are taken where they are no
    more than ``n_flips``, as in ``scipy.stats.permutation_test``; units without a difference do not
    count.
    """
    require_seed(seed)
    values = values[(values != 0).any(axis=1)]
    total = values.sum(axis=0)
    if 2 ** len(values) <= n_flips:
        flipped = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return total - 2 * flipped @ values
    generator = np.random.default_rng(seed)
    rows = [total[None]]
    for start in range(0, n_flips, 500):  # bounds the memory
        flipped = generator.integers(2, size=(min(500, n_flips - start), len(values)))
        rows.append(total - 2 * flipped @ values)
    return np.concatenate(rows)


def two_sided_p(null: Float[np.ndarray, "flips"]) -> float:
    """Share of the permuted statistics that are at least as far from 0 as the observed one,
    ``null[0]``.

    Not a number where the statistic is undefined.
    """
    if not np.isfinite(null).all():
        return float("nan")
    rounding = 1e-9 * np.abs(null).max()
    return float((np.abs(null) >= abs(null[0]) - rounding).mean())


def holm(p: pd.Series) -> np.ndarray:
    """Holm's correction of the p-values that are there."""
    corrected = np.full(len(p), np.nan)
    there = p.notna().to_numpy()
    if there.any():
        corrected[there] = multipletests(p[there], method="holm")[1]
    return corrected
