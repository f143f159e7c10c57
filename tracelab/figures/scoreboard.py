"""Figures of a scoreboard: what each edit changes, with paired intervals, and bias against
capability.

The unedited and the edited model are measured on the same units, so most of what makes a score
uncertain is common to both: the interval of a difference is narrower than those of the two levels,
and it is the one that the table's tests are about. Levels are drawn on request.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tracelab.errors import TracelabError, require_choice
from tracelab.figures.style import (
    BLUE,
    GREY,
    ORANGE,
    Figure,
    bars,
    escape,
    finish,
    look,
    model_name,
    named,
    wrapped,
)
from tracelab.metrics import BENCHMARKS, METRICS, UNEDITED, ideal, label

VALUES = ("difference", "level")
_ACROSS = 6
"""Columns beside each other; more go on below."""
_KINDS = {
    "unedited": (GREY, "circle"),
    "uncertain": (BLUE, "circle"),
    "differs": (ORANGE, "diamond"),
}
_EDIT, _BETWEEN, _TITLES, _TICKS = 19, 12, 56, 30
"""Heights in pixels: an edit's row, the space between bias types, a column's title, its ticks."""
_ABOVE = 125


def scoreboard(
    table: pd.DataFrame, settings: dict[str, Any], *, values: str = "difference"
) -> Figure:
    """A forest plot: one row a bias type, one column a benchmark's metric, one line an edit.

    Args:
        table: one row an (edit, benchmark, bias, metric): ``value, low, high, n, difference,
            difference_low, difference_high, p_holm``; those with a ``reason`` have no value and
            are left out.
        values: ``"difference"`` to the unedited model, paired, or ``"level"``; of a table without
            edits, whose levels are all there is, those.

    Raises:
        TracelabError: no row has a value, or ``values`` is neither.
    """
    require_choice("values", values, VALUES)
    table = table[table["reason"] == ""]
    if table.empty:
        raise TracelabError("every cell of this scoreboard failed: there is nothing to draw")
    paired = values == "difference" and bool(table["difference"].notna().any())
    drawn = _differences(table) if paired else table
    edits = list(dict.fromkeys(drawn["edit"]))
    drawn = drawn.assign(kind=_kind(drawn), place=drawn["edit"].map(edits.index))
    grid = _grid(drawn)
    figure = make_subplots(
        rows=max(row for _, _, row, _ in grid) + 1,
        cols=min(_ACROSS, max(column for _, _, _, column in grid) + 1),
        horizontal_spacing=0.02,
    )
    for rows, _, row, column in grid:
        place = {"row": row + 1, "col": column + 1}
        for kind, (colour, symbol) in _KINDS.items():
            part = rows[rows["kind"] == kind]
            if len(part):
                figure.add_scatter(
                    x=part["value"].to_numpy(np.float32),
                    y=part["place"],
                    mode="markers",
                    marker={"size": 8, "color": colour, "symbol": symbol},
                    error_x=bars(part, colour=colour),
                    name=kind,
                    customdata=part[["shown", "p_holm", "n"]].to_numpy(),
                    hovertemplate="%{customdata[0]}: %{x:.4g}, p %{customdata[1]:.2g}, "
                    "n %{customdata[2]:.0f}<extra></extra>",
                    showlegend=False,
                    **place,
                )
        _lines(figure, rows, place, paired=paired)
    height = _arrange(figure, grid, edits, paired=paired)
    n = table["n"].dropna()
    units = f"n = {n.min():.0f} to {n.max():.0f} units" if n.nunique() > 1 else f"n = {n.max():.0f}"
    what = "Paired differences to the unedited model" if paired else "Levels"
    types = sorted({bias for _, bias, *_ in grid if bias})
    of = f"{types[0]} · " if len(types) == 1 else ""
    caption = (
        f"{what} with 95 % intervals, {units}; orange diamonds: the paired difference holds after "
        f"Holm's correction over the table (p < 0.05); dotted: ideal · {of}{model_name(settings)}"
    )
    title = "What each edit changes" if paired else "Every benchmark under each edit"
    return finish(figure, title, caption, height=height, legend=False)


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
        across, up = (_differences(each.loc[[edit]]) for each in (x, y))
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
    figure.update_xaxes(title=f"change of {escape(_unit(capability, paired=True))}")
    name = wrapped(
        f"{BENCHMARKS.get(source, source)}, change of {_unit(bias_metric, paired=True)}", 44
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


def _differences(table: pd.DataFrame) -> pd.DataFrame:
    """The edits' rows, with the difference as the value to draw."""
    found = table[table["edit"] != UNEDITED] if "edit" in table else table
    ends = {"low": found["difference_low"], "high": found["difference_high"]}
    return found.assign(level=found["value"], value=found["difference"], **ends)


def _kind(table: pd.DataFrame) -> np.ndarray:
    sure = np.where(table["p_holm"] < 0.05, "differs", "uncertain")
    return np.where(table["edit"] == UNEDITED, UNEDITED, sure)


def _grid(table: pd.DataFrame) -> list[tuple[pd.DataFrame, str, int, int]]:
    """Each panel: its rows of the table, bias type, and place.

    Columns are benchmarks' metrics, so many beside each other as there is room for, the others
    below; under them one row a bias type that has one of these. What has no bias type stands in the
    first row.
    """
    table = table.assign(shown=[named(edit) for edit in table["edit"]])
    columns = list(dict.fromkeys(zip(table["benchmark"], table["metric"], strict=True)))
    made, below = [], 0
    for start in range(0, len(columns), _ACROSS):
        block = columns[start : start + _ACROSS]
        parts = {
            (number, str(bias)): rows
            for number, (benchmark, metric) in enumerate(block)
            for bias, rows in table[
                (table["benchmark"] == benchmark) & (table["metric"] == metric)
            ].groupby("bias", sort=False)
        }
        types = list(dict.fromkeys(bias for _, bias in parts if bias)) or [""]
        for (number, bias), rows in parts.items():
            row = types.index(bias) if bias else 0
            made.append((rows, bias, below + row, number))
        below += len(types)
    return made


def _lines(figure: go.Figure, rows: pd.DataFrame, place: dict[str, int], *, paired: bool) -> None:
    """No change, and where the metric would be ideal."""
    best = ideal(str(rows["metric"].iloc[0]))
    if paired:
        figure.add_vline(x=0, line={"color": GREY, "width": 1}, **place)
        base = (rows["level"] - rows["value"]).median()
        best = None if best is None or not np.isfinite(base) else best - base
    low, high = min(rows["low"].min(), 0), max(rows["high"].max(), 0)
    near = 0.5 * (high - low) if paired else np.inf
    # Far away it would leave no room for what there is to see.
    if best is not None and low - near <= best <= high + near:
        figure.add_vline(x=best, line={"color": GREY, "dash": "dot", "width": 1.5}, **place)


def _arrange(
    figure: go.Figure,
    grid: list[tuple[pd.DataFrame, str, int, int]],
    edits: list[str],
    *,
    paired: bool,
) -> int:
    """Places of the panels, names on their left and above; the height that they need."""
    keys = [(rows["benchmark"].iloc[0], rows["metric"].iloc[0]) for rows, *_ in grid]
    benchmarks: dict[str, set[str]] = {}
    head, foot = {}, {}  # the upper and lower row of each column
    for key, (_, _, row, _) in zip(keys, grid, strict=True):
        benchmarks.setdefault(key[1], set()).add(key[0])
        head[key] = min(row, head.get(key, row))
        foot[key] = max(row, foot.get(key, row))
    panel = _EDIT * len(edits) + 8
    tops, below = [], 0
    for row in range(max(foot.values()) + 1):
        gap = _TITLES + (_TICKS if row else 0) if row in head.values() else _BETWEEN
        tops.append(below + gap)
        below = tops[-1] + panel
    names = [named(edit) for edit in edits]
    for row, top in enumerate(tops, start=1):
        figure.update_yaxes(
            domain=[1 - (top + panel) / below, 1 - top / below],
            range=[len(edits) - 0.5, -0.5],
            tickvals=list(range(len(edits))),
            ticktext=names,
            showticklabels=False,
            zeroline=False,
            visible=False,
            row=row,
        )
    figure.update_xaxes(visible=False, nticks=5, tickangle=0, tickfont_size=11, zeroline=False)
    several = len({bias for _, bias, *_ in grid if bias}) > 1
    for (key, (_, bias, row, column)), seen in zip(
        zip(keys, grid, strict=True), _first_in_row(grid), strict=True
    ):
        place = {"row": row + 1, "col": column + 1}
        figure.update_yaxes(visible=True, showticklabels=seen, **place)
        figure.update_xaxes(visible=True, showticklabels=row == foot[key], **place)
        if seen and several:
            figure.update_yaxes(title={"text": escape(bias), "font": {"size": 13}}, **place)
        upper = next(figure.select_xaxes(row=head[key] + 1, col=column + 1))
        if row > head[key]:
            figure.update_xaxes(matches=upper.plotly_name.replace("axis", ""), **place)
        else:
            title = _column_title(*key, several=len(benchmarks[key[1]]) > 1, paired=paired)
            figure.add_annotation(
                text=title,
                x=sum(upper.domain) / 2,
                y=1 - tops[row] / below,
                xref="paper",
                yref="paper",
                xanchor="center",
                yanchor="bottom",
                showarrow=False,
                font={"size": 11},
            )
    return int(_ABOVE + below + _TICKS)


def _first_in_row(grid: list[tuple[pd.DataFrame, str, int, int]]) -> list[bool]:
    """Of each panel whether none is left of it: it has the names."""
    first: dict[int, int] = {}
    for _, _, row, column in grid:
        first[row] = min(column, first.get(row, column))
    return [column == first[row] for _, _, row, column in grid]


def _of_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of the first benchmark that has the metric, by edit."""
    if len(rows):
        rows = rows[rows["benchmark"] == rows["benchmark"].iloc[0]]
    return rows.set_index("edit")


def _unit(metric: str, *, paired: bool) -> str:
    """A metric's label; a difference of percentages is in points."""
    text = label(metric)
    return text.replace("(%)", "(points)") if paired else text


def _column_title(benchmark: str, metric: str, *, several: bool, paired: bool) -> str:
    """A metric that several benchmarks have, or that is not tracelab's, names its benchmark."""
    name, source = _unit(metric, paired=paired), BENCHMARKS.get(benchmark, benchmark)
    alone = metric in METRICS and (not several or source.lower() in name.lower())
    return wrapped(name if alone else f"{source}: {name}", 19)
