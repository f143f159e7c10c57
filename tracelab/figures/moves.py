"""Where an edit acts and what is written under it: a map of layers x positions, the heads of a
layer, continuations side by side. The static twins of the inspector's views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from tracelab.errors import TracelabError
from tracelab.figures.maps import head_panels
from tracelab.figures.style import ORANGE, SEQUENTIAL, escape, finish, model_name, prompt_text

QUANTITIES = {
    "resid_post": "residual stream",
    "mlp_out": "MLP output",
    "attn_out": "attention output",
    "lens_kl": "logit lens",
}
HEADS_MOST = 16
"""Heads that are drawn of an edit: those that moved most."""
_LABELS = 24


def move_map(table: pd.DataFrame, settings: dict[str, Any], prompt: int) -> go.Figure:
    """How far each layer moved at each position, one row an edit and one column a quantity."""
    table = table[table["prompt"] == prompt]
    edits = list(settings["edits"])
    shown = [name for name in QUANTITIES if name in table and table[name].notna().any()]
    if not shown:
        raise TracelabError("this architecture shows no activations that a map could compare")
    titles = [
        QUANTITIES[name] + (f"<br>{escape(edit)}" if len(edits) > 1 and not column else "")
        for edit in edits
        for column, name in enumerate(shown)
    ]
    figure = make_subplots(
        rows=len(edits),
        cols=len(shown),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.025,
        vertical_spacing=0.16 / len(edits),
        subplot_titles=titles,
    )
    for row, edit in enumerate(edits, start=1):
        part = table[table["edit"] == edit]
        for column, name in enumerate(shown, start=1):
            grid = part.pivot(index="layer", columns="position", values=name)
            figure.add_heatmap(
                z=grid.to_numpy(np.float32),
                coloraxis="coloraxis2" if name == "lens_kl" else "coloraxis",
                hovertemplate="layer %{y}, %{x}: %{z:.3g}<extra></extra>",
                row=row,
                col=column,
            )
        figure.update_yaxes(title="layer", row=row, col=1)
    tokens = table.drop_duplicates("position").sort_values("position")["token"]
    figure.update_xaxes(**_ticks(list(tokens)), tickangle=-60, showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False)
    norms = [name for name in shown if name != "lens_kl"]
    bar = {"len": 0.46, "thickness": 12, "title": {"side": "right"}}
    figure.update_layout(
        coloraxis=_scale(table[norms].to_numpy())
        | {"colorbar": bar | {"y": 0.77, "title": {"text": "relative change", "side": "right"}}},
        coloraxis2=_scale(table.get("lens_kl", pd.Series([0.0])).to_numpy())
        | {"colorbar": bar | {"y": 0.23, "title": {"text": "KL, nats", "side": "right"}}},
    )
    return finish(
        figure,
        "How far each layer moves at each token",
        f"‖after - before‖ / ‖before‖ after “{prompt_text(settings, prompt)}” · "
        f"{model_name(settings)}",
        height=190 + 300 * len(edits),
        legend=False,
    )


def head_maps(
    heads: Mapping[str, Any], moves: pd.DataFrame, settings: dict[str, Any], prompt: int
) -> go.Figure:
    """The heads of a layer, before, after and the change; tokens that name groups are marked.

    Args:
        heads: the ``layer``, and ``maps``: ``[head, query, key]`` before and after, by edit.
        moves: the table whose tokens label the axes.
    """
    maps, layer = heads["maps"], heads["layer"]
    if not maps:
        raise TracelabError(
            "the view 'heads' needs attention patterns, of few prompts of at most 64 tokens, and "
            f"there are none of prompt {prompt} on {model_name(settings)}"
        )
    texts = moves[moves["prompt"] == prompt].drop_duplicates("position")["token"]
    marked = set(settings["sensitive"][prompt])
    labels = [("◆ " if i in marked else "") + escape(text) for i, text in enumerate(texts)]
    rows, titles, left_out = [], [], 0
    for edit, (before, after) in maps.items():
        old, new = before.numpy(), after.numpy()
        chosen = _most(new - old)
        left_out = max(left_out, len(old) - len(chosen))
        rows += [(old[head], new[head], new[head] - old[head]) for head in chosen]
        name = f"{escape(edit)}, " if len(maps) > 1 else ""
        titles += [f"{name}head {head}" for head in chosen]
    more = f"; the {HEADS_MOST} heads that move most" if left_out else ""
    return finish(
        head_panels(rows, labels, titles),
        f"Attention heads of layer {layer}: before, after, change",
        "key across, query down; the first key on a scale of its own (grey); ◆: names a group"
        f"{more} · “{prompt_text(settings, prompt)}” · {model_name(settings)}",
        height=230 + 150 * -(-len(rows) // 3),
        legend=False,
    )


def continuations(table: pd.DataFrame, settings: dict[str, Any], prompt: int) -> go.Figure:
    """What the model goes on to write before and under each edit, differing words in bold.

    Args:
        table: ``edit``, and ``pieces``: of both texts, words and whether they differ.
    """
    if table.empty:
        raise TracelabError(
            "the view 'text' needs continuations: ask for them by inspect(..., new_tokens=30)"
        )
    table = table[table["prompt"] == prompt]
    columns = [
        [escape(edit) for edit in table["edit"]],
        *([_marked(pair[side]) for pair in table["pieces"]] for side in (0, 1)),
    ]
    longest = max(len(row.before) + len(row.after) for row in table.itertuples())
    font = {"size": 12}
    figure = go.Figure(
        go.Table(
            columnwidth=[1, 2.4, 2.4],
            header={
                "values": ["<b>edit</b>", "<b>before</b>", "<b>after</b>"],
                "align": "left",
                "font": font,
            },
            cells={"values": columns, "align": "left", "font": font, "height": 24},
        )
    )
    return finish(
        figure,
        "What the model goes on to write",
        f"after “{prompt_text(settings, prompt)}”, seed {settings['seed']} on both sides; an "
        f"illustration, no measurement · {model_name(settings)}",
        height=200 + (34 + longest // 5) * len(table),
        legend=False,
    )


def _marked(pieces: Sequence[tuple[str, bool]]) -> str:
    """The pieces of a text as HTML, those that differ in colour, without space around it."""
    texts = [text for text, _ in pieces]
    if texts:
        texts[0] = texts[0].lstrip()
        texts[-1] = texts[-1].rstrip()
    return "".join(
        f'<span style="color:{ORANGE}"><b>{escape(text)}</b></span>' if differs else escape(text)
        for text, (_, differs) in zip(texts, pieces, strict=True)
    ).replace("\n", " ⏎ ")


def _most(change: Float[np.ndarray, "head query key"]) -> list[int]:
    """The heads that moved most, in their order."""
    size = np.linalg.norm(change.reshape(len(change), -1), axis=1)
    return sorted(np.argsort(-size, kind="stable")[:HEADS_MOST].tolist())


def _ticks(texts: Sequence[str]) -> dict[str, Any]:
    every = -(-len(texts) // _LABELS)
    labels = ["" if i % every else escape(text) for i, text in enumerate(texts)]
    return {"tickvals": list(range(len(texts))), "ticktext": labels, "tickfont": {"size": 10}}


def _scale(values: np.ndarray) -> dict[str, Any]:
    """A sequential scale from 0; its end is exceeded by one cell of a hundred at most."""
    finite = values[np.isfinite(values)]
    top = float(np.quantile(finite, 0.99)) if finite.size else 0.0
    return {"colorscale": SEQUENTIAL, "cmin": 0, "cmax": top or float(finite.max(initial=0)) or 1.0}
