"""What the scores of all benchmarks share: one table, and the samples it is made of.

A metric is a function f of means over the units that a benchmark averages (records, pairs, texts):

    value = f( mean over groups of the mean over each group's units )

StereoSet's groups are target terms, those of the choice between groups are concepts; all other
benchmarks have one group, that is, plain means. The same units of two results are what
:func:`~tracelab.evaluate.paired.paired` compares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Float

from tracelab.datasets.records import subsample
from tracelab.errors import TracelabError
from tracelab.metrics import label
from tracelab.model.finite import CAUSE
from tracelab.ranges import require_seed
from tracelab.results import Result
from tracelab.statistics import t_interval

ANYWHERE = (-np.inf, np.inf)
"""The limits of a metric that has none."""


@dataclass(frozen=True)
class Sample:
    """The units of one bias type and the metrics that are functions of their mean.

    Attributes:
        groups: values of each unit, by group.
        metrics: by name, f from means ``[..., columns]`` to values ``[...]``.
        limits: of the metrics that cannot leave them, where intervals are cut; shares of hits need
            none.
    """

    bias: str
    groups: tuple[Float[np.ndarray, "_units columns"], ...]
    metrics: Mapping[str, Callable[[np.ndarray], Any]]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of units."""
        return sum(map(len, self.groups))

    @property
    def means(self) -> Float[np.ndarray, "columns"]:
        """Unweighted mean over groups of each group's mean."""
        return np.mean([group.mean(axis=0) for group in self.groups], axis=0)

    def hit(self, metric: str) -> float:
        """What a hit counts, 1 or 100, where the metric is a share of hits (or of halves of
        them); else 0."""
        function = self.metrics[metric]
        if not isinstance(function, Column):
            return 0.0
        values = np.unique(np.concatenate([group[:, function.index] for group in self.groups]))
        return next((one for one in (1.0, 100.0) if np.isin(values, [0, one / 2, one]).all()), 0.0)


@dataclass(frozen=True)
class BenchmarkScores(Result, ABC):
    """Base of the scores.

    Attributes:
        table: ``benchmark, bias, edit, metric, value, low, high, n, note``, one row a metric and
            bias type; ``edit`` is the name of the edit under which the model was scored, ``n`` the
            number of units, ``note`` why there is no interval (tables of earlier versions have
            none).
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

    def joined(self, parts: Sequence[Self], records: Sequence[Any]) -> Self:
        """The scores of the units of several results (this is the first), as if they were measured
        at once.

        Args:
            parts: of parts of ``records``, in their order.
        """
        edit = self.table["edit"].iloc[0]
        units = replace(self, **self._units(parts, records))
        table = score_table(
            units.samples(),
            benchmark=self.benchmark,
            edit=None if pd.isna(edit) else edit,
            seed=self.settings["seed"],
        )
        return replace(units, table=table)

    def _units(self, parts: Sequence[Self], records: Sequence[Any]) -> dict[str, pd.DataFrame]:
        """The tables of units of several results, joined."""
        names = [name for name in self.tables() if name != "table"]
        return {
            name: pd.concat([part.tables()[name] for part in parts], ignore_index=True)
            for name in names
        }


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

    def on(self, records: Sequence[Any], name: str | None = None) -> Benchmark:
        """The same measure on records of your own, as a benchmark of another name; without bias
        types, as the records are all that is asked.

        Args:
            records: what :attr:`score` takes, such as :func:`tracelab.datasets.pairs` for
                StereoSet's, CrowS-Pairs' and attention's.
            name: default: ``own-`` and the measure's.
        """
        called = name or f"own-{self.name}"

        def score(model: Any, records: Any, **options: Any) -> BenchmarkScores:
            found = self.score(model, records, **options)
            table = found.table.assign(benchmark=called)
            return replace(found, settings=found.settings | {"benchmark": called}, table=table)

        def read(bias: str | None, limit: int | None) -> Sequence[Any]:
            return subsample(list(records), limit)

        return replace(self, name=called, read=read, score=score, biases=(), where=())


@dataclass(frozen=True)
class Column:
    """The metric that is the mean of one column of the units."""

    index: int

    def __call__(self, means: np.ndarray) -> Any:
        """From means ``[..., columns]`` to values ``[...]``."""
        return means[..., self.index]


def column(index: int) -> Callable[[np.ndarray], Any]:
    """A :class:`Column`: the metric that is the mean of one column."""
    return Column(index)


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
    """The columns of :attr:`BenchmarkScores.table`; intervals are :func:`t_interval`'s."""
    require_seed(seed)
    rows: list[dict[str, Any]] = []
    for sample in samples:
        for metric, function in sample.metrics.items():
            interval = t_interval(sample.groups, function, hit=sample.hit(metric))
            interval = interval.within(*sample.limits.get(metric, ANYWHERE))
            rows.append(
                {
                    "benchmark": benchmark,
                    "bias": sample.bias,
                    "edit": edit,
                    "metric": metric,
                    "value": float(function(sample.means)),
                    "low": interval.low,
                    "high": interval.high,
                    "n": sample.n,
                    "note": interval.note,
                }
            )
    return pd.DataFrame(rows)
