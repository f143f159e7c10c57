"""Which tokens of a prompt name a social group, so that a map of attention can mark them.

The words are those by which the probers' corpora name groups
(:func:`tracelab.datasets.templates`), of the edits' bias types where these are known, the names of
professions, and gender's pronouns. It is a list: a group named otherwise is not found, and "short"
counts as a word of physical appearance.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from tracelab.datasets.spans import find_words
from tracelab.datasets.templates import ATTRIBUTES, templates
from tracelab.interventions.base import Intervention
from tracelab.model.tokens import Encoding

_ALWAYS = "profession"
_UNKNOWN = ("gender", "race", "religion", "nationality", "sexual_orientation")
_NAMED_OTHERWISE = {"orientation": "sexual_orientation", "socioeconomic": "ses"}
_PRONOUNS = (
    "she",
    "her",
    "hers",
    "herself",
    "he",
    "him",
    "his",
    "himself",
    "they",
    "them",
    "their",
)


def group_words(edits: Iterable[Intervention]) -> tuple[str, ...]:
    """Words that name the groups of the edits' bias types (of five, where no edit says its own)."""
    parts = [part for edit in edits for part in edit.modules()]
    said = [getattr(part, "bias", "") for part in parts]
    said += [spec.attribute for part in parts for spec in getattr(part, "attributes", ())]
    found = {_NAMED_OTHERWISE.get(bias, bias) for bias in said if isinstance(bias, str)}
    found &= {*ATTRIBUTES}
    return _words(tuple(sorted(found)) or _UNKNOWN)


@cache
def _words(attributes: tuple[str, ...]) -> tuple[str, ...]:
    words = [
        word
        for attribute in (*attributes, _ALWAYS)
        for _, listed in templates(attribute).groups
        for word in listed
    ]
    return tuple(dict.fromkeys([*words, *(_PRONOUNS if "gender" in attributes else ())]))


def sensitive_positions(encoding: Encoding, words: Iterable[str]) -> list[int]:
    """Positions of the tokens of a prompt that hold one of the words, in any inflection."""
    spans = find_words(encoding.text, words)
    return sorted({position for span in spans for position in encoding.positions(span)})
