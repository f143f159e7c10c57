"""Draws ``docs/results.png``, the picture of the README, from the table of notebook 06.

    python -m docs.draw_results

What each edit changed, on the same records as the unedited model: paired differences with their
95 % intervals. Perplexity is the cost, in percent.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from plotly import graph_objects as go
from plotly.subplots import make_subplots

from tracelab.figures.style import BLUE, GREY, ORANGE

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "figures/scoreboard_gender.csv"
PICTURE = ROOT / "docs/results.png"
PANELS = (
    ("local-bias", "hellinger", "local bias<br>(Hellinger)"),
    ("stereoset", "gap_group", "StereoSet, group-<br>dependent gap (nats)"),
    ("winobias", "gap_group", "WinoBias, group-<br>dependent gap (nats)"),
    ("perplexity", "perplexity", "the cost:<br>perplexity (%)"),
)
NAMES = {
    "erasure (words seen)": "Erasure, words seen",
    "erasure": "Erasure",
    "erasure + biasedit": "Erasure + BiasEdit",
    "biasedit": "BiasEdit",
    "experts": "Experts",
    "fairmed": "FairMed",
    "klaad": "KLAAD",
}
PLACE = ["difference", "difference_low", "difference_high"]


def changes(table: pd.DataFrame, benchmark: str, metric: str) -> pd.DataFrame:
    """A row an edit, from the last name to the first: the difference and its interval."""
    rows = table[(table["benchmark"] == benchmark) & (table["metric"] == metric)].set_index("edit")
    found = rows.loc[list(NAMES)[::-1], [*PLACE, "p_holm"]].copy()
    if metric == "perplexity":
        found[PLACE] *= 100 / rows.loc["unedited", "value"]
    return found


def draw() -> go.Figure:
    """One panel a quantity, one row an edit."""
    table = pd.read_csv(TABLE)
    titles = [f"<b>{title}</b>" for _, _, title in PANELS]
    figure = make_subplots(cols=4, shared_yaxes=True, column_titles=titles, horizontal_spacing=0.03)
    for column, (benchmark, metric, _) in enumerate(PANELS, start=1):
        rows = changes(table, benchmark, metric)
        for sure, colour in ((True, ORANGE), (False, BLUE)):
            part = rows[(rows["p_holm"] < 0.05) == sure]
            change, low, high = (part[name] for name in PLACE)
            figure.add_scatter(
                x=change,
                y=[NAMES[name] for name in part.index],
                error_x={"array": high - change, "arrayminus": change - low, "thickness": 2},
                mode="markers",
                marker={"color": colour, "size": 10},
                col=column,
                row=1,
            )
        figure.add_vline(x=0, line={"color": GREY, "dash": "dot"}, col=column, row=1)
    order = [NAMES[name] for name in list(NAMES)[::-1]]
    figure.update_yaxes(categoryorder="array", categoryarray=order, gridcolor="#eee")
    figure.update_xaxes(zeroline=False, nticks=4, gridcolor="#eee")
    figure.update_layout(
        template="plotly_white",
        showlegend=False,
        width=1000,
        height=420,
        margin={"l": 10, "r": 20, "t": 105, "b": 30},
        font={"size": 14, "color": "#222"},
        title={
            "text": "What five edits change in SmolLM2-135M, gender: edited less unedited"
            "<br><sup>95 % interval of the paired difference; orange: p < 0.05 after Holm's "
            "correction over the table of all benchmarks</sup>",
            "y": 0.94,
            "font": {"size": 18},
        },
    )
    return figure


if __name__ == "__main__":
    draw().write_image(PICTURE, scale=1.5)
