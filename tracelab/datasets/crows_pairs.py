"""CrowS-Pairs (Nangia et al., 2020): sentence pairs that differ in the group they speak of.

``sent_more`` is the more stereotypical sentence of a pair, whatever its direction (``stereo``: it
expresses a stereotype of a disadvantaged group; ``antistereo``: the other sentence violates one).
The data statement forbids training on it. Licence of the data: CC BY-SA 4.0.

Sets of the same form in other languages are read as well: with bias types of their own, with
commas, tabs or semicolons between the columns, with or without a column of numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tracelab.datasets.records import (
    Pair,
    holds_placeholder,
    parse,
    place,
    say_unusable,
    select,
    text_in,
)
from tracelab.datasets.sources import changed_at, file_at, is_named, table_of
from tracelab.datasets.spans import differing_words
from tracelab.errors import TracelabError, require_choice
from tracelab.span import Span

BIAS_TYPES = (
    "age",
    "disability",
    "gender",
    "nationality",
    "physical-appearance",
    "race-color",
    "religion",
    "sexual-orientation",
    "socioeconomic",
)
"""Bias types of the official file; another one may have others."""
DIRECTIONS = ("stereo", "antistereo")  # in the order of the hub's class labels
HUB_ID = "nyu-mll/crows_pairs"
_NO_TEXT = ("nan", "none", "null", "<na>")  # as programs write a cell without a text
COLUMNS = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")


@dataclass(frozen=True)
class CrowsPair:
    """One pair; ``more_words`` and ``less_words`` are the spans of the words in which they
    differ."""

    id: str
    bias_type: str
    direction: str
    sent_more: str
    sent_less: str
    more_words: tuple[Span, ...]
    less_words: tuple[Span, ...]

    def pair(self) -> Pair:
        """The pair in the stereotype / anti-stereotype naming that the localisers take."""
        return Pair(
            self.id,
            self.bias_type,
            self.sent_more,
            self.sent_less,
            self.more_words,
            self.less_words,
        )


def crows_pairs(
    bias: str | None = None, *, source: str | Path = "wheel", limit: int | None = None
) -> list[CrowsPair]:
    """Read CrowS-Pairs.

    Args:
        bias: a bias type of the file, of the official one one of :data:`BIAS_TYPES` ("race" is
            taken for "race-color"), or None for all.
        source: ``"wheel"`` (the embedded copy), ``"hub"``, or a path to a CSV file in the official
            form, or to its folder.
        limit: at most so many pairs, subsampled evenly over the file.

    A pair without text on one side is left out. A warning tells if these, those that still hold a
    placeholder and those whose sentences are the same make up much of a file.

    Raises:
        TracelabError: unknown bias type; a file that is not CrowS-Pairs.
    """
    if is_named(source, "hub"):
        records = _hub()
    else:
        name = "crows_pairs_anonymized.csv"
        path = file_at(source, "CrowS-Pairs", wheel=f"CrowS-Pairs/data/{name}", inside=name)
        records = list(_file(path, changed_at(path)))
    known = {record.bias_type for record in records}
    if bias == "race" and bias not in known and "race-color" in known:
        bias = "race-color"
    if bias is not None:
        require_choice("bias type", bias, sorted(known))
    return select(records, bias, limit, what="CrowS-Pairs")


@lru_cache(maxsize=2)
def _file(path: Path, changed: tuple[int, ...]) -> tuple[CrowsPair, ...]:
    def read() -> list[CrowsPair]:
        made = []
        for row in table_of(path, COLUMNS, "CrowS-Pairs"):
            with place(f"line {row['line']}"):
                made.append(_record(row["number"], row))
        return _usable(made, str(path))

    return tuple(parse(str(path), read))


def _hub() -> list[CrowsPair]:
    from datasets import load_dataset  # seconds, which reading a file does not take

    try:
        # The repository holds a loading script, which `datasets` no longer runs: take the hub's own
        # conversion.
        rows = load_dataset(HUB_ID, split="test", revision="refs/convert/parquet")
    except (OSError, ValueError, RuntimeError) as error:
        raise TracelabError(f"cannot load {HUB_ID} from the hub: {error}") from error
    types = rows.features["bias_type"]

    def rename(row: dict[str, Any]) -> dict[str, Any]:
        direction = DIRECTIONS[row["stereo_antistereo"]]
        return {
            **row,
            "bias_type": types.int2str(row["bias_type"]),
            "stereo_antistereo": direction,
        }

    return parse(
        HUB_ID, lambda: _usable([_record(str(row["id"]), rename(row)) for row in rows], HUB_ID)
    )


def _usable(made: list[CrowsPair], what: str) -> list[CrowsPair]:
    """Those with text on both sides."""
    faults = [(pair, fault) for pair in made if (fault := _fault(pair))]
    say_unusable(
        f"pairs of {what}", [fault for _, fault in faults], len(made), "say nothing of a stereotype"
    )
    return [pair for pair in made if pair.sent_more and pair.sent_less]


def _fault(pair: CrowsPair) -> str | None:
    if not (pair.sent_more and pair.sent_less):
        return "an empty sentence, left out"
    if not (pair.more_words or pair.less_words):
        return "no difference between the sentences"
    if holds_placeholder(pair.sent_more) or holds_placeholder(pair.sent_less):
        return "a placeholder left"
    return None


def _sentence(row: dict[str, Any], name: str) -> str:
    text = text_in(row, name).strip()
    return "" if text.lower() in _NO_TEXT else text


def _record(key: str, row: dict[str, Any]) -> CrowsPair:
    more, less = (_sentence(row, name) for name in ("sent_more", "sent_less"))
    more_words, less_words = differing_words(more, less)
    bias_type = text_in(row, "bias_type").strip()
    if not bias_type:
        raise TracelabError(f"pair {key} has no bias type")
    return CrowsPair(
        id=key,
        bias_type=bias_type,
        direction=require_choice(
            "direction", text_in(row, "stereo_antistereo").strip().lower(), DIRECTIONS
        ),
        sent_more=more,
        sent_less=less,
        more_words=more_words,
        less_words=less_words,
    )
