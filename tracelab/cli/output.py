"""What a command leaves behind: the printed table, ``--out``, ``--json``, one line for a warning."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from tracelab.errors import TracelabError, one_line
from tracelab.files import atomic_file
from tracelab.results import Result


def result_name(options: argparse.Namespace) -> str:
    """What a result is called in ``--out``: the verb, the data and the bias type."""
    names = ("verb_name", "benchmark", "data", "bias")
    parts = [getattr(options, name, None) for name in names]
    if options.verb_name == "score" and options.edit:
        parts += ["under", *(Path(path).name for path in options.edit)]
    return "-".join(part for part in parts if part)


def partial_file(options: argparse.Namespace) -> Path:
    """Where an interrupted command keeps what it finished."""
    return Path(options.out) / f"{result_name(options)}.partial.jsonl"


def check_writable(options: argparse.Namespace) -> None:
    """Refuse, before any long work, an output that cannot be written."""
    file, out = getattr(options, "json", None), getattr(options, "out", None)
    if file is not None:
        folder = Path(file).parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise TracelabError(f"no folder {folder} that can be written, for --json {file!r}")
        if Path(file).is_dir():
            raise TracelabError(f"--json {file!r} is a folder: name a file")
    if out is not None:
        existing = next(path for path in (Path(out).absolute(), *Path(out).absolute().parents) if path.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise TracelabError(f"--out {out!r} is not a folder that can be written")


def hand_out(result: Result, options: argparse.Namespace) -> None:
    """Print the table; write ``--out`` and ``--json``."""
    print(result.text())
    if options.out is not None:
        result.save(Path(options.out) / result_name(options))
        partial_file(options).unlink(missing_ok=True)
        figures = result.figures()
        if figures:
            from tracelab.figures import save_figures

            named = {"-".join(filter(None, (result_name(options), name))): figure for name, figure in figures.items()}
            save_figures(named, options.out)
    if options.json is not None:
        write_json(options, result.settings, result.frame)


def write_json(options: argparse.Namespace, settings: dict[str, Any], table: pd.DataFrame) -> None:
    """Write ``--json``."""
    content = {
        "command": options.command,
        "settings": settings,
        "results": table.to_dict("records"),
    }
    with atomic_file(options.json) as path:
        text = json.dumps(_plain(content), indent=1, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """JSON values: numpy scalars unwrapped, not-a-number as null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line_warning(message: Warning | str, category: type[Warning], *args: Any) -> None:
    """Stands in for ``warnings.showwarning``: the message alone."""
    if issubclass(category, UserWarning):
        print(f"tracelab: warning: {one_line(str(message))}", file=sys.stderr)
