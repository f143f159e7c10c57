"""What every intervention promises: exact removal, composition, caches, batches, dtypes, plain
transformers."""

from __future__ import annotations

import contextlib

import pytest
import torch
from transformers import AutoTokenizer

from tests.interventions.edits import random_delta, random_erasure, random_experts, random_fairmed
from tests.tiny import KINDS, tiny_hf
from tracelab.errors import TracelabError
from tracelab.interventions import Stack, WeightDelta
from tracelab.interventions.training.finetune import frozen
from tracelab.model import assets
from tracelab.model.hook_points import LINEAR_MAPS
from tracelab.model.load import from_hf

TOKENS = torch.arange(40, 52).reshape(2, 6)

# Five steps: random probers are rough, and more steps amplify the rounding between two
# implementations.
EDITS = {
    "delta": random_delta,
    "erasure": random_erasure,
    "experts": random_experts,
    # On these rough probers a step by the slope can enlarge the rounding between two backends to
    # 3e-4; such steps are in "fairmed-adaptive" and "stack".
    "fairmed": lambda model: random_fairmed(model, lam=2.0, steps=5, step="fixed"),
    "fairmed-adaptive": lambda model: random_fairmed(model, lam=2.0, steps=3, radius="adaptive"),
    "fairmed-code": lambda model: random_fairmed(
        model, lam=1.0, norm="code", grad="sign", init="random"
    ),
    "fairmed-random": lambda model: random_fairmed(model, lam=2.0, steps=5, direction="random"),
    "stack": lambda model: Stack(
        [random_fairmed(model, lam=2.0, steps=5), random_delta(model), random_experts(model)]
    ),
}
CAPPED = {"gemma2"}  # its returned logits are not a hook point


def usable(kind: str, name: str) -> bool:
    return not (kind in CAPPED and name in {"experts", "stack"})


@pytest.fixture(params=EDITS)
def edit_name(request):
    return request.param


@pytest.fixture(params=[name for name in EDITS if name != "fairmed-code"])
def causal_edit_name(request):
    """All but the released code's geometry, which couples the positions of a forward pass."""
    return request.param


@torch.no_grad()
def logits(model, tokens=TOKENS, **kwargs):
    return model(tokens, **kwargs)


def test_an_edit_changes_the_logits_and_leaves_the_model_bit_for_bit_as_it_was(
    tiny_model, edit_name
):
    model = tiny_model("llama")
    before = logits(model)
    with EDITS[edit_name](model).applied(model):
        inside = logits(model)
    assert (inside - before).abs().max() > 0.1
    assert torch.equal(logits(model), before)
    assert not model.list_hooks()


def test_an_exception_inside_leaves_the_model_bit_for_bit_as_it_was(tiny_model, edit_name):
    model = tiny_model("llama")
    before = logits(model)

    def fail(value, hook):
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        EDITS[edit_name](model).applied(model),
        model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", fail)]),
    ):
        logits(model)
    assert not model.list_hooks()
    assert torch.equal(logits(model), before)


def test_hooks_for_run_with_hooks_do_what_applied_does(tiny_model, edit_name):
    model = tiny_model("llama")
    edit = EDITS[edit_name](model)
    with edit.applied(model):
        inside = logits(model)
    with torch.no_grad():
        assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=edit.hooks(model)), inside)


@pytest.mark.parametrize("kind", KINDS)
def test_attached_to_plain_transformers_an_edit_gives_the_logits_of_the_bridge(
    kind, tokenizer, edit_name
):
    if not usable(kind, edit_name):
        pytest.skip("the logits of this architecture are not a hook point")
    plain = tiny_hf(kind, len(tokenizer))
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf(kind, len(tokenizer)), own, model_id=f"twin-{kind}")
    edit = EDITS[edit_name](model)
    with edit.applied(model):
        bridged = logits(model)
    with torch.no_grad():
        before = plain(TOKENS).logits
        with edit.attach(plain):
            attached = plain(TOKENS).logits
        after = plain(TOKENS).logits
    assert (bridged - logits(model)).abs().max() > 0.1
    torch.testing.assert_close(attached, bridged, atol=1e-4, rtol=1e-4)
    assert torch.equal(before, after)


def test_gemma2s_capped_logits_are_refused_on_the_bridge_and_served_by_attach(tokenizer):
    plain = tiny_hf("gemma2", len(tokenizer))
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf("gemma2", len(tokenizer)), own, model_id="capped")
    edit = random_experts(model)
    with pytest.raises(TracelabError, match=r"unembed\.hook_out cannot be used .* attach"):
        edit.hooks(model)
    with torch.no_grad():
        z = plain(TOKENS).logits
        with edit.expert.attach(plain):
            plus = plain(TOKENS).logits
        with edit.anti_expert.attach(plain):
            minus = plain(TOKENS).logits
        for hf_model in (plain, model.original_model):
            with edit.attach(hf_model):
                torch.testing.assert_close(
                    hf_model(TOKENS).logits, z + plus - minus, atol=1e-4, rtol=1e-4
                )


def test_edits_nest_and_a_stack_is_the_edits_one_inside_the_other(tiny_model):
    model = tiny_model("llama")
    first, second = random_fairmed(model, lam=2.0), random_delta(model)
    with Stack([first, second]).applied(model):
        stacked = logits(model)
    with first.applied(model), second.applied(model):
        nested = logits(model)
    assert torch.equal(stacked, nested)


def test_an_empty_stack_and_a_zero_delta_are_the_unedited_model_bit_for_bit(tiny_model):
    model = tiny_model("llama")
    before = logits(model)
    for edit in (
        Stack([]),
        WeightDelta.low_rank(model, layers=[0, 1], modules=["mlp.in", "attn.q"]),
    ):
        with edit.applied(model):
            assert torch.equal(logits(model), before)


def test_an_empty_stack_and_a_zero_delta_are_the_real_model_bit_for_bit(real_model):
    before = logits(real_model)
    for edit in (Stack([]), WeightDelta.low_rank(real_model, layers=[3, 29], rank=None)):
        with edit.applied(real_model):
            assert torch.equal(logits(real_model), before)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_steps_with_a_cache_give_the_logits_of_the_whole_text(tiny_model, kind, causal_edit_name):
    model = tiny_model(kind)
    with EDITS[causal_edit_name](model).applied(model), torch.no_grad():
        whole = model(TOKENS)
        first, cache = model(TOKENS[:, :3], return_type="logits_and_cache", use_past_kv_cache=True)
        second, cache = model(TOKENS[:, 3:5], return_type="logits_and_cache", past_key_values=cache)
        third, _ = model(TOKENS[:, 5:], return_type="logits_and_cache", past_key_values=cache)
    torch.testing.assert_close(
        torch.cat([first, second, third], dim=1), whole, atol=1e-4, rtol=1e-4
    )


def test_greedy_text_is_the_same_with_and_without_a_cache(tiny_model, causal_edit_name):
    model = tiny_model("llama")
    options = {"max_new_tokens": 8, "do_sample": False, "verbose": False, "stop_at_eos": False}
    with EDITS[causal_edit_name](model).applied(model):
        cached = model.generate(TOKENS, **options)
        uncached = model.generate(TOKENS, use_past_kv_cache=False, **options)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, model.generate(TOKENS, **options))


def test_a_row_does_not_depend_on_its_batch_or_on_padding_at_either_side(tiny_model, edit_name):
    model = tiny_model("llama")
    text = TOKENS[:1, :4]
    with EDITS[edit_name](model).applied(model):
        alone = logits(model, text)[0]
        tokens = torch.stack([torch.cat([text[0], torch.zeros(2, dtype=torch.long)]), TOKENS[1]])
        mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
        right = logits(model, tokens, attention_mask=mask)[0, :4]
        tokens[0], mask[0] = tokens[0].roll(2), mask[0].roll(2)
        left = logits(model, tokens, attention_mask=mask)[0, 2:]
    torch.testing.assert_close(right, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left, alone, atol=1e-4, rtol=1e-4)


def test_in_bf16_the_output_stays_bf16_and_near_fp32(tokenizer, edit_name):
    def make(dtype):
        own = AutoTokenizer.from_pretrained(assets.model_dir())
        return from_hf(tiny_hf("llama", len(tokenizer)).to(dtype), own, model_id="bf16")

    model, exact = make(torch.bfloat16), make(torch.float32)
    edit = EDITS[edit_name](exact)
    with edit.applied(model), edit.applied(exact):
        low, high = logits(model), logits(exact)
    assert low.dtype == torch.bfloat16
    agreement = torch.corrcoef(torch.stack([low.float().flatten(), high.flatten()]))[0, 1]
    assert agreement > 0.95


def test_edited_positions_do_not_reach_back(tiny_model, causal_edit_name):
    model = tiny_model("llama")
    with EDITS[causal_edit_name](model).applied(model):
        whole, part = logits(model), logits(model, TOKENS[:, :4])
    torch.testing.assert_close(whole[:, :4], part, atol=1e-4, rtol=1e-4)


def test_another_model_is_refused_by_name_unless_the_mismatch_is_allowed(
    tiny_model, tokenizer, edit_name
):
    model = tiny_model("llama")
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    other = from_hf(tiny_hf("llama", len(tokenizer), seed=1), own, model_id="other")
    edit = EDITS[edit_name](model)
    with pytest.raises(TracelabError, match=r"made for tiny-llama .* other has weights"):
        edit.hooks(other)
    for part in edit.modules():
        part.allow_mismatch = True
    assert edit.hooks(other)
    shallow = tiny_hf("llama", len(tokenizer))
    shallow.config.num_hidden_layers = 3
    shallow.model.layers = shallow.model.layers[:3]
    with pytest.raises(TracelabError, match=r"made for tiny-llama .* shallow has"):
        edit.hooks(from_hf(shallow, own, model_id="shallow"))


def test_a_hook_of_the_users_own_still_fires_once_a_pass(tiny_model, edit_name):
    model, seen = tiny_model("llama"), []
    with (
        EDITS[edit_name](model).applied(model),
        model.hooks(
            fwd_hooks=[("blocks.1.hook_resid_post", lambda value, hook: seen.append(value.shape))]
        ),
    ):
        logits(model)
    assert len(seen) == 1


def test_gradients_pass_an_edit_into_what_lies_before_it(tiny_model, edit_name):
    model = tiny_model("llama")
    shift = torch.zeros(model.cfg.d_model, requires_grad=True)
    with (
        frozen(model),  # other tests share it
        EDITS[edit_name](model).applied(model),
        model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: value + shift)]),
    ):
        model(TOKENS)[:, -1].log_softmax(-1)[:, 7].sum().backward()
    assert shift.grad is not None
    assert shift.grad.abs().sum() > 0


def test_attaching_that_fails_leaves_no_hook(tiny_model, tokenizer):
    model = tiny_model("gpt2")
    edit = random_delta(model, modules=("mlp.out", "attn.q"))
    plain = tiny_hf("gpt2", len(tokenizer))
    with pytest.raises(TracelabError, match=r"no module 'transformer\.h\.1\.attn\.q'"):
        edit.attach(plain)
    hooked = [m for m in plain.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked


def test_an_attached_edit_can_be_kept_and_closed(tiny_model, tokenizer):
    plain = tiny_hf("llama", len(tokenizer))
    edit = random_delta(tiny_model("llama"))
    with torch.no_grad():
        before = plain(TOKENS).logits
        with contextlib.suppress(ZeroDivisionError):
            handle = edit.attach(plain)
            assert not torch.equal(plain(TOKENS).logits, before)
            handle.close()
        assert torch.equal(plain(TOKENS).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_of_every_linear_map_moves_the_bridge_as_it_moves_plain_transformers(
    tiny_model, tokenizer, kind
):
    model, plain = tiny_model(kind), tiny_hf(kind, len(tokenizer))
    joint = {"gpt2", "gpt_neox"}  # query, key and value are one module there
    before, served = logits(model), 0
    for module in LINEAR_MAPS:
        if f"blocks.1.{module}.hook_in" not in model.hook_dict:
            continue
        edit = random_delta(model, modules=(module,), layers=(1,))
        with edit.applied(model):
            bridged = logits(model)
        assert (bridged - before).abs().max() > 1, module
        if kind in joint and module in {"attn.q", "attn.k", "attn.v"}:
            with pytest.raises(TracelabError, match="computed together with others"):
                edit.attach(plain)
            continue
        with torch.no_grad(), edit.attach(plain):
            torch.testing.assert_close(plain(TOKENS).logits, bridged, atol=1e-4, rtol=1e-4)
        served += 1
    assert served >= 3
