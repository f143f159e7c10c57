"""What cannot fit a model is said by ``hooks()`` and ``attach()``, not by a forward pass that
breaks."""

from __future__ import annotations

import pytest

from tests.interventions.edits import random_delta, random_experts, random_fairmed
from tests.interventions.forging import change
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.interventions import WeightDelta, load_intervention
from tracelab.interventions.weight_delta import MapShape, WeightDeltaSpec


@pytest.fixture
def plain(tokenizer):
    return tiny_hf("llama", len(tokenizer))


def with_shape(edit: WeightDelta, **changes) -> WeightDelta:
    """The first map of a delta, said to have other sizes, with tensors of those sizes."""
    shape = MapShape(**edit.spec().maps[0].model_dump() | changes)
    return WeightDelta(WeightDeltaSpec(maps=(shape,)), edit.origin)


@pytest.mark.parametrize(
    "changes", [{"d_in": 63}, {"d_out": 31}, {"module": "mlp.in"}, {"d_in": 63, "rank": None}]
)
def test_a_delta_of_other_widths_is_refused_before_any_forward_pass(model, plain, changes):
    edit = with_shape(random_delta(model, modules=("mlp.out", "mlp.in"), layers=(1,)), **changes)
    with pytest.raises(
        TracelabError,
        match=r"the edit at blocks\.1\.mlp\.\w+ is for (in|out)puts of \d+ features, and",
    ):
        edit.hooks(model)
    with pytest.raises(
        TracelabError,
        match=r"the edit at blocks\.1\.mlp\.\w+ is for (in|out)puts of \d+ features, and",
    ):
        edit.attach(plain)
    assert not model.list_hooks()


def test_an_expert_of_other_widths_is_refused_before_any_forward_pass(model, plain):
    edit = random_experts(model, anti=False)
    edit.expert = with_shape(edit.expert, d_in=63)
    for put_on in (lambda: edit.hooks(model), lambda: edit.attach(plain)):
        with pytest.raises(TracelabError, match="is for inputs of 63 features"):
            put_on()


@pytest.mark.parametrize(
    "module_path",
    [
        "model.layers.1.mlp.act_fn",
        "model.layers.1.mlp.gate_proj",
        "model.layers.3.mlp",
        "model.layers",
        "model.rotary_emb",
        "lm_head",
        "",
        "model..layers",
        "model.layers.1.mlp.\n" + "x" * 5000,
    ],
)
def test_a_module_path_at_which_the_edit_cannot_act_is_refused_when_it_is_attached(
    model, plain, tmp_path, module_path
):
    folder = random_fairmed(model, layers=(1,)).save(tmp_path / "kept")
    change(
        folder,
        lambda m: m["part"]["origin"]["paths"].update({"blocks.1.hook_mlp_out": module_path}),
    )
    edit = load_intervention(folder)
    with pytest.raises(TracelabError) as refused:
        edit.attach(plain)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1300
    assert edit.hooks(model)  # a bridge has points of its own


def test_probers_of_another_width_are_refused_when_applied(model, plain):
    edit = random_fairmed(model)
    spec = edit.attributes[0].model_copy(update={"d_model": 16})
    other = type(edit)(edit.config, [spec], edit.origin)
    for put_on in (lambda: other.hooks(model), lambda: other.attach(plain)):
        with pytest.raises(TracelabError, match="is for outputs of 16 features"):
            put_on()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt_neox", "gpt2", "gpt_neo"])
def test_what_fits_is_put_on_in_every_architecture(tiny_model, tokenizer, kind):
    model, plain = tiny_model(kind), tiny_hf(kind, len(tokenizer))
    for edit in (random_fairmed(model), random_delta(model, modules=("mlp.out", "mlp.in"))):
        assert edit.hooks(model)
        edit.attach(plain).close()
