"""Does each kind of stereotype act in the same layers? Bias tracing on StereoSet's four bias types.

    python analyses/trace_bias_types.py [--pairs 20] [--layer-step 6] [--samples 2]
                                        [--components resid mlp attn] [--out figures]

The average effects of restoring one state at the attribute words, the token before the filler and
the filler, as in Figures 5 and 6 of BiasEdit (arXiv 2503.08588), on pairs of ``test``; by default
of the residual stream alone; on the embedded model in bfloat16, with BOS before each sentence:
without it the noise often hits the attention sink (``trace_bos.py``). Written to
``trace_bias_types.csv`` (after each bias type) and ``trace_bias_types.png``; intervals are 95 %
bootstrap over pairs.
"""

import argparse
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import tracelab
from tracelab.evaluate.registry import BIAS_TYPES
from tracelab.figures import save_figures
from tracelab.figures.localize import COMPONENT_NAMES, ROLE_NAMES
from tracelab.figures.style import bars, finish, look, model_name
from tracelab.localize.tracing.cases import KEY_ROLES
from tracelab.localize.tracing.sentence import COMPONENTS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20, help="of each bias type")
    parser.add_argument("--layer-step", type=int, default=6)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--components", nargs="+", choices=COMPONENTS, default=["resid"])
    parser.add_argument("--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    model = tracelab.load(dtype="bfloat16")
    last = model.cfg.n_layers - 1
    parts = []
    for bias in BIAS_TYPES:
        trace = tracelab.causal_trace(
            model,
            tracelab.datasets.stereoset(bias, split="test"),
            components=options.components,
            layers=sorted({*range(0, last, options.layer_step), last}),
            n_samples=options.samples,
            max_cases=options.pairs,
            prepend_bos=True,
            run="fast",
        )
        totals = trace.totals.set_index("quantity")["value"]
        parts.append(
            trace.effects.assign(
                bias=bias,
                prepend_bos=trace.settings["prepend_bos"],
                n_first_token=trace.cases["first_token"].sum(),
                te=totals["te"],
                abs_te=totals["|te|"],
            )
        )
        print(bias, trace, flush=True)
        table = pd.concat(parts, ignore_index=True)
        table.round(4).to_csv(options.out / "trace_bias_types.csv", index=False)
    save_figures({"trace_bias_types": draw(table, trace.settings)}, options.out)


def draw(table: pd.DataFrame, settings: dict) -> go.Figure:
    """NIE against layer, a panel a component and role, a line a bias type."""
    components = settings["components"]
    figure = make_subplots(
        rows=len(components),
        cols=len(KEY_ROLES),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.12,
        subplot_titles=[
            f"{COMPONENT_NAMES[component]}: {ROLE_NAMES[role]}"
            if len(components) > 1
            else ROLE_NAMES[role]
            for component in components
            for role in KEY_ROLES
        ],
    )
    panels = [(c, r) for c in range(len(components)) for r in range(len(KEY_ROLES))]
    for row, col in panels:
        for number, bias in enumerate(BIAS_TYPES):
            part = table[
                (table["component"] == components[row])
                & (table["role"] == KEY_ROLES[col])
                & (table["bias"] == bias)
            ]
            place = {"row": row + 1, "col": col + 1}
            figure.add_scatter(
                x=part["layer"],
                y=part["nie"],
                name=bias,
                legendgroup=bias,
                showlegend=(row, col) == (0, 0),
                mode="lines+markers",
                **look(number),
                error_y=bars(part.rename(columns={"nie_low": "low", "nie_high": "high"}), "nie")
                | {"thickness": 0.8, "width": 2},
                **place,
            )
    figure.update_yaxes(title="NIE", col=1)
    figure.update_xaxes(tickvals=sorted(set(table["layer"])))
    figure.update_xaxes(title="layer", row=len(components))
    n = table.groupby("bias")["n"].max()
    first = table.groupby("bias")["n_first_token"].first()
    counts = ", ".join(f"{bias} {n[bias]} ({first[bias]})" for bias in BIAS_TYPES)
    states = ", ".join(COMPONENT_NAMES[component] for component in components)
    return finish(
        figure,
        "Which restored states bring the gap back, by bias type",
        f"Normalised indirect effect of the {states}, "
        f"{'with' if settings['prepend_bos'] else 'no'} BOS, "
        f"{settings['n_samples']} noise samples; pairs traced (of these, with the first token "
        f"noised): {counts}; bars: 95 % bootstrap over pairs · "
        f"{model_name(settings)}, {settings['model']['dtype']}",
        height=220 + 250 * len(components),
    )


if __name__ == "__main__":
    main()
