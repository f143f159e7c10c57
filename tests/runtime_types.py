"""The run-time type checker of the test session: beartype, noting what it cannot check."""

from __future__ import annotations

from collections.abc import Callable

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException, BeartypeDecorHintPep673Exception

# an int is a float, as type checkers say
_CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))

UNCHECKABLE: dict[str, str] = {}
"""The functions with an annotation that beartype refuses, and why."""


def check(function: Callable) -> Callable:
    """``beartype(function)``; a function it refuses is noted and left as it is."""
    try:
        return _CHECK(function)
    except BeartypeDecorHintPep673Exception:  # typing.Self: it would have to see the whole class
        return function
    except BeartypeDecorHintException as error:
        UNCHECKABLE[f"{function.__module__}.{function.__qualname__}"] = str(error)
        return function
