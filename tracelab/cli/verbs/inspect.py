"""``tracelab inspect``: what edits do to prompts."""

from __future__ import annotations

import argparse

from tracelab.cli import loading
from tracelab.errors import require_choice
from tracelab.inspection.before_after import POSITIONS, RANKINGS, inspect
from tracelab.results import Result


def run(options: argparse.Namespace) -> Result:
    """``tracelab inspect``: several edits side by side."""
    require_choice("positions", options.positions, POSITIONS)
    require_choice("rank_by", options.rank_by, RANKINGS)
    edits = loading.edits_of(options)
    return inspect(
        loading.load_model(options),
        edits,
        options.prompt,
        positions=options.positions,
        top=options.top,
        rank_by=options.rank_by,
        tokens=options.token or (),
    )
