"""Texts and records as people have them: one string, a list, a pandas column, an array, a
generator.

Every public function that takes several of something calls :func:`as_texts` or :func:`as_records`
first, so that a column is read in its order and not by its index, and one string is one text and
not its letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tracelab.errors import TracelabError

_RECORDS = ("record", "pair")
Texts = str | Iterable[Any]
"""What :func:`as_texts` takes: one string, or any iterable of strings."""


def as_texts(texts: Any, what: str = "text") -> list[str]:
    """The texts as a list of strings; one string is one text.

    Args:
        what: what one of them is called in an error.

    Raises:
        TracelabError: no iterable of strings; a missing one (None, NaN) is named by its number,
            from 0.
    """
    if isinstance(texts, str):
        return [str(texts)]
    listed = _listed(texts, what)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise TracelabError(
                f"{what} {number} is {_shown(text)}, not a string: leave it out, or fill it in"
            )
    return [str(text) for text in listed]


def as_records(records: Any, what: str = "record") -> list[Any]:
    """Records of a data set as a list.

    Raises:
        TracelabError: no iterable; something that is no record is named by its number, from 0.
    """
    listed = _listed(records, what)
    for number, record in enumerate(listed):
        if isinstance(record, str) or not hasattr(record, "id"):
            raise TracelabError(
                f"{what} {number} is {_shown(record)}, no record of a data set: pass what "
                "tracelab.datasets gives, or make records of your own pairs: datasets.pairs(rows)"
            )
    return listed


def _listed(values: Any, what: str) -> list[Any]:
    # a data frame, whose items are its headings
    columns = isinstance(values, Mapping) or hasattr(values, "columns")
    if not columns and not isinstance(values, str | bytes):
        try:
            return list(values)
        except TypeError:  # no iterable, or an array without dimensions
            pass
    kind = type(values).__name__
    if columns and what in _RECORDS:
        raise TracelabError(
            f"a list of {what}s is needed, not a {kind}: make records of it: datasets.pairs(table)"
        )
    raise TracelabError(
        f"a list of {what}s is needed, not "
        f"{f'a {kind}: give one of its columns' if columns else _shown(values)}"
    )


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
