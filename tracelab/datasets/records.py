"""What the data sets hand out: frozen records of text and character spans, never tensors."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex, TypeVar, overload, runtime_checkable

from tracelab.errors import TracelabError, brief, meant, warn
from tracelab.ranges import require_limit, require_whole_limit
from tracelab.span import Span


@dataclass(frozen=True)
class Sentence:
    """A sentence and where its words of interest are.

    Attributes:
        id: the benchmark's id of the sentence.
        text: as stored in the benchmark.
        filler: spans of the word(s) that fill the blank; one, rarely two, none if there is no
            blank.
        attribute_words: mentions of the target term and of the bias type's attribute words.
    """

    id: str
    text: str
    filler: tuple[Span, ...] = ()
    attribute_words: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in what they say of a group: the stereotype and its opposite.

    ``stereotype_words`` and ``anti_stereotype_words`` are the spans of the words in which they
    differ.
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


class Records(list[T]):
    """A list whose ``repr`` is one line: what it holds, how many, and of which bias types.

    >>> tracelab.datasets.stereoset("gender", limit=3)
    Records(3 StereoSetRecord, gender)
    """

    __slots__ = ()

    @overload
    def __getitem__(self, place: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Records[T]: ...
    def __getitem__(self, place: Any) -> Any:
        """One, or a slice that shows itself so too."""
        found = super().__getitem__(place)
        return Records(found) if isinstance(place, slice) else found

    def __repr__(self) -> str:
        kinds = " and ".join(dict.fromkeys(type(each).__name__ for each in self))
        biases = sorted({str(b) for each in self if (b := getattr(each, "bias_type", None))})
        named = ", ".join(biases) if len(biases) <= 4 else f"{len(biases)} bias types"
        return brief(self, f"{len(self)} {kinds}".strip(), *filter(None, [named]))


_LEFT_OUT = "are left out"
MANY = 0.1
"""Share of the records from which on it is said aloud that they are of no use."""
_PLACEHOLDER = re.compile(r"\bBLANK\b|\bX{3,}\b|\b_{2,}\b|\[[A-Z_]{3,}\]|<[A-Z_]{3,}>|\{\w+\}")
_READING = (
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    ValueError,
    RecursionError,
    OSError,
    csv.Error,
)
_HINTS = {
    KeyError: "a field is missing",
    IndexError: "a field is missing",
    json.JSONDecodeError: "no valid JSON",
    TypeError: "a field is of another kind",
    AttributeError: "a field is of another kind",
}


def select(
    records: Sequence[R], bias: str | None, limit: int | None = None, *, what: str
) -> Records[R]:
    """The records of one bias type (None: all), at most ``limit`` of them (:func:`subsample`),
    in the benchmark's order.

    Raises:
        TracelabError: no record has this bias type, or nothing is left.
    """
    known = Counter(record.bias_type for record in records)
    if bias is not None and bias not in known:
        raise TracelabError(
            f"{what} has no bias type {bias!r}: choose one of {', '.join(sorted(known))}"
            f"{meant(bias, known)}"
        )
    chosen = [record for record in records if bias in (None, record.bias_type)]
    limit = require_whole_limit(limit)
    if not chosen or (limit is not None and limit < 1):
        raise TracelabError(f"no record of {what} is left (bias={bias}, limit={limit})")
    return subsample(chosen, limit)


def subsample(records: Sequence[T], limit: int | None) -> Records[T]:
    """At most ``limit`` records at even distances, where a file has one group or target term after
    the other.

    What every ``limit`` of tracelab means, but for running text
    (:func:`~tracelab.datasets.wikitext`).

    Raises:
        TracelabError: a limit under 1.
    """
    require_limit(limit)
    n = len(records) if limit is None else min(limit, len(records))
    return Records(records[(2 * k + 1) * len(records) // (2 * n)] for k in range(n))


def say_unusable(
    what: str,
    reasons: Iterable[str],
    total: int,
    consequence: str = _LEFT_OUT,
    *,
    many: float = MANY,
) -> None:
    """Warn that records can be read but not used, if they are ``many`` (a share) of ``total``.

    Args:
        what: where the records are from.
        reasons: why, once for each of them.
        consequence: what becomes of them.

    Raises:
        TracelabError: all of them are left out.
    """
    counts = Counter(reasons)
    listed = ", ".join(f"{reason}: {n}" for reason, n in counts.most_common())
    if consequence == _LEFT_OUT and 0 < total <= counts.total():
        raise TracelabError(f"none of {total} {what} can be used ({listed})")
    if counts.total() > many * total:
        warn(f"{counts.total()} of {total} {what} {consequence} ({listed})")


def holds_placeholder(text: str) -> bool:
    """Whether a text still has a mark that somebody was to fill in: BLANK, XXX, [NAME], <NAME>,
    {name} or ___."""
    return _PLACEHOLDER.search(text) is not None


def text_in(row: Mapping[str, Any], name: str) -> str:
    """The text in a field of a row.

    Raises:
        KeyError, TypeError, ValueError: there is none, or no tokenizer could take it; for
            :func:`parse`.
    """
    value = row[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} holds half a character (a lone surrogate)") from None
    return value


@contextmanager
def place(where: str) -> Iterator[None]:
    """Within the ``with`` block an error of a reader tells ``where`` in the file it arose: "line
    7"."""
    try:
        yield
    except _READING as error:
        error.add_note(where)
        raise


def check_ids(records: Iterable[Record], what: str) -> None:
    """Refuse a benchmark file in which an id stands twice."""
    twice = [key for key, n in Counter(record.id for record in records).items() if n > 1]
    if twice:
        raise TracelabError(
            f"{what}: {len(twice)} ids stand twice, the first is {twice[0]!r}: number the records "
            "anew"
        )


def parse(what: str, make: Callable[[], list[R]]) -> list[R]:
    """Run a reader; a missing field or a wrong type becomes one sentence about the file.

    Raises:
        TracelabError: the file is not the benchmark it claims to be.
    """
    try:
        records = make()
    except _READING as error:
        if isinstance(error, TracelabError):
            if not (notes := _notes(error)):
                raise
            raise TracelabError(f"{error} ({', '.join([*notes, f'of {what}'])})") from error
        hints = [hint for kind, hint in _HINTS.items() if isinstance(error, kind)][-1:]
        more = ", ".join([*hints, *_notes(error)])
        raise TracelabError(
            f"{what} is not the benchmark it claims to be: {type(error).__name__} {error}"
            + (f" ({more})" if more else "")
        ) from error
    if not records:
        raise TracelabError(f"{what} holds no records")
    check_ids(records, what)
    return records


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))
