"""KLAAD's losses: language modelling, attention alignment, and a triplet of hidden states.

    L = lam1 L_CE + lam2 L_KL + lam3 L_Tri

    L_CE  = ½ (CE(stereotype) + CE(anti-stereotype))          next token, mean over tokens
    L_KL  = KL(A_anti ‖ A_stereo)                             last layer's attention, row by row
    L_Tri = max(0, ‖h_s - h_a‖² - ‖h_s - h_u‖² + m)           final hidden states on the unit sphere

Anchor of the triplet is the stereotype, positive the anti-stereotype, negative the unrelated
sentence; distances are squared, so this is not ``torch.nn.TripletMarginLoss``. Source: KLAAD, arXiv
2507.19962, as far as its summary goes: no code was released, and what it leaves open is an option
here (:class:`~tracelab.interventions.klaad.klaad.KLAADConfig`).

Attention maps of sentences of different length are compared over aligned positions only: blocks of
equal tokens, and replaced blocks of equal length, by difflib over token ids (``align="match"``).
Each row is renormalised over the aligned keys. The first aligned row, which can attend to nothing
else than the first token, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from tracelab.model.tokens import aligned

_EPS = 1e-8


def aligned_positions(
    stereotype: Sequence[int], anti_stereotype: Sequence[int], align: str = "match"
) -> tuple[list[int], list[int]]:
    """Positions of two token sequences that stand for each other.

    Args:
        align: ``"match"``; ``"pad"``: index by index, as far as both go; ``"equal_only"``: index by
            index, none if the lengths differ.
    """
    n, m = len(stereotype), len(anti_stereotype)
    if align == "equal_only" and n != m:
        return [], []
    if align != "match":
        both = list(range(min(n, m)))
        return both, both
    single = [(a, b) for a, b in aligned(stereotype, anti_stereotype) if len(a) == len(b)]
    return [a.start for a, _ in single], [b.start for _, b in single]


def attention_loss(
    stereotype: Float[Tensor, "batch head pos_s pos_s"],
    anti_stereotype: Float[Tensor, "batch head pos_a pos_a"],
    alignments: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    per_head: bool = False,
    double_softmax: bool = False,
    reduction: str = "mean",
) -> Float[Tensor, "batch"]:
    """KL(A_anti ‖ A_stereo) of each pair over aligned rows and keys; 0 where fewer than two
    positions are aligned.

    Args:
        alignments: positions in either sentence, of each pair (:func:`aligned_positions`).
        per_head: compare head by head, then average; else the mean map over heads.
        double_softmax: softmax the attention once more, as the paper's words can be read; nearly
            uniform rows.
        reduction: over rows, then the mean over heads: ``"mean"`` or ``"sum"``; or
            ``"batchmean"``, the sum over heads and rows, which is
            ``torch.nn.functional.kl_div(log A_stereo, A_anti, reduction="batchmean")`` of maps
            ``[batch, head, query, key]`` where the sentences are aligned throughout; it compares
            head by head whatever ``per_head`` is.
    """
    if not per_head and reduction != "batchmean":
        stereotype, anti_stereotype = (
            stereotype.mean(dim=1, keepdim=True),
            anti_stereotype.mean(dim=1, keepdim=True),
        )
    longest = max(1, *(len(first) for first, _ in alignments))
    sides = [torch.zeros(len(alignments), longest, dtype=torch.long) for _ in range(2)]
    valid = torch.zeros(len(alignments), longest, dtype=torch.bool)
    for row, pair in enumerate(alignments):
        valid[row, : len(pair[0])] = True
        for side, positions in zip(sides, pair, strict=True):
            side[row, : len(positions)] = torch.tensor(positions, dtype=torch.long)
    valid = valid.to(stereotype.device)
    # A row may look at aligned keys up to itself.
    keys = (
        torch.ones(longest, longest, dtype=torch.bool, device=valid.device).tril() & valid[:, None]
    )
    q, p = (
        _rows(pattern.float(), side.to(pattern.device), keys, double_softmax)
        for pattern, side in zip((stereotype, anti_stereotype), sides, strict=True)
    )
    # [batch, head, query]
    each = (p * (p.log() - q.log())).masked_fill(~keys[:, None], 0.0).sum(dim=-1)
    rows = valid.clone()
    rows[:, 0] = False
    of_heads = each.masked_fill(~rows[:, None], 0.0).sum(dim=-1)
    if reduction == "batchmean":
        return of_heads.sum(dim=1)
    total = of_heads.mean(dim=1)
    return total if reduction == "sum" else total / rows.sum(dim=1).clamp(min=1)


def _rows(
    pattern: Float[Tensor, "batch head pos pos"],
    positions: Int[Tensor, "batch aligned"],
    keys: Bool[Tensor, "batch aligned aligned"],
    double_softmax: bool,
) -> Float[Tensor, "batch head aligned aligned"]:
    """Attention over aligned keys as distributions, 1 where a row may not look (its logarithm is
    0)."""
    batch, heads = pattern.shape[:2]
    rows = positions[:, None, :, None].expand(batch, heads, -1, pattern.shape[3])
    columns = positions[:, None, None, :].expand(batch, heads, positions.shape[1], -1)
    chosen = pattern.gather(2, rows).gather(3, columns)
    keys = keys[:, None].expand_as(chosen)
    if double_softmax:
        chosen = chosen.masked_fill(~keys, float("-inf"))
        # Rows of padding have no key; their values are not used, but must not spoil gradients.
        chosen = chosen.masked_fill(~keys.any(dim=-1, keepdim=True), 0.0).softmax(dim=-1)
    else:
        chosen = chosen.masked_fill(~keys, 0.0) + _EPS
        chosen = chosen / chosen.masked_fill(~keys, 0.0).sum(dim=-1, keepdim=True).clamp(min=_EPS)
    return chosen.masked_fill(~keys, 1.0)


def pooled(
    hidden: Float[Tensor, "batch pos d_model"], mask: Int[Tensor, "batch pos"], pool: str
) -> Float[Tensor, "batch d_model"]:
    """The last token's or the mean hidden state of each sentence, on the unit sphere."""
    if pool == "last":
        last = mask.sum(dim=1) - 1
        chosen = hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    else:
        weights = mask[..., None].float()
        chosen = (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
    return normalize(chosen, dim=-1)


def triplet_loss(
    stereotype: Float[Tensor, "batch d_model"],
    anti_stereotype: Float[Tensor, "batch d_model"],
    unrelated: Float[Tensor, "batch d_model"],
    margin: float,
) -> Float[Tensor, "batch"]:
    """``max(0, ‖s - a‖² - ‖s - u‖² + margin)``."""
    near = ((stereotype - anti_stereotype) ** 2).sum(dim=-1)
    far = ((stereotype - unrelated) ** 2).sum(dim=-1)
    return (near - far + margin).relu()


def language_loss(
    logits: Float[Tensor, "batch pos vocab"],
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
) -> Float[Tensor, ""]:
    """Next-token cross-entropy, nats, mean over the real tokens of all sentences."""
    real = mask[:, 1:].bool()
    return cross_entropy(logits[:, :-1][real].float(), tokens[:, 1:][real])
