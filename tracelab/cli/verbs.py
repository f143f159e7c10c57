"""What each verb does: read its options, load what it needs, call the Python function of the same
name."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tracelab.cli.arguments import parse_int, parse_layers
from tracelab.cli.output import result_name, say, write_json
from tracelab.datasets import crows_pairs, expert_texts, group_pairs, stereoset, templates
from tracelab.errors import TracelabError, require_choice
from tracelab.escaping import csv_table
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
    from tracelab.interventions.bundle import MANIFEST

    if options.out is None:
        raise TracelabError("fit needs a folder to write the bundle into: add --out BUNDLE")
    fitter, own = FITTERS[options.method]
    for name in (name for _, names in FITTERS.values() for name in names if name not in own):
        given = getattr(options, name)
        if given is not None and given is not False:  # 0 is given too
            raise TracelabError(
                f"--{name.replace('_', '-')} is not an option of fit {options.method}"
            )
    bundle = fitter(
        options,
        {name: getattr(options, name) for name in own if getattr(options, name) is not None},
    )
    if options.json is not None:
        write_json(
            options, json.loads((bundle / MANIFEST).read_text(encoding="utf-8")), pd.DataFrame()
        )
    say(str(bundle), options)


def _fit_fairmed(options: argparse.Namespace, given: dict[str, Any]) -> Path:
    from tracelab.interventions import FairMed, FairMedConfig

    published, layers = given.pop("published"), parse_layers(given.pop("layers", None))
    config = FairMedConfig.published(options.bias, **given) if published else FairMedConfig(**given)
    corpus = templates(options.bias, limit=options.limit)
    return FairMed.fit(_load(options), corpus, config, layers=layers, seed=options.seed).save(
        options.out
    )


def _fit_experts(options: argparse.Namespace, given: dict[str, Any]) -> Path:
    from tracelab.interventions import Experts, ExpertsConfig, FinetuneConfig

    mixing = ExpertsConfig(
        **{name: given.pop(name) for name in ("alpha", "filter_order") if name in given}
    )
    training = FinetuneConfig(**given, seed=options.seed)
    texts = expert_texts(options.bias, source=options.source, limit=options.limit)
    return Experts.fit(
        _load(options), texts, mixing, training=training, checkpoint=options.checkpoint
    ).save(options.out)


def _fit_on_triples(cls: Any, options: argparse.Namespace, config: Any, **fit_options: Any) -> Path:
    """Fit on StereoSet's ``test`` split, which shares no target term with ``dev``."""
    bias = None if options.bias == "all" else options.bias
    records = stereoset(bias, split="test", source=options.source, limit=options.limit)
    checkpoint = options.checkpoint
    edit = cls.fit(_load(options), records, config, checkpoint=checkpoint, **fit_options)
    return edit.save(options.out)


def _fit_biasedit(options: argparse.Namespace, given: dict[str, Any]) -> Path:
    from tracelab.interventions import BiasEdit, BiasEditConfig
    from tracelab.interventions.biasedit.biasedit import require_layer_words

    text = given.pop("layers", "last123")
    layers = require_layer_words(text) if text[:1].isalpha() else parse_layers(text)
    return _fit_on_triples(
        BiasEdit, options, BiasEditConfig(**given, seed=options.seed), layers=layers
    )


def _fit_klaad(options: argparse.Namespace, given: dict[str, Any]) -> Path:
    from tracelab.interventions import KLAAD, KLAADConfig

    return _fit_on_triples(KLAAD, options, KLAADConfig(**given, seed=options.seed))


def _fit_erasure(options: argparse.Namespace, given: dict[str, Any]) -> Path:
    from tracelab.interventions import Erasure, ErasureConfig

    layers = parse_layers(given.pop("layers", None))
    if "directions" in given:
        given["method"] = given.pop("directions")
    config = ErasureConfig(**given)
    pairs = group_pairs(options.bias, source=options.source, limit=options.limit)
    return Erasure.fit(_load(options), pairs, config, layers=layers).save(options.out)


Fitter = Callable[[argparse.Namespace, dict[str, Any]], Path]

FITTERS: dict[str, tuple[Fitter, tuple[str, ...]]] = {
    "fairmed": (_fit_fairmed, ("lam", "layers", "positions", "published")),
    "experts": (_fit_experts, ("alpha", "filter_order", "rank", "lr", "epochs")),
    "biasedit": (
        _fit_biasedit,
        ("layers", "loss", "retention", "retain_on", "lam", "n_edits", "rank", "meta_lr", "steps"),
    ),
    "klaad": (_fit_klaad, ("lam1", "lam2", "lam3", "margin", "trainable", "rank", "lr", "epochs")),
    "erasure": (_fit_erasure, ("layers", "rank", "directions", "strength")),
}
"""By method: what fits it and saves the bundle, and the options that are its own."""


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
