"""WinoBias (Zhao et al., 2018): one sentence, two occupations, and a pronoun that fits the
stereotype or breaks it.

    pro   The developer argued with the designer because he did not like the design.
    anti  The developer argued with the designer because she did not like the design.

The pronoun stands for the same occupation in both (the developer); which one, world knowledge tells
in type 1 and syntax already in type 2. The gender that stereotypes give an occupation is that of
the US labour statistics.

Line i of a pro file and line i of its anti file are one pair when they are the same but for their
gendered pronouns. Of the 1,584 lines 20 are not (typing errors in one of the two, or another
sentence) and are left out, as is a line without two occupations of the lists: :func:`left_out`
names them, and a warning tells if they are many. Texts are the files' own, without brackets and
double spaces, accents composed. Licence of the
data: MIT.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

from tracelab.datasets.records import Pair, parse, place, say_unusable, select
from tracelab.datasets.sources import changed_at, file_in, folder_at, lines_of, text_of
from tracelab.datasets.spans import composed
from tracelab.errors import TracelabError, require_choice
from tracelab.span import Span

TYPES = (1, 2)
SPLITS = ("dev", "test")
_HOLDS = "the official files"
CASES = {
    frozenset({"he", "she"}): "subject",
    frozenset({"him", "her"}): "object",
    frozenset({"his", "her"}): "possessive",
}
"""The grammatical case of a pair's pronoun; "her" alone does not tell its own."""

_NUMBER = re.compile(r"^\s*\d+[.):]?\s+")
_IN_BRACKETS = re.compile(r"\[\s*(?:(?:the|an?)\s+)?([^\]]+?)\s*\]", re.IGNORECASE)
_PRONOUN = re.compile(r"\b(?:he|him|his|himself|she|her|hers|herself)\b", re.IGNORECASE)


@dataclass(frozen=True)
class WinoBiasSentence:
    """A sentence and its words of interest.

    Attributes:
        text: the sentence without its brackets.
        occupation: the occupation that the pronoun stands for, with its article; its first mention.
        other: the other occupation, with its article; its first mention.
        pronouns: the pronouns in which the sentence differs from its partner; the first is the one
            to resolve.
    """

    text: str
    occupation: Span
    other: Span
    pronouns: tuple[Span, ...]

    def words(self, span: Span) -> str:
        """The characters of a span."""
        return self.text[span.start : span.end]


@dataclass(frozen=True)
class WinoBiasPair:
    """A sentence with the pronoun that stereotypes expect (``pro``) and with the other one
    (``anti``).

    ``bias_type`` is ``"type1"`` or ``"type2"``; ``case``, of the pronoun, one of the values of
    :data:`CASES`.
    """

    id: str
    bias_type: str
    case: str
    pro: WinoBiasSentence
    anti: WinoBiasSentence

    def pair(self) -> Pair:
        """The pair in the stereotype / anti-stereotype naming that the localisers take."""
        return Pair(
            self.id, "gender", self.pro.text, self.anti.text, self.pro.pronouns, self.anti.pronouns
        )


def winobias(
    type: int | None = None,
    *,
    split: str = "test",
    source: str | Path = "wheel",
    limit: int | None = None,
) -> list[WinoBiasPair]:
    """Read WinoBias.

    Args:
        type: 1 (world knowledge is needed), 2 (syntax is enough), or None for both.
        split: ``"test"`` or ``"dev"``.
        source: ``"wheel"`` (the embedded copy) or a path to the official folder of the eight
            sentence files and the two lists of occupations.
        limit: at most so many pairs, subsampled evenly over the files.

    Raises:
        TracelabError: unknown type or split; a folder that is not WinoBias.
    """
    if type is not None:
        require_choice("type", str(type), map(str, TYPES))
    records = [pair for kind in TYPES for pair in _read(source, kind, split)[0]]
    return select(records, None if type is None else f"type{type}", limit, what="WinoBias")


def left_out(*, split: str = "test", source: str | Path = "wheel") -> list[str]:
    """Ids of the lines whose pro and anti sentence are not a pair.

    Raises:
        TracelabError: as of :func:`winobias`.
    """
    return [key for kind in TYPES for key in _read(source, kind, split)[1]]


def _read(
    source: str | Path, kind: int, split: str
) -> tuple[tuple[WinoBiasPair, ...], tuple[str, ...]]:
    require_choice("split", split, SPLITS)
    folder = folder_at(source, "WinoBias", wheel="WinoBias/data", holds=_HOLDS)
    names = [f"{side}_stereotyped_type{kind}.txt.{split}" for side in ("pro", "anti")]
    names += ["male_occupations.txt", "female_occupations.txt"]
    paths = [file_in(folder, name, "WinoBias", holds=_HOLDS) for name in names]
    return _files(tuple(paths), changed_at(*paths), f"type{kind}", split)


@lru_cache(maxsize=8)
def _files(
    paths: tuple[Path, ...], changed: tuple[int, ...], kind: str, split: str
) -> tuple[tuple[WinoBiasPair, ...], tuple[str, ...]]:
    missing: dict[str, str] = {}

    def read() -> list[WinoBiasPair]:
        pro, anti, *lists = (lines_of(text_of(path).rstrip()) for path in paths)
        if len(pro) != len(anti):
            raise TracelabError(
                f"each line of {paths[0].name} and of {paths[1].name} make a pair, but they have "
                f"{len(pro)} and "
                f"{len(anti)} lines: mend them"
            )
        names = "|".join(
            re.escape(composed(name.strip())) for names in lists for name in names if name.strip()
        )
        if not names:
            raise TracelabError(f"{paths[2]} and {paths[3]} name no occupation")
        occupations = re.compile(rf"\b(?:the|an?)\s+({names})\b", re.IGNORECASE)
        pairs = []
        for number, lines in enumerate(zip(pro, anti, strict=True), start=1):
            key = f"{kind}-{split}-{number}"
            with place(f"line {number}"):
                pair = _pair(key, kind, lines, occupations)
            if isinstance(pair, str):
                missing[key] = pair
            else:
                pairs.append(pair)
        say_unusable(f"lines of {paths[0]}", missing.values(), len(pro))
        return pairs

    return tuple(parse(str(paths[0]), read)), tuple(missing)


def _pair(
    key: str, kind: str, lines: tuple[str, str], occupations: re.Pattern[str]
) -> WinoBiasPair | str:
    """The pair of two lines, or why there is none."""
    texts = [_text(line) for line in lines]
    if len({_PRONOUN.sub("_", text) for text in texts}) > 1:
        return "no pair"
    pronouns = [
        both
        for both in zip(*(_PRONOUN.finditer(text) for text in texts), strict=True)
        if both[0].group().lower() != both[1].group().lower()
    ]
    case = (
        CASES.get(frozenset(match.group().lower() for match in pronouns[0])) if pronouns else None
    )
    if case is None:
        return "no pair of pronouns"
    named = [_occupations(line, occupations) for line in lines]
    if None in named:
        return "no bracketed occupation and another one"
    pro, anti = (
        WinoBiasSentence(
            text,
            *cast(tuple[Span, Span], named[side]),
            tuple(Span(*both[side].span()) for both in pronouns),
        )
        for side, text in enumerate(texts)
    )
    return WinoBiasPair(key, kind, case, pro, anti)


def _text(line: str) -> str:
    return " ".join(re.sub(r"[\[\]]", "", composed(_NUMBER.sub("", line, count=1))).split())


def _occupations(line: str, occupations: re.Pattern[str]) -> tuple[Span, Span] | None:
    """Spans of the bracketed occupation and of the first other one; None if one is not there."""
    bracket = _IN_BRACKETS.search(composed(line))
    mentions: dict[str, Span] = {}
    for match in occupations.finditer(_text(line)):
        mentions.setdefault(match.group(1).lower(), Span(*match.span()))
    name = bracket.group(1).lower() if bracket else None
    others = [span for mentioned, span in mentions.items() if mentioned != name]
    return (mentions[name], others[0]) if name in mentions and others else None
