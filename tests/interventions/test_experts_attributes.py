"""Experts of several attributes: each bias type that there is data of, and their weighted sum."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from tests.interventions.edits import CLOSE, logits, random_delta, random_experts
from tracelab.datasets import expert_texts
from tracelab.errors import TracelabError
from tracelab.interventions import Experts, ExpertsConfig, FinetuneConfig

BIASES = Experts.biases


def three(model) -> list[Experts]:
    return [
        random_experts(model, bias="gender"),
        Experts(random_delta(model, seed=3), random_delta(model, seed=4), bias="race"),
        Experts(None, random_delta(model, seed=5), bias="religion"),
    ]


def test_together_is_the_weighted_sum_of_shifts_of_the_unedited_logits_in_any_order(model):
    edits, alphas = three(model), (0.5, -1.0, 2.0)
    z = logits(model)
    shifts = [logits(model, edit.with_alpha(1.0)) - z for edit in edits]
    expected = z + sum(a * shift for a, shift in zip(alphas, shifts, strict=True))
    assert all(shift.abs().max() > 0.5 for shift in shifts)
    for order in permutations(range(3)):
        stack = Experts.together([edits[i] for i in order], [alphas[i] for i in order])
        torch.testing.assert_close(logits(model, stack), expected, **CLOSE)


def test_weights_of_0_leave_the_model_bit_for_bit_and_one_alone_is_its_edit(model):
    edits = three(model)
    assert torch.equal(logits(model, Experts.together(edits, [0, 0, 0])), logits(model))
    alone = Experts.together(edits, [0, 1.5, 0])
    assert torch.equal(logits(model, alone), logits(model, edits[1].with_alpha(1.5)))


def test_another_weight_shares_the_tuned_deltas_and_leaves_the_edit_as_it_was(model):
    edit = random_experts(model, alpha=1.0)
    other = edit.with_alpha(0.25)
    assert other.expert is edit.expert
    assert other.anti_expert is edit.anti_expert
    assert (edit.config.alpha, other.config.alpha) == (1.0, 0.25)
    assert Experts.together([edit], [3.0]).name == other.with_alpha(3.0).name


def test_weights_that_do_not_fit_the_edits_are_refused(model):
    with pytest.raises(TracelabError, match="each of 3 experts needs one alpha: 2 were given"):
        Experts.together(three(model), [1.0, 2.0])
    with pytest.raises(TracelabError, match="alpha is a finite number, not nan"):
        Experts.together(three(model)[:1], [float("nan")])


@pytest.mark.slow
def test_experts_of_every_bias_type_are_tuned_on_the_real_model_and_mixed_together(real_model):
    training = FinetuneConfig(rank=2, modules=("mlp.out",), lr=5e-3)
    edits = [
        Experts.fit(
            real_model,
            expert_texts(bias, limit=16),
            ExpertsConfig(training=training),
            layers=[28, 29],
        )
        for bias in BIASES
    ]
    z = logits(real_model)
    shifts = [logits(real_model, edit) - z for edit in edits]
    assert [edit.bias for edit in edits] == ["gender", "race", "religion", "orientation"]
    assert all(shift.abs().max() > 0.01 for shift in shifts)
    stack = Experts.together(edits, [0.5] * len(edits))
    expected = z + 0.5 * sum(shifts)
    torch.testing.assert_close(logits(real_model, stack), expected, atol=1e-2, rtol=1e-3)
