"""What learns turns gradients on, what measures turns them off, whatever is set around the call."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

import tracelab
from tests.interventions.edits import TOKENS, random_delta, random_fairmed
from tests.tiny import tiny_hf
from tracelab import assets
from tracelab.datasets import expert_texts, stereoset, templates
from tracelab.evaluate import transductive_scores
from tracelab.interventions import KLAAD, BiasEdit, BiasEditConfig, Experts, FairMed, KLAADConfig, load_intervention
from tracelab.localize.prober import ProberConfig
from tracelab.model import from_hf

SURROUNDINGS = {
    "off": lambda: torch.set_grad_enabled(False),
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
}


def fit_fairmed(model):
    corpus = templates("gender", limit=24)
    return FairMed.fit(model, tracelab.probe_layers(model, corpus, n_seeds=1, config=ProberConfig(hidden=8, epochs=1)))


FITS = {
    "fairmed": fit_fairmed,
    "experts": lambda model: Experts.fit(model, expert_texts("gender", limit=8)),
    "biasedit": lambda model: BiasEdit.fit(model, triples(), BiasEditConfig(steps=2, eval_every=2, rank=4)),
    "direct": lambda model: BiasEdit.fit(model, triples(), BiasEditConfig.direct(steps=2, eval_every=2)),
    "klaad": lambda model: KLAAD.fit(model, triples(), KLAADConfig(rank=2)),
}


def triples():
    return stereoset("gender", split="test", limit=24)


def values(edit):
    return {name: value.detach().clone() for name, value in edit.state_dict().items()}


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.mark.filterwarnings("ignore:.*changes nothing", "ignore:.*training prompts")
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_a_fit_learns_the_same_whatever_is_set_around_it(model, fit):
    with torch.enable_grad():
        expected = values(fit(model))
    for name, surroundings in SURROUNDINGS.items():
        with surroundings():
            edit = fit(model)
        found = values(edit)
        assert not any(value.is_inference() for value in [*edit.parameters(), *edit.buffers()]), name
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)


@pytest.mark.filterwarnings("ignore:.*changes nothing")
def test_the_transductive_protocol_works_in_inference_mode(model):
    edit = BiasEdit.fit(model, triples(), BiasEditConfig(steps=1, eval_every=1, rank=4))
    expected = transductive_scores(model, edit, triples()[:4]).frame
    with torch.inference_mode():
        assert transductive_scores(model, edit, triples()[:4]).frame.equals(expected)


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_an_edit_acts_the_same_without_gradients(model, surroundings):
    for edit in (random_fairmed(model, init="random"), random_delta(model)):
        with edit.applied(model):
            expected = model(TOKENS).detach()
            with surroundings():
                assert torch.equal(model(TOKENS), expected)


def test_a_loss_can_be_trained_through_an_edit_that_first_ran_in_inference_mode(model):
    fairmed, delta = random_fairmed(model, init="random"), random_delta(model)
    with torch.inference_mode(), fairmed.applied(model):
        model(TOKENS)
    with fairmed.applied(model), delta.applied(model):
        model(TOKENS).float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in delta.parameters())
    for parameter in model.parameters():
        parameter.grad = None


def test_a_model_and_a_bundle_that_were_loaded_in_inference_mode_can_be_trained(model, tokenizer, tmp_path):
    saved = random_delta(model).save(tmp_path / "delta")
    with torch.inference_mode():
        hf_model = tiny_hf("llama", len(tokenizer))  # its tensors are inference tensors
        assert all(p.is_inference() for p in hf_model.parameters())
        loaded = from_hf(hf_model, AutoTokenizer.from_pretrained(assets.model_dir()), model_id="tiny-llama")
        delta = load_intervention(saved)
        delta.scale_(1.0)
    delta.scale_(0.5)
    with delta.applied(loaded):
        loaded(TOKENS).float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in delta.parameters())
    assert torch.equal(loaded(TOKENS).detach(), model(TOKENS).detach())
    KLAAD.fit(loaded, triples(), KLAADConfig(rank=2))


def test_tied_embeddings_stay_tied_when_inference_mode_is_left(tokenizer):
    with torch.inference_mode():
        hf_model = tiny_hf("gpt2", len(tokenizer))
        loaded = from_hf(hf_model, AutoTokenizer.from_pretrained(assets.model_dir()), model_id="tied")
    plain = loaded.original_model
    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert not any(value.is_inference() for value in [*plain.parameters(), *plain.buffers()])


def test_what_measures_keeps_no_graph(model):
    with torch.enable_grad():
        for result in (tracelab.probe_layers(model, templates("gender", limit=24), n_seeds=1),):
            assert not any(value.requires_grad for value in result.probers.values())
