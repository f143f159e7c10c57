"""Log-probabilities of several continuations of one prompt, which is run once.

    log p(o | c) = Σ_j log p(o_j | c, o_<j)        for each continuation o of a prompt c

The tokens of the prompt, but for the last, are run first; what they leave in the model's key/value
cache is given to every continuation, each run with the prompt's last token before it. Prompts of a
batch are padded on the left, so that columns of one text stay next to each other, continuations on
the right. Hooks that are on the model act on both passes.

Both ways are here: :func:`~.scoring.token_logprobs` on whole sequences is what the shared one must
equal. It does, but for an edit that ties positions of the prompt to those of the answer (FairMed
with ``norm="code"`` at all positions), or a model whose cache does not do what it should, or does
not exist. So that nobody has to know, the shortest and the longest prompt are scored both ways
first, and if the ways differ, all are scored the plain way.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.model.finite import require_finite
from tracelab.model.forward_pass import reading
from tracelab.model.scoring import BATCH_TOKENS, logprobs_within, target_logprobs
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import encode, length_batches, pad, require_context
from tracelab.progress import progress
from tracelab.span import Span

CLOSE = {torch.float32: 1e-3}
"""Largest difference in nats a token between the two ways; of half precision :data:`CLOSE_HALF`."""
CLOSE_HALF = 0.1


@dataclass(frozen=True)
class Continuations:
    """A prompt with each of its continuations.

    Attributes:
        sequences: ids of the joint texts.
        firsts: position of each continuation's first token.
    """

    sequences: tuple[tuple[int, ...], ...]
    firsts: tuple[int, ...]

    @property
    def shared(self) -> int:
        """How many tokens at the beginning are those of all sequences, and before the last of any
        prompt."""
        alike = takewhile(lambda ids: len(set(ids)) == 1, zip(*self.sequences, strict=False))
        return min(len(list(alike)), min(self.firsts) - 1)


def encode_continuations(
    model: TransformerBridge, prompt: str, texts: Texts, *, prepend_bos: bool | None = None
) -> Continuations:
    """Tokenise each joint text ``prompt + text``; a token that holds a character of ``text``
    belongs to it.

    Args:
        texts: the continuations, with the space or line break that parts them from the prompt.
        prepend_bos: whether BOS comes before the prompt; default: the model's.

    Raises:
        TracelabError: no token before a continuation, or none in it.
    """
    sequences, firsts = [], []
    for text in as_texts(texts, "continuation"):
        encoding = encode(model, prompt + text, prepend_bos=prepend_bos)
        inside = encoding.positions(Span(len(prompt), len(prompt) + len(text)))
        if not inside or inside[0] < 1:
            raise TracelabError(
                f"no token in {text!r} or none before it: give a prompt, or prepend BOS"
            )
        sequences.append(encoding.ids)
        firsts.append(inside[0])
    return Continuations(tuple(sequences), tuple(firsts))


def continuation_logprobs(
    model: TransformerBridge,
    prompts: Sequence[Continuations],
    *,
    share_prefix: bool | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> list[list[Float[Tensor, "_scored"]]]:
    """Log-probability of each token of each continuation.

    Args:
        share_prefix: whether a prompt is run once for all its continuations, or once for each;
            default: once, if that works and gives the same on the shortest and the longest prompt.
        batch_tokens: most tokens in a forward pass.

    Returns:
        For each prompt, for each of its continuations, a float32 CPU tensor ``[tokens]``.

    Raises:
        TracelabError: a prompt that is with a continuation beyond the model's context, or
            log-probabilities that are not finite.
    """
    require_context(model, (max(map(len, prompt.sequences)) for prompt in prompts), what="prompt")
    if share_prefix is None:
        share_prefix = bool(prompts) and _agree(model, _ends(prompts), batch_tokens)
    return (_shared if share_prefix else _plain)(model, prompts, batch_tokens)


def _ends(prompts: Sequence[Continuations]) -> list[Continuations]:
    """The shortest and the longest prompt: padded next to each other, and beyond a sliding window
    if any is."""
    by_length = sorted(prompts, key=lambda prompt: prompt.shared)
    return by_length if len(by_length) < 2 else [by_length[0], by_length[-1]]


def _agree(model: TransformerBridge, prompts: Sequence[Continuations], batch_tokens: int) -> bool:
    plain = _flat(_plain(model, prompts, batch_tokens))
    try:
        shared = _flat(_shared(model, prompts, batch_tokens))
    except Exception:  # whatever it is, the plain way has just been seen to work
        return False
    close = CLOSE.get(next(model.original_model.parameters()).dtype, CLOSE_HALF)
    return torch.allclose(plain, shared, rtol=0, atol=close, equal_nan=True)


def _flat(values: list[list[Tensor]]) -> Tensor:
    return torch.cat([each for options in values for each in options])


def _plain(
    model: TransformerBridge, prompts: Sequence[Continuations], batch_tokens: int
) -> list[list[Tensor]]:
    sequences = [ids for prompt in prompts for ids in prompt.sequences]
    firsts = [first for prompt in prompts for first in prompt.firsts]
    owners = [number for number, prompt in enumerate(prompts) for _ in prompt.sequences]
    values = iter(
        logprobs_within(
            model,
            sequences,
            firsts,
            batch_tokens=batch_tokens,
            owners=owners,
            what="prompt",
            by_tree=False,
        )
    )
    return [[next(values) for _ in prompt.sequences] for prompt in prompts]


@measuring()
def _shared(
    model: TransformerBridge, prompts: Sequence[Continuations], batch_tokens: int
) -> list[list[Tensor]]:
    results: list[list[Tensor]] = [[] for _ in prompts]
    shared = [prompt.shared for prompt in prompts]
    alone = [i for i, n in enumerate(shared) if n == 0]  # no prompt to speak of
    for i, values in zip(
        alone, _plain(model, [prompts[i] for i in alone], batch_tokens), strict=True
    ):
        results[i] = values
    rest = [i for i, n in enumerate(shared) if n]
    # What counts is the larger of the two passes.
    sizes = [
        max(shared[i], sum(len(ids) - shared[i] for ids in prompts[i].sequences)) for i in rest
    ]
    with progress(total=len(prompts), unit="prompt", what="scoring") as bar:
        for batch in length_batches(sizes, batch_tokens):
            chosen = [rest[k] for k in batch]
            found = _batch(model, [prompts[i] for i in chosen], [shared[i] for i in chosen])
            for i, values in zip(chosen, found, strict=True):
                require_finite(values, [i] * len(values), "prompt")
                results[i] = values
            bar.update(len(chosen))
    return results


def _batch(
    model: TransformerBridge, prompts: Sequence[Continuations], shared: Sequence[int]
) -> list[list[Tensor]]:
    hf_model = cast(Any, model.original_model)
    takes = inspect.signature(hf_model.forward).parameters

    def run(tokens: Tensor, mask: Tensor, **options: Any) -> Any:
        if "position_ids" in takes:  # models without them (ALiBi) count by the mask
            places = (mask.cumsum(dim=1) - 1).clamp(min=0)
            options["position_ids"] = places[:, -tokens.shape[1] :]
        return hf_model(tokens, attention_mask=mask, use_cache=True, **options)

    tokens, mask = pad(
        model, [p.sequences[0][:n] for p, n in zip(prompts, shared, strict=True)], left=True
    )
    width = tokens.shape[1]
    with reading(width):  # of the prompt nothing is read
        cache = run(
            tokens, mask, **({"logits_to_keep": 1} if "logits_to_keep" in takes else {})
        ).past_key_values
    owner = torch.tensor(
        [row for row, prompt in enumerate(prompts) for _ in prompt.sequences], device=mask.device
    )
    cache.batch_select_indices(owner)

    starts = [n for prompt, n in zip(prompts, shared, strict=True) for _ in prompt.sequences]
    tails = [
        ids
        for p, n in zip(prompts, shared, strict=True)
        for ids in (ids[n:] for ids in p.sequences)
    ]
    firsts = [
        first - n for first, n in zip((f for p in prompts for f in p.firsts), starts, strict=True)
    ]
    tokens, own = pad(model, tails)
    with reading(torch.tensor(firsts) + width - 1):
        logits = run(tokens, torch.cat([mask[owner], own], dim=1), past_key_values=cache).logits
    scored = [(row, j) for row, ids in enumerate(tails) for j in range(firsts[row], len(ids))]
    index, position = torch.tensor(scored).T
    values = target_logprobs(logits, index, position - 1, tokens[index, position]).cpu()
    pieces = iter(
        values.split([len(ids) - first for ids, first in zip(tails, firsts, strict=True)])
    )
    return [[next(pieces) for _ in prompt.sequences] for prompt in prompts]
