"""Intervals: every score in a table gets one, resampled by the unit that its benchmark averages over.

Where a plain mean over independent units is reported, ``transformer_lens.utilities.bootstrap_ci`` is used.
This file adds what it lacks: units that hold several records (a target term, a concept), resampled in two
stages, and a percentile interval of any statistic of the resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

N_RESAMPLES = 2000
CONFIDENCE = 0.95


def mean_interval(
    values: Sequence[float] | Float[np.ndarray, "n"],
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; (nan, nan) of fewer than two values."""
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
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_resamples)


def two_stage_means(
    groups: Sequence[Float[np.ndarray, "_records metrics"]],
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Float[np.ndarray, "resamples metrics"]:
    """Bootstrap draws of the unweighted mean over groups of each group's mean over its records.

    Groups are drawn with replacement, then the records inside each drawn group. The first stage alone
    would say that three target terms, all there are for religion, are nearly certain.
    """
    generator = np.random.default_rng(seed)
    within = np.stack(
        [
            generator.multinomial(len(group), np.full(len(group), 1 / len(group)), n_resamples) @ group / len(group)
            for group in groups
        ]
    )  # [groups, resamples, metrics]
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
