"""The one exception a user is meant to read.

Everything tracelab refuses (an unknown bias type, a layer that does not exist, a file that is not the
benchmark it claims to be) is a :class:`TracelabError` whose message is one sentence that names the
value given, the values possible and the next step. The command line prints it and exits with 2.
"""

from __future__ import annotations

from collections.abc import Iterable


class TracelabError(ValueError):
    """A request that cannot be carried out as asked; the message says what to do instead.

    Whatever a file or an argument put into the message, it is one line of printable characters and of sane length.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str, most: int = 1000) -> str:
    """A text as one line: white space joined, what cannot be printed escaped, the middle of a long one left out."""
    joined = " ".join(text.split())
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
    return plain if len(plain) <= most else f"{plain[: 2 * most // 3]} … {plain[-most // 3 :]}"


def require_choice(what: str, value: str, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        TracelabError: naming ``what`` was asked, the value given and the values possible.
    """
    known = list(choices)
    if value not in known:
        raise TracelabError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")
    return value
