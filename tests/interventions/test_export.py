"""Weight deltas as PEFT adapters and merged checkpoints: the same logits in plain libraries, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.interventions.edits import CLOSE, TOKENS, bridged, logits, random_delta, random_experts, random_fairmed
from tracelab import Stack, WeightDelta, to_merged, to_peft
from tracelab.errors import TracelabError
from tracelab.interventions.export import MARKER, plain_copy

OWN_MAPS = {"llama": ("mlp.in", "mlp.out", "attn.q", "attn.o"), "gpt2": ("mlp.in", "mlp.out", "attn.o")}


def dense_delta(model, scale=0.1):
    delta = WeightDelta.low_rank(model, layers=[1, 3], modules=["mlp.out"], rank=None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return delta


@torch.no_grad()
def with_adapter(model, folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(plain_copy(model), str(folder))(TOKENS).logits


@torch.no_grad()
def reloaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()(TOKENS).logits


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "gpt_neo"])
def test_a_plain_copy_has_the_logits_of_the_bridge(tiny_model, kind):
    model = tiny_model(kind)
    with torch.no_grad():
        torch.testing.assert_close(plain_copy(model)(TOKENS).logits, model(TOKENS), **CLOSE)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_has_the_logits_of_the_hooks(tiny_model, tmp_path, kind):
    model = tiny_model(kind)
    delta = random_delta(model, modules=OWN_MAPS[kind], scale=0.1)
    found = with_adapter(model, to_peft(model, delta, tmp_path / "adapter"))
    torch.testing.assert_close(found, logits(model, delta), **CLOSE)
    assert (found - logits(model)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "gpt_neo"])
def test_a_merged_checkpoint_has_the_logits_of_the_hooks(tiny_model, tmp_path, kind):
    model = tiny_model(kind)
    delta = random_delta(model, modules=("mlp.out",), scale=0.1)
    found = reloaded(to_merged(model, delta, tmp_path / "merged"))
    torch.testing.assert_close(found, logits(model, delta), **CLOSE)
    assert (found - logits(model)).abs().max() > 0.1


def test_a_stack_of_deltas_is_merged_whole_and_is_no_single_adapter(model, tmp_path):
    stack = Stack([random_delta(model, scale=0.1), random_delta(model, seed=1, scale=0.1)])
    torch.testing.assert_close(reloaded(to_merged(model, stack, tmp_path / "merged")), logits(model, stack), **CLOSE)
    with pytest.raises(TracelabError, match="one weight delta"):
        to_peft(model, stack, tmp_path / "adapter")


def test_a_dense_delta_becomes_an_adapter_of_a_rank_and_says_what_is_lost(model, tmp_path):
    delta = dense_delta(model)
    with pytest.raises(TracelabError, match="is dense: export it merged, or as an adapter of rank=R"):
        to_peft(model, delta, tmp_path / "none")
    whole = to_peft(model, delta, tmp_path / "whole", rank=32)
    torch.testing.assert_close(with_adapter(model, whole), logits(model, delta), atol=1e-3, rtol=1e-3)
    lost = []
    for rank in (1, 8, 32):
        folder = to_peft(model, delta, tmp_path / "cut", rank=rank)  # replaces the one before
        lost.append(max(json.loads((folder / MARKER).read_text())["lost"].values()))
    assert lost[0] > lost[1] > lost[2]
    assert lost[2] < 1e-5


def test_the_merged_tokenizer_adds_no_bos_where_the_original_added_none(model, tmp_path):
    folder = to_merged(model, random_delta(model), tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a").input_ids == model.tokenizer("a", add_special_tokens=False).input_ids


def test_exporting_changes_nothing_of_the_bridge(model, tmp_path):
    before = logits(model)
    to_merged(model, dense_delta(model), tmp_path / "merged")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("exporter", [to_peft, to_merged])
def test_edits_that_are_no_change_of_weights_are_refused(model, tmp_path, exporter):
    for edit in (random_fairmed(model), random_experts(model), Stack([random_delta(model), random_fairmed(model)])):
        with pytest.raises(TracelabError, match=r"no change of weights|one weight delta"):
            exporter(model, edit, tmp_path / "none")
    with pytest.raises(TracelabError, match="nothing to export"):
        exporter(model, Stack([]), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("exporter", [to_peft, to_merged])
def test_joint_maps_another_model_and_foreign_folders_are_refused(model, tiny_model, tokenizer, tmp_path, exporter):
    joint = random_delta(tiny_model("gpt2"), modules=("attn.q",))
    with pytest.raises(TracelabError, match="computed together"):
        exporter(tiny_model("gpt2"), joint, tmp_path / "none")
    with pytest.raises(TracelabError, match="this edit was made for tiny-llama"):
        exporter(bridged(len(tokenizer), 5, "other"), random_delta(model), tmp_path / "none")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(TracelabError, match="holds other files"):
        exporter(model, random_delta(model), foreign)
    assert (foreign / "thesis.txt").read_text() == "mine"
