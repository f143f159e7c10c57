"""Activations of texts at hook points, with whatever hooks are on the model.

:func:`mean_states` is what a method that needs one vector a text asks: the mean over its tokens, or
the last one, at any number of points in one pass. :func:`token_states` gives every token at one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import require_choice
from tracelab.gradients import measuring
from tracelab.model.hook_points import Point
from tracelab.model.load import model_facts, require_hook
from tracelab.model.memory import Sizes, require_room_for_passes
from tracelab.model.partial_forward import last_logits
from tracelab.model.scoring import BATCH_TOKENS
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import encode, length_batches, pad, require_context
from tracelab.progress import progress

POOLS = ("mean", "last")


@measuring()
def mean_states(
    model: TransformerBridge,
    texts: Texts,
    points: Sequence[Point],
    *,
    pool: str = "mean",
    prepend_bos: bool | None = None,
    batch_tokens: int = BATCH_TOKENS,
    store: Callable[..., Tensor] = torch.empty,
    read_logits: Callable[[list[int], Float[Tensor, "batch vocab"]], None] | None = None,
    what: str = "text",
) -> Float[Tensor, "texts points d_model"]:
    """One activation a text and point, fp32 on the CPU.

    Texts are batched by equal length, so that no token is padding; blocks that are not needed are
    not run.

    Args:
        pool: ``"mean"`` over the tokens of a text, BOS too where the model has one, or ``"last"``.
        store: makes the tensor of a shape that is filled, for many texts.
        read_logits: is given the numbers of the texts of a batch and the logits after their last
            token; then the whole model is run.
        what: what one of the texts is called in messages.

    Raises:
        TracelabError: a text beyond the model's context, or a point that the model lacks.
    """
    require_choice("pool", pool, POOLS)
    sequences = [encode(model, t, prepend_bos=prepend_bos).ids for t in as_texts(texts)]
    require_context(model, map(len, sequences), what=what)
    formula = Sizes.block if read_logits is None else Sizes.harvest
    require_room_for_passes(model, map(len, sequences), batch_tokens, formula)
    found = store((len(sequences), len(points), model.cfg.d_model))
    batch: list[int] = []  # the rows that the hooks are filling

    def keep(number: int) -> Callable[[Tensor, Any], None]:
        def hook(value: Float[Tensor, "batch pos d_model"], hook: object) -> None:
            value = value[:, -1].float() if pool == "last" else value.float().mean(dim=1)
            found[batch, number] = value.cpu()

        return hook

    hooks = [(require_hook(model, p.kind, p.layer), keep(i)) for i, p in enumerate(points)]
    last = max((-1 if p.layer is None else p.layer for p in points), default=-1)
    stop = last + 1 if last + 1 < model_facts(model).n_layers else None
    with (
        model.hooks(fwd_hooks=hooks),
        progress(total=len(sequences), what="states", unit=what) as bar,
    ):
        for batch in length_batches(map(len, sequences), batch_tokens, equal=True):
            tokens, _ = pad(model, [sequences[i] for i in batch])
            if read_logits is None:
                model(tokens, stop_at_layer=stop)
            else:
                read_logits(batch, last_logits(model, tokens).float())
            bar.update(len(batch))
    return found


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
