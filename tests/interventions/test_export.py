"""Exports against the bridge under the edit: what people without tracelab load computes the
same."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.interventions.edits import (
    TOKENS,
    bridged,
    logits,
    random_delta,
    random_experts,
    random_fairmed,
)
from tests.interventions.triple_records import word_hf
from tests.tiny import KINDS
from tracelab.errors import TracelabError
from tracelab.interventions import KLAAD, KLAADConfig, Stack, WeightDelta
from tracelab.interventions.export import EXPORTERS, MARKER, plain_copy, to_merged, to_peft
from tracelab.interventions.klaad.klaad import KLAADSpec
from tracelab.interventions.weight_delta import WeightDeltaSpec
from tracelab.model.hook_points import LINEAR_MAPS
from tracelab.model.load import from_hf

CLOSE = {"atol": 1e-4, "rtol": 0.0}
JOINT = ("gpt2", "gpt_neox")  # architectures that compute query, key and value together
GATED = ("llama", "qwen2", "gemma2")


@pytest.fixture
def model(tiny):
    return tiny("llama")


def modules_of(kind: str) -> tuple[str, ...]:
    """The linear maps that have a weight of their own in plain ``transformers``."""
    if kind in JOINT:
        return ("mlp.in", "mlp.out", "attn.o")
    return tuple(module for module in LINEAR_MAPS if kind in GATED or module != "mlp.gate")


def moved(model, edit) -> torch.Tensor:
    """The bridge's logits under an edit, after a look that they are not those without."""
    expected = logits(model, edit)
    assert (expected - logits(model)).abs().max() > 0.1
    return expected


@torch.no_grad()
def plain_logits(plain) -> torch.Tensor:
    return plain(TOKENS).logits


def adapted(model, path) -> torch.Tensor:
    """Logits of a plain model with the adapter."""
    return plain_logits(PeftModel.from_pretrained(plain_copy(model), path))


def merged(path) -> torch.Tensor:
    return plain_logits(AutoModelForCausalLM.from_pretrained(path))


def note(path) -> dict:
    return json.loads((path / MARKER).read_text(encoding="utf-8"))


def contents(folder) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


# --- a copy of the model
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_copy_is_the_model_before_it_was_wrapped(tiny, folder, kind):
    plain, twin = plain_copy(tiny(kind)), word_hf(kind, folder)
    assert type(plain) is type(twin)
    assert plain.state_dict().keys() == twin.state_dict().keys()
    assert all(
        torch.equal(value, plain.state_dict()[name]) for name, value in twin.state_dict().items()
    )
    assert torch.equal(plain_logits(plain), plain_logits(twin))
    torch.testing.assert_close(plain_logits(plain), logits(tiny(kind)), **CLOSE)


def test_a_plain_copy_shares_nothing_with_the_bridge(model):
    before, plain = logits(model), plain_copy(model)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    plain.generation_config.max_new_tokens = 7
    plain.config.hidden_act = "gelu"
    assert torch.equal(logits(model), before)
    assert model.original_model.generation_config.max_new_tokens != 7
    assert model.original_model.config.hidden_act != "gelu"


# --- adapters
# -----------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_computes_what_the_hooks_compute(tiny, tmp_path, kind):
    model = tiny(kind)
    edit = random_delta(model, modules=modules_of(kind))
    path = to_peft(model, edit, tmp_path / "adapter")
    torch.testing.assert_close(adapted(model, path), moved(model, edit), **CLOSE)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_keeps_the_rank_of_each_map(tiny, tmp_path, kind):
    model = tiny(kind)
    shapes = random_delta(model, modules=modules_of(kind))
    maps = tuple(
        shape.model_copy(update={"rank": 3 + i}) for i, shape in enumerate(shapes.spec().maps)
    )
    edit = WeightDelta(WeightDeltaSpec(maps=maps), shapes.origin)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    path = to_peft(model, edit, tmp_path / "adapter")
    torch.testing.assert_close(adapted(model, path), moved(model, edit), **CLOSE)
    tensors = load_file(path / "adapter_model.safetensors")
    ranks = [len(value) for name, value in tensors.items() if name.endswith("lora_A.weight")]
    assert sorted(ranks) == [shape.rank for shape in maps]


@pytest.mark.parametrize("layers", [range(4), range(1, 4)], ids=["all layers", "all but the first"])
def test_an_adapter_of_many_maps_changes_no_others(model, tmp_path, layers):
    # From 20 names on peft looks for shorter ones that match the same modules.
    edit = random_delta(model, modules=LINEAR_MAPS, layers=layers, scale=0.2)
    path = to_peft(model, edit, tmp_path / "adapter")
    torch.testing.assert_close(adapted(model, path), moved(model, edit), **CLOSE)


def test_an_adapter_of_one_map_changes_that_layer_alone(model, tmp_path):
    edit = random_delta(model, modules=("mlp.out",), layers=(2,))
    path = to_peft(model, edit, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(plain_copy(model), path)
    assert [name for name, _ in plain.named_parameters() if "lora_A" in name] == [
        "base_model.model.model.layers.2.mlp.down_proj.lora_A.default.weight"
    ]
    torch.testing.assert_close(plain_logits(plain), moved(model, edit), **CLOSE)


def test_a_learned_edit_is_exported_as_the_deltas_that_it_is(model, tmp_path):
    delta = random_delta(model, modules=LINEAR_MAPS, layers=range(4), scale=0.2)
    edit = KLAAD(
        KLAADSpec(maps=delta.spec().maps, config=KLAADConfig(lam2=0.5), bias="gender"), delta.origin
    )
    edit.load_state_dict(delta.state_dict())
    expected = moved(model, edit)
    torch.testing.assert_close(
        adapted(model, to_peft(model, edit, tmp_path / "peft")), expected, **CLOSE
    )
    torch.testing.assert_close(
        merged(to_merged(model, edit, tmp_path / "merged")), expected, **CLOSE
    )
    for exporter in EXPORTERS:
        made = note(tmp_path / exporter)["edit"]
        assert (made["name"], made["config"]["lam2"]) == ("klaad(gender)", 0.5)
        assert made["made_for"] == delta.origin.fingerprint


def test_a_dense_delta_is_an_adapter_only_of_a_rank_that_is_given(model, tmp_path):
    edit = random_delta(model, rank=None, scale=0.1)
    with pytest.raises(
        TracelabError, match="weight_delta is dense: export it merged, or as an adapter of rank=R"
    ):
        to_peft(model, edit, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_dense_delta_loses_the_directions_beyond_the_rank(tiny, tmp_path, kind):
    model = tiny(kind)
    edit = random_delta(model, rank=None, scale=0.1)
    expected, gaps, shares = moved(model, edit), [], []
    for rank in (1000, 32, 16, 4, 1):  # the maps' own rank is 32
        path = to_peft(model, edit, tmp_path / str(rank), rank=rank)
        gaps.append((adapted(model, path) - expected).abs().max().item())
        shares.append(note(path)["lost"])
    assert max(gaps[:2]) < 1e-3 < min(gaps[2:])
    assert max([*shares[0].values(), *shares[1].values()]) < 1e-5
    for less, more in itertools.pairwise(shares[1:]):
        assert all(more[name] > less[name] + 1e-3 for name in less)
    # What is lost at rank 4 is in the singular values from the fifth on.
    paths = edit.paths()
    assert shares[3].keys() == {paths[str(shape.point)] for shape in edit.spec().maps}
    for shape in edit.spec().maps:
        values = torch.linalg.svdvals(edit.part(shape.point).delta.detach())
        share = values[4:].norm() / values.norm()
        assert shares[3][paths[str(shape.point)]] == pytest.approx(share.item(), abs=1e-4)


def test_a_low_rank_delta_is_cut_only_below_its_rank(model, tmp_path):
    edit = random_delta(model, rank=4)
    for rank in (4, 8):
        path = to_peft(model, edit, tmp_path / "whole", rank=rank)
        assert set(note(path)["lost"].values()) == {0.0}
        torch.testing.assert_close(adapted(model, path), moved(model, edit), **CLOSE)
    path = to_peft(model, edit, tmp_path / "cut", rank=2)
    assert min(note(path)["lost"].values()) > 0.01
    assert {
        min(value.shape) for value in load_file(path / "adapter_model.safetensors").values()
    } == {2}
    assert (adapted(model, path) - logits(model, edit)).abs().max() > 0.1


# --- merged checkpoints
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [4, None], ids=["low-rank", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_checkpoint_computes_what_the_hooks_compute(tiny, tmp_path, kind, rank):
    model = tiny(kind)
    edit = random_delta(
        model, modules=modules_of(kind), rank=rank, scale=0.1 if rank is None else 0.5
    )
    torch.testing.assert_close(
        merged(to_merged(model, edit, tmp_path / "m")), moved(model, edit), **CLOSE
    )


def test_a_stack_of_deltas_is_merged_whole_and_is_no_adapter(model, tmp_path):
    first = random_delta(model, seed=1)
    second = random_delta(model, modules=("mlp.out", "attn.q"), rank=None, scale=0.1)
    stack = Stack([first, second])
    expected = moved(model, stack)
    assert min((expected - logits(model, each)).abs().max() for each in (first, second)) > 0.1
    for name, each in (("flat", stack), ("nested", Stack([Stack([first]), second]))):
        torch.testing.assert_close(
            merged(to_merged(model, each, tmp_path / name)), expected, **CLOSE
        )
        with pytest.raises(
            TracelabError, match="a LoRA adapter holds one weight delta: export each, or all merged"
        ):
            to_peft(model, each, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_stack_of_one_delta_is_that_delta(model, tmp_path):
    edit = random_delta(model)
    path = to_peft(model, Stack([edit]), tmp_path / "adapter")
    torch.testing.assert_close(adapted(model, path), moved(model, edit), **CLOSE)


def test_in_bf16_the_sum_is_rounded_once(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = from_hf(word_hf("llama", folder).to(torch.bfloat16), tokenizer, model_id="bf16")
    edit = random_delta(model, modules=("mlp.out",), layers=(1,), scale=0.2)
    back = AutoModelForCausalLM.from_pretrained(to_merged(model, edit, tmp_path / "m"))
    old, new = (
        each.model.layers[1].mlp.down_proj.weight for each in (word_hf("llama", folder), back)
    )
    (part,) = edit.maps.values()
    assert new.dtype == torch.bfloat16
    assert torch.equal(new, (old.bfloat16().float() + part.weight()).bfloat16())
    assert not torch.equal(new, old.bfloat16() + part.weight().bfloat16())


@pytest.mark.parametrize("found", [True, False], ids=["as published", "that of the bridge"])
def test_the_merged_tokenizer_adds_no_bos_if_the_models_did_not(
    model, folder, tmp_path, monkeypatch, found
):
    text, published = "The nurse is kind.", AutoTokenizer.from_pretrained(folder)
    ids, of_the_bridge = published(text).input_ids, model.tokenizer(text).input_ids
    assert of_the_bridge == [published.bos_token_id, *ids]
    if not found:  # as of a GGUF file
        monkeypatch.setattr(model.tokenizer, "name_or_path", str(folder / "nowhere"))
    back = AutoTokenizer.from_pretrained(to_merged(model, random_delta(model), tmp_path / "m"))
    assert back(text).input_ids == ids
    assert back.decode(ids) == published.decode(ids)
    assert model.tokenizer(text).input_ids == of_the_bridge


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_export_changes_neither_bridge_nor_edit(model, tmp_path, exporter):
    edit = random_delta(model)
    values = [
        {name: value.clone() for name, value in each.state_dict().items()} for each in (model, edit)
    ]
    flags = [parameter.requires_grad for parameter in [*model.parameters(), *edit.parameters()]]
    before, config = logits(model), model.original_model.config.to_dict()
    EXPORTERS[exporter](model, edit, tmp_path / "there")
    for each, kept in zip((model, edit), values, strict=True):
        assert all(torch.equal(value, each.state_dict()[name]) for name, value in kept.items())
    assert [
        parameter.requires_grad for parameter in [*model.parameters(), *edit.parameters()]
    ] == flags
    assert torch.equal(logits(model), before)
    assert model.original_model.config.to_dict() == config
    assert not list(model.list_hooks())


# --- what is refused
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (random_fairmed, r"^fairmed.* is no change of weights: keep it as a bundle"),
        (random_experts, r"^experts.* is no change of weights: keep it as a bundle"),
        (
            lambda model: Stack([random_delta(model), random_experts(model)]),
            "^experts.* is no change of weights",
        ),
        (lambda model: Stack([]), "^an empty stack has nothing to export$"),
        (lambda model: Stack([Stack([])]), "^an empty stack has nothing to export$"),
    ],
    ids=[
        "fairmed",
        "experts",
        "a stack with experts",
        "an empty stack",
        "a stack of an empty stack",
    ],
)
def test_what_is_no_change_of_weights_is_refused(tiny_model, tmp_path, exporter, make, message):
    model = tiny_model("llama")
    with pytest.raises(TracelabError, match=message) as refused:
        EXPORTERS[exporter](model, make(model), tmp_path / "there")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("module", ["attn.q", "attn.k", "attn.v"])
@pytest.mark.parametrize("kind", JOINT)
def test_maps_that_are_computed_together_are_refused(tiny, tmp_path, kind, module, exporter):
    model = tiny(kind)
    edit = random_delta(model, modules=("mlp.out", module), layers=(1,))
    with pytest.raises(
        TracelabError, match=rf"^blocks\.1\.{module} is computed together with other maps"
    ) as refused:
        EXPORTERS[exporter](model, edit, tmp_path / "there")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_edit_of_another_model_is_refused(model, tmp_path, exporter):
    other = bridged(model.cfg.d_vocab, 1, "other")
    for edit in (random_delta(other), Stack([random_delta(other)])):
        with pytest.raises(TracelabError, match="this edit was made for other with weights"):
            EXPORTERS[exporter](model, edit, tmp_path / "there")
    assert not list(tmp_path.iterdir())


# --- the folder
# ---------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_exporting_again_replaces_the_export_as_a_whole(model, tmp_path, exporter):
    first, second = random_delta(model, seed=1), random_delta(model, seed=2, layers=(0,))
    path = EXPORTERS[exporter](model, first, tmp_path / "there")
    assert path == tmp_path / "there"
    EXPORTERS[exporter](model, second, str(path))
    found = adapted(model, path) if exporter == "peft" else merged(path)
    torch.testing.assert_close(found, moved(model, second), **CLOSE)
    assert list(tmp_path.iterdir()) == [path]


def test_an_adapter_can_take_the_place_of_a_merged_checkpoint(model, tmp_path):
    edit = random_delta(model)
    to_merged(model, edit, tmp_path / "there")
    to_peft(model, edit, tmp_path / "there")
    assert set(contents(tmp_path / "there")) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        MARKER,
    }


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    "name", ["thesis.tex", "results.json", "notes.txt", "notes.md", "other.safetensors"]
)
def test_a_folder_with_a_file_of_the_users_own_is_refused_and_left_as_it_was(
    model, tmp_path, exporter, name
):
    edit = random_delta(model)
    mine, ours = tmp_path / "mine", EXPORTERS[exporter](model, edit, tmp_path / "ours")
    mine.mkdir()
    for folder in (mine, ours):
        (folder / name).write_text("years of work")
        before = contents(folder)
        with pytest.raises(
            TracelabError, match=rf"holds other files \({name}\): name a folder of its own"
        ):
            EXPORTERS[exporter](model, edit, folder)
        assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "ours"]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_file_is_not_replaced_by_a_folder(model, tmp_path, exporter):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TracelabError, match="is a file: name a folder"):
        EXPORTERS[exporter](model, random_delta(model), tmp_path / "thesis.tex")
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


# --- the embedded model
# -------------------------------------------------------------------------------------------


def test_exports_of_the_embedded_model_compute_what_the_hooks_compute(real_model, tmp_path):
    edit = random_delta(real_model, modules=("mlp.out", "attn.q"), layers=(5, 29), scale=0.03)
    expected = moved(real_model, edit)
    path = to_peft(real_model, edit, tmp_path / "adapter")
    torch.testing.assert_close(adapted(real_model, path), expected, atol=1e-3, rtol=0)
    path = to_merged(real_model, edit, tmp_path / "merged")
    try:
        torch.testing.assert_close(merged(path), expected, atol=1e-3, rtol=0)
        tokenizer = AutoTokenizer.from_pretrained(path)
        assert tokenizer("a").input_ids[0] != tokenizer.bos_token_id
        assert tokenizer.chat_template
    finally:
        shutil.rmtree(path)  # half a gigabyte
