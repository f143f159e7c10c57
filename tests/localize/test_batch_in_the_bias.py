"""Models that put the number of rows into what they give their blocks (ALiBi): BLOOM, and Falcon
with ALiBi."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.interventions.edits import random_delta
from tracelab.datasets import stereoset
from tracelab.inspection.weight_directions import weight_directions
from tracelab.localize import causal_trace
from tracelab.localize.tracing.cases import make_cases
from tracelab.model import assets
from tracelab.model.continuations import continuation_logprobs, encode_continuations
from tracelab.model.load import from_hf

SIZES = {"hidden_size": 32, "initializer_range": 0.25}
CONFIGS = {
    "bloom": {"n_layer": 4, "n_head": 4, **SIZES},
    "falcon": {
        **{"num_hidden_layers": 4, "num_attention_heads": 4, "alibi": True},
        **{"multi_query": False, "parallel_attn": False, **SIZES},
    },
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    tokenizer = AutoTokenizer.from_pretrained(assets.model_dir())
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        request.param, vocab_size=len(tokenizer), **CONFIGS[request.param]
    )
    return from_hf(
        AutoModelForCausalLM.from_config(config).eval(), tokenizer, model_id=f"tiny-{request.param}"
    )


@pytest.fixture(scope="module")
def pairs(model):
    records = stereoset("gender", limit=40)
    cases, _ = make_cases(model, records)
    traceable = {case.id for case in cases}
    return [record for record in records if record.id in traceable]


def test_tracing_falls_back_to_the_slow_way(model, pairs):
    options = {"max_cases": 1, "n_samples": 2, "components": ["resid"], "window": 1}
    with pytest.warns(UserWarning, match="caches cannot be shared on this model"):
        auto = causal_trace(model, pairs, **options)
    plain = causal_trace(model, pairs, **options, run="plain")
    assert auto.settings["run"] == "plain"
    assert np.allclose(auto.states["gap"], plain.states["gap"], rtol=0, atol=1e-5)
    assert plain.states["gap"].std() > 0.01


def test_continuations_of_a_shared_prompt_are_those_of_whole_texts(model):
    texts = [" a man.", " the old woman."]
    prompts = [
        encode_continuations(model, prompt, texts) for prompt in ("He is", "In the end she was not")
    ]
    shared, plain = (
        continuation_logprobs(model, prompts, share_prefix=share) for share in (None, False)
    )
    for ours, theirs in zip(shared, plain, strict=True):
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def test_directions_of_a_delta_are_named(model):
    assert any(row["promoted"] for row in weight_directions(model, random_delta(model)))


@pytest.mark.slow
def test_a_small_share_of_traceable_pairs_is_said_aloud(model, pairs):
    broken = [r for r in stereoset("gender") if not any(r.id == p.id for p in pairs)]
    bad = [r for r in broken if r.id not in {case.id for case in make_cases(model, broken)[0]}][:5]
    with pytest.warns(
        UserWarning, match=f"{len(bad)} of {len(bad) + 2} records cannot be traced: .*filler"
    ):
        make_cases(model, [*pairs[:2], *bad])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_cases(model, [*pairs[:9], *bad[:1]])
