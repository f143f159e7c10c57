"""Which positions of two sentences stand for each other, where their token counts differ too.

Sentences of equal length are aligned position by position, others by difflib over token ids.
Replaced blocks of unequal length become one position each: attention to a block is summed over its
tokens, attention from it averaged. Tokens that only one sentence has are left out and the rows
renormalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from transformer_lens.model_bridge import TransformerBridge

from tracelab.model.tokens import Encoding, aligned, token_texts


@dataclass(frozen=True)
class Alignment:
    """Blocks of positions of two token sequences that stand for each other, and which of them
    differ."""

    blocks: tuple[tuple[range, range], ...]
    sensitive: Bool[np.ndarray, "aligned"]
    equal: bool  # the sequences have the same length: every position is aligned with itself

    @classmethod
    def of(cls, first: Encoding, second: Encoding) -> Alignment:
        """The alignment of two encoded sentences."""
        blocks = aligned(first.ids, second.ids)
        differ = [first.ids[a.start : a.stop] != second.ids[b.start : b.stop] for a, b in blocks]
        return cls(tuple(blocks), np.array(differ, dtype=bool), len(first.ids) == len(second.ids))

    def restrict(
        self, pattern: Float[np.ndarray, "_query _key"], side: int
    ) -> Float[np.ndarray, "aligned aligned"]:
        """The map over aligned blocks; rows of unequal pairs are renormalised to sum to 1."""
        if self.equal:
            return pattern
        sides = [list(block[side]) for block in self.blocks]
        keys = np.stack([pattern[:, positions].sum(axis=1) for positions in sides], axis=1)
        chosen = np.stack([keys[positions].mean(axis=0) for positions in sides])
        return chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1e-8)

    def texts(self, model: TransformerBridge, encoding: Encoding, side: int) -> list[str]:
        """The text of each block."""
        return [
            "".join(token_texts(model, encoding.ids[block[side].start : block[side].stop]))
            for block in self.blocks
        ]
