"""Do edits applied together do what each does alone?

With d(E) the change of a metric under the edit E against the unedited model, for a stack of edits
A, B, …

    interaction = d(A + B + …) − ( d(A) + d(B) + … )

0: they add up. Of the sign of d(A): they strengthen each other; of the other: one undoes the other.
All are measured on the same units, and the interval is :func:`~tracelab.statistics.t_interval`'s of
the interaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tracelab.evaluate.paired import require_comparable
from tracelab.evaluate.scores import BenchmarkScores
from tracelab.ranges import require_seed
from tracelab.statistics import t_interval


def interference(
    unedited: BenchmarkScores,
    members: Sequence[BenchmarkScores],
    stack: BenchmarkScores,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """The interaction of the edits of a stack, one row a metric and bias type.

    Args:
        members: scores of one benchmark under each edit alone.
        stack: under all of them.

    Returns:
        ``benchmark, bias, metric, sum_of_members, stack, interaction, low, high, n,
        note``: changes against ``unedited``; ``note`` says why there is no interval.

    Raises:
        TracelabError: results of different benchmarks, data or ways to score.
    """
    require_seed(seed)
    results = [unedited, *members, stack]
    for result in results[1:]:
        require_comparable(unedited, result)
    rows: list[dict[str, Any]] = []
    for samples in zip(*(result.samples() for result in results), strict=True):
        stacked = [
            np.hstack(groups) for groups in zip(*(sample.groups for sample in samples), strict=True)
        ]
        first = samples[0]
        for metric, function in first.metrics.items():
            values = [float(function(sample.means)) for sample in samples]
            interval = t_interval(stacked, _interaction_of(function, len(results)))
            rows.append(
                {
                    "benchmark": unedited.benchmark,
                    "bias": first.bias,
                    "metric": metric,
                    "sum_of_members": sum(value - values[0] for value in values[1:-1]),
                    "stack": values[-1] - values[0],
                    "interaction": float(_interaction(values)),
                    "low": interval.low,
                    "high": interval.high,
                    "n": first.n,
                    "note": interval.note,
                }
            )
    return pd.DataFrame(rows)


def _interaction_of(
    function: Callable[[np.ndarray], Any], n_results: int
) -> Callable[[np.ndarray], Any]:
    """The interaction, of means that hold all results side by side."""
    return lambda means: _interaction(
        [function(part) for part in np.split(means, n_results, axis=-1)]
    )


def _interaction(values: Sequence[Any]) -> Any:
    """Of the metric unedited, under each member, under the stack."""
    return (values[-1] - values[0]) - sum(value - values[0] for value in values[1:-1])
