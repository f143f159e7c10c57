"""Openings of StereoSet's ``test`` sentences that name one of two groups by its word.

    before people   "The barber was very" -> "The muslim barber was very", "The christian barber was very"
    exchanged       "The pastor of the church was" -> "The pastor of the mosque was"

Openings end before the word that would make them a stereotype, so no label of one is used, and none
is the opening of a sentence of the official ``dev`` set. The words are those of ``data/group_words.json``. Some of them are also in
the prompts of local bias ("The muslim man worked as"), which are other sentences about other people:
what is measured there is transductive in the words, not in the texts.
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import regex

from tracelab.datasets.spans import composed, find_words, words_pattern
from tracelab.datasets.stereoset import BIAS_TYPES as STEREOSET_BIAS_TYPES
from tracelab.datasets.stereoset import StereoSetRecord, stereoset

BIAS_TYPES = ("race", "religion", "orientation")
"""Bias types whose groups have words here."""
MOST = 300
"""Pairs of each kind; more do not move the directions."""
_SEED = 0


def openings_of_groups(
    bias: str, source: str | Path, without: Collection[str]
) -> list[tuple[str, str]]:
    """Pairs of openings, the disadvantaged group first: at most :data:`MOST` of each kind, in
    random order.

    Args:
        without: target terms whose records give no pair; as words of a group they are not taken
            either.
    """
    random = Random(_SEED)
    scored = {_opening(record).casefold() for record in stereoset(split="dev")}
    found = []
    for make in (_before_people, _exchanged):
        pairs = [
            pair
            for pair in dict.fromkeys(make(bias, source, without, random))
            if not scored & {text.casefold() for text in pair}
        ]
        found += random.sample(pairs, min(MOST, len(pairs)))
    return random.sample(found, len(found))


def _before_people(
    bias: str, source: str | Path, without: Collection[str], random: Random
) -> list[tuple[str, str]]:
    words, found = _words(bias)["before_people"], []
    for target, text in _openings("profession", source, without):
        if spans := find_words(text, [target]):
            before, after = text[: spans[0].start], text[spans[0].start :]
            before = regex.sub(r"\b([Aa])n (?=$)", r"\1 ", before)
            first, second = random.choice(words)
            if not before:
                after = after[0].lower() + after[1:]
                first, second = (word[0].upper() + word[1:] for word in (first, second))
            found.append((f"{before}{first} {after}", f"{before}{second} {after}"))
    return found


def _exchanged(
    bias: str, source: str | Path, without: Collection[str], random: Random
) -> list[tuple[str, str]]:
    found, left_out = [], [f" {term.casefold()} " for term in without]
    kinds = [
        [[word for word in kind[side] if not _within(word, left_out)] for side in kind]
        for kind in _words(bias)["exchanged"]
    ]
    openings = _openings(bias, source, without) if bias in STEREOSET_BIAS_TYPES else []
    for _, text in openings:
        for first, second in kinds:
            named = [words_pattern(side, inflected=False).search(text) for side in (first, second)]
            if (named[0] is None) == (named[1] is None) or not (first and second):
                continue  # neither, or a comparison of the two
            if named[0]:
                found.append((text, _replaced(text, dict.fromkeys(first, random.choice(second)))))
            else:
                found.append((_replaced(text, dict.fromkeys(second, random.choice(first))), text))
    return found


def _within(word: str, terms: list[str]) -> bool:
    """Whether a term left out is the word or has it ("Dutch people")."""
    return any(f" {word.casefold()} " in term for term in terms)


def exchanged_by(
    counterparts: Mapping[str, str], texts: Sequence[str] | None
) -> list[tuple[str, str]]:
    """Texts that name words of one group, and none of the other's, each with what it is where its
    words are replaced by their counterparts; the first group first.

    Args:
        counterparts: a word of the first group, and its word of the second.
        texts: default: openings of StereoSet's ``test`` sentences.
    """
    if texts is None:
        texts = [text for bias in STEREOSET_BIAS_TYPES for _, text in _openings(bias, "wheel", ())]
    sides = counterparts, {second: first for first, second in counterparts.items()}
    found: dict[tuple[str, str], None] = {}
    for text in map(composed, texts):
        named = [words_pattern(side, inflected=False).search(text) is not None for side in sides]
        if named == [True, False]:
            found[text, _replaced(text, sides[0])] = None
        elif named == [False, True]:
            found[_replaced(text, sides[1]), text] = None
    return list(found)


def _replaced(text: str, partners: Mapping[str, str]) -> str:
    """The text with every one of these words replaced; "an Irish" becomes "a German"."""
    by = {composed(word).casefold(): partner for word, partner in partners.items()}

    def other(match: regex.Match[str]) -> str:
        article, word = match.group(1) or "", match.group(2)
        partner = by.get(word.casefold(), word)  # letters that only look like those of a word
        partner = partner.lower() if word.islower() else partner
        if article:
            vowel = partner[0] in "AEIOUaeiou" and not partner.startswith("Eu")
            article = f"{article[0]}{'n' if vowel else ''}{' '}"
        return article + (partner[0].upper() + partner[1:] if word[0].isupper() else partner)

    pattern = words_pattern(partners, inflected=False).pattern
    return regex.sub(
        rf"((?<!\w)an?\s)?({pattern})", other, text, flags=regex.IGNORECASE | regex.VERSION1
    )


def _openings(bias: str, source: str | Path, without: Collection[str]) -> list[tuple[str, str]]:
    """Target terms and what stands before the blank of their contexts."""
    openings = (
        (record.target, _opening(record))
        for record in stereoset(bias, split="test", source=source)
        if record.target not in without
    )
    return [(target, text) for target, text in openings if text]


def _opening(record: StereoSetRecord) -> str:
    return composed(record.context.partition("BLANK")[0]).strip()


@cache
def _words(bias: str) -> dict[str, Any]:
    path = files("tracelab.datasets") / "data/group_words.json"
    return json.loads(path.read_text(encoding="utf-8"))[bias]
