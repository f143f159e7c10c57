"""BiasEdit's losses on triples, by name, and what is retained.

With p_j = P(w_j | w_<j) over the scored tokens of a sentence, pbar = mean_j p_j and lbar = mean_j
log p_j,

    reference    pbar_s (log pbar_s - lbar_a) + pbar_a (log pbar_a - lbar_s)         as released, nothing detached
    logprob      (lbar_s - lbar_a)²                                                  symmetric
    preference   softplus(beta (lbar_s - lbar_a + margin))                           signed; tracelab's

    retention    kl          mean_j KL(P_pre(· | w_<j) ‖ P_post(· | w_<j)) over the whole vocabulary
                 reference   pbar_pre (log pbar_pre - lbar_post)                     as released: one number a sentence

``reference`` is not a divergence: it is positive for two identical sentences and falls towards zero
if all probabilities shrink, so its minimum is a destroyed model; the paper's text has KL(P_s‖P_a) +
KL(P_a‖P_s). A symmetric loss is content with any change that closes the gap of the sentences it
sees; the signed one asks for a direction.
Source: BiasEdit, arXiv 2503.08588, section 3, and its released code; all in nats.
"""  # noqa: E501

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import kl_div, softplus


def token_logprobs(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch predicted"]:
    """``log p(token_j | tokens before j)`` for j = 1, 2, … in fp32, with gradients."""
    picked = logits[:, :-1].float().log_softmax(dim=-1).gather(-1, tokens[:, 1:, None])
    return picked.squeeze(-1)


def scored(
    mask: Int[Tensor, "batch pos"], fillers: list[tuple[int, ...]] | None = None
) -> Bool[Tensor, "batch predicted"]:
    """Which predicted tokens are scored: all real ones, or those of the fillers."""
    if fillers is None:
        return mask[:, 1:].bool()
    chosen = torch.zeros_like(mask, dtype=torch.bool)
    for row, positions in enumerate(fillers):
        chosen[row, list(positions)] = True
    return chosen[:, 1:]


def mean_over(
    values: Float[Tensor, "batch predicted"], chosen: Bool[Tensor, "batch predicted"]
) -> Float[Tensor, "batch"]:
    """Mean of each row over its chosen places; what stands elsewhere, also what is not finite,
    plays no part."""
    return values.masked_fill(~chosen, 0.0).sum(dim=1) / chosen.sum(dim=1)


def hits(
    stereotype: Float[Tensor, "batch"],
    anti_stereotype: Float[Tensor, "batch"],
    unrelated: Float[Tensor, "batch"],
) -> dict[str, Float[Tensor, ""]]:
    """``ss`` and ``lms`` in percent, pooled over triples, and the mean ``gap`` of stereotype over
    anti-stereotype."""
    likelier = [(sentence > unrelated).double() for sentence in (stereotype, anti_stereotype)]
    return {
        "ss": 100 * (stereotype > anti_stereotype).double().mean(),
        "lms": 50 * (likelier[0] + likelier[1]).mean(),
        "gap": (stereotype - anti_stereotype).mean(),
    }


def debias_loss(
    name: str,
    stereotype: Float[Tensor, "batch predicted_s"],
    stereotype_scored: Bool[Tensor, "batch predicted_s"],
    anti_stereotype: Float[Tensor, "batch predicted_a"],
    anti_stereotype_scored: Bool[Tensor, "batch predicted_a"],
    *,
    beta: float = 4.0,
    margin: float = 0.1,
) -> Float[Tensor, "batch"]:
    """The named loss of each pair, from log-probabilities of its tokens."""
    lbar_s, lbar_a = (
        mean_over(stereotype, stereotype_scored),
        mean_over(anti_stereotype, anti_stereotype_scored),
    )
    if name == "logprob":
        return (lbar_s - lbar_a) ** 2
    if name == "preference":
        return softplus(beta * (lbar_s - lbar_a + margin))
    pbar_s, pbar_a = (
        mean_over(stereotype.exp(), stereotype_scored),
        mean_over(anti_stereotype.exp(), anti_stereotype_scored),
    )
    return pbar_s * (pbar_s.log() - lbar_a) + pbar_a * (pbar_a.log() - lbar_s)


def retention_loss(
    name: str,
    before: Float[Tensor, "batch pos vocab"],
    after: Float[Tensor, "batch pos vocab"],
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch"]:
    """The named retention of each sentence, from the logits of the unedited and of the edited
    model."""
    chosen = scored(mask)
    if name == "kl":
        log_p, log_q = (logits[:, :-1].float().log_softmax(dim=-1) for logits in (before, after))
        return mean_over(
            kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1), chosen
        )
    pbar = mean_over(token_logprobs(before, tokens).exp(), chosen)
    return pbar * (pbar.log() - mean_over(token_logprobs(after, tokens), chosen))
