"""Figures of the localisers, one function each: tables and settings in, a plotly ``Figure`` out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tracelab.figures.maps import map_panels
from tracelab.figures.style import (
    BLUE,
    DIVERGING,
    GREY,
    ORANGE,
    band,
    escape,
    finish,
    model_name,
    named,
)

ROLE_NAMES = {
    "attribute": "attribute words",
    "before_filler": "token before filler",
    "filler": "filler",
    "after_filler": "after filler",
    "other": "other tokens",
}
_TICKS = 16
"""Labels on an axis of layers."""
COMPONENT_NAMES = {
    "resid": "residual stream after block",
    "mlp": "MLP window restored",
    "attn": "attention window restored",
}


def f1_per_layer(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """Macro-F1 of each layer's prober with its 95 % band, and the shuffled-label control in grey.

    Args:
        table: one row a layer: ``layer, f1, low, high, f1_control, control_low, control_high,
            n_test, top_k``.
        settings: with ``attribute``, ``split``, ``n_seeds`` and the model.
    """
    figure = go.Figure()
    band(figure, table["layer"], table["control_low"], table["control_high"], GREY)
    figure.add_scatter(
        x=table["layer"],
        y=table["f1_control"],
        name="control (shuffled labels)",
        line={"color": GREY, "dash": "dot"},
    )
    band(figure, table["layer"], table["low"], table["high"], BLUE)
    figure.add_scatter(x=table["layer"], y=table["f1"], name="prober", line={"color": BLUE})
    best = table[table["top_k"]]
    figure.add_scatter(
        x=best["layer"],
        y=best["f1"],
        name=f"top {len(best)} layers",
        mode="markers",
        marker={"color": ORANGE, "size": 9, "symbol": "diamond"},
    )
    held_out = {
        "concept_template": "concepts and templates",
        "concept": "concepts",
        "sentence": "prompts",
    }[settings["split"]]
    figure.update_xaxes(title="layer", tickvals=_ticks(table["layer"]))
    figure.update_yaxes(title="macro-F1", range=[0, 1])
    return finish(
        figure,
        f"Where {settings['attribute']} groups can be read from the MLP output",
        f"{table['n_test'].iloc[0]} test prompts with held-out {held_out}, {settings['n_seeds']} "
        "seeds; "
        f"bands: 95 % bootstrap over concepts · {model_name(settings)}",
    )


def trace_heatmap(
    effects: pd.DataFrame, cases: pd.DataFrame, settings: dict[str, Any]
) -> go.Figure:
    """Normalised indirect effect by layer and role of position, one panel a component.

    Args:
        effects: one row a (component, role, layer): ``nie`` over ``n_nie`` cases.
        cases: one row a case, with its ``bias_type`` and ``first_token``.
        settings: with ``n_samples``, ``prepend_bos`` and the model.
    """
    components = [c for c in COMPONENT_NAMES if c in set(effects["component"])]
    roles = [role for role in ROLE_NAMES if role in set(effects["role"])]
    figure = make_subplots(
        rows=len(components),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.09,
        subplot_titles=[COMPONENT_NAMES[c] for c in components],
    )
    bound = float(effects["nie"].abs().max())
    bound = bound if bound > 0 else 1.0  # nothing moved, or nothing but nan
    for row, component in enumerate(components, start=1):
        part = effects[effects["component"] == component]
        table = part.pivot(index="role", columns="layer", values="nie").loc[roles]
        counts = part.groupby("role")["n_nie"].first()
        figure.add_heatmap(
            z=table.to_numpy(np.float32),
            x=table.columns.to_list(),
            y=[f"{ROLE_NAMES[role]} (n={counts[role]})" for role in roles],
            coloraxis="coloraxis",
            hovertemplate="layer %{x}<br>%{y}<br>NIE %{z:.3f}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(tickvals=_ticks(effects["layer"]), showgrid=False)
    figure.update_xaxes(title="layer", row=len(components), col=1)
    figure.update_layout(
        coloraxis={
            "colorscale": DIVERGING,
            "cmin": -bound,
            "cmax": bound,
            "colorbar": {"title": "NIE"},
        }
    )
    return finish(
        figure,
        f"Which restored states bring the {_bias(cases)} gap back{_by_gradients(settings)}",
        f"Normalised indirect effect over {len(cases)} pairs, {settings['n_samples']} noise "
        f"samples; {_first_tokens(cases, settings)}; "
        f"1 = the state carries all of the total effect · {model_name(settings)}",
        height=170 + 150 * len(components),
        legend=False,
    )


def _by_gradients(settings: dict[str, Any]) -> str:
    """What a title says of effects that were estimated."""
    return ", to first order (attribution)" if settings.get("method") == "attribution" else ""


def trace_example(states: pd.DataFrame, case: pd.Series, settings: dict[str, Any]) -> go.Figure:
    """Indirect effect on one pair by layer and token; noised tokens are bold with an asterisk.

    Args:
        states: of one case and one component, a row a (column, layer): ``component, role, token``
            and the restored ``gap``.
        case: ``stereotype, high, low``: the sentence, the gap clean and corrupted.
    """
    labels = states.drop_duplicates("column").set_index("column")
    component = states["component"].iloc[0]
    marked = [
        f"<b>{escape(text)}*</b>" if role == "attribute" else escape(text)
        for text, role in zip(labels["token"], labels["role"], strict=True)
    ]
    ie = states.pivot(index="layer", columns="column", values="gap") - case["low"]
    bound = float(np.abs(ie.to_numpy()).max()) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=ie.to_numpy(np.float32).T,
            x=ie.index.to_list(),
            y=list(range(len(marked))),
            colorscale=DIVERGING,
            zmin=-bound,
            zmax=bound,
            colorbar={"title": "IE (nats)"},
            hovertemplate="layer %{x}<br>IE %{z:.3f}<extra></extra>",
        )
    )
    # Equal token texts would merge on a category axis.
    figure.update_yaxes(tickvals=list(range(len(marked))), ticktext=marked, autorange="reversed")
    figure.update_xaxes(title="layer", tickvals=_ticks(states["layer"]), showgrid=False)
    return finish(
        figure,
        f"One pair: {case['stereotype']}",
        f"Indirect effect of restoring the {COMPONENT_NAMES[component]} at one token"
        f"{_by_gradients(settings)}; * noised; gap clean "
        f"{case['high']:.2f}, corrupted {case['low']:.2f} nats · {model_name(settings)}",
        height=190 + 26 * len(marked),
        legend=False,
    )


def attention_maps(
    maps: pd.DataFrame,
    positions: pd.DataFrame,
    settings: dict[str, Any],
    *,
    after: pd.DataFrame | None = None,
    edit: str = "",
) -> go.Figure:
    """Attention of the stereotype, of the anti-stereotype and their difference, with sensitive
    tokens bold; with ``after`` each of them before and under an edit, and the change.

    Args:
        maps: of one pair, a row a (query, key): ``stereotype, anti_stereotype``.
        positions: of that pair: ``position, token_stereotype, token_anti_stereotype, sensitive``.
        settings: with ``layer``, ``heads`` and the model.
        after: ``maps`` of the same pair under an edit.
        edit: its name.
    """
    tokens = positions.sort_values("position")
    first, second = _both(maps)
    labels = [
        f"<b>{escape(a)} / {escape(b)}</b>" if sensitive else escape(a)
        for a, b, sensitive in zip(
            tokens["token_stereotype"],
            tokens["token_anti_stereotype"],
            tokens["sensitive"],
            strict=True,
        )
    ]
    if after is None:
        titles = ["stereotype", "anti-stereotype", "difference"]
        figure = map_panels([(first, second, first - second)], labels, titles)
    else:
        pairs = list(zip((first, second), _both(after), strict=True))
        pairs.append((first - second, pairs[0][1] - pairs[1][1]))
        titles = [
            f"{what}, {when}"
            for what in ("stereotype", "anti-stereotype", "difference")
            for when in ("before", f"under {named(edit)}" if edit else "after", "change")
        ]
        figure = map_panels([(b, a, a - b) for b, a in pairs], labels, titles, signed=1)
    return finish(
        figure,
        f"Attention at layer {settings['layer']}, {_heads(settings)}",
        "bold: tokens in which the two sentences differ; key across, query down · "
        f"{model_name(settings)}",
        height=480 if after is None else 1080,
        legend=False,
    )


def gap_distributions(
    pairs: pd.DataFrame, summary: pd.DataFrame, settings: dict[str, Any], *, selection: str
) -> go.Figure:
    """Distributions over pairs of the mean gap on sensitive and on other positions, log scale.

    Args:
        pairs: one row a (pair, selection): ``bias_type, sensitive, other``.
        summary: one row a (selection, metric): ``value, low, high, n``.
        settings: with ``layer``, ``heads``, ``reduce`` and the model.
        selection: whose pairs are drawn: ``"equal"`` or ``"aligned"``.
    """
    figure = go.Figure()
    values = summary.set_index(["metric", "selection"])
    hit, chance = (values.loc[(metric, selection)] for metric in ("hit_rate", "chance"))
    chosen = pairs[pairs["selection"] == selection]
    for name, column, colour in (
        ("other positions", "other", GREY),
        ("sensitive positions", "sensitive", ORANGE),
    ):
        figure.add_violin(
            x=np.log10(chosen[column].clip(lower=1e-7)).to_numpy(np.float32),
            name=name,
            line={"color": colour},
            box={"visible": True},
            points="all",
            pointpos=0,
            jitter=0.4,
            marker={"size": 3, "opacity": 0.4},
        )
    powers = list(range(-7, 1))
    figure.update_xaxes(
        title="mean attention gap of a pair (log scale)",
        tickvals=powers,
        ticktext=[f"10<sup>{p}</sup>" for p in powers],
    )
    text = (
        f"{int(hit.n)} pairs of {'equal' if selection == 'equal' else 'unequal'} length; largest "
        "gap on a sensitive "
        f"position in {hit.value:.1f} % "
        f"[{hit.low:.1f}, {hit.high:.1f}] of pairs, by chance {chance.value:.1f} %"
    )
    if ("hit_rate", "excess") in values.index:
        excess = values.loc[("hit_rate", "excess")]
        text += (
            f"; {excess.value:+.1f} points [{excess.low:.1f}, {excess.high:.1f}] over a neutral "
            "swap "
            f"({int(excess.n)} pairs)"
        )
    return finish(
        figure,
        f"Attention gap of {_bias(pairs)} pairs at layer {settings['layer']}, "
        f"{_heads(settings)} "
        f"({settings['reduce']})",
        f"{text} · {model_name(settings)}",
        height=420,
        legend=False,
    )


def _both(maps: pd.DataFrame) -> list[np.ndarray]:
    return [
        maps.pivot(index="query", columns="key", values=name).to_numpy(np.float32)
        for name in ("stereotype", "anti_stereotype")
    ]


def _first_tokens(cases: pd.DataFrame, settings: dict[str, Any]) -> str:
    """Where the attention sink is, and how often it was noised."""
    if settings["prepend_bos"]:
        return "BOS before each sentence"
    if "first_token" not in cases:  # a trace of an earlier version
        return "no BOS"
    noised = cases["first_token"].sum()
    return f"no BOS, the first token (attention sink) noised in {noised} pairs"


def _ticks(layers: pd.Series) -> list[int]:
    """The layers that were looked at; of more than there is room for every second, or every third,
    …"""
    found = sorted(set(layers))
    return found[:: -(-len(found) // _TICKS)]


def _bias(table: pd.DataFrame) -> str:
    """The bias types of the pairs in a table, for titles."""
    return ", ".join(sorted(table["bias_type"].unique()))


def _heads(settings: dict[str, Any]) -> str:
    return "mean over heads" if settings["heads"] == "mean" else f"heads {settings['heads']}"
