"""Where in a sentence the words that matter are, in characters and on word boundaries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

from tracelab.tokens import Span

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def find_words(text: str, words: Iterable[str]) -> tuple[Span, ...]:
    """All mentions of any of ``words`` in ``text``, ignoring case, in order and without overlap.

    A mention stands on word boundaries and may carry a plural or possessive ending: "mother" is found
    in "Mothers" and "mother's", "he" is not found in "the". Of two overlapping mentions the longer wins.
    """
    longest_first = sorted({word.strip() for word in words if word.strip()}, key=len, reverse=True)
    if not longest_first:
        return ()
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?:e?s|['’]s)?(?!\w)"
    return tuple(Span(*match.span()) for match in re.finditer(pattern, text, re.IGNORECASE))


def filler_spans(context: str, sentence: str) -> tuple[Span, ...]:
    """The characters of ``sentence`` that stand where ``context`` has BLANK; () if it does not fit.

    Case is ignored, as StereoSet's sentences differ in it from their contexts. A context with several
    blanks has the same filler in each.
    """
    parts = re.split("BLANK", context.strip(), flags=re.IGNORECASE)
    if len(parts) < 2:
        return ()
    blanks = ["(.+?)"] + [r"(\1)"] * (len(parts) - 2)
    pieces = [re.escape(parts[0])]
    for blank, part in zip(blanks, parts[1:], strict=True):
        pieces += [blank, re.escape(part)]
    match = re.fullmatch("".join(pieces), sentence.strip(), re.IGNORECASE | re.DOTALL)
    if match is None:
        return ()
    shift = len(sentence) - len(sentence.lstrip())
    spans = (match.span(group) for group in range(1, len(parts)))
    return tuple(Span(start + shift, end + shift) for start, end in spans)


def differing_words(first: str, second: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """The words of each of two sentences that the other does not have at that place (difflib)."""
    words = [list(_WORD.finditer(text)) for text in (first, second)]
    texts = [[match.group() for match in matches] for matches in words]
    spans: tuple[list[Span], list[Span]] = ([], [])
    for tag, a0, a1, b0, b1 in SequenceMatcher(a=texts[0], b=texts[1], autojunk=False).get_opcodes():
        if tag != "equal":
            for found, matches, start, end in ((spans[0], words[0], a0, a1), (spans[1], words[1], b0, b1)):
                if end > start:
                    found.append(Span(matches[start].start(), matches[end - 1].end()))
    return tuple(spans[0]), tuple(spans[1])
