"""``tracelab report``: the main job."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tracelab.cli import loading
from tracelab.cli.output import say, write_json
from tracelab.errors import TracelabError, require_choice
from tracelab.report import report
from tracelab.report.page import headline
from tracelab.report.place import require_report_folder
from tracelab.report.presets import BIAS_TYPES, PRESETS
from tracelab.results import Result


def run(options: argparse.Namespace) -> Result | None:
    """``tracelab report``: prints its headline table and where the page is."""
    if options.out is None:
        raise TracelabError("report needs a folder to write into: add --out DIR")
    require_choice("bias type", options.bias, BIAS_TYPES)
    require_choice("preset", options.preset, PRESETS)
    require_report_folder(Path(options.out))
    edits: dict[str, Any] = {}
    bundles = options.edit or []
    for path, strength in zip(bundles, loading.strengths(options, len(bundles)), strict=True):
        edits |= loading.row(path, options, strength, edits)
    parts = report(
        loading.load_model(options),
        options.bias,
        options.out,
        interventions=edits if options.edit or options.no_edits else None,
        prompts=options.prompt or (),
        preset=options.preset,
        limit=options.limit,
        png=not options.no_png,
        seed=options.seed,
        command=options.command,
    )
    table = headline(parts)
    if options.json is not None:
        settings = {name: result.settings for name, result in parts.named().items()}
        write_json(options, settings, table)
    text = table.to_string(index=False, float_format="{:.4g}".format)
    say(f"{text}\n{Path(options.out) / 'index.html'}", options)
    return None
