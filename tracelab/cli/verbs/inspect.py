"""``tracelab inspect``: what edits do to prompts, as tables, figures and a page to click
through."""

from __future__ import annotations

import argparse
from pathlib import Path

from tracelab.cli import loading
from tracelab.errors import require_choice
from tracelab.inspection.before_after import POSITIONS, RANKINGS, inspect
from tracelab.inspection.page import FILE, write_html
from tracelab.inspection.payload import page_of
from tracelab.results import Result
from tracelab.storage.ownership import require_ours

NEW_TOKENS = 24
"""Of the continuations on the page."""


def run(options: argparse.Namespace) -> Result:
    """``tracelab inspect``: several edits side by side."""
    require_choice("positions", options.positions, POSITIONS)
    require_choice("rank_by", options.rank_by, RANKINGS)
    page = None if options.out is None else Path(options.out) / FILE
    if page is not None:
        require_ours(page)
    edits = loading.edits_of(options)
    found = inspect(
        loading.load_model(options),
        edits,
        options.prompt,
        positions=options.positions,
        top=options.top,
        rank_by=options.rank_by,
        tokens=options.token or (),
        lens=page is not None,
        new_tokens=0 if page is None else NEW_TOKENS,
        seed=options.seed,
    )
    if page is not None:
        write_html(page_of(found), page)
    return found
