"""What the data sets hand out: frozen records of text and character spans, never tensors."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from tracelab.errors import TracelabError
from tracelab.ranges import require_limit
from tracelab.tokens import Span


@dataclass(frozen=True)
class Sentence:
    """A sentence and where its words of interest are.

    Attributes:
        id: the benchmark's id of the sentence.
        text: as stored in the benchmark.
        filler: spans of the word(s) that fill the blank; one, rarely two, none if there is no blank.
        attribute_words: mentions of the target term and of the bias type's attribute words.
    """

    id: str
    text: str
    filler: tuple[Span, ...] = ()
    attribute_words: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in what they say of a group: the stereotype and its opposite.

    ``stereotype_words`` and ``anti_stereotype_words`` are the spans of the words in which they differ.
    """

    id: str
    bias_type: str
    stereotype: str
    anti_stereotype: str
    stereotype_words: tuple[Span, ...] = ()
    anti_stereotype_words: tuple[Span, ...] = ()


@runtime_checkable
class Record(Protocol):
    """What every record has."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def bias_type(self) -> str: ...  # noqa: D102


R = TypeVar("R", bound=Record)
T = TypeVar("T")


def select(records: Sequence[R], bias: str | None, limit: int | None = None, *, what: str) -> list[R]:
    """The records of one bias type (None: all), at most ``limit`` of them, in the benchmark's order.

    Raises:
        TracelabError: no record has this bias type, or nothing is left.
    """
    known = Counter(record.bias_type for record in records)
    if bias is not None and bias not in known:
        raise TracelabError(f"{what} has no bias type {bias!r}: choose one of {', '.join(sorted(known))}")
    chosen = [record for record in records if bias in (None, record.bias_type)]
    chosen = chosen if limit is None else chosen[: max(limit, 0)]
    if not chosen:
        raise TracelabError(f"no record of {what} is left (bias={bias}, limit={limit})")
    return chosen


def spread(records: Sequence[T], limit: int | None) -> list[T]:
    """At most ``limit`` records at even distances, where a file has one group or target term after the other.

    Raises:
        TracelabError: a limit under 1.
    """
    require_limit(limit)
    n = len(records) if limit is None else min(limit, len(records))
    return [records[(2 * k + 1) * len(records) // (2 * n)] for k in range(n)]


def check_ids(records: Iterable[Record], what: str) -> None:
    """Refuse a benchmark file in which an id stands twice."""
    twice = [key for key, n in Counter(record.id for record in records).items() if n > 1]
    if twice:
        raise TracelabError(f"{what}: {len(twice)} ids stand twice, the first is {twice[0]!r}")


def parse(what: str, make: Callable[[], list[R]]) -> list[R]:
    """Run a reader; a missing field or a wrong type becomes one sentence about the file.

    Raises:
        TracelabError: the file is not the benchmark it claims to be.
    """
    try:
        records = make()
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, TracelabError):
            raise
        raise TracelabError(f"{what} is not the benchmark it claims to be: {type(error).__name__} {error}") from error
    if not records:
        raise TracelabError(f"{what} holds no records")
    check_ids(records, what)
    return records


def data_hash(records: Iterable[Any]) -> str:
    """16 hexadecimal digits that change when any field of any record changes."""
    lines = (json.dumps(asdict(record), sort_keys=True) for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
