"""Figures of scores: of texts token by token, of edits beside each other, and along a parameter of
an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tracelab.errors import cut, one_line
from tracelab.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    band,
    bars,
    escape,
    finish,
    look,
    model_name,
    named,
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


def scores(table: pd.DataFrame, metrics: Sequence[str], *, title: str, caption: str) -> go.Figure:
    """Each edit's scores with 95 % intervals, one panel a metric; the ideal value, where there is
    one, in grey.

    Args:
        table: rows of :class:`~tracelab.evaluate.scores.BenchmarkScores` tables; a missing ``edit``
            is the model as it is, drawn in grey like all names that end in "unedited".
        metrics: which, in order.
        title, caption: above the figure; name n and the model in the caption.
    """
    table = table.assign(edit=table["edit"].fillna(UNEDITED))
    edits = list(dict.fromkeys(table["edit"]))
    names = [escape(label(metric)) for metric in metrics]
    figure = make_subplots(
        rows=1, cols=len(metrics), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.04
    )
    for column, metric in enumerate(metrics, start=1):
        own = table[table["metric"] == metric].drop_duplicates("edit")
        own = own.assign(place=own["edit"].map(edits.index))
        unedited = own["edit"].str.endswith(UNEDITED)
        for part, colour in ((own[unedited], GREY), (own[~unedited], BLUE)):
            if len(part):
                figure.add_scatter(
                    x=part["value"].to_numpy(np.float32),
                    y=part["place"],
                    mode="markers",
                    error_x=bars(part, colour=colour),
                    marker={"color": colour, "size": 9},
                    showlegend=False,
                    hovertemplate="%{x:.3g}<extra></extra>",
                    row=1,
                    col=column,
                )
        if ideal(metric) is not None:
            figure.add_vline(
                x=ideal(metric), line={"color": GREY, "dash": "dot"}, row=1, col=column
            )
    ticks = {"tickvals": list(range(len(edits))), "ticktext": [named(e) for e in edits]}
    figure.update_yaxes(range=[len(edits) - 0.5, -0.5], **ticks)
    figure.update_xaxes(nticks=5, tickangle=0)
    figure.update_annotations(font_size=12 if len(metrics) > 4 else 16)
    return finish(figure, title, caption, height=210 + 36 * len(edits), legend=False)


def sweep(
    table: pd.DataFrame,
    x: str,
    metrics: Sequence[str],
    *,
    series: str,
    title: str,
    caption: str,
    x_title: str = "",
) -> go.Figure:
    """Scores along a parameter, one panel a metric, one line with a 95 % band a series.

    Args:
        table: columns ``x``, ``series``, ``metric, value, low, high``.
        x: name of the parameter's column.
        series: name of the column that tells lines apart.
    """
    names = [escape(label(metric)) for metric in metrics]
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=names, horizontal_spacing=0.07)
    lines = list(dict.fromkeys(table[series]))
    for column, metric in enumerate(metrics, start=1):
        for i, line in enumerate(lines):
            part = table[(table["metric"] == metric) & (table[series] == line)].sort_values(x)
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
        if ideal(metric) is not None:
            figure.add_hline(
                y=ideal(metric), line={"color": GREY, "dash": "dot"}, row=1, col=column
            )
    figure.update_xaxes(title=escape(x_title or x))
    return finish(figure, title, caption)
