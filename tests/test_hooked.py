"""A number measured under hooks says so, and what needs the model as it is refuses one that has
them."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

import tracelab
from tests.interventions.edits import bridged, random_delta, random_experts, random_fairmed
from tracelab.datasets import crows_pairs, expert_texts, stereoset, templates
from tracelab.errors import TracelabError
from tracelab.evaluate import crows_pairs_scores, edited_scores
from tracelab.evaluate.scoreboard.costs import edit_costs
from tracelab.interventions import KLAAD, BiasEdit, Experts, FairMed, Stack
from tracelab.model.hooked import hook_keys, hook_names, hooks_on
from tracelab.model.load import from_hf


@pytest.fixture
def model(tokenizer):
    """A model that no other test shares, so that hooks can be left on."""
    return bridged(len(tokenizer), 0, "own")


def zero(value, hook=None):
    return value * 0


def module_hook(module, args, output):
    return output * 0


def on_the_bridge(model):
    model.add_hook("blocks.1.hook_mlp_out", zero)


def for_good(model):
    model.add_perma_hook("blocks.1.hook_mlp_out", zero)


def on_a_module(model):
    model.original_model.model.layers[1].mlp.register_forward_hook(module_hook)


def before_a_module(model):
    model.original_model.model.norm.register_forward_pre_hook(lambda module, args: (args[0] * 0,))


def on_the_hook_point_itself(model):
    model.hook_dict["blocks.2.hook_out"].register_forward_hook(module_hook)


def attached(model):
    random_delta(model).attach(model.original_model)


def applied(model):
    block = random_fairmed(model).applied(model)
    block.__enter__()
    model.test_keeps = [block]  # a block that nobody holds is left by itself


def instead_of_a_forward(model):
    mlp = model.blocks[1].mlp.original_component
    own = mlp.forward

    @functools.wraps(own)  # as careful people write it; its __module__ is that of transformers
    def forward(*args, **options):
        return own(*args, **options) * 0

    mlp.forward = forward


LEFT_ON = (
    on_the_bridge,
    for_good,
    on_a_module,
    before_a_module,
    on_the_hook_point_itself,
    instead_of_a_forward,
    attached,
    applied,
)


def test_a_model_just_loaded_has_no_hooks(tiny_model):
    for kind in ("llama", "gpt2", "gemma2", "gpt_neox"):
        assert hooks_on(tiny_model(kind)) == []


def test_the_hooks_that_transformer_lens_itself_puts_on_opt_do_not_count(tokenizer):
    sizes = {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "max_position_embeddings": 64,
    }
    config = OPTConfig(
        vocab_size=len(tokenizer), num_hidden_layers=2, num_attention_heads=4, **sizes
    )
    model = from_hf(OPTForCausalLM(config), tokenizer, model_id="tiny-opt")
    assert any(point.fwd_hooks for point in model.hook_dict.values())
    assert hooks_on(model) == []
    on_the_bridge(model)
    assert len(hook_names(model)) == 1


def test_hooks_on_gradients_are_seen(model):
    for leave_on in (
        lambda: model.blocks[1].register_full_backward_hook(lambda *_: None),
        lambda: model.original_model.model.norm.register_full_backward_pre_hook(lambda *_: None),
        lambda: torch.nn.modules.module.register_module_full_backward_hook(lambda *_: None),
    ):
        handle = leave_on()
        assert len(hook_names(model)) == 1
        handle.remove()
    model.add_hook("blocks.1.hook_out", zero, dir="bwd")
    assert hook_names(model) == ["blocks.1.hook_out (zero)"]
    model.reset_hooks()
    assert hook_names(model) == []


def test_a_model_in_training_mode_is_refused_and_scores_of_it_say_so(model):
    edit = random_delta(model)
    for train in (model.train, model.original_model.train, model.original_model.model.norm.train):
        train()
        with pytest.raises(TracelabError, match=r"in training mode: call model.eval\(\)"):
            tracelab.inspect(model, edit, "A nurse")
        assert tracelab.score(model, "A nurse came").settings["model"]["training"]
        model.eval()
        assert "training" not in tracelab.score(model, "A nurse came").settings["model"]


@pytest.mark.parametrize("leave_on", LEFT_ON)
def test_every_way_to_leave_a_hook_on_is_seen(model, leave_on):
    with torch.no_grad():
        before = model(torch.arange(40, 46)[None])
        leave_on(model)
        assert not torch.equal(model(torch.arange(40, 46)[None]), before)
    assert len(hook_names(model)) == 1


@pytest.mark.parametrize("leave_on", LEFT_ON)
def test_evaluate_refuses_a_model_with_hooks_on(model, leave_on, tmp_path):
    leave_on(model)
    with pytest.raises(
        TracelabError,
        match="evaluate needs the model as it is, but hooks are on: .*allow_hooks=True",
    ):
        tracelab.evaluate(
            model, {}, ["perplexity"], limit=4, costs=False, folder=tmp_path / "cells"
        )
    assert not (tmp_path / "cells").exists()


def test_a_hook_on_every_module_of_the_process_is_seen(model):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert hook_names(model)
    finally:
        handle.remove()
    assert not hook_names(model)


NEED_THE_MODEL_AS_IT_IS = {
    "inspect": lambda model, edit: tracelab.inspect(model, edit, "A nurse"),
    "edited_scores": lambda model, edit: edited_scores(model, edit, lambda name: None),
    "edit_costs": lambda model, edit: edit_costs(model, edit),
    "report": lambda model, edit: tracelab.report(model, "gender", "nowhere"),
    "FairMed": lambda model, edit: FairMed.fit(model, templates("gender", limit=4)),
    "Experts": lambda model, edit: Experts.fit(model, expert_texts("gender", limit=4)),
    "BiasEdit": lambda model, edit: BiasEdit.fit(model, stereoset("gender", limit=4)),
    "KLAAD": lambda model, edit: KLAAD.fit(model, stereoset("gender", limit=4)),
}


@pytest.mark.parametrize("what", NEED_THE_MODEL_AS_IT_IS)
def test_what_needs_the_model_as_it_is_names_the_hooks_and_refuses(
    model, what, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    edit = random_delta(model)
    on_the_bridge(model)
    with pytest.raises(TracelabError, match=r"hooks are on: blocks\.1\.mlp\.hook_out \(zero\)"):
        NEED_THE_MODEL_AS_IT_IS[what](model, edit)
    assert not list(tmp_path.iterdir())


def test_evaluate_inside_an_edits_block_does_not_call_the_edited_model_unedited(model):
    edit = random_delta(model)
    with edit.applied(model), pytest.raises(TracelabError, match="hooks are on: weight_delta"):
        tracelab.evaluate(model, {"edit": edit}, ["perplexity"], limit=4, costs=False)


def test_with_allow_hooks_the_hooked_model_is_measured_and_the_settings_say_so(model):
    clean = tracelab.evaluate(model, {}, ["perplexity"], limit=4, costs=False)
    on_the_bridge(model)
    hooked = tracelab.evaluate(model, {}, ["perplexity"], limit=4, costs=False, allow_hooks=True)
    assert clean.settings["hooks"] == []
    assert hooked.settings["hooks"] == ["blocks.1.mlp.hook_out (zero)"]
    assert clean.frame["value"][0] != hooked.frame["value"][0]


def test_a_cell_measured_under_a_hook_is_not_handed_out_without_it_nor_for_another_hook(
    model, tmp_path
):
    def value(**options):
        options |= {"limit": 4, "costs": False, "folder": tmp_path}
        return tracelab.evaluate(model, {}, ["perplexity"], **options).frame["value"][0]

    factor = [0.0]
    model.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value * factor[0])
    hooked = value(allow_hooks=True)
    factor[0] = 3.0  # the same function does something else now
    assert value(allow_hooks=True) != hooked
    model.reset_hooks()
    clean = value()
    assert clean not in (hooked, value(allow_hooks=True) if hooks_on(model) else hooked)
    assert value() == clean


def test_edits_are_known_in_keys_by_what_they_do_and_other_hooks_never_agree(model):
    first, same, other = random_delta(model), random_delta(model), random_delta(model, seed=1)
    keys = []
    for edit in (first, same, other):
        with edit.applied(model):
            keys.append(hook_keys(model))
    assert keys[0] == keys[1] != keys[2]
    on_the_bridge(model)
    assert hook_keys(model) != hook_keys(model)


def test_scores_and_texts_of_a_hooked_model_are_possible_and_name_the_hooks(model):
    records = crows_pairs("gender", limit=4)
    on_the_bridge(model)
    hooks = ["blocks.1.mlp.hook_out (zero)"]
    assert crows_pairs_scores(model, records).settings["hooks"] == hooks
    assert tracelab.score(model, "A nurse came").settings["hooks"] == hooks
    assert tracelab.generate(model, "A nurse", max_new_tokens=1).settings["hooks"] == hooks
    model.reset_hooks()
    with Stack([random_experts(model), random_delta(model)]).applied(model):
        settings = crows_pairs_scores(model, records).settings
    assert settings["hooks"] == ["experts(gender, α=1) + weight_delta"]


def test_probes_made_under_a_hook_are_no_probes_of_the_model(model):
    on_the_bridge(model)
    probes = tracelab.probe_layers(model, templates("gender", limit=20), n_seeds=1)
    model.reset_hooks()
    with pytest.raises(
        TracelabError, match=r"made with hooks on \(blocks.1.mlp.hook_out \(zero\)\)"
    ):
        FairMed.fit(model, probes)


def test_the_way_out_is_named_only_where_there_is_one(model, tmp_path):
    on_the_bridge(model)
    with pytest.raises(TracelabError, match="allow_hooks=True$"):
        tracelab.inspect(model, random_delta(model), "A nurse")
    with pytest.raises(TracelabError, match="put back the forward$"):
        tracelab.report(model, "gender", tmp_path / "report")
