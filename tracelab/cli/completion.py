"""``--print-completion``: what a shell needs to complete tracelab's words (shtab)."""

from __future__ import annotations

import argparse
from typing import Any

from tracelab.cli.words_meant import Parser

SHELLS = ("bash", "zsh", "tcsh")
_PLACES = {"FILE": "FILE", "DIR": "DIRECTORY", "BUNDLE": "DIRECTORY"}


class PrintCompletion(argparse.Action):
    """Print the script of a shell and end."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """As argparse calls it."""
        import shtab  # only here: --help needs no time for it

        _mark(parser, shtab)
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _mark(parser: Parser, shtab: Any) -> None:
    """Say of each option that takes a file or a folder that it does."""
    parser.fill()
    for action in parser._actions:
        if isinstance(action.metavar, str) and action.metavar in _PLACES:
            action.complete = getattr(shtab, _PLACES[action.metavar])  # type: ignore[attr-defined]
    for inner in parser.verbs().values():
        _mark(inner, shtab)
