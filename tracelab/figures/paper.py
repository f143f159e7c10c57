"""A figure as a drawing in a paper: as wide as a column or a page, text of 8 points, no title.

Panels beside each other stand below each other in a column. A grid of panels has no legible column:
it is refused, and takes a page.
"""

from __future__ import annotations

import textwrap
from html import escape, unescape
from typing import Any

import plotly.graph_objects as go

from tracelab.errors import TracelabError
from tracelab.figures.style import PAPER, WIDTH, Figure, legend_rows

WIDTHS = {"column": 3.3, "page": 6.9}
"""In inches, of two-column papers (ACL, NeurIPS' text width is 5.5)."""
_INCH = 96
"""Pixels of the layout."""
_TEXT = 8 * _INCH / 72
_LETTER = 0.52 * _TEXT
"""Mean width."""
_LINE = 1.35 * _TEXT
_PANEL = 130
"""Least height of a panel that stands below another."""


def for_paper(figure: go.Figure, width: str) -> Figure:
    """A copy for a column or a page.

    Args:
        width: of :data:`WIDTHS`.

    Raises:
        TracelabError: a grid of panels, or a table, for a column.
    """
    across = WIDTHS[width] * _INCH
    margin = figure.layout.margin
    height = (figure.layout.height or 450) - (margin.t or 100) - (margin.b or 80)
    if not any(drawn.type == "table" for drawn in figure.data):  # whose rows keep their height
        height *= max(across / WIDTH, 0.62)
    made = Figure(figure)
    panels = _panels(made)
    if width == "column" and any(drawn.type == "table" for drawn in made.data):
        raise TracelabError("a table is not legible in a column: take width='page'")
    if width == "column" and len(panels) > 1:
        height = _stack(made, panels, height)
    rows = legend_rows(made, across, letter=_LETTER) if made.layout.showlegend else 0
    titles = max(
        [len(_lines(note, across)) for note in made.layout.annotations if note.y == 1] or [0]
    )
    above = 6 + _LINE * titles
    top = above + (_LINE * 1.5 * rows + 4 if rows else 0)
    made.update_layout(
        template=PAPER,
        title=None,
        width=across,
        height=height + top + 3.2 * _LINE,
        font={"size": _TEXT},
        margin={"l": 10, "r": 8, "t": top, "b": 3.2 * _LINE},
        legend={"font": {"size": _TEXT}, "x": 0.5, "xanchor": "center", "y": 1 + above / height},
    )
    for axis in made.select_xaxes():
        low, high = axis.domain or (0, 1)
        _fewer_ticks(axis, int((high - low) * (across - 100) / (4 * _LETTER)))
    text = {"tickfont": {"size": _TEXT}, "title": {"font": {"size": _TEXT}}}
    for axis in (*made.select_xaxes(), *made.select_yaxes()):
        low, high = axis.domain or (0, 1)
        room = (high - low) * (across if axis.plotly_name.startswith("x") else height)
        axis.update(**text)
        if axis.title.text:
            axis.title.text = "<br>".join(_wrapped(axis.title.text, max(room, 60)))
    for note in made.layout.annotations:
        note.update(
            font_size=_TEXT, text="<br>".join(_lines(note, (across - 100) / _abreast(made)))
        )
    for axis in made.select_coloraxes():
        axis.update(colorbar=text | {"thickness": 8})
    _smaller(made, 0.6 if width == "column" else 0.75)
    return made


def caption_of(figure: go.Figure) -> str:
    """The text that stood above a figure."""
    title = figure.layout.title
    parts = (title.text, title.subtitle.text)
    return "\n".join(unescape(part.replace("<br>", " ")) for part in parts if part) + "\n"


def _panels(figure: Figure) -> list[tuple[str, str]]:
    """The axes of each panel, from left to right, row by row."""
    drawn = [each for each in figure.data if "xaxis" in each]
    return list(dict.fromkeys((each.xaxis or "x", each.yaxis or "y") for each in drawn))


def _axis(figure: Figure, name: str) -> Any:
    return figure.layout[f"{name[0]}axis{name[1:]}"]


def _stack(figure: Figure, panels: list[tuple[str, str]], height: float) -> float:
    """Panels of one row below each other; the height that they need."""
    wide, high = (
        {tuple(_axis(figure, pair[which]).domain or (0, 1)) for pair in panels} for which in (0, 1)
    )
    if len(wide) == 1:
        return height  # they do already
    if len(high) > 1:
        raise TracelabError("a grid of panels is not legible in a column: take width='page'")
    each = max(_PANEL, height * 0.8)
    gap = 3.4 * _LINE
    whole = each * len(panels) + gap * (len(panels) - 1)
    titles = {note.x: note for note in figure.layout.annotations}
    first = _axis(figure, panels[0][1])
    last_title = _axis(figure, panels[-1][0]).title.text
    for number, (x, y) in enumerate(panels):
        across, up = _axis(figure, x), _axis(figure, y)
        top = 1 - number * (each + gap) / whole
        middle = sum(across.domain or (0, 1)) / 2
        if titles:
            titles[min(titles, key=lambda at: abs(at - middle))].update(x=0.5, y=top)
        across.update(domain=[0, 1])
        up.update(domain=[max(0, top - each / whole), top], showticklabels=True)
        if not up.title.text:
            up.title.text = first.title.text
        if number < len(panels) - 1 and across.title.text == last_title:
            across.title.text = None
    return whole


def _fewer_ticks(axis: Any, most: int) -> None:
    """So many numbers at most; names of tokens and edits stay."""
    if axis.tickvals is None:
        axis.nticks = min(axis.nticks or 9, max(3, int(0.7 * most)))
    elif axis.ticktext is None:
        axis.tickvals = axis.tickvals[:: -(-len(axis.tickvals) // max(1, most))]


def _abreast(figure: Figure) -> int:
    """Panels beside each other."""
    return len({tuple(axis.domain or (0, 1)) for axis in figure.select_xaxes()}) or 1


def _lines(note: Any, room: float) -> list[str]:
    return _wrapped(note.text or "", room)


def _wrapped(text: str, room: float) -> list[str]:
    """Lines of a title that fit into so many pixels; one that is set in bold stays as it is."""
    if "<b>" in text or "<sup>" in text:
        return text.split("<br>")
    plain = unescape(text.replace("<br>", " "))
    wide = max(8, int(room / _LETTER))
    return [escape(line, quote=False) for line in textwrap.wrap(plain, wide)]


def _smaller(figure: Figure, by: float) -> None:
    """Markers and lines."""
    for drawn in figure.select_traces({"type": "scatter"}):
        if drawn.marker.size:
            drawn.marker.size *= by
        if drawn.line.width is None and "lines" in (drawn.mode or "lines"):
            drawn.line.width = 2 * by
