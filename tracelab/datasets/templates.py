"""The probers' corpus: prompts that name a stereotyped concept and stop before the social group.

FairMed trains its probers on sentences that join a biased concept and a social group; its own were
written by ChatGPT and are not public. This corpus is tracelab's: every concept × every template of
an attribute, from word lists under ``data/templates/`` that anyone can read and change. A prompt
ends just before the slot, so the model's next-token probabilities over the groups' words are its
soft label.

A corpus in FairMed's bracket format, ``{concept: ["… [concept] … [group] …"]}``, is read by
:func:`bracketed`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tracelab.datasets.records import parse, place, say_unusable, subsample
from tracelab.datasets.sources import file_at, json_of, object_in
from tracelab.datasets.spans import composed
from tracelab.errors import TracelabError, brief, quoted, require_choice
from tracelab.model.texts import Texts, as_texts
from tracelab.ranges import require_whole_limit

_FOLDER = files("tracelab.datasets") / "data/templates"
ATTRIBUTES = tuple(
    sorted(f.name.removesuffix(".json") for f in _FOLDER.iterdir() if f.name.endswith(".json"))
)


@dataclass(frozen=True)
class Prompt:
    """A prompt that ends before the group slot; ``template`` is the prompt with ``{concept}``."""

    id: str
    bias_type: str
    concept: str
    template: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The prompts of one attribute and the words of each social group, by group name."""

    attribute: str
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    prompts: tuple[Prompt, ...]

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups, in the order of all soft labels."""
        return tuple(name for name, _ in self.groups)

    def __repr__(self) -> str:
        groups = ", ".join(self.group_names)
        return brief(self, self.attribute, f"n = {len(self.prompts)} prompts", f"groups {groups}")


def templates(
    attribute: str,
    *,
    source: str | Path | Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> Corpus:
    """The template corpus of an attribute: every concept with every template.

    >>> lists = {
    ...     "groups": {"old": ["old", "elderly"], "young": ["young", "teenage"]},
    ...     "concepts": ["forgetful", "reckless"],
    ...     "templates": ["The {concept} person was", "Someone {concept} is often"],
    ... }
    >>> len(templates("age", source=lists).prompts)
    4

    Args:
        attribute: one of :data:`ATTRIBUTES`; with word lists of your own, any name.
        source: word lists of your own: ``groups`` (words by group), ``concepts``, and
            ``templates`` with ``{concept}`` in them that end just before a group's word; as a
            mapping, or a path to a JSON file of it.
        limit: at most so many concepts, subsampled evenly over the list.

    Raises:
        TracelabError: unknown attribute, or lists that make no corpus.
    """
    if source is None:
        require_choice("attribute", attribute, ATTRIBUTES)
        lists = json.loads((_FOLDER / f"{attribute}.json").read_text(encoding="utf-8"))
    else:
        lists = _own_lists(source)
    limit = require_whole_limit(limit)
    if limit is not None and limit < 1:
        raise TracelabError(f"no concept is left with limit={limit}")
    concepts = subsample(lists["concepts"], limit)
    prompts = (
        Prompt(
            f"{attribute}-{concept}-{number}",
            attribute,
            concept,
            template,
            _fill(template, concept),
        )
        for concept in concepts
        for number, template in enumerate(lists["templates"])
    )
    return Corpus(attribute, _groups(lists["groups"]), tuple(prompts))


def bracketed(path: Path | str, attribute: str, groups: Mapping[str, Texts]) -> Corpus:
    """Read a corpus in FairMed's format: ``{concept: [sentences]}`` with two bracketed spans each.

    The first span is the concept, the second the group; the prompt is the text before the second.
    Sentences with another number of brackets, or whose first span is not the concept, are left out,
    as in FairMed's code; a warning tells if they are many.

    Args:
        groups: words of each social group, by name.

    Raises:
        TracelabError: the file is not in this format, or no sentence is usable.
    """
    path = file_at(path, "corpus", hub=False)

    def read() -> list[Prompt]:
        found, total = [], 0
        for concept, sentences in object_in(json_of(path), "the file").items():
            with place(f"sentences of {concept}"):
                texts = as_texts(sentences, "sentence")
            for number, sentence in enumerate(texts):
                total += 1
                spans = list(re.finditer(r"\[([^\]]*)\]", sentence))
                if len(spans) != 2 or _same(spans[0].group(1)) != _same(concept):
                    continue
                head, tail = (
                    sentence[: spans[0].start()],
                    sentence[spans[0].end() : spans[1].start()],
                )
                text = f"{head}{concept}{tail}".rstrip()
                template = f"{head}{{concept}}{tail}".rstrip()
                if text:
                    found.append(Prompt(f"{concept}-{number}", attribute, concept, template, text))
        say_unusable(
            f"sentences of {path}",
            ["not two spans, the concept first"] * (total - len(found)),
            total,
        )
        return found

    return Corpus(attribute, _groups(groups), tuple(parse(str(path), read)))


def _own_lists(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """Word lists of one's own, checked.

    Raises:
        TracelabError: they make no corpus.
    """
    what, given = "the word lists", source
    if isinstance(source, str | Path):
        path = file_at(source, "word lists", hub=False)
        what = str(path)
        try:
            given = json_of(path)
        except ValueError as error:
            if isinstance(error, TracelabError):
                raise
            raise TracelabError(f"{what} holds no JSON: {error}") from error
    if not isinstance(given, Mapping) or not {"groups", "concepts", "templates"} <= given.keys():
        raise TracelabError(f"{what} need groups, concepts and templates: {quoted(given)}")
    groups = given["groups"]
    if not isinstance(groups, Mapping) or len(groups) < 2 or not all(groups.values()):
        raise TracelabError(f"{what}: groups are words by the names of two groups or more")
    for name in ("concepts", "templates"):
        if not (listed := as_texts(given[name], name.removesuffix("s"))):
            raise TracelabError(f"{what} have no {name}")
        if twice := [text for text, n in Counter(listed).items() if n > 1]:
            raise TracelabError(f"{what}: {quoted(twice[0])} stands twice in {name}")
    for number, template in enumerate(as_texts(given["templates"], "template")):
        if "{concept}" not in template:
            raise TracelabError(
                f"template {number} of {what} has no {{concept}}: {quoted(template)}"
            )
    return {name: given[name] for name in ("groups", "concepts", "templates")}


def _same(concept: str) -> str:
    """What makes two spellings of a concept the same: its letters, whatever their case and form of
    accents."""
    return composed(concept).casefold().strip()


def _groups(groups: Mapping[str, Texts]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(
        (name, tuple(as_texts(groups[name], f"word of {name}"))) for name in sorted(groups)
    )


def _fill(template: str, concept: str) -> str:
    text = template.replace("{concept}", concept)
    return text[0].upper() + text[1:]
