"""A benchmark before and under an edit, measured on the same units, with the paired differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from tracelab.evaluate.paired import paired
from tracelab.evaluate.scores import BenchmarkScores
from tracelab.interventions import Intervention
from tracelab.metrics import label
from tracelab.model.hooked import require_unedited
from tracelab.ranges import require_seed
from tracelab.results import Result


@dataclass(frozen=True)
class EditedScores(Result):
    """Scores before and under an edit.

    Attributes:
        table: ``benchmark, bias, edit, metric, value, low, high, n, note``, then for the edited
            rows ``difference`` to the unedited model with its paired interval ``difference_low,
            difference_high`` and ``p``, the units whose value went ``up`` and ``down``, and
            ``difference_note``, why there is no interval of the difference.
    """

    table: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def headline(self) -> str:
        """The first metric under the edit, of all records together, and its difference."""
        table = self.table[self.table["difference"].notna()]
        row = table.loc[table["n"].idxmax()]
        on = ", ".join(filter(None, (row["benchmark"], row["bias"])))
        change = f"{label(row['metric'])} {row['value']:.4g} ({row['difference']:+.3g})"
        return f"{on}, n = {row['n']}, {change} under {row['edit']}"


def edited_scores(
    model: TransformerBridge,
    edit: Intervention,
    measure: Callable[[str | None], BenchmarkScores],
    *,
    before: BenchmarkScores | None = None,
    allow_hooks: bool = False,
    seed: int = 0,
) -> EditedScores:
    """Measure a benchmark with and without an edit.

    >>> from tracelab.evaluate import stereoset_scores
    >>> records = tracelab.datasets.stereoset("gender")
    >>> edited_scores(model, edit, lambda name: stereoset_scores(model, records, edit=name)).frame

    Args:
        measure: scores the model as it is at the moment; given the edit's name, or None, for the
            table.
        before: the unedited scores, if they are at hand.
        allow_hooks: take a model with hooks on, as it is with them, for the unedited one.
        seed: of the permutations.

    Raises:
        TracelabError: the edit was made for another model, or hooks are on the model.
    """
    require_seed(seed)
    require_unedited(model, "a comparison", allow_hooks=allow_hooks)
    edit.hooks(model)  # refuses before any work
    first = before or measure(None)
    with edit.applied(model):
        second = measure(edit.name)
    return compared(first, second, edit, seed=seed)


def compared(
    before: BenchmarkScores, after: BenchmarkScores, edit: Intervention, *, seed: int = 0
) -> EditedScores:
    """Scores that are there already, with their paired differences.

    Raises:
        TracelabError: results of different benchmarks, data or ways to score.
    """
    require_seed(seed)
    names = {"low": "difference_low", "high": "difference_high", "note": "difference_note"}
    change = paired(before, after, seed=seed).rename(columns=names)
    keys = ["benchmark", "bias", "metric"]
    edited = after.table.merge(
        change[[*keys, "difference", *names.values(), "p", "up", "down"]],
        on=keys,
        validate="1:1",
    )
    return EditedScores(
        after.settings | {"edit": edit.settings()},
        pd.concat([before.table, edited], ignore_index=True),
    )
