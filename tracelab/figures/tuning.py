"""Effect against cost of everything that was tried."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tracelab.figures.style import BLUE, GREY, ORANGE, bars, escape, finish, model_name
from tracelab.metrics import UNEDITED, label

_KINDS = {"chosen": (ORANGE, "star"), "allowed": (BLUE, "circle"), "too dear": (GREY, "x")}


def tuning(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """The change of the association, with its interval, against the KL on neutral text.

    Args:
        table: one row a combination: ``tried, measure, difference, low, high, kl,
            perplexity_change, lms_loss, allowed, chosen, n``.
        settings: with ``method, bias, bounds, folds`` and the model.
    """
    tried = table[table["tried"] != UNEDITED].rename(columns={"difference": "value"})
    kind = np.select([tried["chosen"], tried["allowed"]], ["chosen", "allowed"], "too dear")
    figure = go.Figure()
    for name, (colour, symbol) in _KINDS.items():
        part = tried[kind == name]
        if part.empty:
            continue
        figure.add_scatter(
            x=part["kl"].to_numpy(np.float32),
            y=part["value"].to_numpy(np.float32),
            error_y=bars(part),
            mode="markers+text" if len(tried) <= 12 else "markers",
            text=[escape(each) for each in part["tried"]],
            textposition="middle right",
            textfont={"size": 10},
            marker={"color": colour, "symbol": symbol, "size": 13 if name == "chosen" else 9},
            name=name,
            customdata=part[["perplexity_change", "lms_loss"]].to_numpy(np.float32),
            hovertemplate="%{text}<br>%{y:.3g} for KL %{x:.3g}<br>perplexity %{customdata[0]:+.2g} "
            "%, LMS loss %{customdata[1]:.2g}<extra></extra>",
        )
    figure.add_hline(y=0, line={"color": GREY, "dash": "dot"})
    most = settings["bounds"]["max_kl"]
    if np.isfinite(most) and most <= 3 * tried["kl"].max():
        figure.add_vline(x=most, line={"color": GREY, "dash": "dash"})
    measure = label(str(table["measure"].iloc[0]))
    figure.update_xaxes(title="KL to the unedited model on neutral text (nats a token)")
    figure.update_yaxes(title=escape(f"change of the {measure}"))
    before = float(table["association"].iloc[0])
    caption = (
        f"Held-out target terms, {settings['folds']} folds, n = {int(table['n'].iloc[0])}; "
        f"unedited {before:.3g}; bars: 95 % paired; dashed: the bound on KL · {settings['bias']} · "
        f"{model_name(settings)}"
    )
    return finish(figure, f"What {settings['method']} does, and what it costs", caption)
