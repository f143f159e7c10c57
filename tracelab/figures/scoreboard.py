"""Figures of a scoreboard: what each edit changes, and bias against capability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tracelab.errors import TracelabError, require_choice
from tracelab.figures.forest import differences, forest, unit
from tracelab.figures.style import (
    GREY,
    Figure,
    bars,
    escape,
    finish,
    look,
    model_name,
    named,
    wrapped,
)
from tracelab.metrics import BENCHMARKS, UNEDITED, ideal


def scoreboard(
    table: pd.DataFrame, settings: dict[str, Any], *, values: str = "difference"
) -> Figure:
    """What each edit changes: one row a bias type, one column a benchmark's metric.

    Args:
        table: one row an (edit, benchmark, bias, metric): ``value, low, high, n, difference,
            difference_low, difference_high, p_holm``; those with a ``reason`` have no value and
            are left out.
        values: ``"difference"`` to the unedited model, paired, or ``"level"``; of a table without
            edits, whose levels are all there is, those.

    Raises:
        TracelabError: no row has a value, or ``values`` is neither.
    """
    table = table[table["reason"] == ""]
    if table.empty:
        raise TracelabError("every cell of this scoreboard failed: there is nothing to draw")
    types = sorted(set(table["bias"]) - {""})
    of = f"{types[0]} · " if len(types) == 1 else ""
    return forest(
        table,
        values=values,
        titles=("What each edit changes", "Every benchmark under each edit"),
        caption="orange diamonds: the paired difference holds after Holm's correction over the "
        f"table (p < 0.05) · {of}{model_name(settings)}",
    )


def tradeoff(
    table: pd.DataFrame, settings: dict[str, Any], bias_metric: str, capability: str
) -> Figure:
    """The change of a bias metric against that of a capability metric, paired with the unedited
    model, which is at 0.

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
    figure = go.Figure()
    marker = {"size": 11, "color": GREY, "symbol": "circle"}
    figure.add_scatter(x=[0], y=[0], name=UNEDITED, mode="markers", marker=marker)
    edits = [edit for edit in x.index if edit in y.index and edit != UNEDITED]
    for number, edit in enumerate(edits):
        across, up = (differences(each.loc[[edit]].assign(edit=edit)) for each in (x, y))
        style = look(number, size=11)
        colour = style["line"]["color"]
        figure.add_scatter(
            x=across["value"].to_numpy(np.float32),
            y=up["value"].to_numpy(np.float32),
            name=named(edit),
            mode="markers",
            marker=style["marker"],
            error_x=bars(across, colour=colour),
            error_y=bars(up, colour=colour),
        )
    source = str(y["benchmark"].iloc[0]) if len(y) else ""
    figure.update_xaxes(title=f"change of {escape(unit(capability, paired=True))}")
    name = wrapped(
        f"{BENCHMARKS.get(source, source)}, change of {unit(bias_metric, paired=True)}", 44
    )
    figure.update_yaxes(title=name)
    said = ""
    if UNEDITED in x.index and UNEDITED in y.index:
        levels = [float(each.loc[UNEDITED, "value"]) for each in (y, x)]
        away = (ideal(bias_metric) or 0.0) - levels[0]
        figure.add_hline(y=away, line={"color": GREY, "dash": "dot", "width": 1.5})
        said = (
            f"; unedited {levels[0]:.3g} and {levels[1]:.3g}; dotted: {ideal(bias_metric):g}, "
            "without bias"
        )
    n = " and ".join(f"{each['n'].iloc[0]:.0f}" for each in (y, x) if len(each))
    caption = (
        f"Paired differences to the unedited model, 95 % intervals, n = {n}{said} · {bias} · "
        f"{model_name(settings)}"
    )
    return finish(figure, "Bias against capability", caption)


def _of_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of the first benchmark that has the metric, by edit."""
    if len(rows):
        rows = rows[rows["benchmark"] == rows["benchmark"].iloc[0]]
    return rows.set_index("edit")
