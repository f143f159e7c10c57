"""Effect against cost of everything that was tried."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tracelab.figures.style import BLUE, GREY, ORANGE, bars, escape, finish, model_name
from tracelab.metrics import UNEDITED, label, paper_name

_KINDS = {"chosen": (ORANGE, "star"), "allowed": (BLUE, "circle"), "too dear": (GREY, "x")}


def tuning(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """The change of the association, with its interval, beside the KL on neutral text.

    Args:
        table: one row a combination: ``tried, measure, difference, low, high, kl,
            perplexity_change, lms_loss, allowed, chosen, n``.
        settings: with ``method, bias, bounds, folds`` and the model.
    """
    tried = table[table["tried"] != UNEDITED].rename(columns={"difference": "value"})
    kind = np.select([tried["chosen"], tried["allowed"]], ["chosen", "allowed"], "too dear")
    places = np.arange(len(tried))
    measure = label(str(table["measure"].iloc[0]))
    figure = make_subplots(
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        column_widths=[0.6, 0.4],
        subplot_titles=[escape(f"change of the {measure}"), "KL on neutral text (nats a token)"],
    )
    for name, (colour, symbol) in _KINDS.items():
        part, y = tried[kind == name], places[kind == name]
        marker = {"color": colour, "symbol": symbol, "size": 12 if name == "chosen" else 9}
        costs = part[["perplexity_change", "lms_loss"]].to_numpy(np.float32)
        for column, field in ((1, "value"), (2, "kl")):
            if len(part):
                figure.add_scatter(
                    x=part[field].to_numpy(np.float32),
                    y=y,
                    error_x=bars(part) if column == 1 else None,
                    mode="markers",
                    marker=marker,
                    name=name,
                    showlegend=column == 1,
                    customdata=costs,
                    hovertemplate="%{x:.3g}<br>perplexity %{customdata[0]:+.2g} %, LMS loss "
                    "%{customdata[1]:.2g}<extra></extra>",
                    row=1,
                    col=column,
                )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot"}, row=1, col=1)
    most = settings["bounds"]["max_kl"]
    if np.isfinite(most) and most <= 3 * tried["kl"].max():
        figure.add_vline(x=most, line={"color": GREY, "dash": "dash"}, row=1, col=2)
    figure.update_xaxes(rangemode="tozero", row=1, col=2)
    ticks = {"tickvals": places, "ticktext": [escape(each) for each in tried["tried"]]}
    figure.update_yaxes(range=[len(tried) - 0.5, -0.5], **ticks)
    before = float(table["association"].iloc[0])
    caption = (
        f"Held-out target terms, {settings['folds']} folds, n = {int(table['n'].iloc[0])}; "
        f"unedited {before:.3g}; bars: 95 % paired · {settings['bias']} · {model_name(settings)}"
    )
    title = f"What {paper_name(settings['method'])} does, and what it costs"
    return finish(figure, title, caption, height=230 + 34 * len(tried))
