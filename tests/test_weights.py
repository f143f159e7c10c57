"""A model is known by the weights that it has when it is used."""

from __future__ import annotations

import copy

import pytest
import torch

import tracelab
from tests.interventions.edits import bridged, random_delta, random_experts
from tests.tiny import tiny_hf
from tracelab.datasets import crows_pairs
from tracelab.errors import TracelabError
from tracelab.evaluate import crows_pairs_scores
from tracelab.model.load import model_info, model_key
from tracelab.model.weights import fingerprint, weights_hash


@pytest.fixture
def model(tokenizer):
    return bridged(len(tokenizer), 0, "own")


def in_place(model):
    with torch.no_grad():
        model.original_model.model.norm.weight.mul_(2)


def past_autograd(model):
    next(model.original_model.parameters()).data.mul_(2)


def new_state(model):
    state = {name: value + 1 for name, value in model.original_model.state_dict().items()}
    model.original_model.load_state_dict(state)


def new_parameter(model):
    norm = model.original_model.model.norm
    norm.weight = torch.nn.Parameter(norm.weight.detach() * 2)


CHANGES = (in_place, past_autograd, new_state, new_parameter)


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_results_name_the_weights_that_made_them(model, change):
    old = model_info(model).fingerprint
    change(model)
    settings = tracelab.generate(model, "A nurse", max_new_tokens=1).settings["model"]
    assert settings["fingerprint"] == fingerprint(model.original_model) != old


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_an_edit_of_the_old_weights_is_refused_and_one_of_the_new_loads(
    model, change, tmp_path
):
    old = random_delta(model)
    change(model)
    for use in (
        old.hooks,
        lambda m: old.applied(m).__enter__(),
        lambda m: old.attach(m.original_model),
    ):
        with pytest.raises(TracelabError, match="fit it on that model"):
            use(model)
    new = random_delta(model).save(tmp_path / "new")
    assert tracelab.load_intervention(new).hooks(model)


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_kept_cells_are_measured_again(model, change, tmp_path):
    def value(folder):
        return tracelab.evaluate(
            model, {}, ["perplexity"], limit=4, costs=False, folder=folder
        ).frame["value"][0]

    before = value(tmp_path / "cells")
    change(model)
    after = value(tmp_path / "cells")
    assert after != before
    assert after == value(tmp_path / "anew")


def test_one_changed_bit_anywhere_is_another_key_for_caches(model):
    weight = model.original_model.model.layers[1].mlp.down_proj.weight
    before, printed = weights_hash(model.original_model), model_info(model).fingerprint
    with torch.no_grad():
        weight[3, 5] *= 1 + 1e-6  # which bfloat16, and so the fingerprint, rounds away
    assert model_info(model).fingerprint == printed
    assert weights_hash(model.original_model) != before


def test_one_row_changed_past_autograd_a_buffer_a_config_and_a_tokenizer_are_other_keys(model):
    hf_model, keys = model.original_model, [model_key(model)["model_state"]]

    def changed():
        keys.append(model_key(model)["model_state"])
        return {name for name in keys[-1] if keys[-1][name] != keys[-2][name]}

    assert changed() == set()
    hf_model.get_input_embeddings().weight.data[7] *= 2
    assert changed() == {"info", "weights"}
    hf_model.model.rotary_emb.inv_freq.data[1] *= 2
    assert changed() == {"buffers"}
    hf_model.config.rms_norm_eps = 0.5
    assert changed() == {"config"}
    model.tokenizer = copy.deepcopy(model.tokenizer)
    assert changed() == set()
    model.tokenizer.add_tokens(["xyzzy"])
    assert changed() == {"tokenizer"}


def test_the_hash_of_weights_is_that_of_the_plain_model(model, tokenizer):
    assert weights_hash(model.original_model) == weights_hash(tiny_hf("llama", len(tokenizer)))


def test_a_cast_is_recorded_and_measured_in_the_dtype_that_the_model_has(model):
    records = crows_pairs("gender", limit=4)
    full = crows_pairs_scores(model, records)
    model.to(torch.bfloat16)
    half = crows_pairs_scores(model, records)
    assert [each.settings["model"]["dtype"] for each in (full, half)] == ["float32", "bfloat16"]
    model.original_model.to(torch.float32)  # past the bridge
    assert model_info(model).dtype == "float32"


def test_experts_follow_weights_that_are_exchanged(model, tokenizer):
    tokens = torch.arange(40, 46)[None]
    experts = random_experts(model)
    with torch.no_grad(), experts.applied(model):
        old = model(tokens)
    new_parameter(model)
    experts.allow_mismatch = True
    fresh = random_experts(model)
    with torch.no_grad():
        with experts.applied(model):
            new = model(tokens)
        with fresh.applied(model):
            expected = model(tokens)
    assert torch.equal(new, expected)
    assert not torch.equal(new, old)
