"""The numbers that a user gives: each in its range, or one sentence that names the range.

Every entry point, in Python and on the command line, asks here, so that a range holds at all of
them. Ranges have an upper end too: a rank or a number of samples that no memory holds is refused
before anything is computed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import isfinite
from numbers import Real
from operator import index
from typing import Any

from tracelab.errors import TracelabError

INT_MOST = 2**31 - 1
SEED_MOST = 2**32 - 1
"""The largest seed that numpy, scikit-learn and torch all take."""
SEEDS_MOST = 1_000
SAMPLES_MOST = 10_000
THREADS_MOST = 1_024
IG_MOST = 100
EPOCHS_MOST = 10_000
STEPS_MOST = 1_000_000
WIDTH_MOST = 65_536
"""Of splits of a probe, noise samples, threads, epochs, training steps, and widths of the networks
that tracelab trains."""


def require_int(what: str, value: Any, least: int = 1, most: int = INT_MOST) -> int:
    """Return ``value`` if it is a whole number from ``least`` to ``most``.

    Raises:
        TracelabError: naming ``what`` was asked, the range and the value given.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None:
        raise TracelabError(f"{what} is a whole number, not {shown(value)}")
    if number < least:
        raise TracelabError(f"{what} is at least {least}, not {shown(number)}")
    if number > most:
        raise TracelabError(f"{what} is at most {most}, not {shown(number)}")
    return number


def require_seed(value: Any, what: str = "seed") -> int:
    """Return ``value`` if it can be a seed: a whole number from 0 to :data:`SEED_MOST`.

    Raises:
        TracelabError: it cannot.
    """
    return require_int(what, value, 0, SEED_MOST)


def require_limit(limit: Any) -> None:
    """Refuse a ``limit=`` of records that leaves none; None is no limit.

    Raises:
        TracelabError: a number under 1, or no whole number.
    """
    if require_whole_limit(limit) is not None and limit < 1:
        raise TracelabError(f"no record is left with limit={limit}: it is at least 1")


def require_whole_limit(limit: Any) -> int | None:
    """Return a ``limit=`` that is a whole number or None, for who says himself what a small one
    leaves.

    Raises:
        TracelabError: 2.5, ``"3"``, True.
    """
    return None if limit is None else require_int("limit", limit, -INT_MOST)


def require_number(
    what: str, value: Any, *, least: float | None = None, above: float | None = None
) -> float:
    """Return ``value`` if it is a finite number, of at least ``least`` or above ``above``.

    Raises:
        TracelabError: naming ``what`` was asked, the range and the value given.
    """
    kind = "a finite number"
    if above is not None:
        kind = f"a number above {above:g}"
    elif least is not None:
        kind = f"a number of at least {least:g}"
    try:
        number = (
            float(value)
            if isinstance(value, Real) and not isinstance(value, bool)
            else float("nan")
        )
    except OverflowError:  # a whole number of more than 308 digits
        number = float("inf")
    low = (least is not None and number < least) or (above is not None and number <= above)
    if low or not isfinite(number):
        raise TracelabError(f"{what} is {kind}, not {shown(value)}")
    return number


def require_layers(layers: Iterable[Any], n_layers: int, model_id: str) -> list[int]:
    """Layer numbers, ascending and each once; stops at the first that does not exist, however many
    would follow.

    Raises:
        TracelabError: naming it.
    """
    found = set()
    if not isinstance(layers, Iterable):
        raise TracelabError(f"layers are a list of numbers, not {shown(layers)}")
    for layer in layers:
        number = require_int("a layer", layer, -INT_MOST)
        if not 0 <= number < n_layers:
            raise TracelabError(
                f"layer {number} is out of range: {model_id} has layers 0 to {n_layers - 1}"
            )
        found.add(number)
    return sorted(found)


def require_memory(
    what: str,
    n_bytes: int,
    *,
    free: int | None = None,
    place: str = "the machine",
    change: str = "ask for less",
) -> None:
    """Refuse what is larger than the memory there is.

    Args:
        what: the beginning of a sentence, in the plural.
        free: bytes that can be had; default: the machine's whole memory (where the system tells
            it).
        place: whose memory that is.
        change: what would make it fit.

    Raises:
        TracelabError: naming both sizes and what to change.
    """
    told = "" if free is None else " free"
    if free is None:
        try:
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):  # no POSIX system
            return
        if free <= 0:
            return
    if n_bytes > free:
        sizes = f"{n_bytes / 2**30:.4g} GiB, {place} has {free / 2**30:.4g} GiB"
        raise TracelabError(f"{what} need {sizes}{told}: {change}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of Python, of a device or of torch's allocator (a plain
    RuntimeError)."""
    told = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in told)


def shown(value: Any, most: int = 60) -> str:
    """``repr``, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no number of more than 4300 digits
        text = (
            f"a number of {value.bit_length()} bits"
            if isinstance(value, int)
            else f"a {type(value).__name__}"
        )
    return text if len(text) <= most else f"{text[:most]}…"
