"""What a command leaves behind: the printed table, ``--out``, ``--json``, one line for a
warning."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from tracelab.errors import TracelabError
from tracelab.figures.saving import require_script_place, save_figures
from tracelab.interventions.names import MANIFEST, OWN_FILES
from tracelab.results import Result, read_marker, require_result_folder
from tracelab.storage.files import atomic_file, stands_for
from tracelab.storage.ownership import (
    adopt,
    file_name,
    made_by_tracelab,
    require_file,
    require_folder,
    require_ours,
    require_replaceable,
)

RESULTS = ("score", "generate", "probe", "trace", "attention", "compare", "inspect")
"""Verbs whose result, tables and figures are written among other files of ``--out``."""
WRITTEN = (".html", ".png", ".csv", ".md", ".tex")


def result_name(options: argparse.Namespace) -> str:
    """What a result is called in ``--out``: the verb, the data and the bias type."""
    names = ("verb_name", "benchmark", "data", "bias")
    parts = [getattr(options, name, None) for name in names]
    if parts[2]:  # also the name of a file
        parts[2] = Path(parts[2]).stem
    if options.verb_name in ("score", "generate") and options.edit:
        parts += ["under", *(Path(path).name for path in options.edit)]
        parts += [f"x{each:g}" for each in options.strength or [] if each != 1]
    return file_name("-".join(part for part in parts if part))


def check_writable(options: argparse.Namespace) -> None:
    """Refuse, before any long work, an output that cannot be written or would replace what is not
    tracelab's.

    Raises:
        TracelabError: naming the option, and what stands in the way.
    """
    file, out = getattr(options, "json", None), getattr(options, "out", None)
    if file is not None and not _to_standard_output(file):
        folder = Path(file).parent
        if file and not folder.is_dir():
            raise TracelabError(f"--json: no folder {folder}, for {file!r}")
        _named("--json", require_file, file)
    if out is not None:
        _named("--out", require_folder, out)
        if options.verb_name in RESULTS:
            _named("--out", _require_result_places, options)
        if options.verb_name == "fit":
            check = partial(require_replaceable, own=OWN_FILES, marker=MANIFEST)
            _named("--out", check, Path(out))


def _named(option: str, check: Callable[[Any], object], value: Any) -> None:
    try:
        check(value)
    except TracelabError as error:
        raise TracelabError(f"{option}: {error}") from None


def _require_result_places(options: argparse.Namespace) -> None:
    """Refuse tables, figures and results of somebody's own under the names that this command would
    write."""
    out, name = Path(options.out), result_name(options)
    require_result_folder(out / name)
    if options.verb_name == "compare":
        require_folder(out / "cells")
    require_script_place(out)
    for file in sorted(out.iterdir()) if out.is_dir() else []:
        if (
            file.is_dir()
            or not (file.stem == name or file.stem.startswith(f"{name}-"))
            or file.suffix not in WRITTEN
        ):
            continue
        # 0.1 left no list: its files are known by the result that they begin with the name of.
        markers = {
            folder.name: read_marker(folder) for folder in out.glob(f"{name}*") if folder.is_dir()
        }
        of_0_1 = [
            each
            for each, marker in markers.items()
            if made_by_tracelab(marker) and "files" not in marker
        ]
        if not any(file.stem == each or file.stem.startswith(f"{each}-") for each in of_0_1):
            require_ours(file)
        adopt([file])


def hand_out(result: Result, options: argparse.Namespace) -> None:
    """Write ``--out`` and ``--json``, then print the table: a pipe that is closed loses nothing."""
    if options.out is not None:
        result.save(Path(options.out) / result_name(options))
        figures = result.figures()
        if figures:
            named = {
                "-".join(filter(None, (result_name(options), name))): figure
                for name, figure in figures.items()
            }
            save_figures(named, options.out)
    if options.json is not None:
        write_json(options, result.settings, result.frame)
    say(result.text(), options)


def say(text: str, options: argparse.Namespace) -> None:
    """Print what is for people; on stderr where the JSON goes to the standard output."""
    to_output = options.json is not None and _to_standard_output(options.json)
    print(text, file=sys.stderr if to_output else sys.stdout)


def _to_standard_output(file: str) -> bool:
    return file == "-" or stands_for(file, 1)


def write_json(options: argparse.Namespace, settings: dict[str, Any], table: pd.DataFrame) -> None:
    """Write ``--json``."""
    content = {
        "command": options.command,
        "settings": settings,
        "results": table.to_dict("records"),
    }
    text = json.dumps(_plain(content), indent=1, allow_nan=False)
    if _to_standard_output(options.json):
        print(text, flush=True)
        return
    with atomic_file(options.json) as path:
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
