"""A share of an edit: what it computes, what it is called, and what goes along."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.interventions.edits import (
    CLOSE,
    TOKENS,
    logits,
    random_delta,
    random_erasure,
    random_experts,
    random_fairmed,
)
from tests.interventions.forging import change
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.inspection.weight_directions import weight_directions
from tracelab.interventions import Experts, Stack, load_intervention, to_merged, to_peft
from tracelab.interventions.base import Intervention
from tracelab.interventions.origin import Origin
from tracelab.interventions.point_edit import PointEdit
from tracelab.interventions.stack import StackSpec
from tracelab.model.hook_points import Point

LAST = Point("resid_post", 3)


class Replaced(Intervention):
    """A person's own class, which knows nothing of strengths: the last state becomes a value."""

    kind, Spec = "replaced", StackSpec

    def __init__(self, origin, value):
        super().__init__(origin)
        self.value = value

    def edits(self, hf_model):
        return [PointEdit(LAST, lambda h: torch.full_like(h, self.value))]

    def spec(self):
        return StackSpec()

    @classmethod
    def build(cls, spec, origin):
        return cls(origin, 0.0)


def seen(model, edit):
    """The last state under an edit."""
    found = []
    with torch.no_grad(), edit.applied(model):
        keep = lambda value, hook: found.append(value.clone())  # noqa: E731
        model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.3.hook_resid_post", keep)])
    return found[0]


@pytest.mark.parametrize("strength", [-1.0, 0.25, 2.0])
def test_an_own_class_is_scaled_at_each_of_its_points(model, strength):
    edit = Replaced(Origin.of(model, [LAST]), 3.0)
    h = seen(model, edit.scaled(0))
    wanted = h + strength * (3.0 - h)
    torch.testing.assert_close(seen(model, edit.scaled(strength)), wanted)


def test_strength_zero_asks_nothing_of_an_edit_that_overflows(model):
    edit = Replaced(Origin.of(model, [LAST]), math.inf)
    assert torch.equal(logits(model, edit.scaled(0)), logits(model))


def test_a_change_of_shape_is_not_hidden_by_a_strength(model):
    edit = Replaced(Origin.of(model, [LAST]), 3.0)
    edit.edits = lambda hf_model: [PointEdit(LAST, lambda h: h[:1])]
    edit.set_strength(0.5)
    with pytest.raises(RuntimeError, match="the edit at .* made"):
        logits(model, edit)


def test_a_scaled_delta_is_the_delta_of_scaled_weights(model):
    delta, by_hand = random_delta(model), random_delta(model)
    by_hand.scale_(-0.75)
    torch.testing.assert_close(logits(model, delta.scaled(-0.75)), logits(model, by_hand), **CLOSE)
    torch.testing.assert_close(
        logits(model, delta.scaled(-0.75).whole()), logits(model, by_hand), **CLOSE
    )


def test_scaled_experts_mix_with_the_scaled_alpha(model):
    edit = random_experts(model, alpha=2.0)
    assert torch.equal(logits(model, edit.scaled(0.25)), logits(model, edit.with_alpha(0.5)))
    assert edit.scaled(0.25).with_alpha(1.0).strength == 0.25
    assert edit.scaled(0.25).expert is edit.expert  # not copied


def test_the_cut_of_experts_is_left_out_at_zero_only(model):
    edit = random_experts(model, filter_order="base_first", top_p=0.5)
    with edit.scaled(0).applied(model):
        assert model.generate(TOKENS[:1], max_new_tokens=2, verbose=False) is not None
    assert torch.equal(logits(model, edit.scaled(0)), logits(model))


def test_experts_keep_the_strength_of_the_deltas_they_are_made_of(model):
    half, by_hand = random_delta(model).scaled(0.5), random_delta(model)
    by_hand.scale_(0.5)
    found, wanted = (logits(model, Experts(each, None)) for each in (half, by_hand))
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_an_erasure_is_scaled_as_its_share_is(model):
    edit = random_erasure(model)
    wanted = logits(model, edit.with_strength(0.5))
    torch.testing.assert_close(logits(model, edit.scaled(0.5)), wanted, **CLOSE)
    assert edit.scaled(0.5).up_to(0).strength == 0.5


def test_a_fairmed_tells_of_the_change_it_makes(model):
    edit = random_fairmed(model, lam=0.5)
    found = {}
    for strength in (0.5, 1.0):
        scaled = edit.scaled(strength)
        with scaled.observed() as told:
            logits(model, scaled)
        found[strength] = next(each for each in told if each.quantity == "size").after
    first = found[1.0] > 0
    assert first.any()
    torch.testing.assert_close(found[0.5][first], 0.5 * found[1.0][first])


def test_a_logit_that_is_ruled_out_stays_so_under_a_share_of_another_edit(model):
    ruled_out = Replaced(Origin.of(model, [Point("logits")]), 0.0)
    ruled_out.edits = lambda hf_model: [
        PointEdit(Point("logits"), lambda z: z.index_fill(-1, torch.tensor([5]), -math.inf))
    ]
    share = random_experts(model).scaled(0.5)
    own = Replaced(Origin.of(model, [Point("logits")]), 0.0)
    own.edits = lambda hf_model: [PointEdit(Point("logits"), lambda z: z + 1.0)]
    own.set_strength(0.5)
    found = logits(model, Stack([ruled_out, share, own]))
    assert torch.isneginf(found[..., 5]).all()
    assert not found.isnan().any()


def test_a_stack_scales_each_member_by_its_own(model, tmp_path):
    one, two = random_delta(model).scaled(0.5), random_erasure(model)
    stack = Stack([one, two])
    half = stack.scaled(0.5)
    assert [member.strength for member in half] == [0.25, 0.5]
    assert half.name == "weight_delta × 0.25 + erasure(gender) × 0.5"
    assert torch.equal(logits(model, stack.scaled(0)), logits(model))
    assert torch.equal(logits(model, stack.scaled(1)), logits(model, stack))
    back = load_intervention(half.save(tmp_path / "half"))
    assert torch.equal(logits(model, back), logits(model, half))
    assert back.identity() == half.identity() != stack.identity()


def test_a_strength_is_attached_in_the_place_of_another(model, tokenizer):
    plain = tiny_hf("llama", len(tokenizer))
    delta = random_delta(model)
    with torch.no_grad():
        delta.attach(plain)
        handle = delta.scaled(0.5).attach(plain)
        found = plain(TOKENS).logits
        handle.close()
    torch.testing.assert_close(found, logits(model, delta.scaled(0.5)), **CLOSE)
    with delta.applied(model), pytest.raises(TracelabError, match="would act twice"):
        logits(model, delta.scaled(0.5))


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, True, 10**400])
@pytest.mark.parametrize("make", [random_delta, lambda model: Stack([])])
def test_what_is_no_finite_number_is_refused(model, make, strength):
    with pytest.raises(TracelabError, match="the strength of an edit is a finite number, not"):
        make(model).scaled(strength)


def test_two_strengths_that_multiply_beyond_all_numbers_are_refused(model):
    with pytest.raises(TracelabError, match="the strength of an edit is a finite number"):
        random_delta(model).scaled(1e200).scaled(1e200)


def test_what_was_measured_is_not_said_of_another_strength(model):
    edit = random_erasure(model)
    edit.notes = {"n_pairs": 3, "kl": 0.1, "perplexity_change": 2.0, "metrics": {}}
    assert edit.scaled(0.5).notes == {"n_pairs": 3}
    assert edit.scaled(1).notes == edit.notes
    assert edit.scaled(1).notes is not edit.notes


def test_training_a_scaled_copy_leaves_the_original(model):
    delta = random_delta(model)
    before = logits(model, delta)
    delta.scaled(0.5).scale_(3.0)
    assert torch.equal(logits(model, delta), before)


def test_a_scaled_delta_is_exported_at_its_strength(model, tmp_path):
    peft = pytest.importorskip("peft")
    delta = random_delta(model).scaled(0.5)
    wanted = logits(model, delta)
    merged = AutoModelForCausalLM.from_pretrained(to_merged(model, delta, tmp_path / "merged"))
    with torch.no_grad():
        torch.testing.assert_close(merged(TOKENS).logits, wanted, **CLOSE)
    folder = to_peft(model, delta, tmp_path / "peft")
    base = AutoModelForCausalLM.from_pretrained(
        to_merged(model, delta.scaled(0), tmp_path / "base")
    )
    with torch.no_grad():
        assert torch.allclose(base(TOKENS).logits, logits(model), atol=1e-5)
        adapted = peft.PeftModel.from_pretrained(base, folder)
        torch.testing.assert_close(adapted(TOKENS).logits, wanted, **CLOSE)
    note = json.loads((folder / "tracelab_export.json").read_text(encoding="utf-8"))
    assert note["edit"]["strength"] == 0.5


def test_the_directions_of_a_scaled_delta_have_its_size(model):
    delta = random_delta(model)
    full, half = weight_directions(model, delta), weight_directions(model, delta.scaled(0.5))
    for one, other in zip(full, half, strict=True):
        assert other["norm"] == pytest.approx(0.5 * one["norm"])


def test_only_a_strength_of_its_own_is_written_into_a_bundle(model, tmp_path):
    """So that an edit of full strength is read by earlier versions too, and another never is at
    full strength."""
    delta = random_delta(model)
    for strength, key in ((1, False), (0.5, True)):
        folder = delta.scaled(strength).save(tmp_path / "bundle")
        part = json.loads((folder / "tracelab.json").read_text(encoding="utf-8"))["part"]
        assert ("strength" in part) == key


@pytest.mark.parametrize("strength", [math.inf, "0.5", None])
def test_a_forged_strength_is_refused(model, tmp_path, strength):
    folder = random_delta(model).scaled(0.5).save(tmp_path / "bundle")
    change(folder, lambda content: content["part"].update(strength=strength))
    with pytest.raises(TracelabError, match="part.strength"):
        load_intervention(folder)


def test_a_stack_with_a_strength_is_refused(kept):
    change(kept, lambda content: content["part"].update(strength=0.5))
    with pytest.raises(TracelabError, match="stack has a strength, which only its members do"):
        load_intervention(kept)


def test_an_attribute_of_one_s_own_called_strength_is_refused(model):
    for edit in (random_delta(model), Stack([random_delta(model)])):
        with pytest.raises(TracelabError, match="call an attribute of your own by another name"):
            edit.strength = 0.5
        assert edit.strength == 1
