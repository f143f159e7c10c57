"""Figures of what ``inspect`` found inside edits: a weight delta's directions, and what the last
layer attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tracelab.errors import TracelabError
from tracelab.figures.maps import map_panels
from tracelab.figures.style import escape, finish, look, model_name, named, prompt_text

N_LISTED = 8
"""Directions in the listing of ``weights``, shared by the edits; each has two at least."""
_LONG = 12
_LABELS = 32
"""Labels of tokens on an axis; of a longer prompt every other token has one, or every third, …"""


def weights(table: pd.DataFrame, settings: dict[str, Any], *, modules: Sequence[str]) -> go.Figure:
    """Size of each edit's deltas by layer, and their directions with the largest singular values as
    tokens.

    Listed are directions that write to the residual stream; if there are none, any.

    Args:
        table: one row a direction: ``edit, layer, module, direction, relative, singular_value,
            share, promoted, demoted``.
        modules: all linear maps, each of which has its colour and marker.
    """
    if table.empty:
        raise TracelabError("the view 'weights' is of weight deltas, and none of the edits is one")
    edits = list(dict.fromkeys(table["edit"]))
    written = table[table["promoted"] != ""]
    candidates = written if len(written) else table
    each = max(2, N_LISTED // len(edits))
    listed = pd.concat(
        [
            part.nlargest(each, "singular_value")
            for _, part in candidates.groupby("edit", sort=False)
        ]
    )
    listing = (
        "largest directions that write to the residual stream"
        if len(written)
        else "largest directions"
    )
    right = {"type": "table", "rowspan": len(edits)}
    figure = make_subplots(
        rows=len(edits),
        cols=2,
        specs=[[{}, right], *([{}, None] for _ in edits[1:])],
        column_widths=[0.33, 0.67],
        horizontal_spacing=0.03,
        vertical_spacing=0.2 / len(edits),
        subplot_titles=[named(edits[0]), listing, *(named(edit) for edit in edits[1:])],
    )
    for row, edit in enumerate(edits, start=1):
        for curve in _sizes(table[(table["edit"] == edit) & (table["direction"] == 0)], modules):
            curve.showlegend = all(curve.name != other.name for other in figure.data)
            figure.add_trace(curve, row=row, col=1)
    n_layers = settings["model"]["n_layers"]
    figure.update_xaxes(range=[-0.5, n_layers - 0.5], dtick=5 if n_layers > 10 else 1)
    figure.update_xaxes(title="layer", row=len(edits), col=1)
    figure.update_yaxes(title="‖ΔW‖ / ‖W‖", rangemode="tozero")
    figure.add_trace(_listing(listed, several=len(edits) > 1), row=1, col=2)
    return finish(
        figure,
        "What the weight deltas write",
        "tokens that a direction pushes most up and down, later blocks left out; its sign is "
        "arbitrary · "
        f"{model_name(settings)}",
        height=185 + max(50 + 42 * len(listed), 190 * len(edits)),
    )


def attention(table: pd.DataFrame, settings: dict[str, Any], prompt: int) -> go.Figure:
    """The last layer's attention before and after and the difference, one row an edit."""
    if table.empty:
        raise TracelabError(
            f"the view 'attention' needs attention patterns, and {model_name(settings)} shows none"
        )
    table = table[table["prompt"] == prompt]
    edits = list(settings["edits"])
    rows = []
    for edit in edits:
        part = table[table["edit"] == edit]
        before, after = (
            part.pivot(index="query", columns="key", values=name).fillna(0).to_numpy(np.float32)
            for name in ("before", "after")
        )
        rows.append((before, after, after - before))
    last = table[(table["edit"] == edits[0]) & (table["query"] == table["query"].max())]
    every = -(-len(last) // _LABELS)
    labels = [
        "" if i % every else escape(text) for i, text in enumerate(last.sort_values("key")["token"])
    ]
    titles = [
        title for edit in edits for title in ("before", f"after: {named(edit)}", "after - before")
    ]
    return finish(
        map_panels(rows, labels, titles),
        f"Attention at layer {settings['model']['n_layers'] - 1}, mean over heads",
        f"key across, query down; prompt “{prompt_text(settings, prompt)}” · "
        f"{model_name(settings)}",
        height=185 + 295 * len(rows),
        legend=False,
    )


def _sizes(maps: pd.DataFrame, modules: Sequence[str]) -> list[go.Scatter]:
    """Relative norm of an edit's deltas by layer, a curve a module, which looks the same in every
    figure."""
    curves = []
    for module, part in maps.groupby("module", sort=False):
        curves.append(
            go.Scatter(
                x=part["layer"],
                y=part["relative"].to_numpy(np.float32),
                mode="lines+markers",
                name=module,
                legendgroup=module,
                **look(modules.index(module)),
            )
        )
    return curves


def _listing(listed: pd.DataFrame, *, several: bool) -> go.Table:
    """Directions as a table of two lines each; their edit is named if there are several."""
    columns = {
        "layer, map": [
            escape(f"{row.layer} {row.module}") + (f"<br>{named(row.edit)}" if several else "")
            for row in listed.itertuples()
        ],
        "share": [f"{share:.0%}" if share == share else "–" for share in listed["share"]],
        "promoted": [_two_lines(text) for text in listed["promoted"]],
        "demoted": [_two_lines(text) for text in listed["demoted"]],
    }
    font = {"size": 11}
    return go.Table(
        columnwidth=[1.1 if several else 0.8, 0.5, 2, 2],
        header={
            "values": [f"<b>{name}</b>" for name in columns],
            "align": "left",
            "font": font,
        },
        cells={
            "values": list(columns.values()),
            "align": "left",
            "font": font,
            "height": 20,
        },
    )


def _two_lines(text: str) -> str:
    """Tokens as HTML, three and two; of long ones (a line of spaces is one token) the beginning."""
    tokens = [escape(t if len(t) <= _LONG else f"{t[: _LONG - 1]}…") for t in text.split(" ")]
    return f"{' '.join(tokens[:3])}<br>{' '.join(tokens[3:])}" if text else ""
