"""What learns turns gradients on, what measures turns them off, whatever is set around the call."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

import tracelab
from tests.interventions.edits import TOKENS, random_delta, random_fairmed
from tests.interventions.triple_records import OTHER_TARGETS, records, word_model
from tests.tiny import tiny_hf
from tracelab.datasets import templates
from tracelab.datasets.redditbias import ExpertTexts
from tracelab.evaluate import transductive_scores
from tracelab.interventions import (
    KLAAD,
    BiasEdit,
    BiasEditConfig,
    Experts,
    FairMed,
    KLAADConfig,
    load_intervention,
)
from tracelab.localize.probing.prober import ProberConfig
from tracelab.model import assets, scoring
from tracelab.model.load import from_hf
from tracelab.model.scoring import start_logprobs

SURROUNDINGS = {
    "off": lambda: torch.set_grad_enabled(False),
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
}


SMALL = {
    "rank": 8,
    "n_edits": 4,
    "n_query": 3,
    "n_support": 99,
    "batch_size": 3,
    "steps": 2,
    "eval_every": 2,
}
TRAIN, DEV = records(20), records(6, start=100, targets=OTHER_TARGETS)
TEXTS = [record.stereotype.text for record in TRAIN]


def fit_fairmed(model):
    corpus = templates("gender", limit=24)
    return FairMed.fit(
        model,
        tracelab.probe_layers(model, corpus, n_seeds=1, config=ProberConfig(hidden=8, epochs=1)),
    )


FITS = {
    "experts": lambda model: Experts.fit(model, ExpertTexts("race", TEXTS[:8], TEXTS[8:16])),
    "biasedit": lambda model: BiasEdit.fit(model, TRAIN, BiasEditConfig(**SMALL), dev=DEV),
    "direct": lambda model: BiasEdit.fit(model, TRAIN, BiasEditConfig.direct(**SMALL), dev=DEV),
    "klaad": lambda model: KLAAD.fit(model, TRAIN, KLAADConfig.paper(rank=2), dev=DEV),
}


def values(edit):
    return {name: value.detach().clone() for name, value in edit.state_dict().items()}


def learns_the_same(model, fit):
    """Whether a fit gives the same tensors whatever is set around it, and none that no gradient can
    pass."""
    with torch.enable_grad():
        expected = values(fit(model))
    for name, surroundings in SURROUNDINGS.items():
        with surroundings():
            edit = fit(model)
        found = values(edit)
        assert not any(value.is_inference() for value in [*edit.parameters(), *edit.buffers()]), (
            name
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name


@pytest.mark.filterwarnings("ignore:.*changes nothing")
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
@pytest.mark.slow
def test_a_fit_learns_the_same_whatever_is_set_around_it(tiny, fit):
    learns_the_same(tiny("llama"), fit)


@pytest.mark.filterwarnings("ignore:.*training prompts")
def test_probers_learn_the_same_whatever_is_set_around_them(model):
    learns_the_same(model, fit_fairmed)


@pytest.mark.filterwarnings("ignore:.*changes nothing")
def test_the_transductive_protocol_works_in_inference_mode(tiny):
    edit = BiasEdit.fit(tiny("llama"), TRAIN, BiasEditConfig(**SMALL), dev=DEV)
    expected = transductive_scores(tiny("llama"), edit, DEV).frame
    with torch.inference_mode():
        assert transductive_scores(tiny("llama"), edit, DEV).frame.equals(expected)


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


def test_a_model_and_a_bundle_that_were_loaded_in_inference_mode_can_be_trained(
    model, tokenizer, tmp_path
):
    saved = random_delta(model).save(tmp_path / "delta")
    with torch.inference_mode():
        hf_model = tiny_hf("llama", len(tokenizer))  # its tensors are inference tensors
        assert all(p.is_inference() for p in hf_model.parameters())
        loaded = from_hf(
            hf_model, AutoTokenizer.from_pretrained(assets.model_dir()), model_id="tiny-llama"
        )
        delta = load_intervention(saved)
        delta.scale_(1.0)
    delta.scale_(0.5)
    with delta.applied(loaded):
        loaded(TOKENS).float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in delta.parameters())
    assert torch.equal(loaded(TOKENS).detach(), model(TOKENS).detach())


def test_tied_embeddings_stay_tied_when_inference_mode_is_left(tokenizer):
    with torch.inference_mode():
        hf_model = tiny_hf("gpt2", len(tokenizer))
        loaded = from_hf(
            hf_model, AutoTokenizer.from_pretrained(assets.model_dir()), model_id="tied"
        )
    plain = loaded.original_model
    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert not any(value.is_inference() for value in [*plain.parameters(), *plain.buffers()])


def test_a_word_model_that_was_loaded_in_inference_mode_can_be_fitted(folder):
    with torch.inference_mode():
        loaded = word_model("gpt2", folder)
    assert KLAAD.fit(loaded, TRAIN, KLAADConfig.paper(rank=2), dev=DEV).notes["curves"]


def test_what_measures_keeps_no_graph(model):
    with torch.enable_grad():
        assert not start_logprobs(model).requires_grad
        assert not any(
            values.requires_grad for values in scoring.token_logprobs(model, [(5, 6, 7)], [1])
        )


def test_a_default_device_is_for_tensors_of_ones_own(model):
    triples, edits = records(12), {"fairmed": random_fairmed(model), "delta": random_delta(model)}

    def measured():
        return [
            tracelab.score(model, "A nurse came").sum.tolist(),
            tracelab.generate(model, "A nurse", max_new_tokens=3).frame.to_dict(),
            tracelab.inspect(model, edits, "A nurse").positions.to_dict(),
            tracelab.attention_gap(model, triples).frame.to_dict(),
            tracelab.evaluate(model, edits, ["perplexity"], limit=4, costs=False)
            .frame["value"]
            .tolist(),
        ]

    expected = measured()
    torch.set_default_device("meta")  # stands for one that the model is not on
    try:
        found = measured()
        experts = Experts.fit(model, ExpertTexts("race", TEXTS[:8], TEXTS[8:16]))
    finally:
        torch.set_default_device(None)
    assert repr(found) == repr(expected)
    assert all(value.device.type == "cpu" for value in experts.state_dict().values())
