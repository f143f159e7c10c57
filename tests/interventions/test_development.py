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
from tracelab.interventions.training.development import (
    NEUTRAL_TOKENS,
    Development,
    remembered,
    summary,
)
from tracelab.interventions.training.triples import LABELS, tokenise
from tracelab.model.partial_forward import SuffixRunner
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


def plain_drift(model, edit, runner) -> dict[str, float]:
    """Both models on each text alone, and whole tables."""
    kl, nll_before, nll, n = 0.0, 0.0, 0.0, 0
    for ids in runner.sequences:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            p = model(tokens)[0, :-1].double().log_softmax(-1)
            with edit.applied(model):
                q = model(tokens)[0, :-1].double().log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum())
        picked = [float(each.gather(-1, tokens[0, 1:, None]).sum()) for each in (p, q)]
        nll_before, nll, n = nll_before - picked[0], nll - picked[1], n + len(ids) - 1
    return {"kl": kl / n, "perplexity_change": 100 * float(np.expm1((nll - nll_before) / n))}


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_looks_that_share_the_unedited_pass_are_those_that_make_it_anew(
    tiny_model, monkeypatch, share
):
    model, edit = tiny_model("llama"), changed(tiny_model("llama"))
    monkeypatch.setattr(development, "BATCH_TOKENS", 64)
    anew = Development(model, tokenise(model, records(2)), 1, n_neutral=12)
    n_places = sum(len(ids) - 1 for ids in anew._neutral.sequences)
    monkeypatch.setattr(development, "KEPT_BYTES", 0)
    strengths = (1.0, 0.5, 2.0)
    expected = [anew.drift(edit.scaled(strength)) for strength in strengths]
    assert not anew._unedited

    monkeypatch.setattr(development, "KEPT_BYTES", share * 4 * n_places * model.cfg.d_vocab)
    shared = Development(model, tokenise(model, records(2)), 1, n_neutral=12)
    found = [shared.drift(edit.scaled(strength)) for strength in strengths]
    assert found == expected  # to the last bit
    kept = sum(part.nbytes for parts in shared._unedited.values() for part in parts)
    assert kept <= development.KEPT_BYTES
    assert bool(kept) == bool(share)
    for strength, each in zip(strengths, found, strict=True):
        plain = plain_drift(model, edit.scaled(strength), shared._neutral)
        assert each == pytest.approx(plain, rel=1e-4, abs=1e-6)


def test_the_unedited_model_runs_once_however_often_one_looks(tiny_model, monkeypatch):
    model, edit = tiny_model("llama"), changed(tiny_model("llama"))
    found, passes = Development(model, tokenise(model, records(2)), 1, n_neutral=3), []
    run = SuffixRunner.__call__

    def counted(runner, batch):
        passes.append(batch)
        return run(runner, batch)

    monkeypatch.setattr(SuffixRunner, "__call__", counted)
    for _ in range(4):
        found.drift(edit)
    assert len(passes) == 1 + 4


def test_a_state_that_was_looked_at_is_not_looked_at_again(tiny_model):
    edit, looks = changed(tiny_model("llama")), []
    look = remembered(edit, lambda: {"kl": float(looks.append(1) or len(looks))})
    whole = {name: value.clone() for name, value in edit.state_dict().items()}
    assert look() == look() == {"kl": 1.0}
    look()["kl"] = 5.0  # changes nothing but what was handed out
    edit.scale_(0.5)
    assert look() == {"kl": 2.0}
    edit.load_state_dict(whole)
    assert look() == {"kl": 1.0}


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
