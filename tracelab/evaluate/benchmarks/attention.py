"""KLAAD's attention gap as a benchmark: one unit a pair, so that it is compared before and under an
edit.

    sensitive     mean gap of the positions in which the sentences of a pair differ
    other         mean gap of the other positions
    hit_rate      % of pairs whose largest gap lies on a sensitive position

See :mod:`~tracelab.localize.attention.attention_gap` for what a gap is and for the controls; of the
pairs only the selection to quote counts (those of equal token count, where there are any). An ideal
value is not
defined: attention has to differ where the words do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from tracelab.evaluate.scores import BenchmarkScores, Sample, by_bias, column, score_table
from tracelab.localize.attention.attention_gap import attention_gap
from tracelab.ranges import require_seed

METRICS = ("sensitive", "other", "hit_rate")


@dataclass(frozen=True)
class AttentionScores(BenchmarkScores):
    """Gaps, and the pairs they come from.

    Attributes:
        table: as for all benchmarks; ``n`` pairs.
        pairs: one row a pair: ``pair, bias_type, sensitive, other, hit``.
    """

    pairs: pd.DataFrame

    def samples(self) -> list[Sample]:
        """Pairs, each with its mean gaps and whether it is a hit."""
        return _samples(self.pairs)


def attention_scores(
    model: TransformerBridge,
    pairs: Iterable[Any],
    *,
    layer: int = -1,
    reduce: str = "received",
    edit: str | None = None,
    seed: int = 0,
) -> AttentionScores:
    """Attention gap of a layer over pairs.

    Args:
        pairs: as :func:`~tracelab.localize.attention.attention_gap.attention_gap` takes them.
        edit: name for the table of the edit that is on the model.

    Raises:
        TracelabError: unknown reduction, layer out of range, no usable pair.
    """
    require_seed(seed)
    gap = attention_gap(
        model, pairs, layer=layer, reduce=reduce, control="none", keep_maps=0, seed=seed
    )
    rows = gap.pairs[gap.pairs["selection"] == gap.selection].reset_index(drop=True)
    table = score_table(_samples(rows), benchmark="attention", edit=edit, seed=seed)
    return AttentionScores(gap.settings | {"benchmark": "attention"}, table, rows)


def _samples(pairs: pd.DataFrame) -> list[Sample]:
    units = pairs.assign(hit=100.0 * pairs["hit"].astype(float))
    metrics = {name: column(index) for index, name in enumerate(METRICS)}
    parts = (
        (bias, part[["sensitive", "other", "hit"]].to_numpy(float)) for bias, part in by_bias(units)
    )
    return [Sample(bias, (values,), metrics) for bias, values in parts]
