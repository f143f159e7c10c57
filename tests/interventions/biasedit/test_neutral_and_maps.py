"""Retention on neutral text, shifts of several linear maps, intersentence records, the schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.interventions.biasedit.models import (
    OWN,
    SMALL,
    TRAIN,
    Twin,
    dense_delta,
    random_shifts,
    triple_model,
)
from tracelab.datasets import development_sentences
from tracelab.datasets.records import Sentence
from tracelab.datasets.stereoset import StereoSetRecord
from tracelab.interventions import BiasEdit, BiasEditConfig, WeightDelta
from tracelab.interventions.biasedit.biasedit import _schedule
from tracelab.interventions.biasedit.triple_model import N_RETAINED, TripleModel
from tracelab.interventions.training.development import NEUTRAL_TOKENS
from tracelab.interventions.training.triple_losses import retention_loss
from tracelab.interventions.training.triples import tokenise
from tracelab.model.tokens import encode

NEUTRAL = OWN.replace(retain_on="neutral", batch_size=8)


def test_neutral_retention_is_of_one_sentence_for_four_triples(tiny, folder):
    model, group = tiny("llama"), [2, 11, 6, 0, 9]
    found = triple_model(model, NEUTRAL).measure(dense_delta(model), group)
    texts = development_sentences("retain", N_RETAINED)
    before, after = Twin("llama", folder), Twin("llama", folder, random_shifts(model))
    losses = []
    for number in (2, 9):  # the first and the fifth of the group
        ids = encode(model, texts[number]).ids[:NEUTRAL_TOKENS]
        tokens = torch.tensor([ids])
        with torch.no_grad():
            pair = before.logits(ids), after.logits(ids)
        losses += [float(retention_loss("kl", *pair, tokens, torch.ones_like(tokens)))]
    assert min(losses) > 1e-3
    assert found["retention"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert found["loss"] == pytest.approx(found["debias"] + 0.7 * found["retention"], rel=1e-6)


def test_neutral_retention_alone_has_a_gradient_against_a_shift(tiny):
    model, delta = tiny("llama"), dense_delta(tiny("llama"))
    config = NEUTRAL.replace(lam=1e6)
    trained = triple_model(model, config)
    loss = trained.backward(delta, [0])["retention"]
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter -= 1e-3 * parameter.grad / parameter.grad.norm()
    assert trained.measure(delta, [0])["retention"] < loss


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_keys_times_gradients_are_the_gradient_of_attention_outputs_too(tiny, kind):
    model, modules = tiny(kind), ("mlp.out", "attn.o")
    delta = WeightDelta.low_rank(model, layers=[2, 3], modules=modules, rank=None)
    config = OWN.replace(lam=0.0)
    trained = TripleModel(model, tokenise(model, TRAIN), delta.spec().maps, config)
    group = [7, 0, 3]
    trained.backward(delta, group)  # a zero shift: the gradient of the unedited model
    for part, keys, grads in zip(delta.maps.values(), *trained.cached(group), strict=True):
        expected = part.delta.grad
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(
            (keys.T @ grads).T, expected, atol=2e-4 * float(expected.abs().max()), rtol=1e-3
        )


@pytest.mark.parametrize("shift", ["editor", "direct"])
def test_shifts_of_several_maps_are_fitted_and_applied(tiny, shift, strength_1):
    model, rates = tiny("llama"), {"lr": 0.1, "ridge": 1.0, "step_lr": 0.3, "delta_lr": 1e-2}
    options = {**SMALL, "n_edits": 6, "n_query": 6, "query": "same", "steps": 8, "eval_every": 8}
    config = BiasEditConfig(
        **options, **rates, shift=shift, loss="logprob", lam=0.1, modules=("mlp.out", "attn.o")
    )
    edit = BiasEdit.fit(model, TRAIN[:6], config, layers=[2], dev=TRAIN[:6])
    assert [shape.module for shape in edit.spec().maps] == ["mlp.out", "attn.o"]
    assert all(part.weight().any() for part in edit.maps.values())


def test_a_direct_shift_is_of_the_last_third_of_the_blocks_if_none_are_given(tiny, strength_1):
    config = BiasEditConfig.direct(**{**SMALL, "steps": 0})
    edit = BiasEdit.fit(tiny("llama"), TRAIN[:6], config, dev=TRAIN[:6])
    assert {shape.layer for shape in edit.spec().maps} == {3}
    assert {shape.module for shape in edit.spec().maps} == {"mlp.out", "attn.o"}


def test_of_intersentence_records_the_continuations_are_compared(tiny):
    model, context = tiny("llama"), "Everyone at the station said that the nurse left."
    texts = ("The nurse is lazy.", "The nurse is rich and well known.", "My neighbour came.")
    sentences = [Sentence(str(i), text, ()) for i, text in enumerate(texts)]
    record = StereoSetRecord("x", "intersentence", "race", "nurse", context, *sentences)
    trained = triple_model(model, OWN.replace(loss="logprob", lam=0.0), [record])
    lbars = []
    for text in texts[:2]:
        n_context = len(encode(model, context).ids)
        ids = encode(model, f"{context} {text}").ids
        with torch.no_grad():
            logprobs = model(torch.tensor([ids]))[0].log_softmax(-1)
        lbars.append(np.mean([float(logprobs[j - 1, ids[j]]) for j in range(n_context, len(ids))]))
    expected = lbars[0] - lbars[1]
    figures = trained.measure(None, [0])
    assert figures["gap"] == pytest.approx(expected, rel=1e-3)
    assert figures["debias"] == pytest.approx(expected**2, rel=1e-3)


def test_the_schedule_rises_for_a_twentieth_of_the_steps_and_falls_as_a_cosine():
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.Adam([{"params": [parameter], "lr": 0.2}])
    schedule = _schedule(optimizer, BiasEditConfig(schedule="cosine", steps=100))
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    by_hand = [0.2 * min(1, (s + 1) / 5) * (1 + np.cos(np.pi * s / 100)) / 2 for s in range(100)]
    assert rates == pytest.approx(by_hand)
    assert max(rates) == rates[4]
    assert rates[-1] < 1e-3
    assert _schedule(optimizer, BiasEditConfig(steps=100)) is None
