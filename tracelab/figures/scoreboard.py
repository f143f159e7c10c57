"""Figures of a scoreboard: every score with its interval, and bias against capability."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tracelab.errors import TracelabError, require_choice
from tracelab.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    MARKERS,
    ORANGE,
    bars,
    escape,
    finish,
    model_name,
)
from tracelab.metrics import METRICS, UNEDITED, ideal, label

_COLUMNS = 4


def scoreboard(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """One panel a benchmark, bias type and metric; edits that differ from the unedited model after
    Holm are orange.

    Args:
        table: one row an (edit, benchmark, bias, metric): ``value, low, high, n, difference,
            p_holm``; those with a ``reason`` have no value and are left out.

    Raises:
        TracelabError: no row has a value.
    """
    table = table[table["reason"] == ""]
    if table.empty:
        raise TracelabError("every cell of this scoreboard failed: there is nothing to draw")
    edits = list(table["edit"].unique())
    panels = list(table.groupby(["benchmark", "bias", "metric"], sort=False))
    first = table.groupby("metric")[
        "benchmark"
    ].first()  # a name of its own has only the first of several
    n_rows = -(-len(panels) // _COLUMNS)
    figure = make_subplots(
        rows=n_rows,
        cols=min(_COLUMNS, len(panels)),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.4 / n_rows,
        subplot_titles=[
            _title(name, bias, metric, own=first[metric] == name)
            for (name, bias, metric), _ in panels
        ],
    )
    for number, ((_, _, metric), rows) in enumerate(panels):
        place = {"row": number // _COLUMNS + 1, "col": number % _COLUMNS + 1}
        part = rows.set_index("edit").reindex(edits)
        figure.add_scatter(
            x=part["value"].to_numpy(np.float32),
            y=list(range(len(edits))),
            mode="markers",
            marker={"size": 8, "color": [_colour(e, p) for e, p in part["p_holm"].items()]},
            error_x=bars(part),
            customdata=part[["difference", "p_holm", "n"]].to_numpy(np.float32),
            hovertemplate="%{x:.4g}, difference %{customdata[0]:.3g}, p %{customdata[1]:.2g}, "
            "n %{customdata[2]:.0f}<extra></extra>",
            showlegend=False,
            **place,
        )
        if ideal(str(metric)) is not None:
            figure.add_vline(x=ideal(str(metric)), line={"color": GREY, "dash": "dot"}, **place)
    ticks = {"tickvals": list(range(len(edits))), "ticktext": [escape(e) for e in edits]}
    figure.update_yaxes(range=[len(edits) - 0.5, -0.5], **ticks)
    figure.update_xaxes(nticks=4)
    figure.update_annotations(font_size=11)
    caption = (
        "95 % interval; dotted: ideal; orange: differs from the unedited model on the same "
        "units, p < 0.05 after "
        f"Holm's correction over the table · {model_name(settings)}"
    )
    height = 150 + n_rows * (90 + 24 * len(edits))
    figure = finish(figure, "Every benchmark under each edit", caption, height=height, legend=False)
    return figure.update_layout(margin_l=40 + 7 * max(map(len, edits)))


def tradeoff(
    table: pd.DataFrame, settings: dict[str, Any], bias_metric: str, capability: str
) -> go.Figure:
    """How far a bias metric is from its ideal value against a capability metric.

    On the bias type that the edits were made for; of a scoreboard of all types on the first that
    has the metric.

    Args:
        table: as in :func:`scoreboard`.
        settings: with the ``bias`` type (None: all) and the model.

    Raises:
        TracelabError: a metric that the table has not, or a bias metric without an ideal value.
    """
    table = table[table["reason"] == ""]
    require_choice(
        "metric with an ideal value",
        bias_metric,
        sorted(m for m in set(table["metric"]) if ideal(m) is not None),
    )
    require_choice("metric", capability, sorted(set(table["metric"])))
    bias = settings["bias"] or table.loc[table["metric"] == bias_metric, "bias"].iloc[0]
    own = table[table["bias"].isin([bias, ""])]
    x, y = (_of_first(own[own["metric"] == metric]) for metric in (capability, bias_metric))
    source = y["benchmark"].iloc[0] if len(y) else ""
    best = ideal(bias_metric) or 0.0
    figure = go.Figure()
    for number, edit in enumerate(name for name in x.index if name in y.index):
        distance = abs(float(y.loc[edit, "value"]) - best)
        figure.add_scatter(
            x=[float(x.loc[edit, "value"])],
            y=[distance],
            name=escape(edit),
            mode="markers",
            marker={
                "size": 12,
                "symbol": MARKERS[number % len(MARKERS)],
                "color": GREY if edit == UNEDITED else COLOURS[(number - 1) % len(COLOURS)],
            },
            error_x=bars(x.loc[[edit]]),
            error_y=_distance_bars(y.loc[edit], best, distance),
        )
    figure.update_xaxes(title=escape(label(capability)))
    figure.update_yaxes(
        title=f"{escape(f'{source}, {label(bias_metric)}')}: distance from {best:g}",
        rangemode="tozero",
    )
    n = ", ".join(f"n = {int(each['n'].iloc[0])}" for each in (x, y))
    caption = f"Lower is less biased; 95 % interval; {n} · {bias} · {model_name(settings)}"
    return finish(figure, "Bias against capability", caption)


def _of_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of the first benchmark that has the metric, by edit."""
    if len(rows):
        rows = rows[rows["benchmark"] == rows["benchmark"].iloc[0]]
    return rows.set_index("edit")


def _title(benchmark: str, bias: str, metric: str, *, own: bool) -> str:
    name = label(metric)
    if not own or metric not in METRICS:
        name = f"{benchmark}: {name}"
    lines = textwrap.wrap(f"{name}, {bias}" if bias else name, 26)
    return "<br>".join(escape(line) for line in lines)


def _colour(edit: str, p: float) -> str:
    if edit == UNEDITED:
        return GREY
    return ORANGE if p < 0.05 else BLUE


def _distance_bars(row: pd.Series, best: float, distance: float) -> dict[str, Any]:
    """The interval of |value − ideal|: it may reach 0, where the two sides meet."""
    ends = [abs(row["low"] - best), abs(row["high"] - best)]
    nearest = 0.0 if row["low"] <= best <= row["high"] else min(ends)
    return bars(pd.DataFrame({"value": [distance], "low": [nearest], "high": [max(ends)]}))
