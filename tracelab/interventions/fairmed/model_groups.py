"""What the model itself says of the groups, beside the probers: to compare with, and to make even.

The probers are a surrogate. What FairMed is after is the model's own next-token distribution over
groups, with ``s_g = logsumexp`` of the logits of group g's words (their first tokens):

    p_g = softmax(s)_g

:func:`agreement` measures ``KL(U ‖ p)`` of both, before and after an edit. :func:`balance` makes
``p`` even in closed form: each group's logits are shifted by the same number,

    z_w ← z_w + logsumexp(s) - log C - s_g    for the words w of group g.

All groups' words together stay as likely as they were, and so does every other token. No other
even distribution is nearer to the model's: with ``M`` the probability of those words, ``KL(before ‖
after) = M · KL(p ‖ U)``. It acts on the last step only and finds nothing inside the model: it is
the control for what FairMed's aim, reached exactly, can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.templates import Corpus
from tracelab.errors import TracelabError
from tracelab.localize.probing.harvest import harvest

if TYPE_CHECKING:
    from tracelab.interventions.fairmed.fairmed import FairMed


def group_logits(
    logits: Float[Tensor, "*rows vocab"], words: Sequence[Int[Tensor, "_words"]]
) -> Float[Tensor, "*rows groups"]:
    """``s_g``, the logsumexp over each group's words, in fp32."""
    return torch.stack(
        [logits[..., ids.to(logits.device)].float().logsumexp(dim=-1) for ids in words], dim=-1
    )


def kl_from_even(scores: Float[Tensor, "*rows groups"]) -> Float[Tensor, "*rows"]:
    """``KL(U ‖ softmax(scores))`` in nats."""
    return -scores.log_softmax(dim=-1).mean(dim=-1) - log(scores.shape[-1])


def balance(
    logits: Float[Tensor, "*rows vocab"], words: Sequence[Int[Tensor, "_words"]]
) -> Float[Tensor, "*rows vocab"]:
    """Logits after which every group is equally likely to be named; the other tokens' logits and
    probabilities are as before."""
    scores = group_logits(logits, words)
    even = scores.logsumexp(dim=-1, keepdim=True) - log(len(words))
    balanced = logits.clone()
    # A group whose words are all ruled out, as by a nucleus, stays so.
    shifts = torch.where(scores.isfinite(), even - scores, 0.0)
    for place, ids in enumerate(words):
        shift = shifts[..., place, None]
        # In fp32, and rounded once.
        balanced[..., ids.to(logits.device)] = (
            logits[..., ids.to(logits.device)].float() + shift
        ).to(logits.dtype)
    return balanced


def agreement(edit: FairMed, model: TransformerBridge, corpus: Corpus) -> pd.DataFrame:
    """See :meth:`FairMed.agreement`."""
    chosen = [spec for spec in edit.attributes if spec.attribute == corpus.attribute]
    if not chosen:
        known = ", ".join(spec.attribute for spec in edit.attributes)
        raise TracelabError(f"this edit is about {known}, not about {corpus.attribute}")
    (spec,) = chosen
    words = spec.words_among(edit.config.groups)
    before = harvest(model, corpus, words)
    with edit.applied(model):
        after = harvest(model, corpus, words)

    def row(layer: int | None, old: Tensor, new: Tensor) -> dict[str, Any]:
        return {
            "attribute": spec.attribute,
            "layer": layer,
            "kl_before": float(old.mean()),
            "kl_after": float(new.mean()),
            "n": len(old),
        }

    rows = [row(None, *(kl_from_even(found.labels.log()) for found in (before, after)))]
    for layer in spec.layers:
        prober = edit.prober(spec.attribute, layer)
        rows.append(
            row(layer, *(prober.kl(f.activations[:, layer].to(prober.w1)) for f in (before, after)))
        )
    return pd.DataFrame(rows).astype({"layer": "Int64"})
