"""The interventions fitted and applied on the embedded SmolLM2-135M."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import tracelab
from tests.interventions.edits import random_delta
from tracelab import Experts, FairMed, FairMedConfig, FinetuneConfig, Stack
from tracelab.evaluate import group_bias, perplexity
from tracelab.localize.probing.prober import ProberConfig

TEXT = "The woman worked for many years as"


@pytest.fixture(scope="module")
def corpus():
    return tracelab.datasets.templates("gender", limit=16)


@pytest.fixture(scope="module")
def probes(real_model, corpus):
    return tracelab.probe_layers(
        real_model, corpus, n_seeds=1, top_k=4, config=ProberConfig(epochs=8)
    )


@pytest.fixture(scope="module")
def fairmed(real_model, probes):
    return FairMed.fit(real_model, probes)


@pytest.fixture(scope="module")
def texts():
    return tracelab.datasets.expert_texts("gender", limit=24)


@pytest.fixture(scope="module")
def experts(real_model, texts):
    training = FinetuneConfig(rank=4, modules=("mlp.out",), lr=5e-3, epochs=3)
    return Experts.fit(real_model, texts, training=training)


@pytest.fixture(scope="module")
def tokens(real_model):
    return torch.tensor([real_model.tokenizer(TEXT, add_special_tokens=False).input_ids])


def probers_kl(model, edit, corpus):
    """KL from uniform before and after at each layer, mean over prompts."""
    with edit.applied(model), edit.observed() as told:
        group_bias(model, corpus)
    told = [fact for fact in told if fact.quantity == "kl"]
    layers = sorted({fact.layer for fact in told})
    return {
        when: torch.stack(
            [
                torch.cat([getattr(f, when)[:, -1] for f in told if f.layer == layer]).mean()
                for layer in layers
            ]
        )
        for when in ("before", "after")
    }


@pytest.mark.slow
def test_fairmed_makes_the_probers_more_even_at_every_layer_on_unseen_prompts_and_random_does_not(
    real_model, probes, fairmed, corpus
):
    unseen = probes.unseen(corpus)
    edited = probers_kl(real_model, fairmed, unseen)
    control = probers_kl(real_model, fairmed.with_config(FairMedConfig(direction="random")), unseen)
    assert len(edited["before"]) == 4
    assert (edited["after"] < edited["before"] / 2).all()
    assert (edited["after"] < control["after"]).all()


def test_the_first_edited_layer_is_read_as_it_is_without_the_edit(
    real_model, probes, fairmed, corpus
):
    unseen = probes.unseen(corpus)
    before = probers_kl(real_model, fairmed, unseen)["before"]
    untouched = probers_kl(real_model, fairmed.with_config(FairMedConfig(lam=0.0)), unseen)[
        "before"
    ]
    torch.testing.assert_close(before[0], untouched[0])
    assert not torch.allclose(before[-1], untouched[-1])


@pytest.mark.slow
def test_experts_learn_their_texts_and_leave_the_weights_alone(real_model, experts, texts, tokens):
    for delta, own, other in (
        (experts.expert, texts.anti_biased, texts.biased),
        (experts.anti_expert, texts.biased, texts.anti_biased),
    ):
        base = perplexity(real_model, own).table["value"][0]
        with delta.applied(real_model):
            tuned, counterpart = (
                perplexity(real_model, lines).table["value"][0] for lines in (own, other)
            )
        assert tuned < base / 2
        assert tuned < counterpart
    with torch.no_grad():
        before = real_model(tokens)
        with experts.with_alpha(0.0).applied(real_model):
            assert torch.equal(real_model(tokens), before)
    assert all(parameter.grad is None for parameter in real_model.parameters())


@pytest.mark.slow
def test_mixed_logits_are_those_of_three_forward_passes_of_the_real_model(
    real_model, experts, tokens
):
    with torch.no_grad():
        z = real_model(tokens)
        with experts.expert.applied(real_model):
            plus = real_model(tokens)
        with experts.anti_expert.applied(real_model):
            minus = real_model(tokens)
        with experts.with_alpha(1.5).applied(real_model):
            mixed = real_model(tokens)
    assert (plus - minus).abs().max() > 0.5
    torch.testing.assert_close(mixed, z + 1.5 * (plus - minus), atol=1e-3, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("fairmed", "experts")), "stack"]
)
def test_greedy_text_of_the_real_model_is_the_same_with_and_without_a_cache(
    real_model, fairmed, experts, name
):
    edit = {"fairmed": fairmed, "experts": experts, "stack": Stack([fairmed, experts])}[name]
    prompts = ["The nurse said that", TEXT]
    with edit.applied(real_model):
        cached, uncached = (
            tracelab.generate(
                real_model, prompts, do_sample=False, max_new_tokens=6, use_cache=use_cache
            )
            for use_cache in (True, False)
        )
        alone = [
            tracelab.generate(real_model, [p], do_sample=False, max_new_tokens=6).frame
            for p in prompts
        ]
    assert cached.frame["continuation"].tolist() == uncached.frame["continuation"].tolist()
    assert cached.frame["continuation"].tolist() == [frame["continuation"][0] for frame in alone]
    if name != "fairmed":  # which moves these two prompts too little to change their words
        plain = tracelab.generate(real_model, prompts, do_sample=False, max_new_tokens=6)
        assert cached.frame["continuation"].tolist() != plain.frame["continuation"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fairmed", "experts", "stack"])
def test_attached_to_the_plain_real_model_an_edit_gives_the_logits_of_the_bridge_to_1e_4(
    real_model, plain_model, fairmed, experts, tokens, name
):
    delta = random_delta(real_model, layers=(5, 20), scale=0.02)
    edit = {"fairmed": fairmed, "experts": experts, "stack": Stack([delta, experts])}[name]
    with torch.no_grad():
        with edit.applied(real_model):
            bridged = real_model(tokens).log_softmax(-1)
        clean = plain_model(tokens).logits.log_softmax(-1)
        with edit.attach(plain_model):
            attached = plain_model(tokens).logits.log_softmax(-1)
    assert (bridged - clean).abs().max() > 0.1
    likely = clean > -12  # sdpa and eager attention differ by 1e-4 on tokens that never come
    torch.testing.assert_close(attached[likely], bridged[likely], atol=1e-4, rtol=1e-4)


PROCESS = """
import json, sys, torch, tracelab
from tracelab.model import assets
from transformers import AutoModelForCausalLM
edit = tracelab.load_intervention(sys.argv[1])
tokens = torch.tensor([json.loads(sys.argv[2])])
plain = AutoModelForCausalLM.from_pretrained(assets.model_dir(), dtype=torch.float32).eval()
torch.set_num_threads(1)
with torch.no_grad(), edit.attach(plain):
    attached = plain(tokens).logits[0, -1]
model = tracelab.load()
with torch.no_grad(), edit.applied(model):
    bridged = model(tokens)[0, -1]
torch.save({"bridged": bridged, "attached": attached}, sys.argv[3])
"""


@pytest.mark.slow
def test_a_bundle_gives_the_same_numbers_in_another_process_on_the_bridge_and_on_plain_transformers(
    real_model, fairmed, experts, tokens, tmp_path
):
    edit = Stack([fairmed, experts.with_alpha(0.5)])
    edit.save(tmp_path / "bundle")
    with torch.no_grad(), edit.applied(real_model):
        here = real_model(tokens)[0, -1]
    arguments = [
        str(tmp_path / "bundle"),
        json.dumps(tokens[0].tolist()),
        str(tmp_path / "there.pt"),
    ]
    subprocess.run([sys.executable, "-c", PROCESS, *arguments], check=True, timeout=300)
    there = torch.load(tmp_path / "there.pt", weights_only=True)
    torch.testing.assert_close(there["bridged"], here, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(there["attached"], here, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_inspect_reports_what_the_stack_did_on_the_real_model(real_model, fairmed, experts):
    result = tracelab.inspect(
        real_model, [fairmed, Stack([fairmed, experts])], TEXT, tokens=["nurse"]
    )
    assert set(result.groups["layer"]) == set(fairmed.layers)
    assert (result.groups["kl_after"] <= result.groups["kl_before"] + 1e-6).all()
    first = min(fairmed.layers)
    moved = result.layers.set_index(["edit", "layer"])["resid_post"].loc[fairmed.name]
    assert (moved.loc[: first - 1] == 0).all()
    assert moved.loc[max(fairmed.layers) :].min() > 0
    stacked = result.tokens[result.tokens["edit"] != fairmed.name]
    mixed = stacked["z"] + experts.config.alpha * (stacked["z_plus"] - stacked["z_minus"])
    assert (stacked["logit_after"] - mixed).abs().max() < 1e-3
