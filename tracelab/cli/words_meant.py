"""A parser whose refusals say which word was probably meant."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from typing import Any

from tracelab.errors import as_message, meant

_CHOICE = re.compile(
    r"invalid choice: (['\"])(?P<given>.*?)\1 \(choose from (?P<known>.*)\)$", re.S
)


class Parser(argparse.ArgumentParser):
    """One line on stderr, and status 2, for words that are not understood.

    Options are written in full: of one that is cut short nobody could tell whether it is given.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> Any:
        """Print why, and end."""
        told = as_message(f"{message}{_meant_in(message)}")
        print(f"{self.prog}: {told}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; an option that a verb does not have is told with those that it has."""
        options, left = self.parse_known_args(args, namespace)
        if left:
            verb = self.verbs().get(getattr(options, "verb_name", ""), self)
            near = meant(bare(left[0]), verb.flags())
            verb.error(f"unrecognized arguments: {' '.join(left)}{near}")
        return options

    def verbs(self) -> dict[str, Parser]:
        """The parsers of verbs, or of methods, by name."""
        found = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return dict(found[0].choices) if found else {}

    def fill(self) -> object:
        """Add the options that are added only when they are asked for."""

    def flags(self) -> list[str]:
        """Every option's name."""
        return [flag for action in self._actions for flag in action.option_strings]

    def option(self, flag: str) -> argparse.Action | None:
        """What an option does."""
        return next((a for a in self._actions if flag in a.option_strings), None)


class Choices(tuple[str, ...]):
    """Words to choose from, and any word that begins with a prefix."""

    prefix = ""

    @classmethod
    def of(cls, words: Iterable[str], prefix: str) -> Choices:
        """The words, and what begins so."""
        made = cls(words)
        made.prefix = prefix
        return made

    def __contains__(self, word: object) -> bool:
        longer = isinstance(word, str) and word.startswith(self.prefix) and word != self.prefix
        return super().__contains__(word) or longer


def bare(word: str) -> str:
    """An option without the value that ``=`` gives it."""
    return word.partition("=")[0]


def _meant_in(message: str) -> str:
    found = _CHOICE.search(message)
    return "" if found is None else meant(found["given"], re.findall(r"[^\s,'\"]+", found["known"]))
