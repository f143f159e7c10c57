"""How far an edit moves a model on text that has nothing to do with it.

    KL          mean over tokens of KL( p(. | w_<j) of the unedited model || of the edited one ), in nats
    perplexity  exp of the mean -log p(w_j | w_<j), before and after

Both are over every token but the first of each text. The KL also sees what perplexity does not: an
edit that is right as often, elsewhere. Methods are chosen under bounds on these; they are measured on
:func:`~tracelab.datasets.development_sentences`, never on the text whose perplexity is reported.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.interventions.base import Intervention
from tracelab.model.finite import require_finite_logits
from tracelab.model.scoring import BATCH_TOKENS
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import encode, length_batches, pad, require_context

CHUNK = 2**20
"""Numbers of a table of places x vocabulary that are worked on at once, in fp32: a table of a whole
batch is new memory from the system each time, which takes longer than what is computed."""


@dataclass(frozen=True)
class Drift:
    """What an edit does to neutral text.

    Attributes:
        kl: nats a token.
        perplexity_before, perplexity: of the unedited and of the edited model.
        n_tokens: that were scored.
    """

    kl: float
    perplexity_before: float
    perplexity: float
    n_tokens: int

    @property
    def perplexity_change(self) -> float:
        """In percent of the unedited model's."""
        return 100 * (self.perplexity / self.perplexity_before - 1)


@measuring()
def drift(
    model: TransformerBridge,
    edit: Intervention,
    texts: Texts,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> Drift:
    """Compare the model under an edit with the model as it is, token by token.

    Args:
        edit: not on the model yet.
        texts: neutral ones, such as ``development_sentences("choose", 40)``.

    Raises:
        TracelabError: no token to score, a text beyond the model's context, or logits that are not
            finite.
    """
    sequences = [encode(model, text).ids for text in as_texts(texts)]
    require_context(model, map(len, sequences))
    sums, n = torch.zeros(3, dtype=torch.float64), 0
    for batch in length_batches(map(len, sequences), batch_tokens):
        tokens, mask = pad(model, [sequences[i] for i in batch])
        before = model(tokens, attention_mask=mask)
        with edit.applied(model):
            after = model(tokens, attention_mask=mask)
        for logits in (before, after):
            require_finite_logits(logits, batch, "text")
        places = mask[:, 1:].bool()
        targets, n = tokens[:, 1:][places], n + int(places.sum())
        for part in compared(logprobs(before, places), logprobs(after, places), targets):
            sums += part
    if not n:
        raise TracelabError("no token of these texts is predicted by another: give longer ones")
    kl, nll_before, nll = (sums / n).tolist()
    with np.errstate(over="ignore"):  # a destroyed model's is infinite
        return Drift(kl, float(np.exp(nll_before)), float(np.exp(nll)), n)


def logprobs(
    logits: Float[Tensor, "batch pos vocab"], places: Bool[Tensor, "batch predicting"]
) -> Iterator[Float[Tensor, "_chunk vocab"]]:
    """log p(. | before) at some of the positions but the last, in fp32, a few of them at a time."""
    rows, positions = places.nonzero(as_tuple=True)
    size = max(1, CHUNK // logits.shape[-1])
    for row, position in zip(rows.split(size), positions.split(size), strict=True):
        yield logits[row, position].float().log_softmax(-1)


def compared(
    before: Iterable[Float[Tensor, "_chunk vocab"]],
    after: Iterable[Float[Tensor, "_chunk vocab"]],
    targets: Int[Tensor, "places"],
) -> Iterator[Float[Tensor, "3"]]:
    """Sums over places of the KL and of both negative log-probabilities, a chunk at a time.

    Args:
        before: log-probabilities of the unedited model, which stay as they are.
        after: of the edited one, in the same chunks; each is used up.
    """
    start = 0
    for log_p, log_q in zip(before, after, strict=True):
        words = targets[start : start + len(log_p), None].to(log_p.device)
        start += len(log_p)
        nll = [-each.gather(-1, words).sum() for each in (log_p, log_q)]
        # In place: of a large vocabulary, making room for more tables is half the time.
        change = log_q.neg_().add_(log_p)
        kl = log_p.exp().mul_(change).sum()
        yield torch.stack([kl, *nll]).double().cpu()
