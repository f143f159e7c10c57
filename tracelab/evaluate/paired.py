"""What an edit changed: the difference of each score, with a paired interval and a paired test.

Before and after are measured on the same units u (records, pairs, texts), so with f and the means
of :mod:`tracelab.evaluate.scores`

    difference = f(mean after) − f(mean before)

The interval is that of the difference over bootstrap resamples, each applied to before and after
alike: it is far narrower than two separate intervals suggest. The p-value is that of a two-sided
permutation test that exchanges before and after of whole units at random, as they could be if the
edit did nothing. It treats the units as exchangeable one by one, also where the interval resamples
target terms; neither is corrected for how many rows are read.

``effect`` is the difference in standard deviations of one unit's difference,

    effect = difference / (√n · standard error)          (the standard error is the bootstrap's)

which of a plain mean is Cohen's d for paired data: unlike p it does not grow with the number of
units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tracelab.errors import TracelabError
from tracelab.evaluate.scores import BenchmarkScores, Sample
from tracelab.ranges import require_seed
from tracelab.statistics import flipped_sums, percentile_interval, two_sided_p, two_stage_means

_MAY_DIFFER = {"hooks", "model", "seed", "versions"}  # settings


def paired(before: BenchmarkScores, after: BenchmarkScores, *, seed: int = 0) -> pd.DataFrame:
    """Compare two results of one benchmark, such as of a model before and after an edit.

    Args:
        seed: of the bootstrap and the permutations.

    Returns:
        ``benchmark, bias, metric, before, after, difference, low, high, p, effect, n``, one row a
        metric and bias type; ``low`` and ``high`` are of the difference, ``n`` is the number of
        units.

    Raises:
        TracelabError: results of different benchmarks, data or ways to score.
    """
    require_seed(seed)
    require_comparable(before, after)
    rows: list[dict[str, Any]] = []
    for first, second in zip(before.samples(), after.samples(), strict=True):
        for row in _compare(first, second, seed):
            rows.append({"benchmark": before.benchmark, "bias": first.bias} | row)
    return pd.DataFrame(rows)


def require_comparable(before: BenchmarkScores, after: BenchmarkScores) -> None:
    """Refuse two results that do not hold the same units.

    Raises:
        TracelabError: results of different benchmarks, data or ways to score.
    """
    if type(before) is not type(after):
        raise TracelabError(
            f"cannot compare a {type(before).__name__} with a {type(after).__name__}: score one "
            "benchmark twice"
        )
    for name in sorted((before.settings.keys() | after.settings.keys()) - _MAY_DIFFER):
        values = before.settings.get(name), after.settings.get(name)
        if values[0] != values[1]:
            raise TracelabError(
                f"before and after differ in {name} ({values[0]!r} and {values[1]!r}): score the "
                "same records "
                "in the same way"
            )


def _compare(before: Sample, after: Sample, seed: int) -> list[dict[str, Any]]:
    stacked = Sample(
        before.bias,
        tuple(np.hstack(groups) for groups in zip(before.groups, after.groups, strict=True)),
        before.metrics,
    )
    draws_before, draws_after = np.split(two_stage_means(stacked.groups, seed=seed), 2, axis=1)
    # A unit's share of the mean of means is 1 / (groups · units in its group); exchanging its
    # before and after moves both means by half its difference, in opposite directions.
    halves = [
        (b - a) / (2 * len(before.groups) * len(a))
        for a, b in zip(before.groups, after.groups, strict=True)
    ]
    swings = flipped_sums(np.concatenate(halves), seed=seed)
    middle = (before.means + after.means) / 2
    rows = []
    for metric, function in before.metrics.items():
        values = float(function(before.means)), float(function(after.means))
        differences = function(draws_after) - function(draws_before)
        low, high = percentile_interval(differences) if before.n > 1 else (np.nan, np.nan)
        rows.append(
            {
                "metric": metric,
                "before": values[0],
                "after": values[1],
                "difference": values[1] - values[0],
                "low": low,
                "high": high,
                "p": two_sided_p(function(middle + swings) - function(middle - swings)),
                "effect": _effect(values[1] - values[0], differences, before.n),
                "n": before.n,
            }
        )
    return rows


def _effect(difference: float, draws: np.ndarray, n: int) -> float:
    finite = draws[np.isfinite(draws)]
    spread = float(finite.std()) * n**0.5 if n > 1 and len(finite) else 0.0
    return difference / spread if spread > 0 else np.nan
