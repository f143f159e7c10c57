"""What all figures share: colours, one look that is legible on light and on dark, the caption under
a title, and how a figure shows itself in a notebook.

Colours are Okabe and Ito's, legible to the colour-blind; diverging scales are centred on 0; layers
and heads count from 0; the caption under each title names n and the interval. On a screen the
background is the page's own and text is of a grey that contrasts with white (4.5 : 1) and with
JupyterLab's dark theme (4.2 : 1) alike; files for papers are black on white (:mod:`.saving`).
"""

from __future__ import annotations

import base64
import html
import json
import textwrap
from contextlib import suppress
from os import environ
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly import io

from tracelab.figures.pictures import NoPicture, picture
from tracelab.metrics import paper_model, paper_name

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")
"""Of curves and edits, in order; grey is for controls and for the unedited model."""
MARKERS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
DIVERGING = "PuOr_r"
SEQUENTIAL = "Blues"
WIDTH = 900
"""Of pictures, in pixels; on a screen a figure takes the width that there is."""
CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
}
"""What plotly's script is told wherever a figure is shown: it fits the width, and offers neither to
upload the data nor to edit the figure elsewhere."""
PAGE_STYLE = """:root { color-scheme: light dark }
.js-plotly-plot text:not(.hoverlayer *) { fill: CanvasText !important }"""
"""CSS of a page with figures: it is dark where its reader's system is, and text has full
contrast."""
_SMALL = 0.9
"""Pixels of a notebook's PNG by pixel of the layout."""
_CHOSEN_BY_PLOTLY = ("plotly_mimetype", "vscode", "nteract", "plotly_mimetype+notebook")
_LINE = 115


class Figure(go.Figure):
    """Plotly's figure, which never offers to upload it, and in a notebook has a PNG beside it.

    Where plotly has chosen how a notebook shows figures (``plotly.io.renderers.default`` is what it
    finds for Jupyter or VS Code), the output is :func:`mimebundle`'s. A renderer that you choose,
    there or in the environment variable ``PLOTLY_RENDERER``, is yours: ``"jupyterlab"`` is the
    bundle without PNG.
    """

    def show(self, *args: Any, **options: Any) -> None:
        """As plotly's, with :data:`CONFIG`."""
        if not args and not options and _chosen_by_plotly():
            from IPython.display import display

            display(mimebundle(self), raw=True)
        else:
            super().show(*args, **_configured(options))

    def to_html(self, *args: Any, **options: Any) -> str:
        """As plotly's, with :data:`CONFIG`."""
        return str(super().to_html(*args, **_configured(options)))

    def write_html(self, *args: Any, **options: Any) -> None:
        """As plotly's, with :data:`CONFIG`."""
        super().write_html(*args, **_configured(options))

    def _ipython_display_(self) -> None:
        self.show()

    def _repr_mimebundle_(self, *args: Any, **options: Any) -> dict[str, Any]:
        if _chosen_by_plotly():
            return mimebundle(self)
        return dict(super()._repr_mimebundle_(*args, **_configured(options)))


def mimebundle(figure: go.Figure) -> dict[str, Any]:
    """A figure for a notebook: plotly's JSON with :data:`CONFIG` and, where kaleido finds a
    browser, a small PNG, which is what GitHub, nbconvert and a mail show (and JupyterLab until the
    mouse is over it)."""
    content = json.loads(figure.to_json()) | {"config": CONFIG}
    bundle: dict[str, Any] = {"application/vnd.plotly.v1+json": content}
    height = figure.layout.height or 450
    with suppress(NoPicture):
        drawn = picture(figure, "png", width=WIDTH, height=height, scale=_SMALL)
        bundle["image/png"] = base64.b64encode(drawn).decode()
    return bundle


def template(ink: str, paper: str) -> go.layout.Template:
    """The look of a figure with text of one colour on another."""
    faint, line = "rgba(128,128,128,0.22)", "rgba(128,128,128,0.5)"
    axis = {
        "gridcolor": faint,
        "zerolinecolor": line,
        "linecolor": line,
        "zerolinewidth": 1,
        "automargin": True,
        "title": {"standoff": 10, "font": {"size": 13}},
    }
    bar = {"outlinewidth": 0, "ticks": ""}
    table = {
        part: {"fill": {"color": fill}, "line": {"color": faint}}
        for part, fill in (("header", faint), ("cells", "rgba(0,0,0,0)"))
    }
    return go.layout.Template(
        layout={
            "colorway": COLOURS,
            "paper_bgcolor": paper,
            "plot_bgcolor": paper,
            "font": {"size": 12, "color": ink},
            "xaxis": axis,
            "yaxis": axis,
            "coloraxis": {"colorbar": bar},
            "hoverlabel": {"align": "left"},
        },
        data={"heatmap": [{"colorbar": bar}], "table": [table]},
    )


SCREEN = template(GREY, "rgba(0,0,0,0)")
PAPER = template("#222222", "white")


def look(number: int, size: float = 7) -> dict[str, Any]:
    """Line and marker of the curve or edit of a number, another for each of the first 36."""
    turn, place = divmod(number, len(COLOURS))
    colour = COLOURS[place]
    symbol = MARKERS[(place + turn) % len(MARKERS)]
    return {
        "line": {"color": colour},
        "marker": {"symbol": symbol, "size": size, "color": colour},
    }


def band(figure: go.Figure, x: pd.Series, low: pd.Series, high: pd.Series, colour: str) -> None:
    """The area between two curves."""
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        mode="lines",
        fill="toself",
        fillcolor=colour,
        opacity=0.18,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def bars(rows: pd.DataFrame, of: str = "value", colour: str | None = None) -> dict[str, Any]:
    """Error bars from ``low`` to ``high`` about a column.

    Args:
        colour: of the bars; needed where the markers of a trace have one each, as plotly's script
            knows none that fits them all and takes black.
    """
    made = {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows[of]).to_numpy(np.float32),
        "arrayminus": (rows[of] - rows["low"]).to_numpy(np.float32),
        "thickness": 1.5,
    }
    return made | ({"color": colour} if colour else {})


def finish(
    figure: go.Figure, title: str, caption: str, *, height: int = 460, legend: bool = True
) -> Figure:
    """Title, caption under it (n, interval, model), one font and look for all figures.

    Both are texts: what they quote of models and data is no HTML.

    Args:
        height: in pixels, of which 185 are above and below the plot; with what the caption and the
            legend need it is another.
    """
    lines = textwrap.wrap(caption, _LINE)
    figure.for_each_annotation(_panel_title)
    above = 28 if any(note.y == 1 for note in figure.layout.annotations) else 4
    keys = legend_rows(figure, WIDTH - 100) * 20 + 8 if legend else 0
    top = 52 + 16 * len(lines) + above + keys
    inside = height - 185
    height = inside + top + 60
    layout: dict[str, Any] = {
        "template": SCREEN,
        "height": height,
        "title": {
            "text": escape(title),
            "x": 0.02,
            "xanchor": "left",
            "y": 1 - 24 / height,
            "yanchor": "top",
            "font": {"size": 17},
            "subtitle": {"text": "<br>".join(map(escape, lines)), "font": {"size": 12}},
        },
        "margin": {"l": 60, "r": 30, "t": top, "b": 60},
        "showlegend": legend,
        "legend": {
            "orientation": "h",
            "y": 1 + above / inside,
            "yanchor": "bottom",
            "x": 1,
            "xanchor": "right",
        },
    }
    return Figure(figure.update_layout(layout))


def _panel_title(note: Any) -> None:
    """What ``make_subplots`` writes, which is as large as the figure's own title, smaller."""
    if note.font.size == 16:
        note.font.size = 13


def legend_rows(figure: go.Figure, width: float, letter: float = 7) -> int:
    """Of a legend across the figure, whose columns are as wide as the longest name.

    Args:
        width: that there is, in pixels.
        letter: width of one.
    """
    shapes = [shape for shape in figure.layout.shapes if shape.showlegend]
    shown = [
        each for each in figure.data if "showlegend" not in each or each.showlegend is not False
    ]
    names = [each.name for each in (*shown, *shapes) if each.name]
    column = 48 + letter * max(map(len, names), default=0)
    return -(-len(names) // max(1, int(width // column)))


def escape(text: str) -> str:
    """A text for titles, labels and tables; unlike ``html.escape`` with quotation marks, plotly
    draws ``&quot;``."""
    return html.escape(text, quote=False)


def named(edit: str) -> str:
    """An edit's name for titles, labels and legends."""
    return escape(paper_name(edit))


def wrapped(text: str, width: int) -> str:
    """A text in lines for the title of a panel or an axis."""
    return "<br>".join(escape(line) for line in textwrap.wrap(text, width))


def model_name(settings: dict[str, Any]) -> str:
    """What captions call the model."""
    return paper_model(str(settings["model"]["model_id"]))


def prompt_text(settings: dict[str, Any], number: int) -> str:
    """What captions call a prompt of ``inspect``: its end, if it is long."""
    text = settings["prompts"][number]
    return text if len(text) < 100 else f"… {text[-98:]}"


def _chosen_by_plotly() -> bool:
    """Whether this is a notebook whose user has chosen no renderer."""
    return io.renderers.default in _CHOSEN_BY_PLOTLY and "PLOTLY_RENDERER" not in environ


def _configured(options: dict[str, Any]) -> dict[str, Any]:
    return options | {"config": CONFIG | (options.get("config") or {})}
