"""A figure as a drawing in a paper: as wide as a column or a page, text of 8 points, no title."""

from __future__ import annotations

from html import unescape

import plotly.graph_objects as go

from tracelab.figures.style import PAPER, WIDTH, Figure

WIDTHS = {"column": 3.3, "page": 6.9}
"""In inches, of two-column papers (ACL, NeurIPS' text width is 5.5)."""
_INCH = 96
"""Pixels of the layout."""
_TEXT = 8 * _INCH / 72
_PANEL = 150
"""Least height of a panel's plot, in pixels."""


def for_paper(figure: go.Figure, width: str) -> Figure:
    """A copy for a column or a page; panels side by side stand below each other in a column.

    Args:
        width: of :data:`WIDTHS`.
    """
    across = WIDTHS[width] * _INCH
    shrink = across / WIDTH
    margin = figure.layout.margin
    inside = (figure.layout.height or 450) - (margin.t or 100) - (margin.b or 80)
    made = Figure(figure)
    made.update_layout(template=PAPER, title=None, width=across, font={"size": _TEXT})
    made.update_layout(
        margin={"l": 10, "r": 8, "t": 24, "b": 10},
        legend={"font": {"size": _TEXT}, "x": 0.5, "xanchor": "center"},
    )
    made.update_annotations(font_size=_TEXT)
    small = {"tickfont": {"size": _TEXT}, "title": {"font": {"size": _TEXT}}}
    made.update_xaxes(**small)
    made.update_yaxes(**small)
    for axis in made.select_coloraxes():
        axis.update(colorbar={**small, "thickness": 8})
    return made.update_layout(height=max(_PANEL, inside * max(shrink, 0.6)) + 34)


def caption_of(figure: go.Figure) -> str:
    """The text that stood above a figure."""
    title = figure.layout.title
    parts = (title.text, title.subtitle.text)
    return "\n".join(unescape(part.replace("<br>", " ")) for part in parts if part) + "\n"
