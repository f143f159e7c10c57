"""One pass over the corpus: every layer's MLP output at the last prompt token, and the soft labels.

Prompts are batched by equal length, so no token is padding and the last position is the prompt's.
Only that position of each MLP output is kept; above :data:`SPILL_BYTES` the store is a file mapped
into memory.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.templates import Corpus
from tracelab.errors import TracelabError, warn
from tracelab.gradients import measuring
from tracelab.model.finite import require_finite_logits
from tracelab.model.hook_points import Point
from tracelab.model.load import model_facts
from tracelab.model.memory import require_room
from tracelab.model.states import mean_states
from tracelab.model.tokens import first_token, token_texts

SPILL_BYTES = 2 * 1024**3
"""Activations above this size go to a temporary file."""
FEWER = "probe fewer prompts (limit= of the corpus)"


@dataclass(frozen=True)
class Harvest:
    """What one pass over the prompts yields.

    Attributes:
        activations: MLP output at the last prompt token, fp32 on the CPU.
        labels: probability of each group given that one of the groups' words comes next.
        mass: probability that one of the groups' words comes next.
    """

    activations: Float[Tensor, "prompts layers d_model"]
    labels: Float[Tensor, "prompts groups"]
    mass: Float[Tensor, "prompts"]


def group_token_ids(model: TransformerBridge, corpus: Corpus) -> list[Int[Tensor, "_words"]]:
    """First-token ids of " " + word for each group's words, in the order of ``corpus.groups``.

    An id that stands for words of two groups is dropped from both, with a warning.

    Raises:
        TracelabError: a group has no word left.
    """
    by_group = [{first_token(model, word) for word in words} for _, words in corpus.groups]
    shared = {
        token_id
        for index, ids in enumerate(by_group)
        for other in by_group[index + 1 :]
        for token_id in ids & other
    }
    if shared:
        texts = ", ".join(repr(text) for text in token_texts(model, sorted(shared)))
        warn(f"first tokens shared by several groups are left out: {texts}")
    for (name, words), ids in zip(corpus.groups, by_group, strict=True):
        if not ids - shared:
            raise TracelabError(
                f"no word of the group {name!r} ({', '.join(words)}) has a first token of its own "
                "with this tokenizer: give it other words"
            )
    return [torch.tensor(sorted(ids - shared), device="cpu") for ids in by_group]


@measuring()
def harvest(
    model: TransformerBridge,
    corpus: Corpus,
    words: list[Int[Tensor, "_words"]],
    *,
    prepend_bos: bool | None = None,
    batch_tokens: int = 1024,
) -> Harvest:
    """Run the model once over the corpus.

    Args:
        words: token ids of each group (:func:`group_token_ids`).
        batch_tokens: most tokens in a forward pass.

    Raises:
        TracelabError: a prompt beyond the model's context, or logits that are not finite.
    """
    probabilities = torch.empty(len(corpus.prompts), len(words), dtype=torch.float32, device="cpu")

    def read(batch: list[int], logits: Float[Tensor, "batch vocab"]) -> None:
        require_finite_logits(logits, batch, "prompt")
        p = logits.softmax(dim=-1).cpu()
        probabilities[batch] = torch.stack([p[:, ids].sum(dim=1) for ids in words], dim=1)

    activations = mean_states(
        model,
        [prompt.text for prompt in corpus.prompts],
        [Point("mlp_out", layer) for layer in range(model_facts(model).n_layers)],
        pool="last",
        prepend_bos=prepend_bos,
        batch_tokens=batch_tokens,
        store=_store,
        read_logits=read,
        what="prompt",
    )
    mass = probabilities.sum(dim=1)
    return Harvest(activations, probabilities / mass[:, None], mass)


def _store(shape: tuple[int, ...]) -> Float[Tensor, "prompts layers d_model"]:
    """An empty fp32 tensor, in memory or, if large, mapped to a file that vanishes with it."""
    size = torch.Size(shape).numel()
    if 4 * size <= SPILL_BYTES:
        require_room("cpu", f"activations of {shape[0]} prompts", 4 * size, FEWER)
        return torch.empty(shape, dtype=torch.float32, device="cpu")
    with tempfile.NamedTemporaryFile(prefix="tracelab-") as file:
        try:  # a full disk is an error now, not a crash later
            os.posix_fallocate(file.fileno(), 0, 4 * size)
        except OSError as error:
            raise TracelabError(
                f"activations of {shape[0]} prompts need {4 * size / 2**30:.3g} GiB in "
                f"{tempfile.gettempdir()} ({error.strerror}): set TMPDIR to a larger disk, or "
                f"{FEWER}"
            ) from error
        return torch.from_file(file.name, shared=True, size=size, dtype=torch.float32).reshape(
            shape
        )
