"""What a model goes on to write before and under an edit, sampled with the same seed.

The same seed is the same random numbers, not the same choices: from the first token that differs
on, the two texts are different samples. One pair of samples is an illustration; how often something
is said takes hundreds (see the benchmarks).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

import regex
from transformer_lens.model_bridge import TransformerBridge

from tracelab.interventions.base import Intervention
from tracelab.interventions.stack import Stack
from tracelab.model.generation import generate

_WORDS = regex.compile(r"\s*\S+|\s+$")


def text_rows(
    model: TransformerBridge,
    edits: Mapping[str, Intervention],
    prompts: list[str],
    *,
    new_tokens: int,
    seed: int,
    prepend_bos: bool | None,
) -> list[dict[str, Any]]:
    """One row an edit and prompt: what follows the prompt ``before`` and ``after``."""

    def written(edit: Intervention) -> list[str]:
        with edit.applied(model):
            made = generate(
                model,
                prompts,
                max_new_tokens=new_tokens,
                seed=seed,
                prepend_bos=prepend_bos,
                batch_size=1,  # the samples of a prompt do not depend on the others
            )
        return list(made.frame["continuation"])

    before = written(Stack([]))
    return [
        {"edit": name, "prompt": number, "before": old, "after": new}
        for name, edit in edits.items()
        for number, (old, new) in enumerate(zip(before, written(edit), strict=True))
    ]


def marked(before: str, after: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Both texts in pieces of words (with the space before them), and whether each differs.

    >>> marked(" she was kind", " he was kind")
    ([(' she', True), (' was kind', False)], [(' he', True), (' was kind', False)])
    """
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    pieces: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for listed, words in zip(pieces, (old[a0:a1], new[b0:b1]), strict=True):
            if words:
                listed.append(("".join(words), tag != "equal"))
    return pieces
