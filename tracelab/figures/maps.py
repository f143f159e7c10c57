"""Attention maps side by side, which localisers and edits draw alike: two of them and their
difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from tracelab.figures.style import DIVERGING, SEQUENTIAL

Map = Float[np.ndarray, "query key"]


def map_panels(
    rows: Sequence[tuple[Map, Map, Map]],
    labels: Sequence[str],
    titles: Sequence[str],
    *,
    signed: int = 0,
) -> go.Figure:
    """One row of heatmaps each: a map, another, and their difference; key across, query down.

    Args:
        rows: causal maps; what lies above their diagonal is left empty.
        labels: of the tokens, as HTML.
        titles: of all panels, row by row.
        signed: of so many rows, the last ones, all three maps are differences.
    """
    # A causal map's upper triangle is empty by construction; drawing it as 0 would look like a
    # finding.
    plain = len(rows) - signed
    hidden = np.triu(np.ones_like(rows[0][0], dtype=bool), k=1)
    figure = make_subplots(
        rows=len(rows),
        cols=3,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=0.1 / len(rows),
        subplot_titles=titles,
    )
    for row, maps in enumerate(rows, start=1):
        for column, values in enumerate(maps, start=1):
            figure.add_heatmap(
                z=np.where(hidden, np.nan, values),
                coloraxis="coloraxis" if column < 3 and row <= plain else "coloraxis2",
                hovertemplate="query %{y}, key %{x}: %{z:.3f}<extra></extra>",
                row=row,
                col=column,
            )
        figure.update_yaxes(title="query", row=row, col=1)
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "tickfont": {"size": 10}}
    figure.update_xaxes(**ticks, tickangle=-60, showgrid=False, zeroline=False)
    figure.update_yaxes(**ticks, autorange="reversed", showgrid=False, zeroline=False)
    # BOS takes most of the attention: the scale ends where the other keys do.
    others = np.concatenate([values[:, 1:].ravel() for maps in rows[:plain] for values in maps[:2]])
    differences = [maps[2] for maps in rows] + [m for maps in rows[plain:] for m in maps[:2]]
    bound = max(float(np.abs(difference).max()) for difference in differences) or 1.0
    bar = {"len": 0.42, "thickness": 12, "exponentformat": "e"}
    figure.update_layout(
        coloraxis={
            "colorscale": SEQUENTIAL,
            "cmin": 0,
            "cmax": (others.size and float(np.quantile(others, 0.99))) or 1.0,
            "colorbar": bar | {"title": "attention", "y": 0.78},
        },
        coloraxis2={
            "colorscale": DIVERGING,
            "cmin": -bound,
            "cmax": bound,
            "colorbar": bar | {"title": "difference", "y": 0.24},
        },
    )
    return figure


def head_panels(
    rows: Sequence[tuple[Map, Map, Map]], labels: Sequence[str], titles: Sequence[str]
) -> go.Figure:
    """Small maps of many heads, three heads a line, each as before | after | change.

    The first key column, which takes most of the attention in most heads, has a scale of its own
    (grey), so that the others are seen.

    Args:
        rows: causal maps of each head; what lies above their diagonal is left empty.
        labels: of the tokens, as HTML; written at the outer panels where they are at most 16.
        titles: of each head.
    """
    lines = -(-len(rows) // 3)
    hidden = np.triu(np.ones_like(rows[0][0], dtype=bool), k=1)
    figure = make_subplots(
        rows=lines,
        cols=9,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.008,
        vertical_spacing=min(0.04, 0.3 / lines),
        subplot_titles=[
            title
            for head in titles
            for title in ("", head, "")  # over the middle one of three
        ],
        column_widths=[1.0] * 9,
    )
    figure.update_annotations(font_size=11)
    for number, maps in enumerate(rows):
        row, first = number // 3 + 1, 3 * (number % 3) + 1
        for offset, values in enumerate(maps):
            shown = np.where(hidden, np.nan, values).astype(np.float32)
            change = offset == 2
            for columns, axis in (
                (slice(0, 1), "coloraxis2" if change else "coloraxis3"),
                (slice(1, None), "coloraxis2" if change else "coloraxis"),
            ):
                if not shown[:, columns].size:
                    continue
                figure.add_heatmap(
                    z=shown[:, columns],
                    x=list(range(len(shown)))[columns],
                    coloraxis=axis,
                    hovertemplate="query %{y}, key %{x}: %{z:.3f}<extra></extra>",
                    row=row,
                    col=first + offset,
                )
    n = len(labels)
    ticks = {"tickvals": list(range(n)), "tickfont": {"size": 8}, "showgrid": False}
    ticks |= {"zeroline": False, "ticks": "", "ticktext": list(labels) if n <= 16 else [""] * n}
    figure.update_xaxes(**ticks, tickangle=-90, range=[-0.5, n - 0.5])
    figure.update_yaxes(**ticks, range=[n - 0.5, -0.5])
    others = np.concatenate([values[:, 1:].ravel() for maps in rows for values in maps[:2]])
    bound = max(float(np.abs(change).max()) for _, _, change in rows) or 1.0
    bar = {"len": 0.3, "thickness": 10}
    figure.update_layout(
        coloraxis={
            "colorscale": SEQUENTIAL,
            "cmin": 0,
            "cmax": (others.size and float(np.quantile(others, 0.99))) or 1.0,
            "colorbar": bar | {"title": "attention", "y": 0.85},
        },
        coloraxis2={
            "colorscale": DIVERGING,
            "cmin": -bound,
            "cmax": bound,
            "colorbar": bar | {"title": "change", "y": 0.5, "exponentformat": "e"},
        },
        coloraxis3={
            "colorscale": "Greys",
            "cmin": 0,
            "cmax": 1,
            "colorbar": bar | {"title": "first key", "y": 0.15},
        },
    )
    return figure
