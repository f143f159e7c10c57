"""Edits beside each other: every benchmark, before and under each edit, with paired statistics and
costs.

    >>> board = tracelab.evaluate(model, {"mine": edit}, ["crows-pairs", "local-bias"],
    ...                           bias="gender")
    >>> board.plot()

Each row is measured on the same records as the unedited model and compared with it unit by unit
(:mod:`.paired`). ``p_holm`` is corrected over all comparisons of the table (Holm, 1979), so that
one row in twenty is not "significant" by itself. Bias types that the edits were not made for are
shown too: an edit may move them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.escaping import latex_table, markdown_table
from tracelab.evaluate.paired import paired
from tracelab.evaluate.registry import benchmark
from tracelab.evaluate.scoreboard.cells import (
    FAILURES,
    Cell,
    Question,
    measure_cell,
    questions,
)
from tracelab.evaluate.scoreboard.costs import COLUMNS as COST_COLUMNS
from tracelab.evaluate.scoreboard.costs import edit_costs
from tracelab.evaluate.scoreboard.interference import interference
from tracelab.evaluate.scores import Benchmark
from tracelab.figures import scoreboard, tradeoff
from tracelab.interventions import Intervention, Stack
from tracelab.metrics import UNEDITED
from tracelab.model.hooked import require_unedited
from tracelab.model.settings import run_settings
from tracelab.progress import progress
from tracelab.ranges import require_limit, require_seed
from tracelab.results import Result
from tracelab.statistics import holm
from tracelab.storage.ownership import require_folder

DEFAULT = ("stereoset", "crows-pairs", "local-bias", "perplexity")
"""Benchmarks that take minutes, not hours, on two cores."""

LEADING = ("gap_group", "gap", "ss")
"""Bias metrics of which a trade-off is drawn, the first that is there."""

COLUMNS = [
    "edit",
    "benchmark",
    "bias",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "difference",
    "difference_low",
    "difference_high",
    "effect",
    "up",
    "down",
    "p_paired",
    "p_holm",
    "note",
    "difference_note",
    "reason",
]


@dataclass(frozen=True)
class Scoreboard(Result):
    """The table; see the module's docstring.

    Attributes:
        table: one row an (edit, benchmark, bias, metric): ``value`` with its interval
            ``low, high`` over ``n`` units; of an edit also the ``difference`` to the unedited model
            with its paired interval, the standardised ``effect``, the units that went ``up`` and
            ``down``, ``p_paired`` (permutation) and ``p_holm`` (corrected over the table); ``note``
            and ``difference_note`` say why there is no interval. Where a cell failed, one row with
            the ``reason``.
        costs: one row an edit; see :mod:`.costs`.
        interactions: for stacks whose members are rows too, whether their changes add up; see
            :mod:`.interference`.
    """

    table: pd.DataFrame
    costs: pd.DataFrame
    interactions: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def headline(self) -> str:
        """How many of the differences are more than chance, and how many cells failed."""
        n, sure = self.table["difference"].notna().sum(), (self.table["p_holm"] < 0.05).sum()
        edits, benchmarks = (len(self.settings[name]) for name in ("edits", "benchmarks"))
        failed = f", {self.failures} cells failed" if self.failures else ""
        return (
            f"{self.settings['bias'] or 'all bias types'}, {edits} edits on {benchmarks} benchmarks"
            f", {sure} of n = {n} differences hold{failed}"
        )

    @property
    def failed(self) -> pd.DataFrame:
        """Cells without scores: ``edit, benchmark, bias, reason``."""
        return self.table.loc[self.table["reason"] != "", ["edit", "benchmark", "bias", "reason"]]

    @property
    def failures(self) -> int:
        """Number of cells without scores."""
        return len(self.failed)

    def text(self) -> str:
        """The wide table, the costs, and why cells failed."""
        parts = [self.to_markdown()]
        for table in (
            self.costs.drop(columns="reason", errors="ignore"),
            self.interactions,
            self.failed,
        ):
            if len(table):
                parts.append(markdown_table(table, index=False, floatfmt=".3g"))
        return "\n\n".join(parts)

    def plot(self, values: str = "difference") -> go.Figure:
        """What each edit changes, with paired intervals: one row a bias type, one column a metric.

        Args:
            values: ``"difference"`` to the unedited model, or ``"level"``: every score with its own
                interval.
        """
        return scoreboard(self.table, self.settings, values=values)

    def plot_tradeoff(
        self, bias_metric: str | None = None, capability: str = "perplexity"
    ) -> go.Figure:
        """Change of a bias metric against that of a capability metric, one point an edit; default:
        the first of :data:`LEADING` that the table has of the bias type it was made for.

        Raises:
            TracelabError: an unknown metric, or none of an edit and that bias type.
        """
        leading = next(iter(self._leading()), LEADING[-1])
        return tradeoff(self.table, self.settings, bias_metric or leading, capability)

    @property
    def has_tradeoff(self) -> bool:
        """Whether bias can be drawn against capability."""
        return "perplexity" in set(self._scored()["metric"]) and bool(self._leading())

    def _scored(self) -> pd.DataFrame:
        """Rows of edits, of the bias type that they were made for."""
        own = [self.settings["bias"], ""]
        of_it = self.settings["bias"] is None or self.table["bias"].isin(own)
        return self.table[of_it & (self.table["reason"] == "") & self.table["difference"].notna()]

    def _leading(self) -> list[str]:
        there = set(self._scored()["metric"])
        return [metric for metric in LEADING if metric in there]

    def figures(self) -> dict[str, go.Figure]:
        """What changes and, where it can be drawn, bias against capability."""
        made = {"": self.plot()}
        if self.has_tradeoff:
            made["tradeoff"] = self.plot_tradeoff()
        return made

    def wide(self) -> pd.DataFrame:
        """One row an edit, one column a metric: ``value [low, high]``, with ``*`` where ``p_holm``
        is under 0.05.

        A cell without scores says ``failed``; :attr:`failed` says why.
        """
        rows = self.table.to_dict("records")
        prefixes = [" ".join(filter(None, (row["benchmark"], row["bias"]))) for row in rows]
        made: dict[str, dict[str, str]] = {row["edit"]: {} for row in rows}
        columns = dict.fromkeys(
            f"{prefix} {row['metric']}"
            for prefix, row in zip(prefixes, rows, strict=True)
            if not row["reason"]
        )
        for prefix, row in zip(prefixes, rows, strict=True):
            if row["reason"]:
                own = [name for name in columns if name.rpartition(" ")[0] == prefix] or [prefix]
                made[row["edit"]] |= dict.fromkeys(own, "failed")
            else:
                made[row["edit"]][f"{prefix} {row['metric']}"] = _cell_text(row)
        return pd.DataFrame.from_dict(made, orient="index").fillna("–").rename_axis("edit")

    def to_markdown(self) -> str:
        """:meth:`wide` as a Markdown table, a row a metric: papers' tables are tall, not wide."""
        return markdown_table(self.wide().T)

    def to_latex(self) -> str:
        """:meth:`wide` as a LaTeX ``tabular`` for ``booktabs``, a row a metric."""
        return latex_table(self.wide().T)


def evaluate(
    model: TransformerBridge,
    interventions: Mapping[str, Intervention] | Sequence[Intervention] | Intervention,
    benchmarks: str | Benchmark | Iterable[str | Benchmark] = DEFAULT,
    *,
    bias: str | None = None,
    limit: int | Mapping[str, int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    off_target: bool = True,
    costs: bool = True,
    folder: Path | str | None = None,
    measure: Callable[[Question, str | None], Cell] | None = None,
    allow_hooks: bool = False,
    seed: int = 0,
) -> Scoreboard:
    """Score a model as it is and under each edit, on each benchmark.

    Args:
        interventions: edits by the name of their row; a sequence takes the edits' own names.
        benchmarks: names (:data:`~tracelab.evaluate.registry.BENCHMARKS`, ``lm-eval/TASK``), or
            benchmarks.
        bias: type that the edits were made for (:data:`~tracelab.evaluate.registry.BIAS_TYPES`);
            None: all of them.
        limit: at most so many records of each benchmark, a subsample, or by benchmark.
        options: keyword arguments of scorers, by benchmark.
        off_target: whether benchmarks with ``every_bias`` (StereoSet) are run on the other bias
            types too.
        costs: whether to measure what the edits cost.
        folder: checkpoint of finished cells; the same call resumes from it.
        measure: what gives the cell of a question under the edit of a name (None: unedited), where
            cells are measured elsewhere.
        allow_hooks: take a model with hooks on, as it is with them, for the unedited one. Cells
            measured under a hook that is no edit of tracelab's are never resumed.
        seed: of the permutations; seeds of sampling are an option of ``bold``.

    Raises:
        TracelabError: an unknown benchmark or bias type, two edits of one name, an edit made for
            another model, hooks on the model. What goes wrong in one cell is told in the table
            instead.
    """
    require_seed(seed)
    for most in limit.values() if isinstance(limit, Mapping) else [limit]:
        require_limit(most)
    require_unedited(model, "evaluate", allow_hooks=allow_hooks)
    if folder is not None:
        require_folder(folder)
    edits = _named(interventions)
    several = [benchmarks] if isinstance(benchmarks, str | Benchmark) else benchmarks
    chosen = [item if isinstance(item, Benchmark) else benchmark(item) for item in several]
    if not chosen:
        raise TracelabError("no benchmark to evaluate on")
    for edit in edits.values():
        edit.hooks(model)  # refuses before any work
    asked = list(questions(chosen, bias, limit, options or {}, off_target))

    def cell_of(question: Question, name: str | None) -> Cell:
        if measure is not None and not question.reason:
            return measure(question, name)
        edit = None if name is None else edits[name]
        return measure_cell(model, question, edit, name, folder=folder, seed=seed)

    rows: list[pd.DataFrame] = []
    interactions: list[pd.DataFrame] = []
    with progress(total=len(asked) * (len(edits) + 1), what="cells", unit="cell") as bar:
        for question in asked:
            before = cell_of(question, None)
            bar.update()
            rows.append(_rows(question, before, None, UNEDITED, seed))
            cells: dict[str, Cell] = {}
            for name in edits:
                cells[name] = cell_of(question, name)
                bar.update()
                rows.append(_rows(question, cells[name], before, name, seed))
            interactions += _interactions(question, before, cells, edits, seed)
    table = pd.concat(rows, ignore_index=True).reindex(columns=COLUMNS)
    table["p_holm"] = holm(table["p_paired"])
    notes = ["note", "difference_note"]
    table[notes] = table[notes].fillna("")
    settings = run_settings(
        model,
        (),
        benchmarks=[item.name for item in chosen],
        bias=bias,
        limit=dict(limit) if isinstance(limit, Mapping) else limit,
        options={
            name: {key: repr(value) for key, value in given.items()}
            for name, given in (options or {}).items()
        },
        edits={name: edit.settings() for name, edit in edits.items()},
        seed=seed,
    )
    joined = pd.concat(interactions, ignore_index=True) if interactions else pd.DataFrame()
    return Scoreboard(
        settings, table, _costs(model, edits, allow_hooks) if costs else pd.DataFrame(), joined
    )


def _named(
    interventions: Mapping[str, Intervention] | Sequence[Intervention] | Intervention,
) -> dict[str, Intervention]:
    if isinstance(interventions, Mapping):
        named = dict(interventions)
    else:
        edits = [interventions] if isinstance(interventions, Intervention) else list(interventions)
        named = {edit.name: edit for edit in edits}
        if len(named) < len(edits):
            raise TracelabError(
                f"two edits have one name among {', '.join(edit.name for edit in edits)}: give a "
                "mapping from names"
            )
    if UNEDITED in named:
        raise TracelabError(f"{UNEDITED!r} is the model as it is: call the edit something else")
    return named


def _rows(
    question: Question, cell: Cell, before: Cell | None, name: str, seed: int
) -> pd.DataFrame:
    """The rows of one cell, with differences where there is a ``before`` with scores."""
    own = {"edit": name, "benchmark": question.benchmark.name, "bias": question.bias}
    if cell.scores is None:
        return pd.DataFrame([own | {"metric": "", "reason": cell.reason}])
    table = _headline(cell.scores.table, question)
    if before is not None and before.scores is not None:
        names = {
            "low": "difference_low",
            "high": "difference_high",
            "p": "p_paired",
            "note": "difference_note",
        }
        change = _headline(
            paired(before.scores, cell.scores, seed=seed).rename(columns=names), question
        )
        table = table.merge(
            change[["metric", "difference", *names.values(), "effect", "up", "down"]],
            on="metric",
            validate="1:1",
        )
    return table.assign(**own, reason="")


def _headline(table: pd.DataFrame, question: Question) -> pd.DataFrame:
    """The rows that belong on a scoreboard: of all records together, not of the parts that some
    tables have too."""
    table = table[table["bias"] == table.loc[table["n"].idxmax(), "bias"]]
    shown = list(question.benchmark.metrics)
    if not shown:
        return table
    own = table[table["metric"].isin(shown)]
    return own.sort_values("metric", key=lambda names: names.map(shown.index), kind="stable")


def _interactions(
    question: Question,
    before: Cell,
    cells: Mapping[str, Cell],
    edits: Mapping[str, Intervention],
    seed: int,
) -> list[pd.DataFrame]:
    found = []
    for name, edit in edits.items():
        members = (
            [key for member in edit for key in edits if edits[key] is member]
            if isinstance(edit, Stack)
            else []
        )
        if len(members) < 2 or len(members) < len(list(edit)):  # type: ignore[call-overload]
            continue
        scores = [
            cell.scores for cell in (before, *(cells[member] for member in members), cells[name])
        ]
        if any(each is None for each in scores):
            continue
        known = [each for each in scores if each is not None]
        rows = _headline(interference(known[0], known[1:-1], known[-1], seed=seed), question)
        found.append(rows.assign(edit=name, benchmark=question.benchmark.name, bias=question.bias))
    return found


def _costs(
    model: TransformerBridge, edits: Mapping[str, Intervention], allow_hooks: bool
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for name, edit in itertools.chain([(UNEDITED, Stack([]))], edits.items()):
        try:
            rows.append(
                {"edit": name, **edit_costs(model, edit, allow_hooks=allow_hooks), "reason": ""}
            )
        except FAILURES as error:
            rows.append({"edit": name, "reason": " ".join(str(error).split())})
    return pd.DataFrame(rows).reindex(columns=["edit", *COST_COLUMNS, "reason"])


def _cell_text(row: Mapping[str, Any]) -> str:
    if pd.isna(row["value"]):
        return "–"
    star = "*" if row["p_holm"] < 0.05 else ""
    star += " (unchanged)" * str(row.get("difference_note")).startswith("no record changed")
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"{row['value']:.3g}{interval}{star}"
