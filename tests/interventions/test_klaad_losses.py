"""KLAAD's losses against double loops over aligned rows and keys, numbers worked out by hand, and
transformers."""

from __future__ import annotations

from itertools import product
from math import exp, log

import pytest
import torch
from torch.nn.functional import kl_div, pad

from tests.tiny import tiny_hf
from tracelab.interventions.klaad.config import KLAADConfig
from tracelab.interventions.klaad.losses import (
    aligned_positions,
    attention_loss,
    language_loss,
    pooled,
    triplet_loss,
)

EPS = 1e-8
ALIGNMENTS, POOLS, REDUCTIONS = map(KLAADConfig.choices, ("align", "pool", "reduction"))
READINGS = [
    {"per_head": per_head, "double_softmax": double_softmax, "reduction": reduction}
    for per_head, double_softmax, reduction in product((False, True), (False, True), REDUCTIONS)
    if per_head or reduction != "batchmean"
]
SENTENCES = [  # stereotype and anti-stereotype as token ids
    ([5, 6, 7, 8, 9], [5, 6, 3, 8, 9]),  # one token replaced
    ([5, 6, 7, 8], [5, 6, 1, 7, 8]),  # one more
    ([4, 5, 6, 7, 8, 9, 2], [4, 5, 1, 8, 9, 2]),  # two replaced by one
    ([7, 8], [7, 3, 3, 3, 8]),
]


def causal_maps(lengths, seed: int, heads: int = 3) -> list[torch.Tensor]:
    """Sharp random attention maps ``[head, pos, pos]``, one of each length."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for n in lengths:
        scores = 3 * torch.randn(heads, n, n, generator=generator)
        made.append(scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf")).softmax(-1))
    return made


def batched(maps: list[torch.Tensor], more: int = 0, fill: float = 0.5) -> torch.Tensor:
    """The maps in one tensor; what is no part of a map holds ``fill``."""
    longest = max(m.shape[-1] for m in maps) + more
    return torch.stack(
        [pad(m, (0, longest - m.shape[-1], 0, longest - m.shape[-1]), value=fill) for m in maps]
    )


def pairs(seed: int = 0):
    return causal_maps([len(s) for s, _ in SENTENCES], seed), causal_maps(
        [len(a) for _, a in SENTENCES], seed + 1
    )


def distribution(weights: list[float], double_softmax: bool) -> list[float]:
    raised = [exp(w) if double_softmax else w + EPS for w in weights]
    return [w / sum(raised) for w in raised]


def slow_kl(
    stereotype, anti_stereotype, alignment, *, per_head, double_softmax, reduction
) -> float:
    """KL(anti ‖ stereo) of one pair ``[head, pos, pos]``, row by row and key by key."""
    if not per_head and reduction != "batchmean":
        stereotype, anti_stereotype = (
            stereotype.mean(0, keepdim=True),
            anti_stereotype.mean(0, keepdim=True),
        )
    of_heads = []
    for q_map, p_map in zip(stereotype.tolist(), anti_stereotype.tolist(), strict=True):
        of_rows = []
        for row in range(1, len(alignment[0])):
            keys = range(row + 1)
            q = distribution(
                [q_map[alignment[0][row]][alignment[0][key]] for key in keys], double_softmax
            )
            p = distribution(
                [p_map[alignment[1][row]][alignment[1][key]] for key in keys], double_softmax
            )
            of_rows.append(sum(p[key] * log(p[key] / q[key]) for key in keys))
        total = sum(of_rows)
        of_heads.append(total / max(1, len(of_rows)) if reduction == "mean" else total)
    return sum(of_heads) if reduction == "batchmean" else sum(of_heads) / len(of_heads)


def alignments(align: str) -> list[tuple[list[int], list[int]]]:
    return [aligned_positions(stereo, anti, align) for stereo, anti in SENTENCES]


# --- which positions stand for each other
# -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stereotype", "anti_stereotype", "expected"),
    [
        ([5, 6, 7], [5, 6, 7], ([0, 1, 2], [0, 1, 2])),
        # A replaced block of equal length, beside an insertion that makes the lengths differ.
        ([1, 2, 3, 4, 5, 6], [1, 2, 8, 9, 5, 7, 6], ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 6])),
        # Two tokens replaced by one: dropped.
        ([1, 2, 3, 4, 5], [1, 2, 9, 5], ([0, 1, 4], [0, 1, 3])),
        # An insertion shifts what follows.
        ([1, 2, 3], [1, 9, 2, 3], ([0, 1, 2], [0, 2, 3])),
        ([1, 9, 2, 3], [1, 2, 3], ([0, 2, 3], [0, 1, 2])),
        ([1, 2], [3, 4, 5], ([], [])),
    ],
)
def test_matching_aligns_equal_blocks_and_replaced_blocks_of_equal_length(
    stereotype, anti_stereotype, expected
):
    assert aligned_positions(stereotype, anti_stereotype) == expected
    assert aligned_positions(stereotype, anti_stereotype, "match") == expected


@pytest.mark.parametrize("align", ALIGNMENTS)
def test_sentences_of_one_length_are_aligned_index_by_index_whatever_their_tokens(align):
    assert aligned_positions([1, 2, 3, 4], [2, 3, 4, 5], align) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_padding_goes_as_far_as_both_and_equal_only_nowhere_if_the_lengths_differ():
    assert aligned_positions([1, 2, 3], [1, 9, 2, 3], "pad") == ([0, 1, 2], [0, 1, 2])
    assert aligned_positions([1, 2, 3], [1, 9, 2, 3], "equal_only") == ([], [])


def test_a_token_that_a_long_sentence_repeats_is_matched_too():
    # difflib takes frequent tokens of long sequences for junk, unless told not to.
    often = [7] * 300
    assert aligned_positions(often, [9, *often]) == (list(range(300)), list(range(1, 301)))


# --- the attention loss
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", READINGS, ids=str)
@pytest.mark.parametrize("align", ALIGNMENTS)
def test_the_attention_loss_is_the_double_loop_over_aligned_rows_and_keys(align, reading):
    stereo, anti = pairs()
    expected = [
        slow_kl(s, a, both, **reading)
        for s, a, both in zip(stereo, anti, alignments(align), strict=True)
    ]
    assert max(expected) > (0.01 if reading["double_softmax"] else 0.1)
    got = attention_loss(batched(stereo), batched(anti), alignments(align), **reading)
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("double_softmax", [False, True])
def test_batchmean_is_torchs_of_maps_by_head_query_and_key(double_softmax):
    stereo, anti = (torch.stack(causal_maps([7] * 5, seed)) for seed in (0, 1))
    q, p = ((maps + EPS) / (maps + EPS).tril().sum(-1, keepdim=True) for maps in (stereo, anti))
    if double_softmax:
        hidden = torch.ones(7, 7).triu(1).bool()
        q, p = (maps.masked_fill(hidden, float("-inf")).softmax(-1) for maps in (stereo, anti))
    expected = kl_div(q.log().tril(), p.tril(), reduction="batchmean")
    options = {"double_softmax": double_softmax, "reduction": "batchmean"}
    every = [(list(range(7)),) * 2] * 5
    for per_head in (False, True):  # it has no say
        got = attention_loss(stereo, anti, every, per_head=per_head, **options)
        torch.testing.assert_close(got.mean(), expected)


def test_every_reading_of_the_attention_loss_is_another_number():
    stereo, anti = pairs()
    values = [
        attention_loss(batched(stereo), batched(anti), alignments("match"), **r).sum()
        for r in READINGS
    ]
    assert all(abs(a - b) > 1e-3 for i, a in enumerate(values) for b in values[:i])


@pytest.mark.parametrize("reading", READINGS, ids=str)
@pytest.mark.parametrize("align", ALIGNMENTS)
def test_identical_sentences_have_no_attention_loss(align, reading):
    maps = batched(causal_maps([6, 4], seed=3))
    both = [aligned_positions(range(n), range(n), align) for n in (6, 4)]
    assert attention_loss(maps, maps, both, **reading).abs().max() < 1e-6
    assert attention_loss(maps, maps.flip(0), [both[1]] * 2, **reading).min() > 1e-4


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_more_padding_whatever_it_holds_changes_neither_loss_nor_gradients(reading):
    stereo, anti = pairs()

    def loss_and_gradients(more: int, fill: float):
        leaves = [maps.clone().requires_grad_() for maps in (*stereo, *anti)]
        sides = batched(leaves[: len(stereo)]), batched(leaves[len(stereo) :], more, fill)
        loss = attention_loss(*sides, alignments("match"), **reading)
        return loss.detach(), torch.autograd.grad(loss.sum(), leaves)

    expected, gradients = loss_and_gradients(0, 0.0)
    assert all(gradient.any() for gradient in gradients)
    for more, fill in ((1, 0.7), (5, -100.0), (3, float("nan"))):
        loss, found = loss_and_gradients(more, fill)
        assert torch.equal(loss, expected)
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))


def test_the_loss_of_a_pair_does_not_depend_on_the_pairs_beside_it():
    stereo, anti = pairs()
    together = attention_loss(batched(stereo), batched(anti), alignments("match"))
    alone = [
        attention_loss(s[None], a[None], [both])
        for s, a, both in zip(stereo, anti, alignments("match"), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_where_nothing_is_aligned_the_loss_is_0_and_gradients_are_finite(reading):
    stereo, anti = (batched(maps).requires_grad_() for maps in pairs())
    both = [([], []), ([2], [1]), ([], []), ([0, 1], [0, 4])]
    loss = attention_loss(stereo, anti, both, **reading)
    assert loss[:3].tolist() == [0.0, 0.0, 0.0]
    assert loss[3] > 0
    loss.sum().backward()
    for maps in (stereo, anti):
        assert maps.grad.isfinite().all()
        assert not maps.grad[:3].any()
        assert maps.grad[3].any()


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_attention_that_is_exactly_0_gives_a_finite_loss_and_gradients(reading):
    on_first, on_itself = torch.zeros(1, 1, 4, 4), torch.eye(4)[None, None].clone()
    on_first[..., 0] = 1
    for maps in (on_first, on_itself):
        maps.requires_grad_()
    loss = attention_loss(on_first, on_itself, [(list(range(4)),) * 2], **reading)
    loss.sum().backward()
    assert 0 < loss.item() < float("inf")
    assert on_first.grad.isfinite().all()
    assert on_itself.grad.isfinite().all()


def test_the_anti_stereotype_is_the_reference_of_the_divergence():
    stereo, anti = (maps[0] for maps in causal_maps_of_one_head(5))
    rows = range(1, 5)
    q, p = (([maps[row, : row + 1] + EPS for row in rows]) for maps in (stereo, anti))
    q, p = ([row / row.sum() for row in side] for side in (q, p))
    expected = torch.stack(
        [kl_div(b.log(), a, reduction="sum") for a, b in zip(p, q, strict=True)]
    ).mean()
    reverse = torch.stack(
        [kl_div(a.log(), b, reduction="sum") for a, b in zip(p, q, strict=True)]
    ).mean()
    every = [(list(range(5)),) * 2]
    torch.testing.assert_close(
        attention_loss(stereo[None, None], anti[None, None], every)[0], expected
    )
    torch.testing.assert_close(
        attention_loss(anti[None, None], stereo[None, None], every)[0], reverse
    )
    assert abs(expected - reverse) > 0.05


def causal_maps_of_one_head(n: int) -> list[torch.Tensor]:
    return causal_maps([n], 5, heads=1) + causal_maps([n], 6, heads=1)


@pytest.mark.parametrize("per_head", [False, True])
def test_a_second_softmax_leaves_a_small_part_of_the_loss(per_head):
    lengths = [12] * 4
    stereo, anti = batched(causal_maps(lengths, 0)), batched(causal_maps(lengths, 1))
    both = [(list(range(12)),) * 2] * 4
    direct, twice = (
        attention_loss(stereo, anti, both, per_head=per_head, double_softmax=d)
        for d in (False, True)
    )
    assert (twice > 0).all()
    assert (twice < direct / 20).all()


# --- hidden states
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_a_pooled_state_is_of_unit_norm_and_knows_no_padding(pool):
    lengths = [5, 1, 3]
    states = [torch.randn(n, 8) for n in lengths]
    expected = torch.stack([(s[-1] if pool == "last" else s.mean(dim=0)) for s in states])
    expected = expected / expected.norm(dim=1, keepdim=True)
    for longest, fill in ((5, 0.0), (7, 1e4)):
        hidden = torch.stack([pad(s, (0, 0, 0, longest - len(s)), value=fill) for s in states])
        mask = torch.tensor([[int(i < n) for i in range(longest)] for n in lengths])
        got = pooled(hidden, mask, pool)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(got.norm(dim=1), torch.ones(3))


def test_the_last_and_the_mean_state_differ():
    hidden, mask = torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.long)
    assert (pooled(hidden, mask, "last") - pooled(hidden, mask, "mean")).abs().max() > 0.1


STEREO = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
ANTI = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])
UNRELATED = torch.tensor([[-1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])


def test_the_triplet_loss_is_of_squared_distances():
    # ‖s - a‖² = 2, 2, 0.8 and ‖s - u‖² = 4, 0.8, 2
    expected = torch.tensor([0.0, 2 - 0.8 + 0.3, 0.0])
    torch.testing.assert_close(triplet_loss(STEREO, ANTI, UNRELATED, 0.3), expected)
    torch.testing.assert_close(
        triplet_loss(STEREO, ANTI, UNRELATED, 1.5), torch.tensor([0.0, 2.7, 0.3])
    )


def test_the_triplet_loss_is_not_torchs():
    torchs = torch.nn.TripletMarginLoss(margin=0.3, reduction="none")(STEREO, ANTI, UNRELATED)
    torch.testing.assert_close(torchs[1], torch.tensor(2**0.5 - 0.8**0.5 + 0.3), atol=1e-4, rtol=0)
    assert (triplet_loss(STEREO, ANTI, UNRELATED, 0.3) - torchs).abs().max() > 0.5


def test_a_satisfied_triple_gives_neither_loss_nor_gradient():
    stereo = STEREO.clone().requires_grad_()
    loss = triplet_loss(stereo, ANTI, UNRELATED, 0.3)
    loss.sum().backward()
    assert [bool(value) for value in loss] == [False, True, False]
    assert stereo.grad.any(dim=1).tolist() == [False, True, False]


# --- language modelling
# -------------------------------------------------------------------------------------------


def test_the_language_loss_is_transformers_own(tokenizer):
    plain = tiny_hf("llama", len(tokenizer))
    lengths = [6, 2, 4]
    tokens = torch.randint(3, 1000, (3, 6))
    mask = torch.tensor([[int(i < n) for i in range(6)] for n in lengths])
    with torch.no_grad():
        out = plain(tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100))
    loss = language_loss(out.logits, tokens, mask)
    torch.testing.assert_close(loss, out.loss)
    # A mean over tokens, not over sentences, and without what stands in the padding.
    rows = [
        language_loss(out.logits[i : i + 1, :n], tokens[i : i + 1, :n], mask[:1, :n])
        for i, n in enumerate(lengths)
    ]
    torch.testing.assert_close(
        loss, sum(row * (n - 1) for row, n in zip(rows, lengths, strict=True)) / 9
    )
    assert abs(loss - sum(rows) / 3) > 1e-3
    other = tokens.masked_fill(mask == 0, 5)
    assert torch.equal(
        language_loss(out.logits.masked_fill(mask[..., None] == 0, 9.0), other, mask), loss
    )
