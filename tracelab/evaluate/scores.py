"""What the scores of all benchmarks share: one table, and the samples it is made of.

A metric is a function f of means over the units that a benchmark averages (records, pairs, texts):

    value = f( mean over groups of the mean over each group's units )

StereoSet's groups are target terms; all other benchmarks have one group, that is, plain means. The
same units of two results are what :func:`~tracelab.evaluate.paired.paired` compares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from tracelab.errors import TracelabError
from tracelab.metrics import label
from tracelab.model.finite import CAUSE
from tracelab.results import Result
from tracelab.statistics import percentile_interval, two_stage_means


@dataclass(frozen=True)
class Sample:
    """The units of one bias type and the metrics that are functions of their mean.

    Attributes:
        groups: values of each unit, by group.
        metrics: by name, f from means ``[..., columns]`` to values ``[...]``.
    """

    bias: str
    groups: tuple[Float[np.ndarray, "_units columns"], ...]
    metrics: dict[str, Callable[[np.ndarray], np.ndarray]]

    @property
    def n(self) -> int:
        """Number of units."""
        return sum(map(len, self.groups))

    @property
    def means(self) -> Float[np.ndarray, "columns"]:
        """Unweighted mean over groups of each group's mean."""
        return np.mean([group.mean(axis=0) for group in self.groups], axis=0)


@dataclass(frozen=True)
class BenchmarkScores(Result, ABC):
    """Base of the scores.

    Attributes:
        table: ``benchmark, bias, edit, metric, value, low, high, n``, one row a metric and bias
            type; ``edit`` is the name of the edit under which the model was scored, ``n`` the
            number of units.
    """

    table: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """The scores, one row a metric and bias type."""
        return self.table

    @property
    def benchmark(self) -> str:
        """Its name, as in the table, or else in the settings."""
        known = "benchmark" in self.table and len(self.table)
        return str(self.table["benchmark"].iloc[0] if known else self.settings["benchmark"])

    def headline(self) -> str:
        """The first metric, of all records together."""
        row = self.table.loc[self.table["n"].idxmax()]
        on = ", ".join(filter(None, (row["benchmark"], row["bias"])))
        under = f" under {row['edit']}" if isinstance(row["edit"], str) else ""
        return f"{on}, n = {row['n']}, {label(row['metric'])} {row['value']:.4g}{under}"

    @abstractmethod
    def samples(self) -> list[Sample]:
        """The units behind the table, bias type by bias type."""


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is read and scored.

    Attributes:
        read: ``(bias, limit, **where)`` to records, at most ``limit``, subsampled evenly over the
            file (WikiText: the first lines); without ``bias`` those of all types.
        score: ``(model, records, *, edit, seed, **options)``: scores the model as it is at the
            moment.
        kind: the class of its scores.
        metrics: those that belong on a scoreboard (none: all); the others are in the scores
            themselves.
        biases: bias types it has, as they are asked for here; none: it measures no bias.
        where: what ``read`` can be told beside: ``source``, ``split``.
        every_bias: whether a scoreboard also shows it on bias types that an edit was not made for.
    """

    name: str
    read: Callable[..., Sequence[Any]]
    score: Callable[..., BenchmarkScores]
    kind: type[BenchmarkScores]
    metrics: tuple[str, ...]
    biases: tuple[str, ...] = ()
    where: tuple[str, ...] = ("source",)
    every_bias: bool = False


def column(index: int) -> Callable[[np.ndarray], np.ndarray]:
    """The metric that is the mean of one column."""
    return lambda means: means[..., index]


def require_finite_units(units: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse scores of units that are not finite, as comparisons with them would count as no hit.

    Raises:
        TracelabError: naming the first such unit.
    """
    wrong = ~np.isfinite(units[list(columns)].to_numpy(float)).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        name = repr(units["id"].iloc[row]) if "id" in units else f"number {row}"
        raise TracelabError(
            f"the scores of record {name} ({wrong.sum()} of {len(units)}) are not finite: {CAUSE}"
        )


def by_bias(units: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each bias type and, if there are several, all of them as ``overall``."""
    biases = sorted(units["bias_type"].unique())
    for bias in biases:
        yield bias, units[units["bias_type"] == bias]
    if len(biases) > 1:
        yield "overall", units


def score_table(
    samples: Sequence[Sample], *, benchmark: str, edit: str | None, seed: int
) -> pd.DataFrame:
    """The columns of :attr:`BenchmarkScores.table`; intervals resample groups, then units inside
    each."""
    rows: list[dict[str, Any]] = []
    for sample in samples:
        means, draws = sample.means, two_stage_means(sample.groups, seed=seed)
        for metric, function in sample.metrics.items():
            low, high = percentile_interval(function(draws)) if sample.n > 1 else (np.nan, np.nan)
            row = {"benchmark": benchmark, "bias": sample.bias, "edit": edit, "metric": metric}
            rows.append(
                row | {"value": float(function(means)), "low": low, "high": high, "n": sample.n}
            )
    return pd.DataFrame(rows)
