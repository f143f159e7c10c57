"""Activations of texts at hook points, against one text at a time with the model's own cache."""

from __future__ import annotations

import pytest
import torch

from tracelab.errors import TracelabError
from tracelab.model.hook_points import Point
from tracelab.model.states import POOLS, mean_states, token_states
from tracelab.model.tokens import encode

TEXTS = ["The nurse said that", "He was", "An old man of the north had been", "She is"]
POINTS = [Point("embed"), Point("mlp_out", 0), Point("resid_post", 2)]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tiny_model):
    return tiny_model(request.param)


@torch.no_grad()
def cached(model, text, point):
    """``[pos, d_model]`` of one text, from a cache of the whole model."""
    _, cache = model.run_with_cache(torch.tensor([encode(model, text).ids]))
    return cache[str(point)][0].float()


@pytest.mark.parametrize("pool", POOLS)
def test_a_state_is_the_mean_over_tokens_or_the_last_one_of_each_text_alone(model, pool):
    found = mean_states(model, TEXTS, POINTS, pool=pool)
    assert found.shape == (4, 3, model.cfg.d_model)
    for i, text in enumerate(TEXTS):
        for j, point in enumerate(POINTS):
            one = cached(model, text, point)
            expected = one[-1] if pool == "last" else one.mean(dim=0)
            torch.testing.assert_close(found[i, j], expected, atol=1e-5, rtol=1e-5)


def test_token_states_are_those_of_each_text_alone(model):
    sequences = [encode(model, text).ids for text in TEXTS]
    for text, found in zip(TEXTS, token_states(model, sequences, "resid_post", 1), strict=True):
        expected = cached(model, text, Point("resid_post", 1))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_logits_after_the_last_token_can_be_read_on_the_way(model):
    seen: dict[int, torch.Tensor] = {}

    def read(batch, logits):
        seen.update(zip(batch, logits, strict=True))

    mean_states(model, TEXTS, POINTS[1:2], pool="last", read_logits=read)
    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            expected = model(torch.tensor([encode(model, text).ids]))[0, -1]
        torch.testing.assert_close(seen[i], expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_read_is_one_sentence(model):
    with pytest.raises(TracelabError, match="unknown pool 'max': choose one of mean, last"):
        mean_states(model, TEXTS, POINTS, pool="max")
    with pytest.raises(TracelabError, match="layer 99"):
        mean_states(model, TEXTS, [Point("resid_post", 99)])
