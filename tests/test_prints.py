"""The print of a model's weights sees every change a user makes before loading an edit, and knows
the prints of before."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

import tracelab
from tests.interventions.edits import CLOSE, TOKENS, bridged, logits, random_delta
from tests.tiny import D_MODEL, KINDS, MORE_KINDS, tiny_hf
from tracelab import probe_layers
from tracelab.datasets import templates
from tracelab.errors import TracelabError
from tracelab.interventions import FairMed, FairMedConfig
from tracelab.localize.probing.prober import ProberConfig
from tracelab.model import assets
from tracelab.model.load import from_hf, model_info
from tracelab.model.weights import (
    MARK,
    fingerprint,
    held,
    same_weights,
    sampled_fingerprint,
    weights_hash,
)

HEAD = D_MODEL // 4


def a_head(layer):
    layer.self_attn.o_proj.weight.data[:, HEAD : 2 * HEAD] = 0


def a_neuron(layer):
    layer.mlp.down_proj.weight.data[:, 7] = 0


def a_row(layer):
    layer.mlp.up_proj.weight.data[5] = 0


def a_value(layer):
    layer.mlp.up_proj.weight.data[5, 9] = 0


def a_swap_of_rows(layer):
    weight = layer.mlp.gate_proj.weight
    weight.data[[3, 4]] = weight.data[[4, 3]]


def a_swap_of_heads(layer):
    weight = layer.self_attn.o_proj.weight
    heads = weight.data.reshape(D_MODEL, 4, HEAD)
    weight.data = heads[:, [0, 2, 1, 3]].reshape(D_MODEL, D_MODEL)


def a_sign(layer):
    layer.mlp.down_proj.weight.data[3] *= -1


CHANGES = (a_head, a_neuron, a_row, a_value, a_swap_of_rows, a_swap_of_heads, a_sign)


@pytest.mark.parametrize("change", CHANGES)
def test_what_an_ablation_changes_is_another_print(change):
    model = tiny_hf("llama", 100)
    before = fingerprint(model)
    assert fingerprint(model) == before
    change(model.model.layers[2])
    assert fingerprint(model) != before


def test_two_layers_that_changed_places_are_another_print():
    model = tiny_hf("llama", 100)
    before = fingerprint(model)
    layers = model.model.layers
    layers[1], layers[2] = layers[2], layers[1]
    assert fingerprint(model) != before


@pytest.mark.parametrize("change", [a_head, a_value])
def test_an_edit_is_refused_on_the_ablated_model_bridged_and_plain(tokenizer, change):
    edit = random_delta(bridged(len(tokenizer), 0, "whole"))
    model, plain = bridged(len(tokenizer), 0, "ablated"), tiny_hf("llama", len(tokenizer))
    change(model.original_model.model.layers[2])
    change(plain.model.layers[2])
    for use in (lambda: edit.hooks(model), lambda: edit.attach(plain)):
        with pytest.raises(TracelabError, match=f"has weights {MARK}.*: fit it on that model"):
            use()


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_bridge_and_plain_model_have_one_print(tokenizer, kind):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf(kind, len(tokenizer)), own, model_id=kind)
    assert fingerprint(model) == fingerprint(tiny_hf(kind, len(tokenizer)))


@pytest.mark.parametrize("kind", KINDS)
def test_bridge_and_plain_model_have_one_print_of_either_form(tiny_model, tokenizer, kind):
    model, plain = tiny_model(kind), tiny_hf(kind, len(tokenizer))
    for taken in (fingerprint, sampled_fingerprint):
        assert taken(model) == taken(plain)
        assert same_weights(model, taken(plain))
        assert not same_weights(model, taken(tiny_hf(kind, len(tokenizer), seed=1)))
    assert fingerprint(model) == model_info(model).fingerprint


def test_a_checkpoint_in_bfloat16_has_one_print_in_every_dtype():
    model = tiny_hf("llama", 100).to(torch.bfloat16)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data[0, :4] = torch.tensor([1e-5, 3.1e-6, -1.1e-7, -0.0])  # float16 rounds these
    prints = {
        fingerprint(copy.deepcopy(model).to(dtype))
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    }
    assert len(prints) == 1


def test_packed_weights_count_byte_by_byte():
    model = torch.nn.Module()
    model.packed = torch.nn.Parameter(
        torch.arange(3000, dtype=torch.int32)[:, None], requires_grad=False
    )
    before = fingerprint(model)
    model.packed[2999] += 1  # which bfloat16 cannot tell
    assert fingerprint(model) != before


@pytest.mark.parametrize("shape", [(0,), (), (3, 0), (1025,), (2**20 + 1,)])
def test_a_parameter_of_any_size_is_printed_to_its_last_value(shape):
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.ones(shape))
    before = fingerprint(model)
    if model.weight.numel():
        model.weight.data.view(-1)[-1] = 2
        assert fingerprint(model) != before


def test_held_prints_follow_what_torch_counts_and_end_with_the_block():
    model = tiny_hf("llama", 100)
    weight = model.model.layers[2].mlp.up_proj.weight
    with held():
        before = fingerprint(model)
        with torch.no_grad():
            weight[5, 9] = 0
        changed = fingerprint(model)
        assert changed != before
        weight.data[5, 10] = 0
        assert fingerprint(model) == changed  # as its docstring says
    assert fingerprint(model) != changed


def old(edit, model):
    """The edit with the print that tracelab made until version 0.2."""
    edit.origin = edit.origin.model_copy(update={"fingerprint": sampled_fingerprint(model)})
    return edit


def test_a_bundle_with_a_print_of_before_is_used_on_its_model_alone(
    tiny_model, tokenizer, tmp_path
):
    model, other = tiny_model("llama"), bridged(len(tokenizer), 1, "other")
    whole = random_delta(model)
    folder = old(random_delta(model), model).save(tmp_path / "old")
    edit = tracelab.load_intervention(folder)
    assert len(edit.origin.fingerprint) == 16
    expected = logits(model, whole)
    assert torch.equal(logits(model, edit), expected)
    plain = tiny_hf("llama", len(tokenizer))
    with torch.no_grad(), edit.attach(plain):
        assert torch.allclose(plain(TOKENS).logits, expected, **CLOSE)
    with pytest.raises(TracelabError, match=f"has weights {sampled_fingerprint(other)}: fit it"):
        edit.hooks(other)


def test_probes_with_a_print_of_before_are_taken(tiny_model):
    model = tiny_model("llama")
    probes = probe_layers(
        model, templates("gender", limit=8), n_seeds=1, config=ProberConfig(hidden=8, epochs=1)
    )
    for its_print, taken in ((sampled_fingerprint(model), True), ("0" * 16, False)):
        of = probes.settings["model"] | {"fingerprint": its_print}
        given = dataclasses.replace(probes, settings=probes.settings | {"model": of})
        if taken:
            assert FairMed.fit(model, given, FairMedConfig(), layers=[1])
        else:
            with pytest.raises(TracelabError, match="these probes are of tiny-llama: probe"):
                FairMed.fit(model, given, FairMedConfig(), layers=[1])


def test_a_model_with_an_adapter_merged_has_a_print_of_its_own_bridged_or_plain(tokenizer):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    merged = get_peft_model(tiny_hf("llama", len(tokenizer)), config).merge_and_unload()
    plain = copy.deepcopy(merged)
    assert fingerprint(from_hf(merged, own, model_id="merged")) == fingerprint(plain)
    assert fingerprint(plain) != fingerprint(tiny_hf("llama", len(tokenizer)))


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "phi3"])
def test_a_part_of_a_joint_weight_that_a_bridge_computes_with_counts(tokenizer, kind):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf(kind, len(tokenizer)), own, model_id=kind)
    before, key = fingerprint(model), weights_hash(model.original_model)
    assert before == fingerprint(tiny_hf(kind, len(tokenizer)))
    kept = logits(model)
    model.blocks[1].attn.q.original_component.weight.data[3] = 0
    assert not torch.equal(logits(model), kept)
    assert fingerprint(model) != before
    assert weights_hash(model.original_model) != key


def test_a_print_draws_no_random_numbers(tiny_model):
    state = torch.get_rng_state()
    fingerprint(tiny_model("gpt_neox"))
    assert torch.equal(torch.get_rng_state(), state)
