"""From words that were understood to what is done: check the outputs, do the verb, hand out its
result."""

from __future__ import annotations

import argparse
from importlib import import_module

from tracelab.cli.checkpoint import checkpoint_of
from tracelab.cli.output import check_writable, hand_out
from tracelab.cli.workers import engine_of, serving


def run(options: argparse.Namespace) -> int:
    """Carry out a command; returns the exit status."""
    options.engine = engine_of(options)
    with serving(options.engine) as done:
        return 0 if done else _asked(options)


def _asked(options: argparse.Namespace) -> int:
    check_writable(options)
    verb = import_module(f"tracelab.cli.verbs.{options.verb_name}")
    with checkpoint_of(options) as options.checkpoint:
        result = verb.run(options)
        if result is None:
            return 0
        hand_out(result, options)
        if result.failures:
            options.shards.clear()  # kept: the same command goes on from what did not fail
    return 1 if result.failures else 0
