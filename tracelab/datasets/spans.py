"""Where in a sentence the words that matter are, in characters and on word boundaries.

What a word is depends on the script. Accents may be composed or not (é as one character or as two),
combining marks belong to the letter before them, Chinese, Japanese, Thai and the like have no
spaces, and a word may carry what other languages write apart: an elided article (l'homme), an
article or a conjunction (Arabic, Hebrew), a case (Turkish, Korean). Words are compared in the
composed form; spans are always those of the text as it is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import groupby

import regex

from tracelab.span import Span

# ``\w`` of the ``regex`` package holds combining marks, that of ``re`` does not: with it no Hindi
# word is one.
_UNSPACED = "".join(
    rf"\p{{{s}}}"
    for s in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
)
_ELIDED = (
    r"(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu|all|dell|dall|nell|sull|un|quest|quell)['’](?=\w{2})"
)
_WORD = regex.compile(
    rf"(?=[{_UNSPACED}])\X|(?<!\w){_ELIDED}|[\w--{_UNSPACED}]+(?:['’][\w--{_UNSPACED}]+)*|[^\w\s]",
    regex.IGNORECASE | regex.VERSION1,
)
_ARABIC_BEFORE, _HEBREW_BEFORE = r"[وفبكل]{0,2}(?:ال|لل)?", "[והבכלמש]{0,3}"
# plural; possessive; Turkish: İstanbul'un
_AFTER = r"(?:e?s|['’]s|['’](?!(?:d|ll|re|ve|m|t)\b)\p{Ll}{1,5})?"
_TURKISH_AFTER = (
    r"(?:l[ae]r)?(?:[ıiuü]m(?:[ıiuü]z)?|s?[ıiuü]|[ıiuü]n(?:[ıiuü]z)?)?"
    r"(?:n?[ıiuü]n|[yn]?[ae]|[yn]?[ıiuü]|n?[dt][ae]n?|y?l[ae])?"
)
_TURKISH = regex.compile("[ığĞİ]")


def words_pattern(
    words: Iterable[str], *, inflected: bool, turkish: bool = False
) -> regex.Pattern[str]:
    """A pattern of any of ``words`` (in composed form) as whole words, ignoring case, longer ones
    first.

    Args:
        inflected: whether a mention may carry what its language writes together with a word.
        turkish: whether also Turkish endings.
    """
    return _pattern(tuple(words), inflected, turkish)


# making one takes milliseconds, and a benchmark has a few lists for thousands of sentences
@lru_cache(maxsize=1024)
def _pattern(words: tuple[str, ...], inflected: bool, turkish: bool) -> regex.Pattern[str]:
    longest_first = sorted(
        {composed(word.strip()) for word in words if word.strip()}, key=len, reverse=True
    )
    # what is around them once for all that share it: to parse it is most of the time
    parts = [
        f"{before}(?:{'|'.join(map(regex.escape, alike))}){after}"
        for (before, after), alike in groupby(
            longest_first, lambda word: _around(word, inflected, turkish)
        )
    ]
    return regex.compile("|".join(parts) or "(?!)", regex.IGNORECASE | regex.VERSION1)


def _around(word: str, inflected: bool, turkish: bool) -> tuple[str, str]:
    """Patterns of what is before and after a word: a boundary where its script has one."""
    before, after = r"(?<!\w)", r"(?!\w)"
    if regex.match(rf"[{_UNSPACED}]", word, regex.VERSION1):
        before = ""
    elif inflected and regex.match(r"[\p{Arabic}\p{Hebrew}]", word):
        before += _ARABIC_BEFORE if regex.match(r"\p{Arabic}", word) else _HEBREW_BEFORE
    if regex.search(rf"[{_UNSPACED}]$", word, regex.VERSION1):
        after = r"(?!\p{M})"
    elif inflected and regex.search(r"\p{Hangul}$", word):
        after = r"\p{Hangul}{0,4}" + after  # Korean particles
    elif inflected:
        after = (f"(?:{_AFTER}|{_TURKISH_AFTER})" if turkish else _AFTER) + after
    return before, after


def find_words(text: str, words: Iterable[str]) -> tuple[Span, ...]:
    """All mentions of any of ``words`` in ``text``, ignoring case, in order and without overlap.

    A mention stands on word boundaries and may carry a plural or possessive ending, or a particle
    of its script: "mother" is found in "Mothers" and "mother's", "he" is not found in "the". Of two
    overlapping mentions the longer wins.
    """
    words = [word for word in words if word.strip()]
    if not words:
        return ()
    turkish = _TURKISH.search(text + " ".join(words)) is not None
    plain, places = _composed(text)
    found = words_pattern(words, inflected=True, turkish=turkish).finditer(plain)
    return tuple(Span(places[match.start()], places[match.end()]) for match in found)


def filler_spans(context: str, sentence: str) -> tuple[Span, ...]:
    """The characters of ``sentence`` that stand where ``context`` has BLANK; () if it does not fit.

    Case is ignored, as StereoSet's sentences differ in it from their contexts, and so is which kind
    of space or apostrophe stands between words. A context with several blanks has the same filler
    in each.
    """
    plain, places = _composed(sentence)
    parts = regex.split("BLANK", composed(context).strip(), flags=regex.IGNORECASE)
    if len(parts) < 2:
        return ()
    if (span := _only_blank(parts, plain)) is not None:
        return (span,)
    blanks = ["(.+?)"] + [r"(\1)"] * (len(parts) - 2)
    pieces = [_literal(parts[0])]
    for blank, part in zip(blanks, parts[1:], strict=True):
        pieces += [blank, _literal(part)]
    match = regex.fullmatch("".join(pieces), plain.strip(), regex.IGNORECASE | regex.DOTALL)
    if match is None:
        return ()
    shift = len(plain) - len(plain.lstrip())
    spans = (match.span(group) for group in range(1, len(parts)))
    return tuple(Span(places[start + shift], places[end + shift]) for start, end in spans)


def _only_blank(parts: list[str], sentence: str) -> Span | None:
    """Where the one blank of a context is, if letter by letter the sentence begins and ends as the
    context does: without a pattern for each of thousands of contexts."""
    if len(parts) > 2 or not all(map(str.isascii, (*parts, sentence))):
        return None
    before, after = parts
    end, whole = len(sentence) - len(after), sentence.lower()
    filler = sentence[len(before) : end]
    if not filler.strip() or filler.strip() != filler or sentence.strip() != sentence:
        return None
    same = whole.startswith(before.lower()) and whole.endswith(after.lower())
    return Span(len(before), end) if same else None


def _literal(part: str) -> str:
    """Pattern of a text in which a space is any space and an apostrophe either one."""
    pieces = regex.split(r"(\s+|['’])", part)
    return "".join(
        r"\s+" if piece.isspace() else "['’]" if piece in ("'", "’") else regex.escape(piece)
        for piece in pieces
    )


def differing_words(first: str, second: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """The words of each of two sentences that the other does not have at that place (difflib).

    In scripts without spaces a word is a character with its marks.
    """
    both = [_composed(text) for text in (first, second)]
    words = [list(_WORD.finditer(plain)) for plain, _ in both]
    texts = [[match.group() for match in matches] for matches in words]
    spans: tuple[list[Span], list[Span]] = ([], [])
    for tag, a0, a1, b0, b1 in SequenceMatcher(
        a=texts[0], b=texts[1], autojunk=False
    ).get_opcodes():
        if tag != "equal":
            for side, start, end in ((0, a0, a1), (1, b0, b1)):
                if end > start:
                    places, matches = both[side][1], words[side]
                    spans[side].append(
                        Span(places[matches[start].start()], places[matches[end - 1].end()])
                    )
    return tuple(spans[0]), tuple(spans[1])


def composed(text: str) -> str:
    """The text in the composed form (NFC), in which é is one character."""
    return unicodedata.normalize("NFC", text)


def _composed(text: str) -> tuple[str, range | list[int]]:
    """The text in the composed form, and for each place in it (its end too) the place in
    ``text``."""
    if unicodedata.is_normalized("NFC", text):
        return text, range(len(text) + 1)
    pieces, places, start = [], [], 0
    for cluster in regex.findall(r"\X", text):
        pieces.append(composed(cluster))
        # Inside a cluster that did not become shorter each character has its own place.
        step = len(cluster) == len(pieces[-1])
        places += [start + step * k for k in range(len(pieces[-1]))]
        start += len(cluster)
    return "".join(pieces), [*places, start]
