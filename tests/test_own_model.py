"""A model of one's own: in memory, with the options of its loading, and what is no model that
tracelab has loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import tracelab
from tests.interventions.edits import random_delta
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.interventions import to_peft
from tracelab.model import assets, reading
from tracelab.model.load import load, model_info

TOKENS = torch.arange(40, 52)[None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / "mine"
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def own_tokenizer():
    return AutoTokenizer.from_pretrained(assets.model_dir())


# --- in memory ------------------------------------------------------------------------------------


def test_a_model_in_memory_is_the_model_that_its_folder_gives(saved, own_tokenizer):
    there = AutoModelForCausalLM.from_pretrained(saved)
    with torch.no_grad():
        plain = there.eval()(TOKENS).logits
    model = load(there, tokenizer=own_tokenizer)
    with torch.no_grad():
        assert torch.allclose(model(TOKENS), plain, atol=1e-5)
    read = model_info(load(saved))
    assert replace(model_info(model), in_memory=False) == read
    assert (model_info(model).in_memory, read.in_memory) == (True, False)
    assert read.model_id == "mine"
    edit = random_delta(model)  # an edit of the one is an edit of the other
    with edit.applied(load(saved)):
        pass


def test_an_adapter_of_a_model_in_memory_needs_the_base_that_has_its_weights(
    saved, own_tokenizer, tmp_path
):
    pytest.importorskip("peft")
    model = load(AutoModelForCausalLM.from_pretrained(saved), tokenizer=own_tokenizer)
    with pytest.raises(TracelabError, match="given in memory.*say base_model="):
        to_peft(model, random_delta(model), tmp_path / "adapter")
    assert to_peft(model, random_delta(model), tmp_path / "adapter", base_model=str(saved))


def test_a_model_in_memory_keeps_its_dtype_unless_told(saved, own_tokenizer):
    def fresh():
        return AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16)

    assert model_info(load(fresh(), tokenizer=own_tokenizer)).dtype == "bfloat16"
    wished = load(fresh(), tokenizer=str(saved), dtype="float32")
    assert model_info(wished).dtype == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'mine' needs its tokenizer, not None"),
        ({"revision": "main"}, "are of a model that is read; the one given is in memory"),
        ({"device_map": "auto"}, "are of a model that is read; the one given is in memory"),
        ({"trust_remote_code": True}, "are of a model that is read"),
        ({"device": "cpu", "device_map": "cpu"}, "device and device_map both say where"),
    ],
)
def test_what_a_model_in_memory_cannot_have_is_refused(saved, options, message):
    hf_model = AutoModelForCausalLM.from_pretrained(saved)
    with pytest.raises(TracelabError, match=message):
        load(hf_model, **options)


def test_what_is_loaded_already_and_what_wraps_a_model_are_told(saved, own_tokenizer):
    bridge = load(saved)
    with pytest.raises(TracelabError, match="bridge|loaded already"):
        load(bridge, tokenizer=own_tokenizer)
    with pytest.raises(TracelabError, match="is a Linear, not a transformers model"):
        load(torch.nn.Linear(2, 2), tokenizer=own_tokenizer)


# --- options that are passed on -------------------------------------------------------------------


def test_a_device_map_puts_the_parts_where_it_says(saved):
    model = load(saved, device_map={"": "cpu"})
    assert model_info(model).device == "cpu"
    with torch.no_grad():
        assert torch.equal(model(TOKENS), load(saved)(TOKENS))


def test_revision_token_and_quantisation_reach_transformers_and_no_setting(saved, monkeypatch):
    asked = {}

    def read(kind, real):
        def call(folder, **options):
            asked[kind] = options
            return real(folder, **{k: v for k, v in options.items() if k in ("dtype",)})

        return staticmethod(call)

    for kind in (reading.AutoModelForCausalLM, reading.AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", read(kind, kind.from_pretrained))
    bits = BitsAndBytesConfig(load_in_8bit=True)
    model = load(saved, revision="v1", token="hf_secret", quantization_config=bits)
    access = {"revision": "v1", "token": "hf_secret", "trust_remote_code": False}
    assert asked[reading.AutoTokenizer] == access
    assert asked[reading.AutoModelForCausalLM] == {
        **access,
        "dtype": torch.float32,
        "quantization_config": bits,
    }
    result = tracelab.score(model, "The nurse said that")
    assert "hf_secret" not in json.dumps(result.settings)


def test_a_quantisation_that_cannot_be_had_is_one_sentence(saved):
    with pytest.raises(TracelabError, match="cannot load the model 'mine': "):
        load(saved, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_another_tokenizer_can_be_given_by_name_or_in_memory(saved, own_tokenizer, tmp_path):
    own_tokenizer.chat_template = "{{ messages[0].content }}"
    own_tokenizer.save_pretrained(tmp_path)
    for given in (own_tokenizer, tmp_path, str(tmp_path)):
        model = load(saved, tokenizer=given)
        assert tracelab.model.chat.chat_prompt(model, "Hello") == "Hello"


# --- chat templates -------------------------------------------------------------------------------


def test_prompts_are_turns_on_request_and_the_settings_say_which(saved, own_tokenizer):
    model = load(saved)
    plain = tracelab.generate(model, "Hello", do_sample=False, max_new_tokens=4)
    assert plain.settings["chat_template"] == "not applied"
    chat = tracelab.generate(
        model, "Hello", do_sample=False, max_new_tokens=4, apply_chat_template=True
    )
    assert chat.settings["chat_template"] == "applied"
    assert chat.frame["prompt"].tolist() == ["Hello"]
    turn = own_tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    by_hand = tracelab.generate(model, turn, do_sample=False, max_new_tokens=4)
    assert chat.frame["continuation"].tolist() == by_hand.frame["continuation"].tolist()
    scored = tracelab.score(model, ["Fine."], ["Hello"], apply_chat_template=True)
    ids = own_tokenizer(turn + "Fine.").input_ids
    n = len(ids) - len(own_tokenizer(turn).input_ids)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).log_softmax(-1)[0]
    expected = sum(logprobs[k - 1, ids[k]] for k in range(len(ids) - n, len(ids)))
    assert float(scored.sum[0]) == pytest.approx(float(expected), abs=1e-3)


def test_a_model_without_a_template_says_nothing_and_is_refused(tmp_path, saved):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.chat_template = None
    model = load(saved, tokenizer=tokenizer)
    assert "chat_template" not in tracelab.score(model, "The nurse said").settings
    with pytest.raises(TracelabError, match="mine has no chat template"):
        tracelab.generate(model, "Hello", apply_chat_template=True)
    with pytest.raises(TracelabError, match="a chat template needs contexts"):
        tracelab.score(load(saved), "Hello", apply_chat_template=True)


# --- what is no model -----------------------------------------------------------------------------

CALLS = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import tracelab
from tracelab import datasets
from tracelab.evaluate import *
from tests.tiny import tiny_hf
hf = tiny_hf("llama", 64)
pair = datasets.Pair("0", "own", "a cat sat", "a dog sat")
records = [pair] * 2
triples = datasets.pairs([("a cat sat", "a dog sat", "a of sat", "cat", "own")])
corpus = datasets.templates("gender", limit=2)
edit = tracelab.WeightDelta.__new__(tracelab.WeightDelta)
calls = {
    "score": lambda m: tracelab.score(m, "a"),
    "generate": lambda m: tracelab.generate(m, "a"),
    "causal_trace": lambda m: tracelab.causal_trace(m, triples),
    "attention_gap": lambda m: tracelab.attention_gap(m, records),
    "probe_layers": lambda m: tracelab.probe_layers(m, corpus),
    "inspect": lambda m: tracelab.inspect(m, [], "a"),
    "evaluate": lambda m: tracelab.evaluate(m, {}, ["stereoset"]),
    "report": lambda m: tracelab.report(m, "gender", sys.argv[1]),
    "tune": lambda m: tracelab.tune(m, tracelab.Erasure, lambda without: None),
    "KLAAD.fit": lambda m: tracelab.KLAAD.fit(m, triples),
    "BiasEdit.fit": lambda m: tracelab.BiasEdit.fit(m, triples),
    "Experts.fit": lambda m: tracelab.Experts.fit(m, records),
    "Erasure.fit": lambda m: tracelab.Erasure.fit(m, records),
    "FairMed.fit": lambda m: tracelab.FairMed.fit(m, corpus),
    "low_rank": lambda m: tracelab.WeightDelta.low_rank(m, layers=[0], modules=["mlp.out"], rank=1),
    "stereoset_scores": lambda m: stereoset_scores(m, triples),
    "crows_pairs_scores": lambda m: crows_pairs_scores(m, records),
    "perplexity": lambda m: perplexity(m, "a"),
    "attention_scores": lambda m: attention_scores(m, records),
}
told = {}
for name, call in calls.items():
    for what, model in (("plain", hf), ("name", "gpt2"), ("none", None)):
        try:
            call(model)
            told[f"{name} {what}"] = "nothing"
        except Exception as error:
            told[f"{name} {what}"] = f"{type(error).__name__}: {error}"
for name, call in {"corpus": lambda: tracelab.probe_layers(hf, records)}.items():
    try:
        call()
    except Exception as error:
        told[name] = f"{type(error).__name__}: {error}"
print(json.dumps(told))
"""


@pytest.mark.slow
def test_what_is_no_bridge_is_one_sentence_at_every_function(tmp_path):
    """In a process of its own, where nothing checks annotations, as at a user's."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS, str(tmp_path / "report")],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("corpus").startswith("TracelabError: probe_layers takes a corpus, not [Pair(")
    expected = {
        "plain": "TracelabError: a LlamaForCausalLM of transformers has no hook points: load it "
        "first, model = tracelab.load(hf_model, tokenizer=tokenizer)",
        "name": "TracelabError: 'gpt2' is a name, not a model: load it first, model = "
        "tracelab.load('gpt2')",
        "none": "TracelabError: a model is what tracelab.load() gives, not None",
    }
    wrong = {name: text for name, text in told.items() if text != expected[name.split()[1]]}
    assert not wrong
