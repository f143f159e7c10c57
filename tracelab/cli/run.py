"""From words that were understood to what is done: check the outputs, do the verb, hand out its
result."""

from __future__ import annotations

import argparse
from importlib import import_module

from tracelab.cli.checkpoint import checkpoint_of
from tracelab.cli.output import check_writable, hand_out


def run(options: argparse.Namespace) -> int:
    """Carry out a command; returns the exit status."""
    check_writable(options)
    verb = import_module(f"tracelab.cli.verbs.{options.verb_name}")
    with checkpoint_of(options) as options.checkpoint:
        result = verb.run(options)
        if result is None:
            return 0
        hand_out(result, options)
    return 1 if result.failures else 0
