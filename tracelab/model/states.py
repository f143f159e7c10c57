"""Activations of texts at one hook point, with whatever hooks are on the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.gradients import measuring
from tracelab.model.load import model_facts, require_hook
from tracelab.model.scoring import BATCH_TOKENS
from tracelab.model.tokens import length_batches, pad


@measuring()
def token_states(
    model: TransformerBridge,
    sequences: Sequence[Sequence[int]],
    kind: str,
    layer: int,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Float[Tensor, "_pos d_model"]]:
    """The activation at each token of each sequence, fp32 on the CPU; blocks after ``layer`` are
    not run.

    Args:
        kind: of the hook point, as in :data:`~tracelab.model.hook_points.HOOKS`.

    Raises:
        TracelabError: the model has no such layer or hook point.
    """
    name = require_hook(model, kind, layer)
    stop = layer + 1 if layer + 1 < model_facts(model).n_layers else None
    seen: list[Tensor] = []

    def read(value: Tensor, hook: Any) -> None:
        seen[:] = [value]

    found: list[Tensor] = [torch.empty(0, dtype=torch.float32)] * len(sequences)
    for batch in length_batches(map(len, sequences), batch_tokens):
        tokens, mask = pad(model, [sequences[i] for i in batch])
        with model.hooks(fwd_hooks=[(name, read)]):
            model(tokens, attention_mask=mask, stop_at_layer=stop)
        values = seen.pop().float().cpu()
        for row, i in enumerate(batch):
            found[i] = values[row, : len(sequences[i])].clone()
    return found
