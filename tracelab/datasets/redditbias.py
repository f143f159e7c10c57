"""RedditBias (Barikeri et al., 2021): Reddit phrases that annotators found biased, and their
counterparts.

A record is a phrase that speaks ill of a minoritised group. Its counterpart says the same of the
dominant
one: counter-target augmentation (CTDA), with word lists of our own in
``data/counter_targets.json``. Both sets together are what expert / anti-expert decoding (arXiv
2412.01711) fine-tunes its two small models on. The phrases of RedditBias' own validation and test
files are marked as held out and are no training text.

Only the group's name is replaced: "his wife is a nurse" becomes "his husband is a nurse". The texts
hold slurs: do not print them. Licence of the data: MIT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import regex

from tracelab.datasets.records import parse, say_unusable, select, subsample
from tracelab.datasets.sources import file_in, folder_at, table_of
from tracelab.datasets.spans import composed, words_pattern
from tracelab.errors import TracelabError, brief, require_choice
from tracelab.model.texts import Texts, as_texts
from tracelab.ranges import require_whole_limit

BIAS_TYPES = ("gender", "race", "religion", "orientation")
# folder of the file, bias type, minoritised group, encoding if it is not UTF-8
_FILES = (
    ("gender", "gender", "female", None),
    ("race", "race", "black", None),
    ("religion1", "religion", "jews", "latin-1"),
    ("religion2", "religion", "muslims", None),
    ("orientation", "orientation", "lgbtq", None),
)
_HOLDS = "the five folders from gender to orientation"


@dataclass(frozen=True)
class RedditBiasPhrase:
    """A phrase that annotators found biased against ``group``.

    ``held_out``: it belongs to RedditBias' validation or test file of any bias type, punctuation,
    case and spaces apart.
    """

    id: str
    bias_type: str
    group: str
    phrase: str
    held_out: bool


@dataclass(frozen=True)
class ExpertTexts:
    """Parallel texts: each ``anti_biased`` is the counterpart of the ``biased`` one at the same
    place.

    No text of the first two stands in the held-out two. Of your own, any sequence of strings will
    do.
    """

    bias: str
    biased: Texts
    anti_biased: Texts
    held_out_biased: Texts = ()
    held_out_anti_biased: Texts = ()

    def __post_init__(self) -> None:
        for name in ("biased", "anti_biased", "held_out_biased", "held_out_anti_biased"):
            texts = tuple(as_texts(getattr(self, name), f"{name.replace('_', ' ')} text"))
            object.__setattr__(self, name, texts)

    def __repr__(self) -> str:
        n, held_out = len(tuple(self.biased)), len(tuple(self.held_out_biased))
        return brief(self, self.bias, f"n = {n} pairs of texts", f"{held_out} held out")


def redditbias(
    bias: str | None = None, *, source: str | Path = "wheel", limit: int | None = None
) -> list[RedditBiasPhrase]:
    """Read the biased phrases of RedditBias.

    Args:
        bias: one of :data:`BIAS_TYPES` ("religion" is Jews and Muslims), or None for all.
        source: ``"wheel"`` (the embedded copy) or a path to the official ``data`` folder, which has
            one folder for each of ``gender, race, religion1, religion2, orientation``.
        limit: at most so many phrases, subsampled evenly over the files.

    Raises:
        TracelabError: unknown bias type; a folder that is not RedditBias.
    """
    if bias is not None:
        require_choice("bias type", bias, BIAS_TYPES)
    folder = folder_at(source, "RedditBias", wheel="RedditBias/data", holds=_HOLDS)
    return select(_folder(folder), bias, limit, what="RedditBias")


def expert_texts(
    bias: str | None = None, *, source: str | Path = "wheel", limit: int | None = None
) -> ExpertTexts:
    """What an anti-expert (``biased``) and an expert (``anti_biased``) are trained on, and the
    held-out rest.

    A phrase that stands twice is taken once; one that :func:`counter_target` does not change is
    left out on both sides (a warning tells if these are many), and so is a training phrase whose
    counterpart is that of a held-out one.

    Args:
        bias: one of :data:`BIAS_TYPES`, or None for all together (``bias`` of the result is then
            "all").
        source: as for :func:`redditbias`.
        limit: at most so many training texts a side, subsampled evenly; of the held-out texts
            always all.

    Raises:
        TracelabError: as :func:`redditbias`; no training text is left.
    """
    limit = require_whole_limit(limit)
    pairs: dict[bool, dict[str, tuple[str, str]]] = {False: {}, True: {}}
    phrases, lost = redditbias(bias, source=source), 0
    for record in phrases:
        counterpart = counter_target(record.phrase, record.bias_type)
        lost += counterpart is None
        if counterpart is not None:
            pairs[record.held_out].setdefault(_words(record.phrase), (record.phrase, counterpart))
    say_unusable("phrases of RedditBias", ["no word of the group"] * lost, len(phrases))
    held_out = list(pairs[True].values())
    counterparts = {_words(counterpart) for _, counterpart in held_out}
    training = [pair for pair in pairs[False].values() if _words(pair[1]) not in counterparts]
    if not training or (limit is not None and limit < 1):
        raise TracelabError(f"no training text of RedditBias is left (bias={bias}, limit={limit})")
    sides = [
        tuple(pair[side] for pair in part)
        for part in (subsample(training, limit), held_out)
        for side in (0, 1)
    ]
    return ExpertTexts(bias or "all", *sides)


def counter_target(text: str, bias: str) -> str | None:
    """The text with the dominant group in the place of the minoritised one; None if it does not
    name the latter.

    All words are replaced in one pass, whole words only, letter case kept, longer entries first.
    Race and religion go both ways ("black and white" becomes "white and black"): a dominant word
    takes its counterpart from the minoritised group that the text names first. "her" becomes "him"
    before punctuation, the end, and the words that are listed for it; "his" before all others.

    Raises:
        TracelabError: unknown bias type.
    """
    pairs_of, text = _pairs(require_choice("bias type", bias, BIAS_TYPES)), composed(text)
    first = _any_of(tuple(pairs_of)).search(text)
    pairs = None if first is None else pairs_of.get(first.group().casefold())
    if pairs is None:
        return None
    return _any_of(tuple(pairs)).sub(lambda match: _replacement(match, pairs), text)


def _replacement(match: regex.Match[str], pairs: dict[str, str]) -> str:
    word = match.group().casefold()
    following = re.compile(r"\s+(\w+)").match(match.string, match.end())
    if word == "her" and (
        following is None or following.group(1).lower() in _lists()["her_is_him_before"]
    ):
        return _in_case_of(match.group(), "him")
    # letters that only look like those of a word
    return _in_case_of(match.group(), pairs.get(word, match.group()))


@cache
def _lists() -> dict[str, Any]:
    path = files("tracelab.datasets") / "data/counter_targets.json"
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def _pairs(bias: str) -> dict[str, dict[str, str]]:
    """By minoritised term: what is replaced by what in a text that names this term first."""
    groups = [
        (group["two_way"], group["one_way"] | group["two_way"]) for group in _lists()[bias].values()
    ]
    forward = {word: other for _, pairs in groups for word, other in pairs.items()}
    return {
        term: {other: word for word, other in two_way.items()} | forward
        for two_way, pairs in groups
        for term in pairs
    }


@cache
def _any_of(words: tuple[str, ...]) -> regex.Pattern[str]:
    return words_pattern(words, inflected=False)


def _in_case_of(original: str, word: str) -> str:
    if original.isupper():
        return word.upper()
    if original.istitle():
        return word.title()
    return word[0].upper() + word[1:] if original[0].isupper() else word


def _folder(folder: Path) -> list[RedditBiasPhrase]:
    def read() -> list[RedditBiasPhrase]:
        held_out = {
            _words(text)
            for name, _, group, _ in _FILES
            for text in _held_out(folder / name, name, group)
        }
        return [
            RedditBiasPhrase(f"{name}-{number}", bias, group, phrase, _words(phrase) in held_out)
            for name, bias, group, encoding in _FILES
            for number, phrase in _annotated(folder / name, name, group, encoding)
        ]

    return parse(str(folder), read)


def _annotated(
    folder: Path, name: str, group: str, encoding: str | None
) -> Iterator[tuple[int, str]]:
    """Row number and phrase of the rows annotated as biased; other labels are "0", "2" and none."""
    path = file_in(
        folder,
        f"reddit_comments_{name}_{group}_processed_phrase_annotated.csv",
        "RedditBias",
        holds=_HOLDS,
    )
    for number, row in enumerate(
        table_of(path, ("phrase", "bias_phrase"), "RedditBias", otherwise=encoding)
    ):
        if row["bias_phrase"] == "1" and row["phrase"].strip():
            yield number, row["phrase"].strip()


def _held_out(folder: Path, name: str, group: str) -> Iterator[str]:
    for split in ("valid", "test"):
        path = file_in(
            folder,
            f"reddit_comments_{name}_{group}_biased_{split}_reduced.csv",
            "RedditBias",
            holds=_HOLDS,
        )
        for row in table_of(path, ("comments_processed",), "RedditBias"):
            yield row["comments_processed"]


def _words(text: str) -> str:
    """What makes two phrases the same: their words, whatever the punctuation, case and spaces."""
    return " ".join(re.findall(r"\w+", text.lower()))
