"""Intervals and tests: every score gets an interval, every before/after difference a p-value.

Both resample the unit that a benchmark averages over.

Where a plain mean over independent units is reported, ``transformer_lens.utilities.bootstrap_ci``
is used. This file adds what it lacks: units that hold several records (a target term, a concept),
resampled in two stages, and a percentile interval of any statistic of the resamples; and sign flips
for paired permutation tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
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


def two_stage_means(
    groups: Sequence[Float[np.ndarray, "_records metrics"]],
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Float[np.ndarray, "resamples metrics"]:
    """Bootstrap draws of the unweighted mean over groups of each group's mean over its records.

    Groups are drawn with replacement, then the records inside each drawn group. The first stage
    alone would say that three target terms, all there are for religion, are nearly certain. In
    simulations a 95 % interval holds the truth in 95 % of studies of one group, and in 96 to 99 %
    of those of many small groups.
    """
    require_seed(seed)
    generator = np.random.default_rng(seed)
    # [groups, resamples, metrics]
    within = np.stack(
        [
            generator.multinomial(len(group), np.full(len(group), 1 / len(group)), n_resamples)
            @ group
            / len(group)
            for group in groups
        ]
    )
    drawn = generator.integers(len(groups), size=(n_resamples, len(groups)))
    rows = generator.integers(n_resamples, size=(n_resamples, len(groups)))
    return within[drawn, rows].mean(axis=1)


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
