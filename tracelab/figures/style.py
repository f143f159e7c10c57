"""What all figures share: colours, the caption under a title, and writing them to disk.

Colours are Okabe and Ito's, legible to the colour-blind; diverging scales are centred on 0; layers
and heads count from 0; the caption under each title names n and the interval. :func:`save_figures`
writes HTML, and PNG where a browser for kaleido is at hand.
"""

from __future__ import annotations

import base64
import html
import json
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.io import write_images
from plotly.offline import get_plotlyjs

from tracelab.figures.pictures import NoPicture, picture
from tracelab.storage.files import atomic_file, own_file
from tracelab.storage.ownership import adopt, is_ours, require_folder, require_ours

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", GREY)
MARKERS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
DIVERGING = "PuOr_r"
SEQUENTIAL = "Blues"
WIDTH = 900
CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
}
"""What plotly's script is told wherever a figure is shown: it fits the width, and offers neither to
upload the data nor to edit the figure elsewhere."""
SCRIPT = "plotly.min.js"
_SMALL = 0.9
"""Pixels of a notebook's PNG by pixel of the layout."""
_BANNER = b"/**\n* plotly.js v"


def save_figures(
    figures: Mapping[str, go.Figure], folder: Path | str, *, png: bool = True
) -> list[Path]:
    """Write each figure as ``<name>.html`` and, where kaleido finds a browser, as ``<name>.png``.

    The HTML files share one ``plotly.min.js`` beside them, which is made to be plotly's own, and
    need no network. Without kaleido or a browser one line on stderr says so and the HTML stays.

    Returns:
        The files written.

    Raises:
        TracelabError: a file of such a name is not tracelab's, or nothing can be written there.
    """
    folder = Path(folder)
    require_folder(folder)
    pages, pictures = (
        [folder / f"{name}.{ending}" for name in figures] for ending in ("html", "png")
    )
    for file in (*pages, *(pictures if png else ())):
        require_ours(file)
    if figures:
        require_script_place(folder)
        _write_plotly_js(folder / SCRIPT)
    for file, figure in zip(pages, figures.values(), strict=True):
        with own_file(file) as path:
            # plotly's "directory" would write the script half if it is interrupted, and never mend
            # it.
            figure.write_html(path, include_plotlyjs=SCRIPT, full_html=True)
    if not png or not figures:
        return pages
    with tempfile.TemporaryDirectory() as made:
        drawn = [Path(made) / f"{number}.png" for number in range(len(pictures))]
        try:
            write_images(  # one browser for all of them
                list(figures.values()),
                drawn,
                scale=2,
                width=[figure.layout.width for figure in figures.values()],
                height=[figure.layout.height for figure in figures.values()],
            )
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"tracelab: no PNG figures, the HTML is there ({reason})", file=sys.stderr)
            return pages
        for file, source in zip(pictures, drawn, strict=True):
            with own_file(file) as path:
                shutil.copyfile(source, path)
    return pages + pictures


def mimebundle(figure: go.Figure) -> dict[str, Any]:
    """A figure for a notebook: plotly's JSON with :data:`CONFIG` and, where kaleido finds a
    browser, a small PNG, which is what GitHub, nbconvert and a mail show."""
    content = json.loads(figure.to_json()) | {"config": CONFIG}
    bundle: dict[str, Any] = {"application/vnd.plotly.v1+json": content}
    height = figure.layout.height or 450
    with suppress(NoPicture):
        drawn = picture(figure, "png", width=WIDTH, height=height, scale=_SMALL)
        bundle["image/png"] = base64.b64encode(drawn).decode()
    return bundle


def require_script_place(folder: Path) -> None:
    """Refuse to write plotly's script over somebody's own of that name; what an interrupted writer
    left is nobody's.

    Raises:
        TracelabError: there is a text that is not listed as tracelab's and does not begin as
            plotly's script does.
    """
    file = folder / SCRIPT
    if is_ours(file) or not file.is_file():
        return
    with file.open("rb") as content:
        beginning = content.read(len(_BANNER))
    if not _BANNER.startswith(beginning) and beginning.isascii():
        require_ours(file)


def _write_plotly_js(file: Path) -> None:
    """Plotly's script, unless it is there whole."""
    script = get_plotlyjs().encode()
    adopt([file])
    if not (file.is_file() and file.stat().st_size == len(script) and file.read_bytes() == script):
        with atomic_file(file) as path:
            path.write_bytes(script)


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


def bars(rows: pd.DataFrame) -> dict[str, Any]:
    """Error bars from ``low`` to ``high`` about ``value``."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows["value"]).to_numpy(np.float32),
        "arrayminus": (rows["value"] - rows["low"]).to_numpy(np.float32),
        "thickness": 1.5,
    }


def finish(
    figure: go.Figure, title: str, caption: str, *, height: int = 460, legend: bool = True
) -> go.Figure:
    """Title, caption under it (n, interval, model), one font and width for all figures.

    Both are texts: what they quote of models and data is no HTML.
    """
    # Above the titles of panels, where there are any.
    above = 1 + (28 if figure.layout.annotations else 4) / (height - 185)
    layout: dict[str, Any] = {
        "template": "plotly_white",
        "width": WIDTH,
        "height": height,
        "title": {
            "text": escape(title),
            "x": 0.02,
            "xanchor": "left",
            "y": 1 - 24 / height,
            "yanchor": "top",
            "font": {"size": 17},
            "subtitle": {
                "text": "<br>".join(map(escape, textwrap.wrap(caption, 140))),
                "font": {"size": 12, "color": "#444"},
            },
        },
        "font": {"size": 12},
        "margin": {"l": 70, "r": 30, "t": 125, "b": 60},
        "showlegend": legend,
        "legend": {"orientation": "h", "y": above, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    }
    return figure.update_layout(layout)


def escape(text: str) -> str:
    """A text for titles, labels and tables; unlike ``html.escape`` with quotation marks, plotly
    draws ``&quot;``."""
    return html.escape(text, quote=False)


def model_name(settings: dict[str, Any]) -> str:
    """What captions call the model."""
    return str(settings["model"]["model_id"])


def prompt_text(settings: dict[str, Any], number: int) -> str:
    """What captions call a prompt of ``inspect``: its end, if it is long."""
    text = settings["prompts"][number]
    return text if len(text) < 100 else f"… {text[-98:]}"
