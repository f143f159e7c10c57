"""Figures of scores: of texts token by token, of edits beside each other, and along a parameter of
an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tracelab.errors import cut, one_line, require_choice
from tracelab.figures.forest import CHANGE, VALUES, forest, unit
from tracelab.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    Figure,
    band,
    escape,
    finish,
    look,
    model_name,
    named,
    wrapped,
)
from tracelab.metrics import UNEDITED, ideal, label

N_TEXTS = 40
"""Texts that :func:`log_probabilities` draws; of more, the first."""
_LONG = 40


def log_probabilities(
    table: pd.DataFrame, scored: pd.DataFrame, settings: dict[str, Any]
) -> go.Figure:
    """Log-probability of each token and their mean, one row a text.

    Args:
        table: one row a text: ``text, logprob_mean``.
        scored: one row a token: ``text`` (its number), ``token, logprob``.
    """
    shown = table.head(N_TEXTS)
    rows = list(range(len(shown)))
    names = [cut(one_line(text), _LONG) for text in shown["text"]]
    tokens = scored[scored["text"] < len(shown)]
    figure = go.Figure()
    figure.add_scatter(
        x=tokens["logprob"].to_numpy(np.float32),
        y=tokens["text"],
        mode="markers",
        name="a token",
        marker={"color": GREY, "symbol": "line-ns-open", "size": 8},
        text=[escape(token) for token in tokens["token"]],
        hovertemplate="%{text}: %{x:.3g}<extra></extra>",
    )
    figure.add_scatter(
        x=shown["logprob_mean"].to_numpy(np.float32),
        y=rows,
        mode="markers",
        name="mean of its tokens",
        marker={"color": BLUE, "symbol": "diamond", "size": 9},
        hovertemplate="%{x:.3g}<extra></extra>",
    )
    ticks = {"tickvals": rows, "ticktext": [escape(name) for name in names]}
    figure.update_yaxes(range=[len(rows) - 0.5, -0.5], **ticks)
    figure.update_xaxes(title="log-probability (nats)")
    first = f"the first {len(shown)} of " if len(shown) < len(table) else ""
    caption = f"{first}{len(table)} texts, {len(tokens)} tokens · {model_name(settings)}"
    return finish(figure, "How probable each text is", caption, height=210 + 24 * len(rows))


def scores(
    table: pd.DataFrame,
    metrics: Sequence[str],
    *,
    title: str,
    caption: str,
    values: str = "difference",
) -> Figure:
    """What each edit changes of some metrics, with paired 95 % intervals: one row a bias type, one
    column a metric.

    Args:
        table: rows of :class:`~tracelab.evaluate.scores.BenchmarkScores` tables; a missing ``edit``
            is the model as it is, like all names that end in "unedited".
        metrics: which, in order.
        title, caption: above the figure; name the model in the caption.
        values: ``"difference"``, or ``"level"``, which is drawn of a table without differences too.
    """
    table = table[table["metric"].isin(metrics)]
    table = table.assign(edit=table["edit"].fillna(UNEDITED))
    ordered = table.sort_values("metric", key=lambda s: s.map(list(metrics).index), kind="stable")
    return forest(ordered, values=values, titles=(title, title), caption=caption)


def sweep(
    table: pd.DataFrame,
    x: str,
    metrics: Sequence[str],
    *,
    series: str,
    title: str,
    caption: str,
    x_title: str = "",
    values: str = "difference",
) -> Figure:
    """Changes along a parameter, one panel a metric, one line with a 95 % band a series.

    Args:
        table: columns ``x``, ``series``, ``metric, value, low, high``, and what there is of
            ``difference, difference_low, difference_high``; a row without difference, of a metric
            that has some, is the unedited model, whose change is 0.
        x: name of the parameter's column.
        series: name of the column that tells lines apart.
        values: ``"difference"``, or ``"level"``, which is drawn of metrics without differences too.
    """
    require_choice("values", values, VALUES)
    table = table.reindex(columns=list(dict.fromkeys([*table, *CHANGE])))
    paired = {
        metric: values == "difference"
        and bool(table.loc[table["metric"] == metric, "difference"].notna().any())
        for metric in metrics
    }
    names = [
        wrapped(f"change of {unit(metric, paired=True)}" if paired[metric] else label(metric), 38)
        for metric in metrics
    ]
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=names, horizontal_spacing=0.07)
    lines = list(dict.fromkeys(table[series]))
    for column, metric in enumerate(metrics, start=1):
        rows = table[table["metric"] == metric].sort_values(x)
        best = ideal(metric)
        if paired[metric]:
            base = (rows["value"] - rows["difference"]).median()
            best = None if best is None else best - base
            ends = dict(
                zip(
                    ("value", "low", "high"),
                    # the unedited model's own is 0; an edit's that has no interval is not
                    (rows[name].where(rows["difference"].notna(), 0) for name in CHANGE),
                    strict=True,
                )
            )
            rows = rows.assign(**ends)
        for i, line in enumerate(lines):
            part = rows[rows[series] == line]
            if part.empty:
                continue
            drawn = go.Figure()
            band(drawn, part[x], part["low"], part["high"], COLOURS[i % len(COLOURS)])
            drawn.add_scatter(
                x=part[x],
                y=part["value"].to_numpy(np.float32),
                mode="lines+markers",
                name=named(str(line)),
                legendgroup=str(line),
                showlegend=column == 1,
                **look(i),
            )
            figure.add_traces(list(drawn.data), rows=[1, 1], cols=[column, column])
        low, high = rows["low"].min(), rows["high"].max()
        near = 0.5 * (high - low) if paired[metric] else np.inf
        if best is not None and low - near <= best <= high + near:
            figure.add_hline(y=best, line={"color": GREY, "dash": "dot"}, row=1, col=column)
    figure.update_xaxes(title=escape(x_title or x))
    return finish(figure, title, caption)
