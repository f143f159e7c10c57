"""What each verb does: read its options, load what it needs, call the Python function of the same
name."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tracelab.cli.arguments import parse_int, parse_layers
from tracelab.cli.output import result_name, say, write_json
from tracelab.datasets import crows_pairs, stereoset, templates
from tracelab.errors import TracelabError, require_choice
from tracelab.escaping import csv_table
from tracelab.interventions.bundle import MANIFEST
from tracelab.interventions.method import Method
from tracelab.interventions.registry import listed
from tracelab.model import assets
from tracelab.ranges import shown
from tracelab.results import Result
from tracelab.storage.files import own_file


def fetch(options: argparse.Namespace) -> None:
    """``tracelab fetch``."""
    for name, folder in assets.fetch(options.what, check=options.check).items():
        print(f"{name}\t{folder}")


def score(options: argparse.Namespace) -> Result:
    """``tracelab score``: rows of the unedited model, and with edits those of the edited one and
    the differences."""
    from tracelab.evaluate import edited_scores

    edit = _edit(options) if options.edit else None
    records = _records(options)
    model = _load(options)
    if edit is None:
        return _measure(model, records, options, None)
    return edited_scores(
        model, edit, lambda name: _measure(model, records, options, name), seed=options.seed
    )


def _records(options: argparse.Namespace) -> Sequence[Any]:
    from tracelab.evaluate.registry import benchmark

    chosen = benchmark(options.benchmark)
    if options.bias is not None and not chosen.biases:
        raise TracelabError(f"{chosen.name} has no bias types: leave --bias out")
    where = {
        name: given for name in ("split", "source") if (given := getattr(options, name)) is not None
    }
    refused = [f"--{name}" for name in where if name not in chosen.where]
    if refused:
        raise TracelabError(f"{chosen.name} has no {' and no '.join(refused)}")
    return chosen.read(options.bias, options.limit, **where)


def _measure(
    model: Any, records: Sequence[Any], options: argparse.Namespace, edit: str | None
) -> Any:
    from tracelab.evaluate.registry import benchmark

    return benchmark(options.benchmark).score(model, records, edit=edit, seed=options.seed)


def compare(options: argparse.Namespace) -> Result:
    """``tracelab compare``: with ``--out`` also the table as CSV, Markdown and LaTeX; finished
    cells are stored there."""
    from tracelab.evaluate.registry import BIAS_TYPES, benchmark
    from tracelab.evaluate.scoreboard.scoreboard import DEFAULT, evaluate
    from tracelab.interventions import Intervention, Stack

    wanted = dict(_benchmark(text) for text in options.benchmarks or DEFAULT)
    for name in wanted:
        benchmark(name)  # refuses an unknown one before the model is loaded
    if options.bias is not None:
        require_choice("bias type", options.bias, BIAS_TYPES)
    edits: dict[str, Intervention] = {}
    for path in options.edit or []:
        edits |= _row(path, options, edits)
    for paths in options.stack or []:
        rows = [_row(path, options, {}) for path in paths]
        # A member that is a row too is the same edit, so that interference can be told.
        members = [edits.get(name, edit) for row in rows for name, edit in row.items()]
        edits[" + ".join(name for row in rows for name in row)] = Stack(members)
    if not edits:
        raise TracelabError("nothing to compare: name at least one bundle with --edit")
    limits = {name: most or options.limit for name, most in wanted.items()}
    board = evaluate(
        _load(options),
        edits,
        list(wanted),
        bias=options.bias,
        limit={name: most for name, most in limits.items() if most is not None},
        off_target=not options.no_off_target,
        folder=None if options.out is None else Path(options.out) / "cells",
        seed=options.seed,
    )
    if options.out is not None:
        name = result_name(options)
        for suffix, text in (
            ("csv", csv_table(board.frame)),
            ("md", board.to_markdown() + "\n"),
            ("tex", board.to_latex()),
        ):
            with own_file(Path(options.out) / f"{name}.{suffix}") as file:
                file.write_text(text, encoding="utf-8")
    return board


def _row(path: str, options: argparse.Namespace, known: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle under its folder's name."""
    from tracelab.interventions import load_intervention

    name = Path(path).name or path
    if name in known:
        raise TracelabError(
            f"two bundles are called {name!r}: rows take the folders' names, rename one"
        )
    return {name: load_intervention(path, allow_mismatch=options.allow_mismatch)}


def _benchmark(text: str) -> tuple[str, int | None]:
    """``"bbq=400"`` as a name and a limit."""
    name, equals, most = text.partition("=")
    try:
        return name, parse_int("N", most) if equals else None
    except TracelabError as error:
        raise TracelabError(
            f"--benchmark {shown(text)} is not understood ({error}): write NAME or NAME=N, at most "
            "so many records"
        ) from None


def _edit(options: argparse.Namespace) -> Any:
    """The one edit, or the stack of several, that ``--edit`` names."""
    from tracelab.interventions import Stack, load_intervention

    edits = [
        load_intervention(path, allow_mismatch=options.allow_mismatch) for path in options.edit
    ]
    return edits[0] if len(edits) == 1 else Stack(edits)


def fit(options: argparse.Namespace) -> None:
    """``tracelab fit``: writes a bundle into ``--out``; ``--json`` gets its manifest."""
    if options.out is None:
        raise TracelabError("fit needs a folder to write the bundle into: add --out BUNDLE")
    method: type[Method] = listed(options.method).method_class()
    layers = _layers_or_words(method, options.layers)
    data = method.training_data(options.bias, source=options.source, limit=options.limit)
    edit = method.fit(
        _load(options), data, options.config, layers=layers, checkpoint=options.checkpoint
    )
    bundle = edit.save(options.out)
    if options.json is not None:
        write_json(
            options, json.loads((bundle / MANIFEST).read_text(encoding="utf-8")), pd.DataFrame()
        )
    say(str(bundle), options)


def _layers_or_words(method: type[Method], text: str | None) -> list[int] | str | None:
    """Numbers, or words that the method understands."""
    return method.require_layer_words(text) if text and text[0].isalpha() else parse_layers(text)


def export(options: argparse.Namespace) -> None:
    """``tracelab export``: prints the folder it wrote; ``--json`` gets the note of what is in
    it."""
    from tracelab.interventions import load_intervention, to_merged, to_peft
    from tracelab.interventions.export import MARKER, require_export_folder

    if options.out is None:
        raise TracelabError("export needs a folder to write into: add --out DIR")
    require_export_folder(options.out)
    edit = load_intervention(options.bundle, allow_mismatch=options.allow_mismatch)
    if options.to == "peft":
        folder = to_peft(_load(options), edit, options.out, rank=options.rank)
    elif options.rank is not None:
        raise TracelabError("--rank is of --to peft: a merged delta is whole")
    else:
        folder = to_merged(_load(options), edit, options.out)
    if options.json is not None:
        write_json(
            options, json.loads((folder / MARKER).read_text(encoding="utf-8")), pd.DataFrame()
        )
    say(str(folder), options)


def inspect(options: argparse.Namespace) -> Result:
    """``tracelab inspect``: several edits side by side."""
    from tracelab.inspection.before_after import POSITIONS, RANKINGS, inspect
    from tracelab.interventions import load_intervention

    require_choice("positions", options.positions, POSITIONS)
    require_choice("rank_by", options.rank_by, RANKINGS)
    edits = [
        load_intervention(path, allow_mismatch=options.allow_mismatch) for path in options.edit
    ]
    return inspect(
        _load(options),
        edits,
        options.prompt,
        positions=options.positions,
        top=options.top,
        rank_by=options.rank_by,
        tokens=options.token or (),
    )


def probe(options: argparse.Namespace) -> Result:
    """``tracelab probe``."""
    from tracelab.localize import probe_layers
    from tracelab.localize.probing.probes import SPLITS

    require_choice("split", options.split, SPLITS)
    corpus = templates(options.bias, limit=options.limit)
    return probe_layers(
        _load(options),
        corpus,
        split=options.split,
        n_seeds=options.seeds,
        top_k=options.top_k,
        seed=options.seed,
    )


def trace(options: argparse.Namespace) -> Result:
    """``tracelab trace``."""
    from tracelab.localize import causal_trace
    from tracelab.localize.tracing.causal_trace import POSITIONS
    from tracelab.localize.tracing.sentence import COMPONENTS

    if options.component is not None:
        require_choice("component", options.component, COMPONENTS)
    require_choice("positions", options.positions, POSITIONS)
    layers = parse_layers(options.layers)
    records = stereoset(options.bias, source=options.source)
    return causal_trace(
        _load(options),
        records,
        components=[options.component] if options.component else COMPONENTS,
        positions=options.positions,
        layers=layers,
        n_samples=options.samples,
        window=options.window,
        max_cases=options.limit,
        checkpoint=options.checkpoint,
        seed=options.seed,
    )


def attention(options: argparse.Namespace) -> Result:
    """``tracelab attention``."""
    from tracelab.localize import attention_gap
    from tracelab.localize.attention.attention_gap import REDUCTIONS

    require_choice("reduction", options.reduce, REDUCTIONS)
    read = crows_pairs if options.data == "crows-pairs" else stereoset
    pairs: Sequence[Any] = read(options.bias, source=options.source, limit=options.limit)
    return attention_gap(
        _load(options),
        pairs,
        layer=options.layer,
        heads="mean" if options.head is None else [options.head],
        reduce=options.reduce,
        seed=options.seed,
    )


def report(options: argparse.Namespace) -> Result | None:
    """``tracelab report``: prints its headline table and where the page is."""
    from tracelab.report import report
    from tracelab.report.page import headline
    from tracelab.report.place import require_report_folder
    from tracelab.report.presets import BIAS_TYPES, PRESETS

    if options.out is None:
        raise TracelabError("report needs a folder to write into: add --out DIR")
    require_choice("bias type", options.bias, BIAS_TYPES)
    require_choice("preset", options.preset, PRESETS)
    require_report_folder(Path(options.out))
    edits: dict[str, Any] = {}
    for path in options.edit or []:
        edits |= _row(path, options, edits)
    parts = report(
        _load(options),
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


def _load(options: argparse.Namespace) -> Any:
    from transformers.utils import logging

    from tracelab.model.load import load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    trusted = options.trust_remote_code
    return load(
        options.model, dtype=options.dtype, device=options.device, trust_remote_code=trusted
    )
