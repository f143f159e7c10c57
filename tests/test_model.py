from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.interventions.edits import random_delta
from tests.tiny import KINDS, N_LAYERS, tiny_hf
from tracelab import causal_trace, probe_layers
from tracelab.datasets import stereoset, templates
from tracelab.datasets.redditbias import ExpertTexts
from tracelab.errors import TracelabError
from tracelab.interventions import Experts, FairMed, FairMedConfig, WeightDelta
from tracelab.interventions.export import to_merged
from tracelab.localize.probing.prober import ProberConfig
from tracelab.model import assets
from tracelab.model.load import (
    fingerprint,
    from_hf,
    given_tokenizer,
    load,
    model_info,
    tokenizer_adds_bos,
)
from tracelab.model.scoring import score
from tracelab.model.tokens import encode

TEXT = "The nurse said that she was late."


@pytest.fixture
def bos_tokenizer():
    """A tokenizer that puts BOS before every text, as Gemma's and Llama's do."""
    made = AutoTokenizer.from_pretrained(assets.model_dir())
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", made.bos_token_id)]
    )
    return made


@pytest.fixture
def own_tokenizer():
    return AutoTokenizer.from_pretrained(assets.model_dir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """Folder of a small llama, saved before any bridge touched it."""
    folder = tmp_path_factory.mktemp("models") / "small-llama"
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_default_is_the_embedded_model(real_model):
    info = model_info(real_model)
    assert info.model_id == "SmolLM2-135M-Instruct-Q4_1"
    assert (info.n_layers, info.dtype, info.device) == (30, "float32", "cpu")
    assert not real_model.training


def test_the_bridge_gives_the_plain_models_logits(real_model, plain_model, tokenizer):
    tokens = torch.tensor([tokenizer(TEXT).input_ids])
    with torch.no_grad():
        gap = (real_model(tokens) - plain_model(tokens).logits).abs().max()
    assert gap < 1e-3


def test_a_local_folder_gives_the_saved_models_logits(saved, tokenizer):
    model = load(saved)
    plain = AutoModelForCausalLM.from_pretrained(saved).eval()
    tokens = torch.tensor([tokenizer(TEXT).input_ids])
    with torch.no_grad():
        assert torch.allclose(model(tokens), plain(tokens).logits, atol=1e-5)
    assert model_info(model).model_id == "small-llama"
    assert model_info(model).fingerprint == fingerprint(plain)


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process(plain_model):
    code = (
        "from transformers import AutoModelForCausalLM as A; from tracelab.model import assets, "
        "load as model; "
        "print(model.fingerprint(A.from_pretrained(assets.model_dir())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == fingerprint(plain_model)


def test_the_fingerprint_is_the_same_before_and_after_bridging(real_model, plain_model):
    assert model_info(real_model).fingerprint == fingerprint(plain_model)
    assert fingerprint(real_model.original_model) == fingerprint(plain_model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_known_by_the_plain_models_fingerprint(tiny_model, tokenizer, kind):
    assert model_info(tiny_model(kind)).fingerprint == fingerprint(tiny_hf(kind, len(tokenizer)))


@pytest.mark.parametrize("kind", KINDS)
def test_bridging_keeps_the_fingerprint_on_every_architecture(tiny_model, tokenizer, kind):
    plain = tiny_hf(kind, len(tokenizer))
    assert fingerprint(tiny_model(kind).original_model) == fingerprint(plain)


def test_one_checkpoint_has_one_fingerprint_in_float32_and_bfloat16(saved):
    prints = {dtype: model_info(load(saved, dtype=dtype)) for dtype in ("float32", "bfloat16")}
    assert prints["float32"].fingerprint == prints["bfloat16"].fingerprint
    assert prints["bfloat16"].dtype == "bfloat16"


def test_the_fingerprint_differs_after_any_one_parameter_changes():
    model = tiny_hf("llama", 100)
    before = fingerprint(model)
    for parameter in model.parameters():
        kept = parameter.data.clone()
        parameter.data *= 1.05
        assert fingerprint(model) != before
        parameter.data = kept
    assert fingerprint(model) == before


def test_the_fingerprint_differs_after_one_hashed_weight_changes():
    model = tiny_hf("llama", 100)
    before = fingerprint(model)
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] += 0.1
    assert fingerprint(model) != before


def test_the_fingerprint_tells_shapes_apart():
    wide, tall = torch.nn.Linear(6, 2, bias=False), torch.nn.Linear(2, 6, bias=False)
    tall.weight.data = wide.weight.data.reshape(6, 2)
    assert fingerprint(wide) != fingerprint(tall)


def test_the_fingerprint_of_another_seed_differs():
    assert fingerprint(tiny_hf("gpt2", 100, seed=0)) != fingerprint(tiny_hf("gpt2", 100, seed=1))


def test_the_models_own_tokenizer_decides_on_bos(real_model, tokenizer, bos_tokenizer):
    assert not tokenizer_adds_bos(tokenizer)
    assert not model_info(real_model).prepend_bos
    assert tokenizer_adds_bos(bos_tokenizer)
    model = from_hf(tiny_hf("llama", len(tokenizer)), bos_tokenizer, model_id="adds-bos")
    assert model_info(model).prepend_bos
    ids = encode(model, TEXT).ids
    assert ids == (tokenizer.bos_token_id, *tokenizer(TEXT).input_ids)  # once, not twice


@pytest.mark.parametrize("asked", [True, False])
def test_an_explicit_bos_choice_wins(saved, asked):
    model = load(saved, prepend_bos=asked)
    assert model_info(model).prepend_bos is asked
    assert (encode(model, TEXT).ids[0] == model.tokenizer.bos_token_id) is asked


def test_bos_without_a_bos_token_is_refused(own_tokenizer):
    own_tokenizer.bos_token = None
    with pytest.raises(TracelabError, match="no BOS token: load it with prepend_bos=False"):
        from_hf(tiny_hf("llama", 100), own_tokenizer, model_id="m", prepend_bos=True)


def test_a_bridge_booted_by_hand_is_described_like_a_loaded_one(tiny_model, own_tokenizer):
    by_hand = TransformerBridge.boot_transformers(
        "tiny-llama",
        hf_model=tiny_hf("llama", len(own_tokenizer)),
        tokenizer=own_tokenizer,
        device="cpu",
        dtype=torch.float32,
    )
    by_hand.eval()
    assert model_info(by_hand) == model_info(tiny_model("llama"))
    both = [score(m, [TEXT], prepend_bos=False).sum for m in (by_hand, tiny_model("llama"))]
    assert both[0] == pytest.approx(both[1])


def test_settings_hold_what_identifies_the_model(tiny_model):
    info = model_info(tiny_model("gpt2"))
    assert info.settings() == {
        "model_id": "tiny-gpt2",
        "revision": None,
        "fingerprint": info.fingerprint,
        "dtype": "float32",
        "device": "cpu",
        "prepend_bos": False,
        "n_layers": N_LAYERS,
    }


def test_a_hub_model_out_of_reach_is_one_sentence():
    with pytest.raises(TracelabError, match="cannot load the model 'no-such/model'") as caught:
        load("no-such/model")
    assert "\n" not in str(caught.value)
    assert ".gguf" in str(caught.value)


@pytest.mark.parametrize("where", ["/no/such/folder", "./nowhere", "weights.gguf"])
def test_a_path_that_is_not_there_is_named(where):
    with pytest.raises(TracelabError, match=f"no model folder and no .gguf file at '{where}'"):
        load(where)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(TracelabError, match="cannot load the model"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"not a model at all, only text", b"GGUF\x03\x00\x00\x00cut"])
def test_a_broken_gguf_file_is_refused(tmp_path, content):
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(TracelabError, match="cannot load the model 'broken.gguf'"):
        load(tmp_path / "broken.gguf")


def test_weights_cut_short_by_an_interrupted_copy_are_refused(saved, tmp_path):
    folder = tmp_path / "cut-short"
    shutil.copytree(saved, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(TracelabError, match="cannot load the model 'cut-short'"):
        load(folder)


def test_an_unknown_dtype_is_refused_with_the_choices(saved):
    with pytest.raises(TracelabError, match="'int8': choose one of float32, bfloat16, float16"):
        load(saved, dtype="int8")


def test_an_architecture_that_cannot_be_bridged_is_refused(own_tokenizer):
    config = AutoConfig.for_model("ctrl", vocab_size=100, n_embd=32, dff=32, n_layer=2, n_head=2)
    with pytest.raises(TracelabError, match="TransformerLens cannot bridge 'old'"):
        from_hf(AutoModelForCausalLM.from_config(config), own_tokenizer, model_id="old")


def test_a_tokenizer_is_used_as_it_is_in_memory_and_never_read_again(
    own_tokenizer, tmp_path, monkeypatch
):
    own_tokenizer.add_tokens(["<mine>"])
    own_tokenizer.chat_template = "mine"
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *args, **options: pytest.fail("read from disk")
    )
    model = from_hf(tiny_hf("llama", len(own_tokenizer)), own_tokenizer, model_id="m")
    assert not model_info(model).prepend_bos
    assert encode(model, "a <mine>").ids[-1] == len(own_tokenizer) - 1
    assert given_tokenizer(model) is own_tokenizer
    assert not tokenizer_adds_bos(own_tokenizer)
    assert tokenizer_adds_bos(model.tokenizer)
    to_merged(model, random_delta(model), tmp_path / "merged")
    monkeypatch.undo()
    back = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert back("a <mine>").input_ids == own_tokenizer("a <mine>").input_ids
    assert back.chat_template == "mine"


def test_a_tokenizer_that_stands_on_no_disk_is_enough(saved):
    inner = AutoTokenizer.from_pretrained(saved).backend_tokenizer
    own = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    model = from_hf(tiny_hf("llama", len(own)), own, model_id="m")
    assert score(model, [TEXT]).tokens


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_fp32_by_design_is_so_whatever_the_default_dtype(tiny_model, dtype, own_tokenizer):
    model, corpus = tiny_model("llama"), templates("gender", limit=24)

    def everything():
        loaded = from_hf(tiny_hf("llama", len(own_tokenizer)).float(), own_tokenizer, model_id="m")
        probes = probe_layers(model, corpus, n_seeds=1, config=ProberConfig(hidden=8, epochs=1))
        edits = [
            FairMed.fit(model, probes, FairMedConfig(init="random")),
            Experts.fit(model, ExpertTexts("gender", ["he bakes"], ["she bakes"])),
            WeightDelta.low_rank(model, layers=[1]),
            WeightDelta.low_rank(model, layers=[1], rank=None),
        ]
        with edits[0].applied(model):
            scores = score(model, [TEXT])
        trace = causal_trace(
            model, stereoset("gender", limit=2), n_samples=2, layers=[1], components=["resid"]
        )
        tensors = [value for edit in edits for value in edit.state_dict().values()]
        return (
            [*probes.probers.values(), *tensors],
            [scores.sum, trace.states["gap"]],
            model_info(loaded).faults,
        )

    expected = everything()
    torch.set_default_dtype(dtype)
    try:
        found = everything()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in found[0]} == {torch.float32}
    for first, second in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)
    for first, second in zip(found[1], expected[1], strict=True):
        assert list(first) == pytest.approx(list(second), abs=1e-4)
    assert found[2] == expected[2] == {}
