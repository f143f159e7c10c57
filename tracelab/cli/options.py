"""Options that several verbs have, each said once, and the parser of a method's own."""

from __future__ import annotations

import argparse
from typing import Any

from tracelab.cli.arguments import finite, positive, whole
from tracelab.cli.config_file import FLAG
from tracelab.cli.config_options import add_config_options, read_config
from tracelab.cli.words import FITTED, WORDED
from tracelab.cli.words_meant import Parser, bare
from tracelab.config import Config
from tracelab.errors import TracelabError, meant
from tracelab.interventions.registry import Listed

ENGINES = ("process", "ray", "torchrun")
BIASES = "gender, race, religion or profession"
RENAMED = {"--published": "--preset published", "--directions": "--method"}
"""Options of 0.1."""


class MethodParser(Parser):
    """Of one method; its options are added when it is asked for, and made a configuration."""

    def __init__(self, *args: Any, method: Listed, **options: Any) -> None:
        super().__init__(*args, **options)
        self._method = method
        self._config: type[Config] | None = None

    def fill(self) -> type[Config]:
        """Add the method's options, once; returns its configuration."""
        if self._config is None:
            kind, self._config = self._method.kind, self._method.config_class()
            known = f"{', '.join(FITTED[kind])}; with --data, any"
            self.add_argument("--bias", required=True, help=f"of the data: {known}")
            self.add_argument("--layers", help="0,5,9 or 0:30:3, or words that the method knows")
            add_tune(self)
            add_data(self, "word lists (JSON)" if kind == WORDED else "pairs")
            add_source(self)
            add_config_options(self, self._config)
        return self._config

    def parse_known_args(self, args: Any = None, namespace: Any = None, **more: Any) -> Any:
        """As argparse's, with the configuration that the options make."""
        config = self.fill()
        options, left = super().parse_known_args(args, namespace, **more)
        if left:
            given = bare(left[0])
            now = RENAMED.get(given)
            told = f"it is {now} now" if now else f"see {self.prog} --help"
            near = "" if now else meant(given, self.flags())
            raise TracelabError(
                f"fit {self._method.kind} has no option {' '.join(left)}{near}: {told}"
            )
        options.config = read_config(options, config)
        return options, left


def add_data(parser: argparse.ArgumentParser, what: str) -> None:
    """A file of one's own."""
    parser.add_argument("--data", metavar="FILE", help=f"a file of your own: {what}")


def add_batch_tokens(parser: argparse.ArgumentParser) -> None:
    """How much is computed at once."""
    parser.add_argument("--batch-tokens", type=whole(), help="most tokens in a forward pass")


def add_chat(parser: argparse.ArgumentParser, what: str) -> None:
    """The chat template."""
    parser.add_argument("--apply-chat-template", action="store_true", help=what)


def add_include_path(parser: argparse.ArgumentParser) -> None:
    """Where further tasks of the harness are."""
    parser.add_argument(
        "--include-path", metavar="DIR", help="lm-eval/TASK: a folder of further task files"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Options from a file."""
    parser.add_argument(
        FLAG,
        metavar="FILE",
        help="options from a TOML or JSON file; those given here are taken from here",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Where a benchmark's files are."""
    parser.add_argument(
        "--source", default="wheel", help="wheel (default), hub, or a path to the official file"
    )


def add_tune(parser: argparse.ArgumentParser) -> None:
    """What is chosen, and among what."""
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


def add_strength(parser: argparse.ArgumentParser) -> None:
    """How much of an edit is applied."""
    parser.add_argument(
        "--strength",
        action="append",
        type=finite,
        metavar="S",
        help="share of the edit that is applied: 0 is the unedited model, 1 (default) the edit; of "
        "several edits: once for all, or once for each in order",
    )


def add_allow_mismatch(parser: argparse.ArgumentParser) -> None:
    """Edits of other weights."""
    parser.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="take an edit made for other weights of the same shapes",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the options of verbs whose records can be measured in shards."""
    group = parser.add_argument_group(
        "many workers",
        "The records are cut into shards, the same for any engine; with --out, finished ones are "
        "kept until all are done, and the same command goes on from them.",
    )
    group.add_argument(
        "--engine",
        choices=ENGINES,
        help="who measures the shards: process (this one alone), ray (needs tracelab[ray]), or "
        "torchrun (the processes that it started: torchrun --no-python --nproc-per-node 2 "
        "tracelab …)",
    )
    group.add_argument("--shard-size", type=whole(), metavar="N", help="records of a shard")
    group.add_argument("--workers", type=whole(), metavar="N", help="ray: processes (default 1)")
    group.add_argument(
        "--gpus-per-worker", type=positive, metavar="G", help="ray: GPUs that each has (default 0)"
    )
    group.add_argument(
        "--address", help="ray: of a cluster that runs already (default: start one here)"
    )
