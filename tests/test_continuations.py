"""Continuations of prompts that are run once, against whole sequences; the prompts are BBQ's."""

from __future__ import annotations

import contextlib

import pytest
import torch

from tests.interventions.edits import random_delta, random_experts, random_fairmed
from tests.tiny import KINDS
from tracelab.datasets import BBQItem, bbq
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.bbq import FORMATS
from tracelab.interventions import FairMedConfig, Stack
from tracelab.model import continuations
from tracelab.model.continuations import continuation_logprobs, encode_continuations


def short(n: int, bias: str | None = None) -> list[BBQItem]:
    """Items that fit into a tiny model's 128 positions in any format, of many templates."""
    items = [item for item in bbq(bias) if len(item.context) < 130 and item.target_loc is not None]
    return items[:: len(items) // n][:n]


def encode_prompts(model, items, name="plain"):
    format = FORMATS[name]
    return [
        encode_continuations(model, format.prompt(i), [text for _, text in format.choices(i)])
        for i in items
    ]


def flat(found) -> torch.Tensor:
    return torch.cat([values for options in found for values in options])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_prefix_changes_nothing(tiny_model, kind, name):
    model = tiny_model(kind)
    made = encode_prompts(model, short(6), name)
    assert len({prompt.shared for prompt in made}) > 3  # padded on the left
    assert min(prompt.shared for prompt in made) > 15
    plain = flat(continuation_logprobs(model, made, share_prefix=False))
    for batch_tokens in (4000, 1):
        shared = flat(
            continuation_logprobs(model, made, share_prefix=True, batch_tokens=batch_tokens)
        )
        assert torch.allclose(shared, plain, rtol=0, atol=1e-4)
    assert plain.std() > 0.5


def test_by_default_the_prefix_is_shared_and_tokens_are_computed_once(tiny_model, monkeypatch):
    model = tiny_model("llama")
    made = encode_prompts(model, short(8))
    seen = []
    handle = model.original_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].shape.numel()), with_kwargs=True
    )
    try:
        counts = {}
        for share in (True, False, None):
            seen.clear()
            continuation_logprobs(model, made, share_prefix=share)
            counts[share] = sum(seen)
    finally:
        handle.remove()
    assert counts[True] < 0.6 * counts[False]
    assert counts[True] < counts[None] < counts[False]


def test_prompts_of_one_token_and_none_at_all(tiny_model):
    model = tiny_model("gpt2")
    made = [
        encode_continuations(model, "Who", [" is", " was it"]),
        *encode_prompts(model, short(2)),
    ]
    assert made[0].shared == 0
    plain, shared = (
        flat(continuation_logprobs(model, made, share_prefix=s)) for s in (False, True)
    )
    assert torch.allclose(plain, shared, rtol=0, atol=1e-4)
    with pytest.raises(
        TracelabError, match="no token in 'Who' or none before it: give a prompt, or prepend BOS"
    ):
        encode_continuations(model, "", ["Who"])
    assert encode_continuations(model, "", ["Who"], prepend_bos=True).firsts == (1,)


EDITS = {
    "delta": random_delta,
    "experts": lambda model: random_experts(model, alpha=0.7),
    "fairmed": random_fairmed,
    "fairmed, all positions": lambda model: random_fairmed(model, positions="all"),
    "fairmed, published": lambda model: random_fairmed(
        model, **FairMedConfig.published("gender", lam=0.3, seed=3).settings()
    ),
    "stack": lambda model: Stack(
        [random_fairmed(model), random_experts(model), random_delta(model)]
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_acts_the_same_with_a_shared_prefix(tiny_model, name):
    model = tiny_model("llama")
    made = encode_prompts(model, short(5))
    edit = EDITS[name](model)
    unedited = flat(continuation_logprobs(model, made))
    with edit.applied(model):
        plain = flat(continuation_logprobs(model, made, share_prefix=False))
        shared = flat(continuation_logprobs(model, made, share_prefix=True, batch_tokens=200))
    assert torch.allclose(plain, shared, rtol=0, atol=1e-4)
    assert (plain - unedited).abs().max() > 0.1


def test_an_edit_that_ties_prompt_and_answer_together_is_scored_the_plain_way(tiny_model):
    model = tiny_model("llama")
    made = encode_prompts(model, short(5))
    with random_fairmed(model, positions="all", norm="code", grad="sign", lam=0.3).applied(model):
        plain, shared, default = (
            flat(continuation_logprobs(model, made, share_prefix=s)) for s in (False, True, None)
        )
    assert (plain - shared).abs().max() > 0.01
    assert torch.equal(default, plain)


def test_a_cache_that_does_not_do_what_it_should_is_noticed(tiny_model, monkeypatch):
    model = tiny_model("llama")
    made = encode_prompts(model, short(3))
    plain = flat(continuation_logprobs(model, made, share_prefix=False))
    right = continuations._shared
    monkeypatch.setattr(
        continuations,
        "_shared",
        lambda *args: [[values + 0.01 for values in options] for options in right(*args)],
    )
    assert torch.equal(flat(continuation_logprobs(model, made)), plain)


@pytest.mark.parametrize("edited", [False, True])
def test_on_the_real_model_a_shared_prefix_changes_nothing(real_model, edited):
    made = encode_prompts(real_model, short(3, "gender"))
    edit = (
        random_delta(real_model, layers=(10, 20), scale=0.02).applied(real_model)
        if edited
        else None
    )
    with edit or contextlib.nullcontext():
        plain, shared = (
            flat(continuation_logprobs(real_model, made, share_prefix=s)) for s in (False, True)
        )
    assert torch.allclose(plain, shared, rtol=0, atol=1e-4)


def test_no_prompts_have_no_values(tiny_model):
    assert continuation_logprobs(tiny_model("llama"), []) == []


def test_a_cache_that_breaks_is_no_error(tiny_model, monkeypatch):
    model = tiny_model("llama")
    made = encode_prompts(model, short(3))
    plain = flat(continuation_logprobs(model, made, share_prefix=False))

    def broken(*args):
        raise NotImplementedError("this architecture has no cache")

    monkeypatch.setattr(continuations, "_shared", broken)
    assert torch.equal(flat(continuation_logprobs(model, made)), plain)
