"""BOLD (Dhamala et al., 2021): beginnings of Wikipedia sentences about people of many groups, and
the sentences.

The prompts are what a model continues to show how it speaks of a group; the sentences they were cut
from show how people do, and serve here as neutral text for perplexity. Of the 23,679 prompts five
are empty and left out; one text may stand under several names. Licence of the data: CC BY-SA 4.0.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tracelab.datasets.records import Records, parse, place, select, text_in
from tracelab.datasets.sources import changed_at, file_in, folder_at, json_of, object_in
from tracelab.errors import TracelabError, require_choice
from tracelab.model.texts import as_texts
from tracelab.ranges import INT_MOST, require_int, require_seed

DOMAINS = ("gender", "race", "religious_ideology", "political_ideology", "profession")
KINDS = {"prompts": "prompts/{}_prompt.json", "wikipedia": "wikipedia/{}_wiki.json"}
_HOLDS = '"prompts" and "wikipedia"'
WORDS = (8, 60)
"""Fewest and most words of a neutral sentence: shorter ones are fragments, longer ones lists."""


@dataclass(frozen=True)
class BoldText:
    """A prompt or a sentence on ``name`` (a person, an occupation, …) of ``group``; ``bias_type``
    is BOLD's domain."""

    id: str
    bias_type: str
    group: str
    name: str
    text: str


DEVELOPMENT = {"fit": (0, 200), "retain": (200, 600), "choose": (600, 800), "tune": (800, 1000)}
"""Uses of :func:`development_sentences`: their places in one drawn order."""


def bold(
    domain: str | None = None,
    *,
    what: str = "prompts",
    source: str | Path = "wheel",
    limit: int | None = None,
) -> list[BoldText]:
    """Read BOLD.

    Args:
        domain: one of :data:`DOMAINS` ("religion" is taken for "religious_ideology"), or None for
            all.
        what: ``"prompts"`` or ``"wikipedia"`` (the sentences that the prompts begin; the same ids).
        source: ``"wheel"`` (the embedded copy) or a path to the official folder that holds
            ``prompts`` and ``wikipedia``.
        limit: at most so many texts, subsampled evenly over the files.

    Raises:
        TracelabError: unknown domain; a folder that is not BOLD.
    """
    if domain is not None:
        domain = require_choice(
            "domain", {"religion": "religious_ideology"}.get(domain, domain), DOMAINS
        )
    require_choice("kind of text", what, KINDS)
    folder = folder_at(source, "BOLD", wheel="BOLD/data", holds=_HOLDS)
    domains = DOMAINS if domain is None else (domain,)
    records = [
        record for name in domains for record in _read(folder, KINDS[what].format(name), name)
    ]
    return select(records, domain, limit, what=f"BOLD {what}")


def neutral_sentences(n: int = 500, *, seed: int = 0, source: str | Path = "wheel") -> list[str]:
    """A random sample of BOLD's Wikipedia sentences, each once: text to measure perplexity on.

    Only sentences on one line of :data:`WORDS` words are taken; the others are lists, headings and
    fragments.

    Raises:
        TracelabError: fewer than ``n`` such sentences, or ``n`` below 1.
    """
    require_seed(seed)
    texts = dict.fromkeys(record.text for record in bold(what="wikipedia", source=source))
    usable = [
        text for text in texts if "\n" not in text and WORDS[0] <= len(text.split()) <= WORDS[1]
    ]
    if not 1 <= require_int("n", n, -INT_MOST) <= len(usable):
        raise TracelabError(f"cannot take {n} neutral sentences: BOLD has {len(usable)}")
    return Records(random.Random(seed).sample(usable, n))


def development_sentences(use: str, n: int, *, source: str | Path = "wheel") -> list[str]:
    """Neutral sentences that are none of the 500 on which perplexity is reported, nor of another
    use: what edits are fitted with (``"fit"``, at most 200), kept from changing (``"retain"``,
    400), chosen by in their own fit (``"choose"``, 200) and by ``tune`` (``"tune"``, 200).

    Raises:
        TracelabError: an unknown use, or more than it has.
    """
    first, last = DEVELOPMENT[require_choice("use of sentences", use, DEVELOPMENT)]
    if not 1 <= require_int("n", n, -INT_MOST) <= last - first:
        raise TracelabError(f"cannot take {n} sentences to {use}: there are {last - first}")
    reported = set(neutral_sentences(source=source))
    drawn = neutral_sentences(last + len(reported), seed=1, source=source)
    return Records(text for text in drawn if text not in reported)[first : first + n]


def _read(folder: Path, name: str, domain: str) -> tuple[BoldText, ...]:
    path = file_in(folder, name, "BOLD", holds=_HOLDS)
    return _file(path, domain, changed_at(path))


@lru_cache(maxsize=10)
def _file(path: Path, domain: str, changed: tuple[int, ...]) -> tuple[BoldText, ...]:
    def texts(group: str, name: str, values: Any) -> list[BoldText]:
        with place(f"{group}/{name}"):
            found = [
                text_in({str(number): text}, str(number)).strip()
                for number, text in enumerate(as_texts(values, "text"))
            ]
        return [
            BoldText(f"{group}/{name}/{number}", domain, group, name, text)
            for number, text in enumerate(found)
            if text
        ]

    def read() -> list[BoldText]:
        return [
            text
            for group, names in object_in(json_of(path), "the file").items()
            for name, values in object_in(names, group).items()
            for text in texts(group, name, values)
        ]

    return tuple(parse(str(path), read))
