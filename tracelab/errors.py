"""The one exception a user is meant to read.

Everything tracelab refuses (an unknown bias type, a layer that does not exist, a file that is not the
benchmark it claims to be) is a :class:`TracelabError` whose message is one sentence that names the
value given, the values possible and the next step. The command line prints it and exits with 2.
"""

from __future__ import annotations

from collections.abc import Iterable


class TracelabError(ValueError):
    """A request that cannot be carried out as asked; the message says what to do instead."""


def require_choice(what: str, value: str, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        TracelabError: naming ``what`` was asked, the value given and the values possible.
    """
    known = list(choices)
    if value not in known:
        raise TracelabError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")
    return value
