"""The control of the attention gap: the same sentence with a neutral word swapped instead.

In a pair with one differing token, the nearest other position that holds a whole word of one token
(not BOS, not the differing one) gets another such word, drawn from the words that all the sentences
hold. Words in which any of the pairs differs are not used. The position is about where the
stereotype's word stood and the change is of the same size, but it says nothing of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from tracelab.model.tokens import Encoding
from tracelab.ranges import require_seed


@dataclass(frozen=True)
class NeutralSwap:
    """Token ids of a sentence with the word at ``position`` replaced."""

    ids: tuple[int, ...]
    position: int


def neutral_swaps(
    model: TransformerBridge,
    pairs: Sequence[tuple[int, Encoding, Encoding]],
    *,
    seed: int = 0,
) -> dict[int, NeutralSwap]:
    """A neutral swap of the first sentence of each pair that differs in one token.

    Args:
        pairs: (key, sentence, other sentence).

    Returns:
        By key; pairs that differ in more than one token, or have no other whole word, are left out.
    """
    require_seed(seed)
    chosen = {}
    for key, first, second in pairs:
        if len(first.ids) == len(second.ids):
            differing = [
                p for p, (a, b) in enumerate(zip(first.ids, second.ids, strict=True)) if a != b
            ]
            if len(differing) == 1:
                chosen[key] = (first, second, differing[0])
    group_words = {
        token
        for _, first, second in pairs
        for token in set(first.ids) ^ set(second.ids)  # what only one of the two sentences holds
    }
    words = sorted({e.ids[p] for e, _, _ in chosen.values() for p in _whole_words(e)} - group_words)
    generator = np.random.default_rng(seed)
    swaps = {}
    for key, (first, _, changed) in chosen.items():
        candidates = [
            p for p in _whole_words(first) if p != changed and first.ids[p] not in group_words
        ]
        if not candidates or len(words) < 2:
            continue
        position = min(candidates, key=lambda p: (abs(p - changed), p))
        word = first.ids[position]
        while word == first.ids[position]:
            word = words[int(generator.integers(len(words)))]
        swaps[key] = NeutralSwap(
            (*first.ids[:position], word, *first.ids[position + 1 :]), position
        )
    return swaps


def _whole_words(encoding: Encoding) -> list[int]:
    """Positions of tokens that are one whole word after a space."""
    text, found = encoding.text, []
    for position, (start, end) in enumerate(encoding.offsets):
        word = text[start:end].strip()
        begins = start > 0 and (text[start].isspace() or text[start - 1].isspace())
        ends = end == len(text) or not (text[end].isalnum() or text[end] in "'’-")
        if word.isalpha() and begins and ends:
            found.append(position)
    return found
