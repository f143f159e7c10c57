"""Figures of how an edit was trained: losses and development figures by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tracelab.errors import TracelabError
from tracelab.figures.style import BLUE, GREY, ORANGE, escape, finish
from tracelab.metrics import paper_model, paper_name

TITLES = {
    "debias": "debiasing loss",
    "retention": "retention loss",
    "ce": "language loss (nats a token)",
    "attention": "attention loss",
    "triplet": "triplet loss",
    "ss": "SS (%)",
    "lms": "LMS (%)",
    "gap": "likelihood gap (nats a token)",
    "gap_group": "gap, by the group named",
    "gap_blind": "gap, of either group",
    "association": "association (nats a token)",
    "kl": "KL, neutral text (nats)",
    "perplexity_change": "perplexity, change (%)",
    "grad_ce": "gradient of the language loss",
    "grad_attention": "gradient of the attention loss",
    "grad_triplet": "gradient of the triplet loss",
}
SMOOTHED = 10
"""Steps of the running mean."""
_RAW = "rgba(128,128,128,0.4)"
_ACROSS = 3


def loss_curves(rows: Sequence[Mapping[str, Any]], *, title: str, caption: str) -> go.Figure:
    """One panel a quantity, the loss first: training steps with their running mean, development
    data, the kept step.

    Args:
        rows: of the curves that training keeps; ``score``, by which the kept step (the first with
            the lowest) was chosen, is not drawn.
        title, caption: above the figure; name n and the model in the caption.
    """
    table = pd.DataFrame(rows)
    names = [name for name in table if name not in ("step", "split", "score")]
    names.sort(key=lambda name: name != "loss")
    high = -(-len(names) // _ACROSS)
    figure = make_subplots(
        rows=high,
        cols=min(len(names), _ACROSS),
        subplot_titles=[TITLES.get(name, escape(str(name))) for name in names],
        horizontal_spacing=0.07,
        vertical_spacing=0.2 / high,
    )
    kept = _kept_step(table)
    for i, name in enumerate(names):
        where = {"row": i // _ACROSS + 1, "col": i % _ACROSS + 1}
        measured = table.dropna(subset=[name])
        for trace in _curves(
            measured[measured["split"] == "train"], measured[measured["split"] == "dev"], name
        ):
            figure.add_trace(trace.update(showlegend=i == 0), **where)
        if kept is not None:
            line = {"color": GREY, "dash": "dot", "width": 1.5}
            figure.add_vline(
                x=kept, line=line, name=f"kept: step {kept}", showlegend=i == 0, **where
            )
        if i + _ACROSS >= len(names):
            figure.update_xaxes(title="step", **where)
    return finish(figure, title, caption, height=185 + 230 * high)


def training_curves(notes: Mapping[str, Any], *, name: str, made_for: str) -> go.Figure:
    """The curves that a trained edit keeps in its notes.

    Args:
        notes: ``curves`` (see :func:`loss_curves`) and, if they were counted, ``n_train`` and
            ``n_dev``.
        name: of the edit.
        made_for: id of its model; empty if none is known.

    Raises:
        TracelabError: it keeps none.
    """
    if not notes.get("curves"):
        raise TracelabError(
            f"the notes of {name} hold no training curves: only an edit that was fitted has them"
        )
    counts = [
        f"{notes[key]} {what} triples"
        for key, what in (("n_train", "training"), ("n_dev", "development"))
        if key in notes
    ]
    caption = " · ".join(filter(None, [", ".join(counts), paper_model(made_for)]))
    return loss_curves(notes["curves"], title=f"Training of {paper_name(name)}", caption=caption)


def _kept_step(table: pd.DataFrame) -> int | None:
    """The step whose state training keeps: the first with the lowest development score."""
    if "score" not in table or not table["score"].notna().any():
        return None
    return int(table.loc[table["score"].idxmin(), "step"])


def _curves(train: pd.DataFrame, dev: pd.DataFrame, name: str) -> list[go.Scatter]:
    """A quantity at each training step, its running mean, and on development data."""
    smooth = train[name].rolling(SMOOTHED, min_periods=1).mean()
    drawn = [
        go.Scatter(
            x=train["step"],
            y=train[name],
            name="a training step",
            mode="lines",
            line={"color": _RAW, "width": 1},
        ),
        go.Scatter(
            x=train["step"],
            y=smooth,
            name=f"mean of {SMOOTHED} steps",
            mode="lines",
            line={"color": BLUE, "width": 1},
        ),
        go.Scatter(
            x=dev["step"],
            y=dev[name],
            name="development data",
            mode="lines+markers",
            line={"color": ORANGE, "width": 2},
            marker={"symbol": "diamond"},
        ),
    ]
    return [trace.update(legendgroup=trace.name) for trace in drawn if len(trace.x)]
