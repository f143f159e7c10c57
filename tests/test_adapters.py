"""A fine-tuned model as most people have it: a PEFT adapter, in a folder or in memory."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import tracelab
from tests.interventions.edits import random_delta, random_experts
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.model import assets
from tracelab.model.load import from_hf, model_info

TEXT = "The baker came late."


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tokenizer):
    """A LoRA adapter that moves the logits, in a folder without a tokenizer."""
    config = LoraConfig(
        r=4, target_modules=["down_proj", "q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    folder = base.parent / "adapter"
    torch.manual_seed(1)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def oracle(base, adapter):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()


@pytest.fixture
def loaded(adapter):
    with pytest.warns(UserWarning, match="adapter.* was merged into the weights of its base"):
        return tracelab.load(adapter)


def ids():
    return torch.tensor([AutoTokenizer.from_pretrained(assets.model_dir())(TEXT).input_ids])


def test_an_adapter_folder_is_merged_at_load_and_the_settings_say_so(loaded, oracle, base):
    with torch.no_grad():
        assert torch.allclose(loaded(ids()), oracle(ids()).logits, atol=1e-4)
        assert not torch.allclose(
            loaded(ids()), AutoModelForCausalLM.from_pretrained(base)(ids()).logits, atol=0.1
        )
    assert model_info(loaded).settings()["adapter"] == "adapter"
    assert "adapter" not in model_info(tracelab.load(base)).settings()


def test_an_edit_of_a_merged_adapter_is_exported_merged_and_experts_run_on_it(loaded, tmp_path):
    edit = random_delta(loaded)
    with torch.no_grad(), edit.applied(loaded):
        edited = loaded(ids())
    exported = AutoModelForCausalLM.from_pretrained(
        tracelab.to_merged(loaded, edit, tmp_path / "merged")
    )
    with torch.no_grad():
        assert torch.allclose(exported(ids()).logits, edited, atol=1e-3)
        with random_experts(loaded).applied(loaded):
            assert loaded(ids()).isfinite().all()
    with pytest.raises(TracelabError, match="adapter is an adapter itself.*export the edit merged"):
        tracelab.to_peft(loaded, edit, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_adapters_in_memory_are_refused_with_what_to_do(base, adapter, tokenizer):
    injected = AutoModelForCausalLM.from_pretrained(base)
    injected.load_adapter(adapter)
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    for given in (injected, wrapped):
        with pytest.raises(
            TracelabError,
            match=r"holds PEFT adapters: give the merged model, model.merge_and_unload",
        ):
            from_hf(given, tokenizer, model_id="mine")
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    assert from_hf(wrapped.merge_and_unload(), own, model_id="mine")(ids()).isfinite().all()


def test_an_adapter_that_is_no_change_of_weights_is_refused(base, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(
        tmp_path / "prompt"
    )
    with pytest.raises(TracelabError, match="cannot be merged into weights: load its base"):
        tracelab.load(tmp_path / "prompt")


def test_a_base_that_is_not_there_is_one_sentence(adapter, tmp_path):
    folder = tmp_path / "lost"
    folder.mkdir()
    for file in adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes().replace(b'base"', b'gone"'))
    with pytest.raises(TracelabError, match="cannot load the model 'lost'") as caught:
        tracelab.load(folder)
    assert "\n" not in str(caught.value)


def test_a_wrapper_is_no_model(tokenizer):
    inner = tiny_hf("llama", len(tokenizer))
    for given in (torch.nn.DataParallel(inner), torch.compile(inner)):
        with pytest.raises(
            TracelabError, match="not a transformers model: give the model inside it"
        ):
            from_hf(given, tokenizer, model_id="mine")


def test_exchanged_weights_are_told_before_an_export_or_experts_go_wrong(tokenizer, tmp_path):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf("llama", len(tokenizer)), own, model_id="mine")
    edit, experts = random_delta(model), random_experts(model)
    edit.allow_mismatch = experts.allow_mismatch = True
    # As a quantised linear map keeps its weight: packed, in another type.
    model.original_model.model.layers[1].mlp.down_proj.weight.data = torch.zeros(1024, 1)
    told = r"not those of its configuration: model.layers.1.mlp.down_proj.weight is float32 \[1024, 1\]"  # noqa: E501
    with pytest.raises(TracelabError, match=told):
        tracelab.to_merged(model, edit, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(TracelabError, match=told), experts.applied(model):
        pass


def test_what_is_no_model_or_no_tokenizer_is_told(tokenizer):
    with pytest.raises(
        TracelabError, match="a str is no transformers model: tracelab.load takes those"
    ):
        from_hf("gpt2", tokenizer, model_id="mine")
    with pytest.raises(TracelabError, match="'mine' needs its tokenizer, not None"):
        from_hf(tiny_hf("llama", len(tokenizer)), None, model_id="mine")


def test_an_adapter_whose_base_is_elsewhere_is_told_with_the_base(adapter, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(adapter, moved)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "../base"})
    )
    with pytest.raises(
        TracelabError, match=r"cannot load the model 'moved', an adapter, on its base '\.\./base'"
    ):
        tracelab.load(moved)


def told_of(adapter, folder, base):
    """A copy of the adapter that names its base so."""
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": base})
    )
    return folder


@pytest.mark.parametrize("named", ["../base", "inside/base"])
def test_a_relative_base_is_looked_for_from_the_adapters_folder(
    adapter, base, oracle, tmp_path, monkeypatch, named
):
    folder = told_of(adapter, tmp_path / "moved", named)
    shutil.copytree(base, folder / named)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="was merged into the weights of its base"):
        model = tracelab.load("../moved")
    with torch.no_grad():
        assert torch.allclose(model(ids()), oracle(ids()).logits, atol=1e-4)


def test_a_relative_base_is_else_looked_for_from_the_working_folder(
    adapter, base, tmp_path, monkeypatch
):
    folder = told_of(adapter, tmp_path / "moved", "here/base")
    shutil.copytree(base, tmp_path / "work" / "here" / "base")
    monkeypatch.chdir(tmp_path / "work")
    with pytest.warns(UserWarning, match="was merged into the weights of its base 'here/base'"):
        assert tracelab.load(folder)


def test_of_several_adapters_the_message_says_which_was_merged(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "many")
    for name in ("polite", "terse"):
        shutil.copytree(adapter, tmp_path / "many" / name)
    with pytest.warns(UserWarning, match="its folder holds others, which were not: polite, terse$"):
        tracelab.load(tmp_path / "many")
    (tmp_path / "many" / "adapter_config.json").unlink()
    with pytest.raises(
        TracelabError, match="holds the adapters polite, terse: name the folder of one of them"
    ):
        tracelab.load(tmp_path / "many")
    with pytest.warns(UserWarning, match="was merged into the weights of its base"):
        assert tracelab.load(tmp_path / "many" / "terse")


def test_a_module_that_was_switched_off_by_exchange_is_one_sentence(tokenizer):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    for place in ("mlp", "self_attn"):
        model = tiny_hf("llama", len(tokenizer))
        setattr(model.model.layers[1], place, torch.nn.Identity())
        with pytest.raises(
            TracelabError, match="cannot bridge 'off': 'Identity' object has no .* put back the"
        ):
            from_hf(model, own, model_id="off")
    model = tiny_hf("llama", len(tokenizer))
    model.model.norm = torch.nn.Identity()
    assert from_hf(model, own, model_id="no-norm")(ids()).isfinite().all()
