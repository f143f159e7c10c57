"""StereoSet's gender records with the gender words exchanged: does an edit carry over to the
mirrored text?

Every word of the benchmark's own pairs (he/she, father/mother, …) is replaced by its partner, in
the context and in all three sentences, in one pass, whole words only, letter case kept. With the
words the labels are
exchanged: what was said of one gender as its stereotype is said of the other now. After BiasEdit's
``gender_test_reverse.json`` (not at hand).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import regex

from tracelab.datasets.records import Records, Sentence
from tracelab.datasets.spans import composed, filler_spans, words_pattern
from tracelab.datasets.stereoset import StereoSetRecord, attribute_word_pairs
from tracelab.errors import TracelabError

_NOT_OWNED = (
    "to|and|or|but|as|at|by|for|from|in|on|with|was|is|had|when|that|because|so|if|a|an|the"
)
_OWNED = re.compile(rf"\s+(?!(?:{_NOT_OWNED})\b)\w")


def gender_swapped(records: Sequence[StereoSetRecord]) -> list[StereoSetRecord]:
    """The records that name a gender, mirrored; ids get the suffix ``-swapped``.

    Raises:
        TracelabError: none of the records names one.
    """
    made = [record for record in map(_swapped, records) if record is not None]
    if not made:
        raise TracelabError(f"none of {len(records)} records has a gender word to exchange")
    return Records(made)


def gender_twins(
    records: Sequence[StereoSetRecord],
) -> list[tuple[StereoSetRecord, StereoSetRecord]]:
    """Records and their mirrored twins, where the mirror exchanges the gender named and nothing
    else: what a benchmark of association compares.

    Fillers that are gender words themselves, or continuations that do not name the same genders,
    have no such twin. A twin's ``anti_stereotype`` says what the record's ``stereotype`` says.
    """
    found = ((record, _swapped(record)) for record in records)
    return [(record, twin) for record, twin in found if twin is not None and _same(record, twin)]


def _same(record: StereoSetRecord, twin: StereoSetRecord) -> bool:
    """Whether the mirror left what the sentences say of the group as it was."""
    if record.task == "intersentence":
        genders = [
            [word.casefold() for word in _pattern().findall(composed(sentence.text))]
            for sentence in (record.stereotype, record.anti_stereotype)
        ]
        return genders[0] == genders[1]
    both = (
        (record.stereotype, twin.anti_stereotype),
        (record.anti_stereotype, twin.stereotype),
    )
    return all(old.filler and _words(old) == _words(new) for old, new in both)


def _words(sentence: Sentence) -> list[str]:
    return [composed(sentence.text[s.start : s.end]).casefold() for s in sentence.filler]


def swap_gender_words(text: str) -> str:
    """The text with each gender word replaced by its partner.

    "her" becomes "his" before a word that it can belong to, else "him". Accents come out composed.
    """
    pairs, text = _pairs(), composed(text)

    def other(match: regex.Match[str]) -> str:
        word = match.group().casefold()
        partner = pairs.get(word, match.group())  # letters that only look like those of a word
        if word == "her":
            partner = "his" if _OWNED.match(text, match.end()) else "him"
        if match.group().isupper() and len(word) > 1:
            return partner.upper()
        return partner.capitalize() if match.group()[0].isupper() else partner

    return _pattern().sub(other, text)


def _swapped(record: StereoSetRecord) -> StereoSetRecord | None:
    context = swap_gender_words(record.context)
    if context == composed(record.context):
        return None

    def sentence(old: Sentence) -> Sentence:
        text = swap_gender_words(old.text)
        filler = filler_spans(context, text) if record.task == "intrasentence" else ()
        return Sentence(f"{old.id}-swapped", text, filler)

    return replace(
        record,
        id=f"{record.id}-swapped",
        context=context,
        stereotype=sentence(record.anti_stereotype),
        anti_stereotype=sentence(record.stereotype),
        unrelated=None if record.unrelated is None else sentence(record.unrelated),
    )


@cache
def _pairs() -> dict[str, str]:
    found: dict[str, str] = {}
    for male, female in attribute_word_pairs("gender"):
        found.setdefault(male, female)
        found.setdefault(female, male)
    return found


@cache
def _pattern() -> regex.Pattern[str]:
    return words_pattern(_pairs(), inflected=False)
