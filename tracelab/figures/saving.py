"""Figures as files: pages and pictures for a folder, and drawings for papers.

:func:`save_figures` writes HTML, and PNG where a browser for kaleido is at hand; ``formats`` and
``width`` make PDF, SVG and PNG as wide as a column or a page of a paper, with text of 8 points.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from tracelab.errors import TracelabError, require_choice
from tracelab.figures.paper import WIDTHS, caption_of, for_paper
from tracelab.figures.pictures import NoPicture, picture
from tracelab.figures.style import CONFIG, PAGE_STYLE, PAPER, WIDTH, Figure
from tracelab.storage.files import atomic_file, own_file
from tracelab.storage.ownership import adopt, is_ours, require_folder, require_ours

FORMATS = ("html", "png", "svg", "pdf")
SCRIPT = "plotly.min.js"
_BANNER = b"/**\n* plotly.js v"
_STYLED = f"document.head.insertAdjacentHTML('beforeend', `<style>{PAGE_STYLE}</style>`)"


def save_figures(
    figures: Mapping[str, go.Figure],
    folder: Path | str,
    *,
    png: bool = True,
    formats: Sequence[str] | None = None,
    width: str | None = None,
) -> list[Path]:
    """Write each figure as ``<name>.html`` and, where kaleido finds a browser, as ``<name>.png``.

    The HTML files share one ``plotly.min.js`` beside them, which is made to be plotly's own, and
    need no network. Without kaleido or a browser one line on stderr says so and the HTML stays.

        save_figures({"f1": probes.plot()}, "paper", formats=("pdf", "svg", "png"), width="column")

    Args:
        png: whether PNG is written where it can be.
        formats: of :data:`FORMATS`, instead; those that are named must be drawn.
        width: ``"column"`` (3.3 inches) or ``"page"`` (6.9 inches) of a paper: pictures have text
            of 8 points, PNG 300 dots an inch, and no title; what stood there, with n and the
            interval, is written to ``<name>.txt`` for the caption.

    Returns:
        The files written.

    Raises:
        TracelabError: an unknown format or width, a file of such a name that is not tracelab's,
            nothing can be written there, or a format that is asked for cannot be drawn.
    """
    asked = formats is not None
    endings = [formats] if isinstance(formats, str) else list(formats or ("html", *["png"] * png))
    for ending in endings:
        require_choice("format", ending, FORMATS)
    if width is not None:
        require_choice("width", width, tuple(WIDTHS))
    folder = Path(folder)
    require_folder(folder)
    texts = ("txt",) if width else ()
    for name in figures:
        for ending in (*endings, *texts):
            require_ours(folder / f"{name}.{ending}")
    written = _write_pages(figures, folder) if "html" in endings and figures else []
    pictures = [ending for ending in endings if ending != "html"]
    drawn: dict[Path, bytes] = {}
    for name, figure in figures.items():
        try:
            drawn |= {folder / f"{name}.{e}": _drawn(figure, e, width) for e in pictures}
        except NoPicture as error:
            if asked:
                raise TracelabError(
                    f"no {' or '.join(pictures)} can be drawn here: {error}; pip install "
                    "'tracelab[png]' and a Chrome or Chromium"
                ) from error
            print(f"tracelab: no PNG figures, the HTML is there ({error})", file=sys.stderr)
            return written
        if width:
            drawn[folder / f"{name}.txt"] = caption_of(figure).encode()
    for file, content in drawn.items():
        with own_file(file) as path:
            path.write_bytes(content)
    return written + list(drawn)


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


def _write_pages(figures: Mapping[str, go.Figure], folder: Path) -> list[Path]:
    """Each figure's HTML, beside plotly's script."""
    require_script_place(folder)
    _write_plotly_js(folder / SCRIPT)
    pages = [folder / f"{name}.html" for name in figures]
    for file, figure in zip(pages, figures.values(), strict=True):
        with own_file(file) as path:
            # plotly's "directory" would write the script half if it is interrupted, and never mend
            # it.
            figure.write_html(
                path,
                include_plotlyjs=SCRIPT,
                full_html=True,
                config=CONFIG,
                post_script=_STYLED,
            )
    return pages


def _drawn(figure: go.Figure, ending: str, width: str | None) -> bytes:
    """A picture, black on white."""
    if width:
        made, scale = for_paper(figure, width), 300 / 96
    else:
        made, scale = Figure(figure).update_layout(template=PAPER), 2
    return picture(
        made,
        ending,
        width=made.layout.width or WIDTH,
        height=made.layout.height or 450,
        scale=scale if ending == "png" else 1,
    )


def _write_plotly_js(file: Path) -> None:
    """Plotly's script, unless it is there whole."""
    script = get_plotlyjs().encode()
    adopt([file])
    if not (file.is_file() and file.stat().st_size == len(script) and file.read_bytes() == script):
        with atomic_file(file) as path:
            path.write_bytes(script)
