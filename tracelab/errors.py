"""The one exception a user is meant to read.

Everything tracelab refuses (an unknown bias type, a layer that does not exist, a file that is not
the benchmark it claims to be) is a :class:`TracelabError` whose message is one sentence that names
the value given, the values possible and the next step. The command line prints it and exits with 2.

Messages quote what stands in files, which may be anything: so every message becomes one line,
without the characters that steer a terminal, and is cut where it is longer than a person would
read.
"""

from __future__ import annotations

import sys
import unicodedata
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

LONGEST_MESSAGE = 1000
LONGEST_VALUE = 200
LONGEST_REPR = 180
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction in which a line is shown."""


class TracelabError(ValueError):
    """A request that cannot be carried out as asked; the message says what to do instead.

    Whatever a file or an argument put into the message, it is one line of printable characters and
    of sane length.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(as_message(message))


_INNER = frozenset({"tracelab", "contextlib", "torch", "jaxtyping", "beartype"})
"""Packages whose lines say nothing to a user: ours, and the decorators that we use."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside tracelab that led here, however deep this is called."""
    frame, level = sys._getframe(1), 2
    while frame.f_globals.get("__name__", "").partition(".")[0] in _INNER and frame.f_back:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def as_message(text: str) -> str:
    """A text as one line of sane length, as a person reads it on a terminal."""
    return cut(one_line(text), LONGEST_MESSAGE)


def one_line(text: str) -> str:
    """A text as one line: breaks become spaces, control characters are written out (``\\x1b``)."""
    if text.isprintable():  # nearly always
        return text
    return "".join(map(_shown, " ".join(text.split())))


def cut(text: str, longest: int) -> str:
    """A text of at most so many characters; the middle of a longer one is left out."""
    end = longest // 4
    return text if len(text) <= longest else f"{text[: longest - end - 3]} … {text[-end:]}"


def brief(held: object, *facts: object) -> str:
    """The ``repr`` of what holds much: its class and a few facts, in one line."""
    listed = ", ".join(cut(one_line(str(fact)), LONGEST_REPR * 2 // 3) for fact in facts)
    return cut(f"{type(held).__name__}({listed})", LONGEST_REPR)


def quoted(value: Any) -> str:
    """A value that stands in a file, for a message: its ``repr``, cut."""
    return cut(repr(value), LONGEST_VALUE)


def require_choice(what: str, value: str, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        TracelabError: naming ``what`` was asked, the value given and the values possible.
    """
    known = list(choices)
    if value not in known:
        near = meant(value, known)
        raise TracelabError(
            f"unknown {what} {quoted(value)}: choose one of {', '.join(known)}{near}"
        )
    return value


def meant(word: object, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known: the nearest one that is, if it is
    near."""
    names = {name.lstrip("-"): name for name in known}  # the dashes of an option are no likeness
    given = str(word).lstrip("-")[:LONGEST_VALUE]
    near = get_close_matches(given, names, n=1)
    return f" (did you mean {names[near[0]]}?)" if near else ""


def _shown(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNING:
        return character.encode("unicode_escape").decode("ascii")
    return character
