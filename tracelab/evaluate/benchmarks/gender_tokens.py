"""Gender words as tokens of a vocabulary, each with its partner.

The words are the pairs of StereoSet's own list; those that are several tokens to a model are left
out, with their partners if these have no other.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.stereoset import attribute_word_pairs


def gender_token_maps(
    model: TransformerBridge, size: int
) -> tuple[Int[Tensor, "vocab"], Int[Tensor, "vocab"]]:
    """Of each token the one that stands for it, and the one that stands for its partner.

    "his" and "him" are both "her" to the other gender, so words that share a partner stand for each
    other: mapped so, exchanging twice changes nothing. Lower case and capitals, with a space before
    and without, are kept apart.
    """
    groups: list[tuple[set[str], set[str]]] = []
    for male, female in attribute_word_pairs("gender"):
        joined = [g for g in groups if male in g[0] or female in g[1]]
        groups = [g for g in groups if g not in joined]
        men, women = zip(({male}, {female}), *joined, strict=True)
        groups.append((set().union(*men), set().union(*women)))
    same, partner = torch.arange(size), torch.arange(size)
    for group in groups:
        for form in ("{}", " {}"):
            for case in (str.lower, str.capitalize):
                males, females = (
                    _single_tokens(model, map(form.format, map(case, words))) for words in group
                )
                if males and females:
                    same[males], partner[males] = males[0], females[0]
                    same[females], partner[females] = females[0], males[0]
    return same, partner


def _single_tokens(model: TransformerBridge, words: Iterable[str]) -> list[int]:
    ids = (model.tokenizer(word, add_special_tokens=False).input_ids for word in words)
    return sorted(found[0] for found in ids if len(found) == 1)
