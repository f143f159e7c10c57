"""A stereotype planted in the MLP of one block: tracing has to find the block, and an edit there
has to undo it.

The model first learns that either filler may follow every target word, then, in one block's MLP
alone, that one of the two does for half of the target words and the other for the rest.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from tests.interventions.triple_records import (
    CONTEXTS,
    FILLERS,
    record,
    save_word_tokenizer,
    word_hf,
)
from tracelab import BiasEdit, BiasEditConfig, causal_trace
from tracelab.evaluate import stereoset_scores
from tracelab.model.load import from_hf

pytestmark = pytest.mark.slow

ONE = ("nurse", "schoolgirl", "Norwegian", "uncle", "baker")
OTHER = ("plumber", "engineer", "grandfather", "Ethiopian", "Peruvian")


def records():
    made = []
    for target in ONE + OTHER:
        for context in CONTEXTS[:2]:
            for stereo, anti, unrelated in (FILLERS[0], FILLERS[2]):
                first, second = (stereo, anti) if target in ONE else (anti, stereo)
                fillers = (first, second, unrelated)
                made.append(
                    record(
                        context.format(target),
                        *fillers,
                        number=len(made),
                        bias="gender",
                        target=target,
                    )
                )
    return made


def learn(hf_model, tokenizer, parameters, texts, lr):
    for parameter in hf_model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    for _ in range(300):
        optimizer.zero_grad()
        hf_model(
            batch.input_ids, attention_mask=batch.attention_mask, labels=labels
        ).loss.backward()
        optimizer.step()
    for parameter in hf_model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None


@pytest.fixture(scope="module", params=[1, 2])
def planted(request, tmp_path_factory):
    """The block, and the model."""
    layer, folder = request.param, tmp_path_factory.mktemp("planted")
    save_word_tokenizer(folder)
    hf_model, tokenizer = word_hf("llama", folder), AutoTokenizer.from_pretrained(folder)
    both = [side.text for each in records() for side in (each.stereotype, each.anti_stereotype)]
    learn(hf_model, tokenizer, list(hf_model.parameters()), both, lr=3e-3)
    stereotypes = [each.stereotype.text for each in records()]
    learn(
        hf_model,
        tokenizer,
        list(hf_model.model.layers[layer].mlp.parameters()),
        stereotypes,
        lr=1e-2,
    )
    return layer, from_hf(hf_model, tokenizer, model_id="planted")


def scores(model, chosen):
    values = stereoset_scores(model, chosen).table.set_index("metric")["value"]
    return {name: float(values[name]) for name in ("ss", "lms", "gap")}


def test_the_planted_model_prefers_every_stereotype(planted):
    found = scores(planted[1], records())
    assert (found["ss"], found["lms"]) == (100, 100)
    assert found["gap"] > 0.5


def test_tracing_peaks_at_the_planted_block(planted):
    layer, model = planted
    trace = causal_trace(model, records(), window=1, n_samples=4, components=("mlp",))
    assert trace.peak("mlp")["layer"] == layer


def test_an_edit_of_the_planted_block_closes_the_gap_and_keeps_lms(planted):
    layer, model = planted
    seen = [each for each in records() if each.target in ONE[:3] + OTHER[:3]]
    unseen = [each for each in records() if each.target in ONE[3:] + OTHER[3:]]
    # the stereotype is all that this model knows: no edit of it is within the default bound on KL
    config = BiasEditConfig.direct(steps=60, eval_every=20, delta_lr=1e-2, n_query=24, max_kl=9.0)
    edit = BiasEdit.fit(model, seen, config, layers=[layer], dev=seen)
    for chosen, left in (
        (seen, 0.05),
        (unseen, 0.5),
    ):  # of what there was, also on target words unseen
        before = scores(model, chosen)
        with edit.applied(model):
            after = scores(model, chosen)
        assert abs(after["gap"]) < left * before["gap"]
        assert after["ss"] < before["ss"]
        assert after["lms"] == 100
