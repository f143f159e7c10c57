"""Experts of a small model that shift another target with its vocabulary."""

from __future__ import annotations

import pytest
import torch

import tracelab
from tests.interventions.edits import CLOSE, TOKENS, bridged, logits, random_delta, random_experts
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError

PROMPTS = ["The nurse said that", "He", "My neighbours from the north are all"]


@pytest.fixture
def of_small(small):
    edit = random_experts(small, alpha=0.7)
    edit.expert_base = small
    return edit


def test_experts_of_a_small_model_shift_a_target_with_its_vocabulary(model, small, of_small):
    expected = logits(model) + 0.7 * (
        logits(small, of_small.expert) - logits(small, of_small.anti_expert)
    )
    torch.testing.assert_close(logits(model, of_small), expected, **CLOSE)
    own = random_experts(model, alpha=0.7)
    assert (logits(model, own) - expected).abs().max() > 1


def test_another_targets_own_logits_stand_in_for_a_missing_expert(model, small):
    edit = random_experts(small, anti=False)
    edit.expert_base = small
    torch.testing.assert_close(logits(model, edit), logits(small, edit.expert), **CLOSE)


def test_the_small_model_is_no_part_of_the_edit(small, of_small):
    assert of_small.expert_base is small
    assert set(of_small.state_dict()) == set(random_experts(small).state_dict())
    assert not any(
        parameter is p for parameter in small.parameters() for p in of_small.parameters()
    )
    other = of_small.with_alpha(2.0)
    other.expert_base = None
    assert other.expert_base is None
    assert of_small.expert_base is small


def test_on_a_plain_target_experts_of_a_small_model_do_the_same(model, of_small, tokenizer):
    plain = tiny_hf("llama", len(tokenizer))
    with torch.no_grad(), of_small.attach(plain):
        attached = plain(TOKENS).logits
    torch.testing.assert_close(attached, logits(model, of_small), **CLOSE)


def test_text_of_a_target_with_a_small_models_experts_is_the_same_with_and_without_a_cache(
    model, of_small
):
    with of_small.applied(model):
        cached, uncached = (
            tracelab.generate(
                model, PROMPTS, max_new_tokens=5, do_sample=False, use_cache=use
            ).frame
            for use in (True, False)
        )
    assert cached["continuation"].tolist() == uncached["continuation"].tolist()


def test_a_hook_or_edit_of_the_small_model_does_not_act_on_its_experts(model, small, of_small):
    expected = logits(model, of_small)
    with random_delta(small, seed=9).applied(small):
        assert torch.equal(logits(model, of_small), expected)


def test_a_target_with_another_vocabulary_is_refused(small, of_small, tokenizer):
    padded = bridged(len(tokenizer) + 64, 2, "padded")
    with pytest.raises(
        TracelabError, match="the experts' base small has 49152 logits, padded has 49216"
    ):
        of_small.hooks(padded)
    with pytest.raises(TracelabError, match="a vocabulary of 49152 tokens, the model one of 49216"):
        of_small.attach(tiny_hf("llama", len(tokenizer) + 64))
    other = bridged(len(tokenizer), 2, "renamed")
    other.tokenizer.add_tokens(["<another>"])
    with pytest.raises(
        TracelabError, match="the experts' base small has another vocabulary than renamed"
    ):
        of_small.hooks(other)


def test_without_its_base_the_target_itself_must_be_what_the_experts_are_of(model, small):
    edit = random_experts(small)
    with pytest.raises(
        TracelabError, match="made for small with weights .* tiny-llama has weights"
    ):
        edit.hooks(model)
    with pytest.raises(
        TracelabError, match="made for small with weights .* tiny-llama has weights"
    ):
        edit.expert_base = model
    assert edit.expert_base is None
