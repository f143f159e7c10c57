"""How far an edit moves a model on neutral text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tracelab.datasets import development_sentences, neutral_sentences
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.perplexity import perplexity
from tracelab.interventions import Stack, WeightDelta
from tracelab.interventions import drift as drifting
from tracelab.interventions.drift import compared, drift, logprobs
from tracelab.model.tokens import encode

TEXTS = [
    "The cat sat on the mat and slept.",
    "Rain fell.",
    "A long day ends with a short walk home.",
]


def changed(model):
    edit = WeightDelta.low_rank(model, layers=[0], modules=["mlp.out"], rank=2, seed=0)
    with torch.no_grad():
        for value in edit.parameters():
            value.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return edit


def test_it_is_a_plain_loop_over_texts(tiny_model):
    model = tiny_model("llama")
    edit = changed(model)
    kl, nll, n = 0.0, [0.0, 0.0], 0
    for text in TEXTS:
        ids = encode(model, text).ids
        with torch.no_grad():
            p = model(torch.tensor([ids]))[0].double().log_softmax(-1)
            with edit.applied(model):
                q = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        for j in range(1, len(ids)):
            kl += float((p[j - 1].exp() * (p[j - 1] - q[j - 1])).sum())
            nll = [nll[k] - float((p, q)[k][j - 1, ids[j]]) for k in (0, 1)]
            n += 1
    found = drift(model, edit, TEXTS)
    assert kl / n > 1e-4
    assert found.n_tokens == n
    assert found.kl == pytest.approx(kl / n, rel=1e-3)
    assert found.perplexity_before == pytest.approx(np.exp(nll[0] / n), rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(nll[1] / n), rel=1e-5)
    assert found.perplexity_change == pytest.approx(
        100 * (np.exp((nll[1] - nll[0]) / n) - 1), rel=1e-3
    )
    assert drift(model, edit, TEXTS, batch_tokens=1).kl == pytest.approx(found.kl, rel=1e-3)


def test_nothing_changes_nothing_and_perplexity_is_the_benchmarks(tiny_model):
    model = tiny_model("llama")
    found = drift(model, Stack([]), TEXTS)
    assert found.kl == 0
    assert found.perplexity == found.perplexity_before
    assert found.perplexity == pytest.approx(perplexity(model, TEXTS).table["value"][0], rel=1e-6)


def test_texts_without_a_predicted_token_are_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(TracelabError, match="no token"):
        drift(model, Stack([]), [])


def test_development_sentences_share_none_with_each_other_or_with_what_is_reported():
    parts = [
        development_sentences(use, n) for use, n in (("fit", 200), ("retain", 400), ("choose", 200))
    ]
    texts = [text for part in parts for text in part]
    assert len(texts) == len(set(texts)) == 800
    assert not set(texts) & set(neutral_sentences())
    assert development_sentences("retain", 5) == parts[1][:5]
    with pytest.raises(TracelabError, match="cannot take 201 sentences to choose"):
        development_sentences("choose", 201)
    with pytest.raises(TracelabError, match="use of sentences"):
        development_sentences("test", 1)


@pytest.mark.parametrize("chunk", [1, 50 * 7, 2**20])
def test_what_is_compared_is_torchs_divergence_and_leaves_the_logits_alone(monkeypatch, chunk):
    monkeypatch.setattr(drifting, "CHUNK", chunk)
    draw = torch.Generator().manual_seed(0)
    before, after = (4 * torch.randn(12, 26, 50, generator=draw) for _ in range(2))
    tokens, kept = torch.randint(50, (12, 26), generator=draw), (before.clone(), after.clone())
    places = torch.rand(12, 25, generator=draw) < 0.8
    targets = tokens[:, 1:][places]
    unedited = list(logprobs(before, places))  # kept for several looks
    looks = [
        torch.stack(list(compared(unedited, logprobs(after, places), targets))).sum(dim=0)
        for _ in range(2)
    ]
    assert torch.equal(*looks)
    kl, *nll = looks[0]
    log_p, log_q = (logits[:, :-1][places].double().log_softmax(-1) for logits in kept)
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    torch.testing.assert_close(kl, expected, rtol=1e-6, atol=0)
    for found, each in zip(nll, (log_p, log_q), strict=True):
        torch.testing.assert_close(
            found, torch.nn.functional.nll_loss(each, targets, reduction="sum"), rtol=1e-6, atol=0
        )
    assert torch.equal(before, kept[0])
    assert torch.equal(after, kept[1])
