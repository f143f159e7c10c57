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
