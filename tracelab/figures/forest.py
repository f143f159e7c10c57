"""Forest plots: one row a bias type, one column a benchmark's metric, one line an edit.

The unedited and the edited model are measured on the same units, so most of what makes a score
uncertain is common to both: the interval of a difference is narrower than those of the two levels,
and it is the one that tests are about. Levels are drawn on request.
"""

from __future__ import annotations

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
    named,
    wrapped,
)
from tracelab.metrics import BENCHMARKS, METRICS, UNEDITED, ideal, label

VALUES = ("difference", "level")
CHANGE = ("difference", "difference_low", "difference_high")
_COLUMNS = ("benchmark", "bias", *CHANGE, "p_holm", "n")
_ACROSS = 6
"""Columns beside each other; more go on below."""
_KINDS = {
    "unedited": (GREY, "circle"),
    "uncertain": (BLUE, "circle"),
    "differs": (ORANGE, "diamond"),
}
_EDIT, _BETWEEN, _TITLES, _TICKS = 19, 12, 56, 30
"""Heights in pixels: an edit's row, the space between bias types, a column's title, its ticks."""
_NAME = 76
"""Height of a bias type's name, upright."""
_ABOVE = 125


def forest(
    table: pd.DataFrame,
    *,
    values: str,
    titles: tuple[str, str],
    caption: str,
) -> Figure:
    """Differences to the unedited model, or levels, with their intervals.

    Args:
        table: one row an (edit, benchmark, bias, metric): ``edit, metric, value, low, high``, and
            what it has of ``benchmark, bias, n, difference, difference_low, difference_high,
            p_holm``. An edit whose name ends in "unedited" is the model as it is.
        values: ``"difference"`` or ``"level"``; of a table without differences its levels.
        titles: of differences, and of levels.
        caption: what else to say, the model last.

    Raises:
        TracelabError: there is no row, or ``values`` is neither.
    """
    require_choice("values", values, VALUES)
    if table.empty:
        raise TracelabError("there is nothing to draw: no row of this table has a value")
    table = table.reindex(columns=list(dict.fromkeys([*table, *_COLUMNS])))
    table[["benchmark", "bias"]] = table[["benchmark", "bias"]].fillna("")
    paired = values == "difference" and bool(table["difference"].notna().any())
    drawn = differences(table) if paired else table
    edits = list(dict.fromkeys(drawn["edit"]))
    drawn = drawn.assign(
        kind=_kind(drawn),
        place=drawn["edit"].map(edits.index),
        shown=[named(edit) for edit in drawn["edit"]],
    )
    grid = _grid(drawn)
    figure = make_subplots(
        rows=max(row for _, _, row, _ in grid) + 1,
        cols=max(column for _, _, _, column in grid) + 1,
        horizontal_spacing=0.03,
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
    found = table["n"].dropna()
    n = "" if found.empty else f", n = {found.min():.0f}"
    n += f" to {found.max():.0f}" if found.nunique() > 1 else ""
    what = "Paired differences to the unedited model" if paired else "Levels"
    told = f"{what}, 95 % intervals{n}; dotted: ideal; {caption}"
    return finish(figure, titles[not paired], told, height=height, legend=False)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """The edits' rows, with the difference as the value to draw."""
    found = table[~table["edit"].str.endswith(UNEDITED)]
    ends = {"low": found["difference_low"], "high": found["difference_high"]}
    return found.assign(level=found["value"], value=found["difference"], **ends)


def _kind(table: pd.DataFrame) -> np.ndarray:
    sure = np.where(table["p_holm"] < 0.05, "differs", "uncertain")
    return np.where(table["edit"].str.endswith(UNEDITED), UNEDITED, sure)


def _grid(table: pd.DataFrame) -> list[tuple[pd.DataFrame, str, int, int]]:
    """Each panel: its rows of the table, bias type, and place.

    Columns are benchmarks' metrics, so many beside each other as there is room for, the others
    below; under them one row a bias type that has one of these. What has no bias type stands in the
    first row.
    """
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
    # the upper and the lower row of each column
    head: dict[tuple[str, str], int] = {}
    foot: dict[tuple[str, str], int] = {}
    for key, (_, _, row, _) in zip(keys, grid, strict=True):
        benchmarks.setdefault(key[1], set()).add(key[0])
        head[key] = min(row, head.get(key, row))
        foot[key] = max(row, foot.get(key, row))
    several = len({bias for _, bias, *_ in grid if bias}) > 1
    panel = max(_EDIT * len(edits) + 8, _NAME if several else 0)
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


def unit(metric: str, *, paired: bool) -> str:
    """A metric's label; a difference of percentages is in points."""
    text = label(metric)
    return text.replace("(%)", "(points)") if paired else text


def _column_title(benchmark: str, metric: str, *, several: bool, paired: bool) -> str:
    """A metric that several benchmarks have, or that is not tracelab's, names its benchmark."""
    name, source = unit(metric, paired=paired), BENCHMARKS.get(benchmark, benchmark)
    alone = metric in METRICS and (not several or source.lower() in name.lower())
    return wrapped(name if alone else f"{source}: {name}", 19)
