"""``tracelab export``: a weight delta as an adapter or a checkpoint."""

from __future__ import annotations

import argparse
import json

import pandas as pd

from tracelab.cli import loading
from tracelab.cli.output import say, write_json
from tracelab.errors import TracelabError
from tracelab.interventions import to_merged, to_peft
from tracelab.interventions.export import MARKER, require_export_folder


def run(options: argparse.Namespace) -> None:
    """``tracelab export``: prints the folder it wrote; ``--json`` gets the note of what is in
    it."""
    if options.out is None:
        raise TracelabError("export needs a folder to write into: add --out DIR")
    require_export_folder(options.out)
    edit = loading.load_edit(options.bundle, options, *loading.strengths(options, 1))
    if options.to == "peft":
        folder = to_peft(
            loading.load_model(options),
            edit,
            options.out,
            rank=options.rank,
            base_model=options.base_model,
        )
    elif options.rank is not None or options.base_model is not None:
        raise TracelabError("--rank and --base-model are of --to peft: a merged delta is whole")
    else:
        folder = to_merged(loading.load_model(options), edit, options.out)
    if options.json is not None:
        write_json(
            options, json.loads((folder / MARKER).read_text(encoding="utf-8")), pd.DataFrame()
        )
    say(str(folder), options)
