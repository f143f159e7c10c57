"""Pairs of texts that differ only in the group they name: what an erasure of the group is fitted
on.

All are openings of StereoSet's ``test`` sentences, up to the word that would make them a
stereotype: no label of a stereotype is used, no record is one of the official ``dev`` set, and no
text names a target term of it.
Gender's are paired with their gender-swapped twins; those of race, religion and orientation name a
group by its word (:mod:`tracelab.datasets.group_words`). CrowS-Pairs has pairs too, of any of its
bias types, which are then no benchmark any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import regex

from tracelab.datasets.bold import development_sentences
from tracelab.datasets.crows_pairs import crows_pairs
from tracelab.datasets.gender_swap import gender_swapped
from tracelab.datasets.group_words import BIAS_TYPES as WORDED
from tracelab.datasets.group_words import exchanged_by, openings_of_groups
from tracelab.datasets.records import subsample
from tracelab.datasets.spans import composed, words_pattern
from tracelab.datasets.stereoset import BIAS_TYPES as STEREOSET_BIAS_TYPES
from tracelab.datasets.stereoset import attribute_word_pairs, stereoset
from tracelab.errors import TracelabError, brief, quoted, require_choice
from tracelab.model.texts import Texts, as_texts

BIAS_TYPES = ("gender", *WORDED)
"""Bias types of which StereoSet gives such pairs."""
DATA = ("stereoset", "crows-pairs")
WORDS = ("unseen", "all")
NEUTRAL, HELD_OUT = 100, 40
"""Neutral sentences that a fit sees, and those that its cost is measured on."""


@dataclass(frozen=True)
class GroupPairs:
    """Texts of a first and of a second group, at the same place each other's counterpart.

    Attributes:
        bias: what the groups are of.
        pairs: ``(text of the first group, text of the second)``; all in this order.
        neutral: other text, which tells how activations vary for other reasons.
        held_out: other text that nothing is fitted on: what an edit does to it is noted.
    """

    bias: str
    pairs: tuple[tuple[str, str], ...]
    neutral: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        bias: str,
        pairs: Iterable[tuple[str, str]],
        neutral: Iterable[str] = (),
        held_out: Iterable[str] = (),
    ) -> GroupPairs:
        """From pairs of your own."""
        found = tuple((str(a), str(b)) for a, b in pairs)
        return cls(bias, found, tuple(neutral), tuple(held_out))

    @classmethod
    def from_words(
        cls, bias: str, counterparts: Mapping[str, str], texts: Texts | None = None
    ) -> GroupPairs:
        """From words of your own.

        >>> found = GroupPairs.from_words("age", {"old": "young"}, ["An old man said"])
        >>> found.pairs
        (('An old man said', 'A young man said'),)

        Args:
            counterparts: words of the first group, each with its counterpart of the second.
            texts: that name a word of one group, and are exchanged; default: openings of
                StereoSet's ``test`` sentences.

        Raises:
            TracelabError: no words, a word that is its own counterpart or stands on both sides, or
                no text names one.
        """
        first, second = list(counterparts), list(counterparts.values())
        if not first:
            raise TracelabError("no words of a group: give {word: counterpart, …}")
        folded = [
            {word.casefold() for word in as_texts(side, "word of a group")}
            for side in (first, second)
        ]
        if both := sorted(folded[0] & folded[1]):
            raise TracelabError(f"{quoted(both[0])} is a word of both groups: leave it out of one")
        listed = None if texts is None else as_texts(texts)
        found = exchanged_by(counterparts, listed)
        if not found:
            raise TracelabError(
                f"no text names a word of one group alone ({', '.join(first[:5])} …): give texts "
                "that do"
            )
        neutral = development_sentences("fit", NEUTRAL), development_sentences("choose", HELD_OUT)
        return cls.of(bias, found, *neutral)

    def without(self, terms: Collection[str]) -> GroupPairs:
        """The pairs of which neither text names one of these words, in any inflection."""
        if not terms:
            return self
        named = words_pattern(sorted(terms), inflected=True).search
        left = [pair for pair in self.pairs if not any(named(composed(text)) for text in pair)]
        return replace(self, pairs=tuple(left))

    def __repr__(self) -> str:
        return brief(self, self.bias, f"n = {len(self.pairs)}", f"{len(self.neutral)} neutral")


def group_pairs(
    bias: str = "gender",
    *,
    data: str = "stereoset",
    words: str = "unseen",
    source: str | Path = "wheel",
    limit: int | None = None,
    without: Collection[str] = (),
) -> GroupPairs:
    """The pairs of a bias type.

    Args:
        data: ``"stereoset"``: openings that name one group and the other, the historically
            disadvantaged first; or ``"crows-pairs"``: its pairs, in the same order, for any of its
            bias types. What is fitted on these is not to be scored on CrowS-Pairs.
        words: ``"unseen"``: no text names a target term of the official ``dev`` set, on which an
            edit is scored; or ``"all"``: for an edit to be used, whose scores there are then
            transductive in the words.
        source: of the data, as for :func:`~tracelab.datasets.stereoset`.
        limit: at most so many pairs, subsampled evenly.
        without: target terms of StereoSet whose records give no pair; no text of another names
            them.

    Raises:
        TracelabError: a bias type without pairs (give :meth:`GroupPairs.of` your own), or no pair
            is left.
    """
    require_choice("data of pairs", data, DATA)
    require_choice("words of pairs", words, WORDS)
    if data == "stereoset" and bias not in BIAS_TYPES:
        raise TracelabError(
            f"StereoSet has pairs that differ in {', '.join(BIAS_TYPES)} only, not in {bias}: take "
            f'group_pairs({bias!r}, data="crows-pairs"), or GroupPairs.of your own'
        )
    if data == "crows-pairs":
        found = _crows_pairs(bias, source)
    elif bias in WORDED:
        found = openings_of_groups(bias, source, without)
    else:
        found = _swapped_openings(bias, source, without)
    made = GroupPairs.of(
        bias,
        found,
        development_sentences("fit", NEUTRAL),
        development_sentences("choose", HELD_OUT),
    )
    if data == "stereoset":
        scored = _scored_terms(bias) if words == "unseen" else ()
        made = made.without({*without, *scored})
    if not made.pairs:
        raise TracelabError(f"no pair of texts that differ in {bias} is left")
    return replace(made, pairs=tuple(subsample(made.pairs, limit)))


@cache
def _scored_terms(bias: str) -> frozenset[str]:
    """Target terms of the official ``dev`` set."""
    if bias not in STEREOSET_BIAS_TYPES:
        return frozenset()
    return frozenset(record.target for record in stereoset(bias, split="dev"))


def _crows_pairs(bias: str, source: str | Path) -> list[tuple[str, str]]:
    """The group that a sentence names is the disadvantaged one in the stereotyping sentence of a
    ``stereo`` pair, and in the other one of an ``antistereo`` pair."""
    return [
        (pair.sent_more, pair.sent_less)
        if pair.direction == "stereo"
        else (pair.sent_less, pair.sent_more)
        for pair in crows_pairs(bias, source=source)
    ]


def _swapped_openings(
    bias: str, source: str | Path, without: Collection[str]
) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    male = words_pattern({word: word for word, _ in attribute_word_pairs(bias)}, inflected=False)
    for record in stereoset(bias, split="test", source=source):
        if record.target in without:
            continue
        try:
            (swapped,) = gender_swapped([record])
        except TracelabError:  # it names no gender
            continue
        if record.stereotype.filler and swapped.anti_stereotype.filler:
            first = record.stereotype.text[: record.stereotype.filler[0].start].rstrip()
            second = swapped.anti_stereotype.text[
                : swapped.anti_stereotype.filler[0].start
            ].rstrip()
            if first and second and first != second:
                found[(second, first) if _names(first, male) else (first, second)] = None
    return list(found)


def _names(text: str, pattern: regex.Pattern[str]) -> bool:
    return pattern.search(text.casefold()) is not None
