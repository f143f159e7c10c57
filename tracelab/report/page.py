"""The page: the question answered, the headline, each figure with how to read it, the settings.

It is one file that needs no network: plotly's script is in it once, packed (the browser unpacks
it), and each figure is data that ``page.js.jinja`` draws in the page's own colours and width. A
content security policy lets those two scripts run and nothing else. Where no script runs, a figure
is its PNG.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tracelab.figures.pictures import NoPicture, picture
from tracelab.figures.style import CONFIG, PAPER, WIDTH, Figure
from tracelab.metrics import paper_model, paper_name
from tracelab.report.answers import answers, lead, what_edits_did
from tracelab.report.moved import sentences, what_moved
from tracelab.report.numbers import cost_table, headline, score_rows, written
from tracelab.report.parts import Parts
from tracelab.report.sections import Section, View


@dataclass(frozen=True)
class Files:
    """What lies beside the page, by name.

    Attributes:
        tables: in ``tables/``, each as CSV and Parquet.
        figures: in ``figures/``, each as HTML.
        bundles: in ``bundles/``.
        pictures: PNGs of figures, for where no script runs.
    """

    tables: Sequence[str] = ()
    figures: Sequence[str] = ()
    bundles: Sequence[str] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def small_pictures(figures: Mapping[str, go.Figure]) -> dict[str, bytes]:
    """PNGs of figures for where no script runs, by name; none where none can be drawn here."""
    made: dict[str, bytes] = {}
    with suppress(NoPicture):
        for name, figure in figures.items():
            light = Figure(figure).update_layout(template=PAPER)
            made[name] = picture(light, "png", width=WIDTH, height=light.layout.height)
    return made


def render(
    parts: Parts,
    bias: str,
    preset: str,
    command: str,
    shown: Sequence[Section],
    made: str,
    files: Files,
) -> str:
    """The page as one self-contained HTML text.

    Args:
        command: the command that makes this report again.
        made: date and time, for the foot of the page.
        files: to link to.
    """
    environment = Environment(
        loader=PackageLoader("tracelab.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"edit": paper_name, "model": paper_model}
    script = environment.get_template("page.js.jinja").render()
    packed, plotly_hash = _packed_plotly()
    board = parts.scoreboard
    settings = {name: result.settings for name, result in parts.named().items()}
    return environment.get_template("page.html.jinja").render(
        bias=bias,
        preset=preset,
        command=command,
        model=parts.stereoset.settings["model"],
        lead=lead(parts),
        edits_did=what_edits_did(parts),
        answers=answers(parts),
        headline=headline(parts).to_dict("records"),
        verdicts=[] if board is None else sentences(what_moved(board)),
        scores=[] if board is None else score_rows(board),
        failed=[] if board is None else board.failed.to_dict("records"),
        costs=([], []) if board is None else cost_table(board),
        texts=[] if parts.texts is None else written(parts.texts.table),
        edits=[] if board is None else [paper_name(each) for each in board.settings["edits"]],
        stacked=parts.choice is not None and bool(parts.choice.table["chosen"].any()),
        n_records=len(parts.stereoset.sentences),
        n_prompts=len(parts.probes.labels),
        n_traced=len(parts.trace.cases),
        trace_settings=parts.trace.settings,
        attention_settings=parts.attention.settings,
        figures=[_figure(section, files.pictures) for section in shown],
        files=files,
        settings=json.dumps(settings, indent=1),
        script=Markup(script),
        script_hashes=[_sha256(script), plotly_hash],
        plotly=packed,
        made=made,
    )


def _figure(section: Section, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """What the template needs of a section: its own figure and those on request."""
    return vars(section) | {"views": [_view(each, pictures) for each in section.views]}


def _view(shown: Section | View, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """One figure as data: its title and caption are texts of the page, which wrap and are read
    aloud; it is as wide as the page."""
    content = json.loads(shown.figure.to_json())
    layout = content["layout"]
    title = layout.pop("title")
    caption = title["subtitle"]["text"]
    freed = 44 + 16 * len(caption.split("<br>"))
    layout["margin"]["t"] -= freed
    layout["height"] -= freed
    picture = pictures.get(shown.name)
    return vars(shown) | {
        "title": _text(title["text"]),
        "caption": _text(caption),
        "height": layout["height"],
        "data": _json({**content, "config": CONFIG}),
        "picture": None if picture is None else base64.b64encode(picture).decode(),
    }


def _text(label: str) -> str:
    """A label of plotly's, which is HTML, as the text it shows."""
    return html.unescape(label.replace("<br>", " "))


def _json(value: Any) -> Markup:
    """JSON for a script element: no ``<`` in it could end that."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


@cache
def _packed_plotly() -> tuple[Markup, str]:
    """Plotly's script, compressed, as text; and the hash of what it becomes."""
    script = get_plotlyjs()
    packed = base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
    return Markup(packed), _sha256(script)


def _sha256(script: str) -> str:
    """As a content security policy names a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
