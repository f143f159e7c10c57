"""An edit is on once or not at all, and leaving takes it off whatever a notebook's cells did."""

from __future__ import annotations

import pytest
import torch

from tests.interventions.edits import TOKENS, random_delta, random_experts, random_fairmed
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.interventions import Stack, load_intervention
from tracelab.model.hooked import hooks_on

EDITS = {"fairmed": random_fairmed, "experts": random_experts, "weight_delta": random_delta}


@pytest.fixture
def plain(tokenizer):
    return tiny_hf("llama", len(tokenizer))


def logits_of(plain):
    with torch.no_grad():
        return plain(TOKENS).logits


@pytest.mark.parametrize("kind", EDITS)
def test_a_cell_that_attaches_run_twice_edits_once_and_closing_restores(
    model, plain, kind, tmp_path
):
    edit = EDITS[kind](model)
    edit.save(tmp_path / "kept")
    before = logits_of(plain)
    handle = edit.attach(plain)
    once = logits_of(plain)
    assert not torch.equal(once, before)
    handle = edit.attach(plain)
    assert torch.equal(logits_of(plain), once)
    handle = load_intervention(tmp_path / "kept").attach(plain)  # the cell that loads it run again
    assert torch.equal(logits_of(plain), once)
    handle.close()
    assert torch.equal(logits_of(plain), before)
    assert not plain._forward_hooks


def test_an_edit_attached_within_a_stack_replaces_the_one_alone(model, plain):
    edit, other = random_delta(model), random_delta(model, seed=1)
    edit.attach(plain)
    both = Stack([edit, other]).attach(plain)
    with torch.no_grad():
        seen = plain(TOKENS).logits
    both.close()
    with Stack([edit, other]).attach(plain):
        assert torch.equal(logits_of(plain), seen)
    assert not hooks_on(plain)


def test_other_edits_stay_attached_beside(model, plain):
    first, second = random_delta(model), random_delta(model, seed=1)
    with first.attach(plain), second.attach(plain):
        both = logits_of(plain)
    with Stack([first, second]).attach(plain):
        assert torch.allclose(logits_of(plain), both)


@pytest.mark.parametrize("kind", EDITS)
def test_the_same_edit_inside_its_own_block_is_refused_and_the_model_is_restored(model, kind):
    edit = EDITS[kind](model)
    with torch.no_grad():
        before = model(TOKENS)
        for inner in (edit, EDITS[kind](model), Stack([edit])):
            with edit.applied(model):
                once = model(TOKENS)
                with pytest.raises(TracelabError, match="would act twice"), inner.applied(model):
                    pass
                with pytest.raises(TracelabError, match="would act twice"):
                    edit.attach(model.original_model)
                assert torch.equal(model(TOKENS), once)
        assert torch.equal(model(TOKENS), before)
    assert not hooks_on(model)


def test_a_block_can_be_entered_again_after_it_was_left_and_not_within_itself(model, plain):
    edit = random_delta(model)
    for handle, run in (
        (edit.applied(model), lambda: model(TOKENS)),
        (edit.attach(plain), lambda: plain(TOKENS).logits),
    ):
        seen = []
        with torch.no_grad():
            for _ in range(2):
                with handle:
                    seen.append(run())
                    with pytest.raises(TracelabError, match="was entered and not left"), handle:
                        pass
                    assert torch.equal(run(), seen[0])
            after = run()
        assert torch.equal(*seen)
        assert not torch.equal(after, seen[0])


def test_closing_twice_or_a_handle_that_was_replaced_does_nothing(model, plain):
    edit, before = random_delta(model), logits_of(plain)
    old, new = edit.attach(plain), edit.attach(plain)
    once = logits_of(plain)
    old.close()
    assert torch.equal(logits_of(plain), once)
    new.close()
    new.close()
    assert torch.equal(logits_of(plain), before)


def test_a_hook_of_ones_own_that_an_edit_made_counts_as_the_edit(model):
    edit = random_delta(model)
    for name, function in edit.hooks(model):
        model.add_hook(name, function)
    with pytest.raises(TracelabError, match="would act twice"), edit.applied(model):
        pass
    model.reset_hooks()
    with edit.applied(model):
        pass


def test_an_edit_at_another_strength_is_the_same_edit(model, plain):
    strong, before = random_experts(model, alpha=0.7), logits_of(plain)
    weak = strong.with_alpha(0.2)
    strong.attach(plain)
    handle = weak.attach(plain)  # the cell run again after its number was changed
    assert [hook.edit for hook in hooks_on(plain)] == [weak]
    handle.close()
    assert torch.equal(logits_of(plain), before)
    fairmed = random_fairmed(model)
    for first, second in (
        (strong, weak),
        (fairmed, fairmed.with_config(fairmed.config.replace(lam=fairmed.config.lam + 1))),
    ):
        with (
            first.applied(model),
            pytest.raises(TracelabError, match="would act twice"),
            second.applied(model),
        ):
            pass


def test_an_edit_attached_within_its_own_block_is_refused_and_the_block_stays(model, plain):
    edit, before = random_delta(model), logits_of(plain)
    with edit.attach(plain):
        once = logits_of(plain)
        with pytest.raises(TracelabError, match="would act twice"):
            edit.attach(plain)
        assert torch.equal(logits_of(plain), once)
    assert torch.equal(logits_of(plain), before)


def test_a_member_attached_after_its_stack_does_not_take_the_other_members_off(model, plain):
    edit, other = random_delta(model), random_delta(model, seed=1)
    both = Stack([edit, other]).attach(plain)
    seen = logits_of(plain)
    with pytest.raises(TracelabError, match="would act twice"):
        edit.attach(plain)
    assert torch.equal(logits_of(plain), seen)
    both.close()
    assert not hooks_on(plain)
