"""What an edit in training does to development records and neutral text, against one sentence at a
time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.interventions.triple_records import records
from tracelab.datasets import gender_twins, stereoset
from tracelab.interventions import WeightDelta
from tracelab.interventions.drift import drift
from tracelab.interventions.training import development
from tracelab.interventions.training.development import NEUTRAL_TOKENS, Development, summary
from tracelab.interventions.training.triples import LABELS, tokenise
from tracelab.model.scoring import score
from tracelab.model.tokens import encode


def changed(model, layer: int = 1):
    edit = WeightDelta.low_rank(model, layers=[layer], modules=["mlp.out"], rank=2, seed=0)
    with torch.no_grad():
        for value in edit.parameters():
            value.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return edit


def lbar(model, text: str) -> float:
    return float(score(model, [text]).mean[0])


def gap(model, record) -> float:
    return lbar(model, record.stereotype.text) - lbar(model, record.anti_stereotype.text)


def test_gaps_are_those_of_single_sentences_and_of_their_twins(tiny_model):
    model = tiny_model("llama")
    given = [*stereoset("gender", split="test", limit=4), *records(1)]
    both, edit = Development(model, tokenise(model, given), 1, n_neutral=3), changed(model)
    plain, found = both.gaps(), both.gaps(edit)
    assert not np.allclose(plain["gap"], found["gap"])
    twins = dict(gender_twins(given))
    assert len(twins) > 1
    with edit.applied(model):
        for row in found.itertuples():
            record = next(r for r in given if r.id == row.id)
            for label in LABELS:
                expected = lbar(model, getattr(record, label).text)
                assert getattr(row, label) == pytest.approx(expected, abs=1e-4)
            if record.bias_type != "gender" or record not in twins:
                assert np.isnan(row.gap_group)
                continue
            swapped = -gap(model, twins[record])
            assert row.gap_group == pytest.approx((gap(model, record) - swapped) / 2, abs=1e-4)
            assert row.gap_blind == pytest.approx((gap(model, record) + swapped) / 2, abs=1e-4)


def test_of_an_intersentence_record_the_continuation_is_scored(tiny_model):
    model = tiny_model("llama")
    given = stereoset("gender", split="test", task="intersentence", limit=2)
    triples = tokenise(model, given)
    found = Development(model, triples, 0, n_neutral=3).gaps()
    for number, record in enumerate(given):
        ids = encode(model, f"{record.context} {record.stereotype.text}").ids
        with torch.no_grad():
            logprobs = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        places = triples.fillers[triples.index(number, "stereotype")]
        assert places[-1] == len(ids) - 1
        assert len(places) < len(ids) - 1
        expected = np.mean([float(logprobs[j - 1, ids[j]]) for j in places])
        assert found["stereotype"][number] == pytest.approx(expected, abs=1e-4)


def test_drift_from_a_block_on_is_that_of_the_whole_model(tiny_model, monkeypatch):
    # Texts of fewer tokens than are cut to, so that both see the same.
    texts = ["The cat sat on the mat.", "Rain fell.", "A long day ends."]
    monkeypatch.setattr(development, "development_sentences", lambda use, n: texts[:n])
    model, edit = tiny_model("llama"), changed(tiny_model("llama"))
    assert max(len(encode(model, text).ids) for text in texts) <= NEUTRAL_TOKENS
    found = Development(model, tokenise(model, records(2)), 1, n_neutral=3).drift(edit)
    expected = drift(model, edit, texts)
    assert expected.kl > 1e-4
    assert found["kl"] == pytest.approx(expected.kl, rel=1e-3)
    assert found["perplexity_change"] == pytest.approx(expected.perplexity_change, rel=1e-3)


def test_association_over_bias_types_is_the_mean_of_theirs(tiny_model):
    model = tiny_model("llama")
    gender, race = stereoset("gender", split="test", limit=5), records(2)
    by_type = [
        summary(Development(model, tokenise(model, part), 1, n_neutral=3).gaps())
        for part in (gender, race)
    ]
    together = Development(model, tokenise(model, [*gender, *race]), 1, n_neutral=3)
    assert "gap_group" in by_type[0]
    assert by_type[0]["association"] == pytest.approx(abs(by_type[0]["gap_group"]))
    assert by_type[1]["association"] == pytest.approx(abs(by_type[1]["gap"]))
    assert summary(together.gaps())["association"] == pytest.approx(
        (by_type[0]["association"] + by_type[1]["association"]) / 2, abs=1e-4
    )
    assert together.drift(None) == {"kl": 0.0, "perplexity_change": 0.0}
