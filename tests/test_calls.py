"""What hooks can know of the pass under way, whatever becomes of the pass."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

from tests.interventions.edits import random_delta, random_experts, random_fairmed
from tests.tiny import tiny_hf
from tracelab.model.forward_pass import Call, current_call, reading, unwatch, watch

TOKENS = torch.arange(40, 52).reshape(2, 6)
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
SHAPE = torch.Size((2, 6, 32))
CPU = torch.device("cpu")


@pytest.fixture
def plain(tokenizer):
    return tiny_hf("llama", len(tokenizer))


@contextlib.contextmanager
def noting(hf_model, layer=1):
    """The calls that a hook inside the model sees."""
    seen: list[Call] = []
    handle = hf_model.model.layers[layer].register_forward_hook(
        lambda *_: seen.append(current_call(hf_model))
    )
    try:
        yield seen
    finally:
        handle.remove()


def test_watching_changes_nothing_and_leaves_nothing(plain):
    with torch.no_grad():
        before = plain(TOKENS).logits
        watch(plain)
        assert torch.equal(plain(TOKENS).logits, before)
        unwatch(plain)
        assert torch.equal(plain(TOKENS).logits, before)
    assert not plain._forward_hooks
    assert not plain._forward_pre_hooks


def test_watching_twice_records_a_pass_once_and_until_both_have_ended(plain):
    with torch.no_grad(), noting(plain) as seen:
        watch(plain)
        watch(plain)
        plain(TOKENS)
        unwatch(plain)
        plain(TOKENS)
        unwatch(plain)
        plain(TOKENS)
    assert [call.input_ids is not None for call in seen] == [True, True, False]
    assert not plain._forward_hooks


def test_a_pass_is_told_as_the_model_was_given_it(plain):
    watch(plain)
    positions = torch.arange(6).expand(2, 6)
    with torch.no_grad(), noting(plain) as seen:
        plain(TOKENS, attention_mask=LEFT, position_ids=positions)
        plain(TOKENS, LEFT, positions)  # by place
        plain(inputs_embeds=plain.get_input_embeddings()(TOKENS), attention_mask=LEFT)
        cache = plain(TOKENS[:, :4]).past_key_values
        with reading(3):
            plain(TOKENS[:, 4:], past_key_values=cache)
    for call in seen[:2]:
        assert torch.equal(call.input_ids, TOKENS)
        assert torch.equal(call.attention_mask, LEFT)
        assert torch.equal(call.position_ids, positions)
    assert seen[2].input_ids is None
    assert torch.equal(seen[2].attention_mask, LEFT)
    assert [call.past_length for call in seen] == [0, 0, 0, 0, 4]
    assert seen[4].reading.first == 3
    assert seen[3].reading is None


def test_a_model_called_within_its_own_pass_has_a_call_of_its_own(plain):
    watch(plain)
    seen = []

    def call_again(*_):
        call = current_call(plain)
        if call.input_ids.shape == TOKENS.shape:
            plain(TOKENS[:1, :3])
        seen.append((tuple(call.input_ids.shape), current_call(plain) is call))

    plain.model.layers[0].register_forward_hook(call_again)
    with torch.no_grad():
        plain(TOKENS)
    assert seen == [((1, 3), True), ((2, 6), True)]


def test_a_pass_that_failed_is_no_longer_under_way(plain):
    watch(plain)

    def fail(*_):
        raise ZeroDivisionError

    handle = plain.model.layers[2].register_forward_hook(fail)
    with torch.no_grad():
        with pytest.raises(ZeroDivisionError):
            plain(TOKENS, attention_mask=LEFT)
        assert current_call(plain).input_ids is None
        handle.remove()
        with noting(plain) as seen:
            plain(TOKENS[:1])
    assert seen[0].input_ids.shape == (1, 6)
    assert seen[0].attention_mask is None


@pytest.mark.parametrize("where", ["under an edit", "outside"])
def test_a_pass_that_was_interrupted_is_no_longer_under_way(tiny_model, where):
    model = tiny_model("llama")

    def interrupt(value, hook):
        raise KeyboardInterrupt  # not an Exception: torch runs no hook after it

    with (
        contextlib.suppress(KeyboardInterrupt),
        random_delta(model).applied(model)
        if where == "under an edit"
        else contextlib.nullcontext(),
        model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", interrupt)]),
    ):
        model(TOKENS, attention_mask=LEFT)
    assert current_call(model.original_model).input_ids is None


def test_a_pass_inside_another_that_was_interrupted_leaves_the_outer_one_under_way(plain):
    watch(plain)
    seen = []

    def interrupt(*_):
        if current_call(plain).input_ids.shape != TOKENS.shape:
            raise KeyboardInterrupt

    def call_again(*_):
        if current_call(plain).input_ids.shape == TOKENS.shape:
            with contextlib.suppress(KeyboardInterrupt):
                plain(TOKENS[:1, :3])
            seen.append(tuple(current_call(plain).input_ids.shape))

    plain.model.layers[0].register_forward_hook(call_again)
    plain.model.layers[1].register_forward_hook(interrupt)
    with torch.no_grad():
        plain(TOKENS, attention_mask=LEFT)
    assert seen == [(2, 6)]
    assert current_call(plain).input_ids is None


def test_a_copy_of_a_watched_model_runs_and_is_watched_by_itself(plain):
    watch(plain)
    twin = copy.deepcopy(plain)
    with torch.no_grad(), noting(plain) as own, noting(twin) as others:
        assert torch.equal(twin(TOKENS).logits, plain(TOKENS).logits)
    assert own[0] is not others[0]


@pytest.mark.parametrize("first", ["delta", "experts"])
def test_edits_attached_to_one_model_can_be_closed_in_any_order(tiny_model, plain, first):
    model = tiny_model("llama")
    delta, experts = random_delta(model), random_experts(model)
    with torch.no_grad():
        with delta.attach(plain):
            only_delta = plain(TOKENS, attention_mask=LEFT).logits
        with experts.attach(plain):
            only_experts = plain(TOKENS, attention_mask=LEFT).logits
        handles = {"delta": delta.attach(plain), "experts": experts.attach(plain)}
        handles.pop(first).close()
        left = plain(TOKENS, attention_mask=LEFT).logits
        handles.popitem()[1].close()
    assert torch.equal(left, only_experts if first == "delta" else only_delta)
    assert not plain._forward_hooks


@pytest.mark.parametrize("name", ["fairmed", "experts"])
def test_a_mask_given_by_place_counts_as_one_given_by_name(tiny_model, plain, name):
    model = tiny_model("llama")
    edit = (
        random_experts(model) if name == "experts" else random_fairmed(model, norm="code", lam=1.0)
    )
    with torch.no_grad(), edit.attach(plain):
        by_name, by_place = plain(TOKENS, attention_mask=LEFT).logits, plain(TOKENS, LEFT).logits
        without = plain(TOKENS).logits
    assert torch.equal(by_name, by_place)
    assert (by_name - without)[0, 2:].abs().max() > 0.1


def test_outside_a_pass_every_position_is_real_and_read(plain):
    call = current_call(plain)
    assert call.real(SHAPE, CPU).all()
    assert call.read(SHAPE, CPU).all()
    assert call.index(SHAPE, CPU).tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    with reading(4):
        assert current_call(plain).read(SHAPE, CPU).tolist() == [[False] * 4 + [True] * 2] * 2


def test_padding_on_the_left_is_neither_real_nor_read_nor_counted():
    call = Call(attention_mask=LEFT)
    assert torch.equal(call.real(SHAPE, CPU), LEFT.bool())
    assert torch.equal(call.read(SHAPE, CPU), LEFT.bool())
    assert call.index(SHAPE, CPU).tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("split", [1, 2, 5])
def test_new_columns_after_a_cache_are_the_last_of_the_whole_text(split):
    with reading(torch.tensor([3, 4]), generating=True):
        whole = current_call(torch.nn.Identity())
    whole.attention_mask = LEFT
    rest = Call(attention_mask=LEFT, past_length=split, reading=whole.reading)
    shape = torch.Size((2, 6 - split, 32))
    for name in ("real", "read", "index"):
        expected = getattr(whole, name)(SHAPE, CPU)[:, split:]
        assert torch.equal(getattr(rest, name)(shape, CPU), expected), name
    assert whole.read(SHAPE, CPU).tolist() == [[False] * 3 + [True] * 3, [False] * 4 + [True] * 2]


@pytest.mark.parametrize(("shift", "columns"), [(0, [3, 4, 5]), (1, [4, 5]), (-2, [2, 3, 4, 5])])
def test_reading_is_shifted_within_the_text_only(shift, columns):
    with reading(3):
        call = current_call(torch.nn.Identity())
    call.attention_mask = LEFT
    read = call.read(SHAPE, CPU, shift=shift)
    assert read[0].nonzero().flatten().tolist() == columns
    with reading(0):
        call = current_call(torch.nn.Identity())
    call.attention_mask = LEFT
    assert torch.equal(call.read(SHAPE, CPU, shift=-2), LEFT.bool())


def test_readings_nest_and_end_also_after_an_error(plain):
    with reading(1):
        with contextlib.suppress(ZeroDivisionError), reading(2, generating=True):
            assert current_call(plain).reading.first == 2
            assert current_call(plain).reading.generating
            raise ZeroDivisionError
        assert current_call(plain).reading.first == 1
    assert current_call(plain).reading is None
