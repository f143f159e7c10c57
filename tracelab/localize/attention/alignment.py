"""Which positions of two sentences stand for each other, where their token counts differ too.

Sentences of equal length are aligned position by position, others by difflib over token ids.
Replaced blocks of unequal length become one position each: attention to a block is summed over its
tokens, attention from it averaged. Tokens that only one sentence has are left out and the rows
renormalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from transformer_lens.model_bridge import TransformerBridge

from tracelab.model.tokens import Encoding, token_texts


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
        equal = len(first.ids) == len(second.ids)
        blocks: list[tuple[range, range]] = []
        codes: Sequence[Any] = [("equal", 0, len(first.ids), 0, len(second.ids))]
        if not equal:
            codes = SequenceMatcher(None, first.ids, second.ids, autojunk=False).get_opcodes()
        for tag, a0, a1, b0, b1 in codes:
            if a1 - a0 == b1 - b0:
                blocks += [
                    (range(a0 + k, a0 + k + 1), range(b0 + k, b0 + k + 1)) for k in range(a1 - a0)
                ]
            elif tag == "replace":
                blocks.append((range(a0, a1), range(b0, b1)))
        differ = [first.ids[a.start : a.stop] != second.ids[b.start : b.stop] for a, b in blocks]
        return cls(tuple(blocks), np.array(differ, dtype=bool), equal)

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
