"""Fine-tune a weight delta as a language model of given texts, through its hooks, the base model
frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.gradients import learning
from tracelab.interventions.base import Intervention
from tracelab.interventions.training.loop import largest_parameter, require_converged
from tracelab.model.finite import CAUSE
from tracelab.model.memory import Sizes, require_room_at
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import encode, pad, require_context
from tracelab.progress import progress


@learning()
def finetune(
    model: TransformerBridge,
    edit: Intervention,
    texts: Texts,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    block_size: int,
    seed: int,
    what: str = "fine-tuning",
) -> list[float]:
    """Minimise the next-token cross-entropy of ``texts``, line by line, over the edit's parameters
    (AdamW).

    Args:
        block_size: longer texts are cut to so many tokens.
        what: label of the progress bar.

    Returns:
        The mean loss (nats a token) of each step.

    Raises:
        TracelabError: no text of two tokens, blocks beyond the model's context, a loss that is not
            finite, or one that is far above where it began.
    """
    sequences = [encode(model, text).ids[:block_size] for text in as_texts(texts)]
    require_context(model, map(len, sequences))
    sequences = [ids for ids in sequences if len(ids) > 1]
    if not sequences:
        raise TracelabError(f"{what}: no text of at least two tokens")
    rows = min(batch_size, len(sequences))
    longest = max(map(len, sequences))
    require_room_at(
        model,
        f"steps of {rows} texts of {longest} tokens with gradients",
        Sizes.of(model).fit(rows, longest, _trained_layers(model, edit)),
        "lower batch_size or block_size, train later layers, or load the model in bfloat16",
    )
    parameters = [parameter for parameter in edit.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []

    def measure(batch: Sequence[int]) -> Float[Tensor, ""]:
        tokens, mask = pad(model, [sequences[i] for i in batch])
        logits = model(tokens, attention_mask=mask)[:, :-1]
        real = mask[:, 1:].bool()
        return cross_entropy(logits[real].float(), tokens[:, 1:][real])

    first: list[int] = []
    with (
        frozen(model),
        edit.applied(model),
        progress(total=epochs * len(sequences), what=what, unit="text") as bar,
    ):
        for _ in range(epochs):
            for batch in torch.randperm(len(sequences), generator=order).split(batch_size):
                first = first or batch.tolist()
                loss = measure(batch.tolist())
                if not loss.isfinite():
                    why = f"lower lr={lr}" if losses else CAUSE
                    raise TracelabError(
                        f"{what}: the loss is {loss.item()} after {len(losses)} steps: {why}"
                    )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                losses.append(loss.item())
                bar.update(len(batch))
        with torch.no_grad():
            after = float(measure(first))
    require_converged(what, losses[0], after, largest_parameter(edit))
    return losses


def _trained_layers(model: TransformerBridge, edit: Intervention) -> int:
    """How many layers gradients pass through: those from the first edited one on."""
    first = min((each.point.layer or 0) for each in edit.edits(model.original_model))
    return len(model.blocks) - first


@contextmanager
def frozen(model: TransformerBridge) -> Iterator[None]:
    """Within the block no parameter of the model gathers a gradient, and gradients are on."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with learning():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
