"""What an edit costs: parameters, time to fit, time a token, memory.

    latency_scoring   seconds of a forward pass over a full batch, edited / unedited
    latency_decode    seconds of greedy decoding with a cache, edited / unedited

Both run in turn, ``repeats`` times after one run that is not counted, and the median of the ratios
stands with their
range: a range, not an interval. ``activation_mib`` is the largest sum of tensors that are alive at
once during the scoring pass, weights not counted, the same on every device; scratch memory inside a
kernel is not seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from tracelab.gradients import measuring
from tracelab.interventions import Intervention, Stack
from tracelab.model.forward_pass import reading
from tracelab.model.generation import plain_generation
from tracelab.model.hooked import require_unedited
from tracelab.model.peak import peak_memory
from tracelab.model.tokens import bos_id, context_length, pad_id, vocabulary_size
from tracelab.ranges import require_int

COLUMNS = (
    "added_parameters",
    "fit_seconds",
    "latency_scoring",
    "latency_scoring_low",
    "latency_scoring_high",
    "latency_decode",
    "latency_decode_low",
    "latency_decode_high",
    "activation_mib",
)


@measuring()
def edit_costs(
    model: TransformerBridge,
    edit: Intervention,
    *,
    batch: int = 8,
    length: int = 64,
    new_tokens: int = 16,
    repeats: int = 5,
    allow_hooks: bool = False,
) -> dict[str, float]:
    """Measure the costs of an edit on random tokens.

    Args:
        batch, length: tokens of the scoring pass, no longer than the context; one row of them is
            the prompt of decoding.
        new_tokens: decoded after it.
        repeats: pairs of runs, edited and not, of each kind.
        allow_hooks: take a model with hooks on, as it is with them, for the unedited one.

    Returns:
        By :data:`COLUMNS`. ``fit_seconds`` is not a number for an edit that does not say how long
        its fit took.

    Raises:
        TracelabError: the edit was made for another model, or hooks are on the model.
    """
    for name, count in (
        ("batch", batch),
        ("length", length),
        ("new_tokens", new_tokens),
        ("repeats", repeats),
    ):
        require_int(name, count)
    require_unedited(model, "a measurement of costs", allow_hooks=allow_hooks)
    edit.hooks(model)
    length = min(length, context_length(model) or length)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        vocabulary_size(model), (batch, length), generator=generator, device="cpu"
    )
    tokens[:, 0] = bos_id(model)
    tokens = tokens.to(model.cfg.device)

    def scoring() -> None:
        with reading(0):
            model(tokens, attention_mask=torch.ones_like(tokens))

    def decoding() -> None:
        prompt = tokens[:1, : max(length - new_tokens, 1)]
        with reading(prompt.shape[1] - 1, generating=True), plain_generation(model):
            cast(Any, model.original_model).generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=pad_id(model),
            )

    found = {
        "added_parameters": float(sum(value.numel() for value in edit.state_dict().values())),
        "fit_seconds": fit_seconds(edit),
    }
    for name, run in (("latency_scoring", scoring), ("latency_decode", decoding)):
        ratios = _ratios(model, edit, run, repeats)
        found |= {
            name: float(np.median(ratios)),
            f"{name}_low": min(ratios),
            f"{name}_high": max(ratios),
        }
    with (
        edit.applied(model),
        peak_memory([*model.parameters(), *model.buffers(), *edit.parameters()]) as peak,
    ):
        scoring()
    return found | {"activation_mib": peak[0] / 2**20}


def fit_seconds(edit: Intervention) -> float:
    """How long an edit, or all members of a stack, took to fit; not a number if one does not
    say."""
    if isinstance(edit, Stack):
        return float(sum(fit_seconds(member) for member in edit))
    return float(edit.notes.get("fit_seconds", np.nan))


def _ratios(
    model: TransformerBridge, edit: Intervention, run: Callable[[], None], repeats: int
) -> list[float]:
    ratios = []
    for number in range(repeats + 1):
        seconds = []
        for context in (nullcontext(), edit.applied(model)):
            with context:
                _wait(model)
                began = time.perf_counter()
                run()
                _wait(model)
                seconds.append(time.perf_counter() - began)
        if number:
            ratios.append(seconds[1] / seconds[0])
    return ratios


def _wait(model: TransformerBridge) -> None:
    if torch.device(model.cfg.device or "cpu").type == "cuda":
        torch.cuda.synchronize()
