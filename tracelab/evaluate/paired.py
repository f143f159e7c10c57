"""What an edit changed: the difference of each score, with a paired interval and a paired test.

Before and after are measured on the same units u (records, pairs, texts), so with f and the means
of :mod:`tracelab.evaluate.scores`

    difference = f(mean after) − f(mean before)

The interval is :func:`~tracelab.statistics.t_interval`'s of the difference: it is far narrower than
two separate intervals suggest. There is none where no unit's value changed ("no record changed
sides" of hits): "0, from 0 to 0" would be a claim of certainty.

The p-value of plain means is that of a two-sided permutation test that exchanges before and after
of whole units at random, as they could be if the edit did nothing. Where units lie in groups
(records of a target term) it is that of the interval, so that both say the same: exchanging records
one by one takes what a term's records have in common for an effect, and exchanging whole terms
cannot reach p < .25 of three (``analyses/coverage.py``). None is corrected for how many rows are
read.

``effect`` is the difference in standard deviations of one unit's difference,

    effect = difference / (√n · standard error)          (the standard error is the interval's)

which of a plain mean is Cohen's d for paired data: unlike p it does not grow with the number of
units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from tracelab.errors import TracelabError
from tracelab.evaluate.scores import ANYWHERE, BenchmarkScores, Column, Sample
from tracelab.ranges import require_seed
from tracelab.statistics import Interval, flipped_sums, t_interval, two_sided_p

_MAY_DIFFER = {"hooks", "model", "seed", "threads", "versions"}  # settings


def paired(before: BenchmarkScores, after: BenchmarkScores, *, seed: int = 0) -> pd.DataFrame:
    """Compare two results of one benchmark, such as of a model before and after an edit.

    Args:
        seed: of the permutations.

    Returns:
        ``benchmark, bias, metric, before, after, difference, low, high, p, effect, n, up, down,
        note``, one row a metric and bias type. ``low`` and ``high`` are of the difference, ``n`` is
        the number of units. ``up`` and ``down`` are the units whose value rose and fell (of ``ss``:
        records that changed sides), missing for metrics that are no mean of units' values
        (``icat``). ``note`` says why there is no interval.

    Raises:
        TracelabError: results of different benchmarks, data or ways to score.
    """
    require_seed(seed)
    require_comparable(before, after)
    names = [[(s.bias, *s.metrics) for s in scores.samples()] for scores in (before, after)]
    if names[0] != names[1]:
        raise TracelabError(
            "before and after do not hold the same metrics: one was made by an earlier version of "
            "tracelab; score it again"
        )
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
    stacked = [np.hstack(both) for both in zip(before.groups, after.groups, strict=True)]
    # A unit's share of the mean of means is 1 / (groups · units in its group); exchanging its
    # before and after moves both means by half its difference, in opposite directions.
    halves = np.concatenate(
        [
            (b - a) / (2 * len(before.groups) * len(a))
            for a, b in zip(before.groups, after.groups, strict=True)
        ]
    )
    swings = flipped_sums(halves, seed=seed)
    middle = (before.means + after.means) / 2
    rows = []
    for metric, function in before.metrics.items():
        values = float(function(before.means)), float(function(after.means))
        most = _largest(metric, before, after)
        interval = t_interval(stacked, _change(function)).within(-most, most)
        moved = function(before.means + 2 * halves) != values[0]  # unit by unit
        if not moved.any():
            sides = " sides" * bool(before.hit(metric))
            interval = Interval(np.nan, np.nan, 0.0, 0, f"no record changed{sides}")
        rows.append(
            {
                "metric": metric,
                "before": values[0],
                "after": values[1],
                "difference": values[1] - values[0],
                "low": interval.low,
                "high": interval.high,
                "p": interval.p(values[1] - values[0])
                if len(stacked) > 1 and not interval.note
                else two_sided_p(function(middle + swings) - function(middle - swings)),
                "effect": _effect(values[1] - values[0], interval.error, before.n),
                "n": before.n,
                **_flips(function, halves),
                "note": interval.note,
            }
        )
    return rows


def _change(function: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """After less before, of means that hold both side by side."""

    def change(means: np.ndarray) -> Any:
        before, after = np.split(means, 2, axis=-1)
        return function(after) - function(before)

    return change


def _largest(metric: str, before: Sample, after: Sample) -> float:
    """How far a metric can move."""
    low, high = before.limits.get(metric, ANYWHERE)
    return max(before.hit(metric), after.hit(metric)) or high - low


def _flips(function: Callable[[np.ndarray], Any], halves: np.ndarray) -> dict[str, Any]:
    """How many units' values rose and fell, where the metric is a mean of units' values."""
    if not isinstance(function, Column):
        return {"up": np.nan, "down": np.nan}
    moved = halves[:, function.index]
    return {"up": int((moved > 0).sum()), "down": int((moved < 0).sum())}


def _effect(difference: float, error: float, n: int) -> float:
    return difference / (error * n**0.5) if error > 0 else np.nan
