"""Figures of edits: what ``inspect`` found before and after, one view a function.

Each takes the table of its view, the settings (``prompts``, ``edits``, the model) and the number of
a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tracelab.errors import TracelabError
from tracelab.figures.deltas import attention, weights
from tracelab.figures.moves import continuations, head_maps, move_map
from tracelab.figures.style import (
    DIVERGING,
    GREY,
    ORANGE,
    escape,
    finish,
    look,
    model_name,
    named,
    prompt_text,
)

_HIDES = 10
"""Times as far as another an edit moves layers, so that on one axis the other would lie on 0."""
MEASURES = {
    "resid_post": "residual stream",
    "mlp_out": "MLP output",
    "pattern": "attention pattern",
}


def before_after(
    tables: Mapping[str, pd.DataFrame],
    settings: dict[str, Any],
    view: str,
    prompt: int,
    *,
    modules: Sequence[str],
    heads: Mapping[str, Any] | None = None,
) -> go.Figure:
    """One view of one prompt; see :meth:`tracelab.inspection.before_after.BeforeAfter.plot`.

    Args:
        tables: the views' own by their names; ``logits`` is drawn from ``tokens``.
        modules: all linear maps that ``weights`` may name, so that each looks alike in all figures.
        heads: for ``heads``: the ``layer``, and ``maps`` before and after by edit.

    Raises:
        TracelabError: no such prompt, or nothing to draw in this view.
    """
    n_prompts = len(settings["prompts"])
    if not 0 <= prompt < n_prompts:
        raise TracelabError(f"no prompt {prompt}: there are {n_prompts}, counted from 0")
    if view == "weights":
        return weights(tables["weights"], settings, modules=modules)
    if view == "heads":
        return head_maps(heads or {}, tables["moves"], settings, prompt)
    drawn_from, draw = _VIEWS[view]
    return draw(tables[drawn_from], settings, prompt)


def _tokens(table: pd.DataFrame, settings: dict[str, Any], prompt: int) -> go.Figure:
    """Probability before and after of the tokens that moved most, one panel an edit."""
    table = _last(_of(table, prompt))
    edits = list(settings["edits"])
    spacing = min(0.14, 0.5 / len(edits))
    # Of an edit that changes nothing, which tokens moved most is arbitrary.
    moved = {
        edit: table[(table["edit"] == edit) & (table["p_after"] != table["p_before"])]
        for edit in edits
    }
    titles = [named(edit) + ("<br>changes nothing" if moved[edit].empty else "") for edit in edits]
    figure = make_subplots(
        rows=1, cols=len(edits), subplot_titles=titles, horizontal_spacing=spacing
    )
    most = 1
    for column, edit in enumerate(edits, start=1):
        part = table[table["edit"] == edit].drop_duplicates("token_id")
        part = part.iloc[:0] if moved[edit].empty else part
        part = part.sort_values(
            "p_after", key=lambda s: part["p_after"] - part["p_before"], ascending=False
        )
        rows = np.arange(len(part))
        most = max(most, len(part))
        for row, (low, high) in enumerate(zip(part["p_before"], part["p_after"], strict=True)):
            figure.add_scatter(
                x=[low, high],
 y=[row, row],
 mode="lines",
 line={"color": GREY, "width": 1},
 row=1,
 col=column,
                showlegend=False, hoverinfo="skip",
            )  # fmt: skip
        for name, field, colour, symbol in (
            ("before", "p_before", GREY, "circle-open"),
            ("after", "p_after", ORANGE, "diamond"),
        ):
            figure.add_scatter(
                x=part[field].to_numpy(np.float32),
                y=rows,
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                marker={"color": colour, "symbol": symbol, "size": 9},
                text=[escape(t) for t in part["token"]],
                hovertemplate="%{text}: %{x:.3g}<extra></extra>",
                row=1,
                col=column,
            )
        figure.update_yaxes(
            tickvals=rows,
            ticktext=[escape(t) for t in part["token"]],
            autorange="reversed",
            row=1,
            col=column,
        )
    figure.update_xaxes(rangemode="tozero")
    if len(edits) > 3:  # one title for all: there is no room for each
        figure.update_annotations(font_size=12)
        figure.update_xaxes(title="probability of the next token", row=1, col=(len(edits) + 1) // 2)
    else:
        figure.update_xaxes(title="probability of the next token")
    return _finish(
        settings,
        figure,
        prompt,
        "Tokens that the edit promotes and demotes",
        height=230 + 22 * most,
    )


def _positions(table: pd.DataFrame, settings: dict[str, Any], prompt: int) -> go.Figure:
    """KL of the next-token distribution after each token."""
    table = _of(table, prompt)
    figure = go.Figure()
    for i, edit in enumerate(settings["edits"]):
        part = table[table["edit"] == edit]
        figure.add_scatter(
            x=part["position"],
            y=part["kl"].to_numpy(np.float32),
            mode="lines+markers",
            name=named(edit),
            **look(i),
        )
    first = table[table["edit"] == next(iter(settings["edits"]))]
    figure.update_xaxes(
        tickvals=first["position"], ticktext=[escape(t) for t in first["token"]], tickangle=-50
    )
    figure.update_yaxes(title="KL(before ‖ after), nats", rangemode="tozero")
    return _finish(
        settings, figure, prompt, "How far the next-token distribution moves after each token"
    )


def _layers(table: pd.DataFrame, settings: dict[str, Any], prompt: int) -> go.Figure:
    """Relative change of residual stream, MLP output and attention pattern by layer; on a log scale
    where one edit would hide the others."""
    table = _last(_of(table, prompt))
    edits = list(settings["edits"])
    figure = make_subplots(
        rows=1, cols=len(MEASURES), subplot_titles=list(MEASURES.values()), horizontal_spacing=0.07
    )
    most = table.groupby("edit")[list(MEASURES)].max()
    moved = most.where(most > 0)
    log = bool((moved.max() > _HIDES * moved.min()).any())
    for column, measure in enumerate(MEASURES, start=1):
        for i, edit in enumerate(edits):
            part = table[table["edit"] == edit]
            values = part[measure].to_numpy(np.float32)
            figure.add_scatter(
                x=part["layer"],
                y=np.where(values > 0, values, np.nan) if log else values,
                mode="lines+markers",
                name=named(edit),
                legendgroup=edit,
                showlegend=column == 1,
                row=1,
                col=column,
                **look(i, size=5),
            )
    figure.update_xaxes(title="layer", dtick=5)
    if log:
        figure.update_yaxes(type="log", dtick=1, exponentformat="power")
    else:
        figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title="‖after - before‖ / ‖before‖", row=1, col=1)
    title = "How far each layer moves at the last token"
    more = " · log scale, what does not move is left out" if log else ""
    return _finish(settings, figure, prompt, title, more=more)


def _groups(table: pd.DataFrame, settings: dict[str, Any], prompt: int) -> go.Figure:
    """FairMed: group probability before and after at each edited layer, one panel an edit and
    attribute."""
    table = _last(_of(table, prompt))
    if table.empty:
        raise TracelabError("the view 'groups' is of FairMed, and none of the edits is one")
    panels = list(table.groupby(["edit", "attribute"], sort=False))
    figure = make_subplots(
        rows=1,
        cols=len(panels),
        subplot_titles=[f"{named(e)}: {escape(a)}" for (e, a), _ in panels],
        shared_yaxes=True,
    )
    listed: set[str] = set()  # in the legend: attributes have groups of their own
    for column, (_, part) in enumerate(panels, start=1):
        layers = [str(layer) for layer in sorted(part["layer"].unique())]
        for i, (group, rows) in enumerate(part.groupby("group", sort=False)):
            for name, field, dash in (("before", "p_before", "dot"), ("after", "p_after", "solid")):
                style = look(i)
                style["line"] = {**style["line"], "dash": dash}
                if name == "before":
                    style["marker"] = {
                        **style["marker"],
                        "symbol": f"{style['marker']['symbol']}-open",
                    }
                label = escape(f"{group} {name}")
                figure.add_scatter(
                    x=[str(layer) for layer in rows["layer"]],
                    y=rows[field].to_numpy(np.float32),
                    mode="lines+markers",
                    name=label,
                    legendgroup=label,
                    showlegend=label not in listed,
                    row=1,
                    col=column,
                    **style,
                )
                listed.add(label)
        figure.add_hline(
            y=1 / part["group"].nunique(), line={"color": GREY, "width": 1}, row=1, col=column
        )
        figure.update_xaxes(title="edited layer", categoryarray=layers, row=1, col=column)
    figure.update_yaxes(title="probers' group probability", range=[0, 1], row=1, col=1)
    return _finish(
        settings, figure, prompt, "What the probers read before and after (grey: uniform)"
    )


def _logits(table: pd.DataFrame, settings: dict[str, Any], prompt: int) -> go.Figure:
    """Experts: the target's, the expert's and the anti-expert's logit of the tokens that moved
    most."""
    table = _last(_of(table, prompt))
    if "z_plus" not in table or table["z_plus"].isna().all():
        raise TracelabError("the view 'logits' is of experts, and none of the edits has any")
    table = table[table["z_plus"].notna()]
    edits = list(dict.fromkeys(table["edit"]))
    spacing = min(0.14, 0.5 / len(edits))
    figure = make_subplots(
        rows=1,
        cols=len(edits),
        subplot_titles=[named(e) for e in edits],
        horizontal_spacing=spacing,
    )
    names = ["z", "z⁺", "z⁻", "z⁺ - z⁻", "after"]
    parts = [table[table["edit"] == edit].drop_duplicates("token_id") for edit in edits]

    def centred(part: pd.DataFrame) -> np.ndarray:
        values = part[["z", "z_plus", "z_minus"]].to_numpy()
        difference = values[:, 1] - values[:, 2]
        columns = np.column_stack([values, difference, part["logit_after"]])
        columns[np.isinf(columns)] = np.nan  # what "base_first" cut stays empty
        return columns - np.nanmean(columns, axis=0) * [1, 1, 1, 0, 1]

    bound = max(float(np.nanmax(np.abs(centred(part)))) for part in parts) or 1.0
    for column, part in enumerate(parts, start=1):
        figure.add_heatmap(
            z=centred(part).astype(np.float32),
            x=names,
            y=list(range(len(part))),
            coloraxis="coloraxis",
            hovertemplate="%{x}: %{z:.2f}<extra></extra>",
            row=1,
            col=column,
        )
        ticks = [escape(t) for t in part["token"]]
        figure.update_yaxes(
            tickvals=list(range(len(part))), ticktext=ticks, autorange="reversed", row=1, col=column
        )
    figure.update_layout(
        coloraxis={
            "colorscale": DIVERGING,
            "cmin": -bound,
            "cmax": bound,
            "colorbar": {"title": "logit"},
        }
    )
    return _finish(
        settings,
        figure,
        prompt,
        "What the experts add (logits less their mean over these tokens)",
        height=230 + 22 * max(map(len, parts)),
        legend=False,
    )


def _of(table: pd.DataFrame, prompt: int) -> pd.DataFrame:
    return table[table["prompt"] == prompt]


def _last(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["position"] == table["position"].max()]


def _finish(
    settings: dict[str, Any],
    figure: go.Figure,
    prompt: int,
    title: str,
    *,
    more: str = "",
    **options: Any,
) -> go.Figure:
    caption = f"after “{prompt_text(settings, prompt)}” · {model_name(settings)}{more}"
    return finish(figure, title, caption, **options)


_VIEWS = {
    "tokens": ("tokens", _tokens),
    "positions": ("positions", _positions),
    "layers": ("layers", _layers),
    "map": ("moves", move_map),
    "groups": ("groups", _groups),
    "logits": ("tokens", _logits),
    "attention": ("attention", attention),
    "text": ("texts", continuations),
}
"""Of each view, but of the weights and the heads, the table and the function that draws it."""
