from __future__ import annotations

import functools

import pytest
import torch

from tests.tiny import D_MODEL, KINDS, N_LAYERS
from tracelab.errors import TracelabError
from tracelab.model import hook_points
from tracelab.model.hook_points import EDITED, HOOKS, check_hook_points, hook_name
from tracelab.model.load import model_info, require_hook


def test_names_carry_the_layer():
    assert hook_name("mlp_out", 3) == "blocks.3.hook_mlp_out"
    assert hook_name("embed") == "hook_embed"


@pytest.mark.parametrize("kind", KINDS)
def test_what_tracelab_edits_is_usable_on_every_architecture(tiny_model, kind):
    faults = check_hook_points(tiny_model(kind))
    # GPT-NeoX adds attention and MLP in parallel: it has no state between them. Gemma 2 caps its
    # logits at the end.
    assert faults.keys() == {"gpt_neox": {"resid_mid"}, "gemma2": {"logits"}}.get(kind, set())


def test_what_tracelab_edits_is_usable_on_the_embedded_model(real_model):
    assert model_info(real_model).faults == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_points_shape_is_what_its_kind_says(tiny_model, kind):
    model = tiny_model(kind)
    shapes = {}
    hooks = [
        (
            hook_name(name, 1),
            lambda value, hook, name=name: shapes.update({name: tuple(value.shape)}),
        )
        for name in HOOKS.keys() - model_info(model).faults.keys()
    ]
    logits = model.run_with_hooks(torch.arange(10, 17)[None], fwd_hooks=hooks)
    assert shapes.pop("logits", logits.shape) == logits.shape
    assert shapes.pop("pattern") == (1, 4, 7, 7)
    assert set(shapes.values()) == {(1, 7, D_MODEL)}


@pytest.mark.parametrize(("kind", "one_by_one"), [("llama", 0), ("gpt_neox", len(HOOKS))])
def test_all_points_are_read_in_one_forward_pass_where_none_is_missing(
    tiny_model, monkeypatch, kind, one_by_one
):
    model = tiny_model(kind)
    passes = []
    monkeypatch.setattr(
        model.original_model, "forward", _counted(model.original_model.forward, passes)
    )
    check_hook_points(model)
    n_missing = len(model_info(model).faults)
    assert len(passes) == 1 + len(EDITED) + max(0, one_by_one - n_missing)


def _counted(forward, passes):
    @functools.wraps(forward)
    def counted(*args, **kwargs):
        passes.append(1)
        return forward(*args, **kwargs)

    return counted


def test_edits_that_the_architecture_discards_are_reported(tiny_model, monkeypatch):
    monkeypatch.setattr(hook_points, "EDITED", (*EDITED, "pattern"))
    with pytest.warns(UserWarning, match="."):
        faults = check_hook_points(tiny_model("gpt_neo"))
    assert faults == {"pattern": "edits there change nothing on this architecture"}
    assert check_hook_points(tiny_model("llama")) == {}


def test_a_point_that_is_not_the_mlps_contribution_is_reported(tiny_model, monkeypatch):
    # Gemma 2 norms the MLP's output before adding it, so mlp.hook_out is not what the stream gets.
    monkeypatch.setitem(HOOKS, "mlp_out", "blocks.{layer}.mlp.hook_out")
    faults = check_hook_points(tiny_model("gemma2"))
    assert faults.pop("logits").startswith("the returned logits are computed from it")
    assert faults == {"mlp_out": "resid_mid + mlp_out is not resid_post on this architecture"}
    assert check_hook_points(tiny_model("llama")) == {}


def test_a_point_that_does_not_exist_is_reported(tiny_model, monkeypatch):
    monkeypatch.setitem(HOOKS, "attn_out", "blocks.{layer}.hook_nonesuch")
    assert check_hook_points(tiny_model("llama")).keys() == {"attn_out"}


def test_using_a_faulty_point_is_refused_by_name(tiny_model):
    with pytest.raises(
        TracelabError, match=r"blocks\.1\.hook_resid_mid cannot be used on tiny-gpt_neox"
    ):
        require_hook(tiny_model("gpt_neox"), "resid_mid", 1)
    assert require_hook(tiny_model("llama"), "resid_mid", 1) == "blocks.1.hook_resid_mid"


@pytest.mark.parametrize("layer", [-1, N_LAYERS])
def test_a_layer_out_of_range_is_refused_with_the_range(tiny_model, layer):
    with pytest.raises(TracelabError, match=f"layer {layer} is out of range: .* layers 0 to 3"):
        require_hook(tiny_model("llama"), "resid_post", layer)


def test_the_check_leaves_no_hook(tiny_model):
    model = tiny_model("gpt2")
    check_hook_points(model)
    assert not model.list_hooks()
