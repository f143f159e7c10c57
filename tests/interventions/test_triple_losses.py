"""BiasEdit's losses against numbers worked out by hand and loops over single tokens."""

from __future__ import annotations

from math import exp, log, log1p

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from tracelab.interventions.biasedit.config import BiasEditConfig
from tracelab.interventions.training.triple_losses import (
    debias_loss,
    hits,
    mean_over,
    retention_loss,
    scored,
    token_logprobs,
)

LOSSES, RETENTIONS = map(BiasEditConfig.choices, ("loss", "retention"))
VOCAB = 7
LENGTHS = (6, 3, 4)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


def all_of(values: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def padded(seed: int = 0, fill: float = 0.0, token: int = 0):
    """Random logits ``[3, 6, 7]``, tokens and mask of sentences of :data:`LENGTHS`; what stands in
    the padding."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(LENGTHS), max(LENGTHS), VOCAB, generator=generator)
    tokens = torch.randint(VOCAB, logits.shape[:2], generator=torch.Generator().manual_seed(99))
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
        logits[row, length:] = fill
        tokens[row, length:] = token
    return logits, tokens, mask


def slow_logprobs(logits: torch.Tensor, tokens: torch.Tensor, row: int) -> list[float]:
    """log p of each token of a sentence but its first, one softmax at a time."""
    found = []
    for j in range(1, LENGTHS[row]):
        found.append(float(log_softmax(logits[row, j - 1].double().numpy())[tokens[row, j]]))
    return found


def slow_debias(
    name: str, stereotype: list[float], anti: list[float], beta: float, margin: float
) -> float:
    """A pair's loss from the log-probabilities of its tokens."""
    lbar_s, lbar_a = np.mean(stereotype), np.mean(anti)
    if name == "logprob":
        return float((lbar_s - lbar_a) ** 2)
    if name == "preference":
        return log1p(exp(beta * (lbar_s - lbar_a + margin)))
    pbar_s, pbar_a = np.mean([exp(v) for v in stereotype]), np.mean([exp(v) for v in anti])
    return float(pbar_s * (log(pbar_s) - lbar_a) + pbar_a * (log(pbar_a) - lbar_s))


# --- by hand
# --------------------------------------------------------------------------------------------------------  # noqa: E501


def test_the_reference_loss_of_two_identical_sentences_is_not_zero_and_a_destroyed_model_lowers_it():  # noqa: E501
    # p = .5, .1, .01, .2: pbar = .2025, log pbar = -1.59702, lbar = -9.21034 / 4 = -2.30259;
    # 2 * .2025 * .70557 = .28575; with all p 1000 times smaller both logs fall by the same and pbar
    # 1000-fold.
    logp = torch.tensor([[0.5, 0.1, 0.01, 0.2]]).log()
    for shrunk, expected in ((logp, 0.28575), (logp - log(1000), 0.00028575)):
        loss = debias_loss("reference", shrunk, all_of(shrunk), shrunk, all_of(shrunk))
        assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_symmetric_loss_of_two_identical_sentences_is_zero():
    logp = torch.tensor([[0.5, 0.1, 0.01, 0.2]]).log()
    assert debias_loss("logprob", logp, all_of(logp), logp, all_of(logp)).item() == 0


def test_the_losses_of_two_short_sentences_by_hand():
    # Stereotype p = 1/2, 1/8 (lbar = -2 log 2, pbar = 5/16), anti-stereotype p = 1/4 (lbar = -2 log
    # 2, pbar = 1/4).
    stereo, anti = torch.tensor([[0.5, 0.125]]).log(), torch.tensor([[0.25]]).log()
    made = {
        name: debias_loss(name, stereo, all_of(stereo), anti, all_of(anti)).item()
        for name in LOSSES
    }
    assert made["logprob"] == pytest.approx(0, abs=1e-12)
    assert made["preference"] == pytest.approx(log(1 + exp(0.4)))  # beta 4, margin 0.1
    assert made["reference"] == pytest.approx(5 / 16 * (log(5 / 16) - log(1 / 4)))


def test_ss_and_lms_and_the_gap_by_hand():
    stereotype = torch.tensor([-1.0, -2.0, -3.0, -1.0])
    anti_stereotype = torch.tensor([-2.0, -1.0, -3.0, -4.0])  # the third is a tie: not a stereotype
    unrelated = torch.tensor([-3.0, -1.5, -3.0, -2.0])
    found = hits(stereotype, anti_stereotype, unrelated)
    assert found["ss"].item() == 50
    assert found["lms"].item() == 50 * (2 / 4 + 2 / 4)
    assert found["gap"].item() == pytest.approx((1 - 1 + 0 + 3) / 4)


# --- against loops
# --------------------------------------------------------------------------------------------------


def test_token_logprobs_are_a_softmax_a_position():
    logits, tokens, mask = padded()
    found = token_logprobs(logits, tokens)
    for row in range(len(LENGTHS)):
        kept = found[row][scored(mask)[row]]
        assert kept.tolist() == pytest.approx(slow_logprobs(logits, tokens, row), abs=1e-5)


def test_log_probabilities_of_a_half_precision_model_are_fp32():
    logits, tokens, _ = padded()
    found = token_logprobs(logits.bfloat16(), tokens)
    assert found.dtype == torch.float32
    assert torch.equal(found, token_logprobs(logits.bfloat16().float(), tokens))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("beta", "margin"), [(4.0, 0.1), (0.5, -1.0)])
def test_a_loss_is_that_of_each_pair_alone(name, beta, margin):
    (stereo, tokens, mask), (anti, _, _) = padded(seed=1), padded(seed=2)
    found = debias_loss(
        name,
        token_logprobs(stereo, tokens),
        scored(mask),
        token_logprobs(anti, tokens),
        scored(mask),
        beta=beta,
        margin=margin,
    )
    for row in range(len(LENGTHS)):
        pair = slow_logprobs(stereo, tokens, row), slow_logprobs(anti, tokens, row)
        assert found[row].item() == pytest.approx(slow_debias(name, *pair, beta, margin), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_sentences_of_a_pair_may_differ_in_length_and_in_what_is_scored(name):
    generator = torch.Generator().manual_seed(0)
    stereo, anti = -torch.rand(1, 5, generator=generator), -torch.rand(1, 3, generator=generator)
    chosen_s, chosen_a = (
        torch.tensor([[True, False, True, True, False]]),
        torch.tensor([[False, True, True]]),
    )
    found = debias_loss(name, stereo, chosen_s, anti, chosen_a)
    pair = stereo[0, [0, 2, 3]].tolist(), anti[0, [1, 2]].tolist()
    assert found.item() == pytest.approx(slow_debias(name, *pair, 4.0, 0.1), rel=1e-5)


def test_the_kl_retention_is_scipys_over_the_whole_vocabulary():
    (before, tokens, mask), (after, _, _) = padded(seed=1), padded(seed=2)
    found = retention_loss("kl", before, after, tokens, mask)
    for row, length in enumerate(LENGTHS):
        kls = []
        for position in range(length - 1):  # the last position predicts nothing
            p, q = (softmax(logits[row, position].double().numpy()) for logits in (before, after))
            kls.append(rel_entr(p, q).sum())
        assert found[row].item() == pytest.approx(np.mean(kls), rel=1e-4)


def test_the_reference_retention_is_one_number_a_sentence():
    (before, tokens, mask), (after, _, _) = padded(seed=1), padded(seed=2)
    found = retention_loss("reference", before, after, tokens, mask)
    for row in range(len(LENGTHS)):
        pbar = np.mean([exp(value) for value in slow_logprobs(before, tokens, row)])
        expected = pbar * (log(pbar) - np.mean(slow_logprobs(after, tokens, row)))
        assert found[row].item() == pytest.approx(expected, rel=1e-4)


def test_a_model_that_did_not_change_has_zero_kl_retention_but_not_zero_reference_retention():
    logits, tokens, mask = padded()
    assert not retention_loss("kl", logits, logits.clone(), tokens, mask).any()
    assert (retention_loss("reference", logits, logits.clone(), tokens, mask) > 0.01).all()


def test_the_kl_does_not_care_for_a_shift_of_all_logits():
    logits, tokens, mask = padded()
    assert retention_loss("kl", logits, logits + 3, tokens, mask).abs().max() < 1e-6


# --- what is scored
# -------------------------------------------------------------------------------------------------


def test_the_first_token_and_the_padding_are_not_scored():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    expected = [[True, True, True], [True, False, False], [False, False, False]]
    assert scored(mask).tolist() == expected


def test_of_a_filler_its_own_tokens_are_scored():
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    chosen = scored(mask, [(2, 4), (1,)])
    # Column j is the prediction of token j + 1.
    assert chosen.tolist() == [[False, True, False, True], [True, False, False, False]]


@pytest.mark.parametrize("name", LOSSES)
def test_what_stands_in_the_padding_changes_no_loss(name):
    losses = []
    for fill, token in ((0.0, 0), (50.0, 3)):
        (stereo, tokens, mask), (anti, _, _) = padded(1, fill, token), padded(2, fill, token)
        pair = (
            token_logprobs(stereo, tokens),
            scored(mask),
            token_logprobs(anti, tokens),
            scored(mask),
        )
        losses.append(debias_loss(name, *pair))
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", RETENTIONS)
def test_what_stands_in_the_padding_changes_no_retention(name):
    losses = []
    for fill, token in ((0.0, 0), (50.0, 3)):
        (before, tokens, mask), (after, _, _) = padded(1, fill, token), padded(2, fill, token)
        losses.append(retention_loss(name, before, after, tokens, mask))
    assert torch.equal(*losses)


@pytest.mark.parametrize("fill", NOT_FINITE)
def test_a_mean_over_places_is_untouched_by_what_is_not_finite_elsewhere_and_so_is_its_gradient(
    fill,
):
    values = torch.tensor([[1.0, 4.0, fill], [fill, 5.0, fill]], requires_grad=True)
    chosen = torch.tensor([[True, True, False], [False, True, False]])
    means = mean_over(values, chosen)
    assert means.tolist() == [2.5, 5.0]
    means.sum().backward()
    assert values.grad.tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]


def loss_and_gradient(kind: str, name: str, fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss with ``fill`` in the padding, and its gradient by the logits at positions that are not
    padding."""
    (logits, tokens, mask), (other, _, _) = padded(1, fill), padded(2, fill)
    logits.requires_grad_()
    if kind == "debias":
        chosen = scored(mask)
        loss = debias_loss(
            name, token_logprobs(logits, tokens), chosen, token_logprobs(other, tokens), chosen
        )
    else:
        loss = retention_loss(name, other, logits, tokens, mask)
    loss.sum().backward()
    return loss.detach(), logits.grad.masked_fill(~mask.bool()[:, :, None], 0.0)


EVERY_LOSS = [*(("debias", name) for name in LOSSES), *(("retention", name) for name in RETENTIONS)]


@pytest.mark.parametrize("fill", NOT_FINITE)
@pytest.mark.parametrize(("kind", "name"), EVERY_LOSS)
def test_padding_that_is_not_finite_spoils_neither_loss_nor_gradient(kind, name, fill):
    plain, spoilt = (loss_and_gradient(kind, name, content) for content in (0.0, fill))
    torch.testing.assert_close(spoilt, plain, atol=0, rtol=0)
    assert plain[1].any()


@pytest.mark.parametrize(("kind", "name"), EVERY_LOSS)
def test_the_last_position_of_a_sentence_gets_no_gradient_and_every_other_one_does(kind, name):
    _, gradient = loss_and_gradient(kind, name, 0.0)
    reached = gradient.ne(0).any(dim=-1)
    for row, length in enumerate(LENGTHS):
        assert reached[row, :length].tolist() == [True] * (length - 1) + [False]


def test_the_gradient_flows_through_both_sentences_and_both_targets():
    # Nothing is detached: d/d log p of pbar_s (log pbar_s - lbar_a) + pbar_a (log pbar_a - lbar_s),
    # one token each, is p_s (log p_s - l_a + 1) - p_a for the stereotype.
    stereo, anti = (torch.tensor([[log(p)]], requires_grad=True) for p in (0.5, 0.2))
    debias_loss("reference", stereo, all_of(stereo), anti, all_of(anti)).sum().backward()
    assert stereo.grad.item() == pytest.approx(0.5 * (log(0.5 / 0.2) + 1) - 0.2)
    assert anti.grad.item() == pytest.approx(0.2 * (log(0.2 / 0.5) + 1) - 0.5)
