"""BiasEdit and KLAAD fitted on the embedded SmolLM2-135M, on few triples and for few steps."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

import tracelab
from tests.interventions.edits import CLOSE, TOKENS, logits
from tracelab import KLAAD, BiasEdit, BiasEditConfig, KLAADConfig
from tracelab.interventions.klaad.klaad import KLAADLoss
from tracelab.interventions.training.triples import tokenise
from tracelab.model.load import fingerprint


@pytest.fixture(scope="module")
def triples():
    """Four records of each of six target terms; two terms are for development."""
    by_term = defaultdict(list)
    for record in tracelab.datasets.stereoset("gender", split="test"):
        by_term[record.target].append(record)
    terms = [records[:4] for records in by_term.values()]
    return [r for term in terms[:4] for r in term], [r for term in terms[4:6] for r in term]


@pytest.mark.slow
@pytest.mark.nightly
def test_a_direct_shift_closes_the_gap_of_the_sentences_it_was_trained_on(real_model, triples):
    before = fingerprint(real_model.original_model), logits(real_model)
    config = BiasEditConfig.direct(
        **{"steps": 8, "eval_every": 8, "delta_lr": 1e-2, "lam": 0.1, "schedule": "constant"},
        **{"n_query": 8, "batch_size": 8, "choose": "loss", "max_kl": 9.0},
        max_lms_loss=100.0,
    )
    edit = BiasEdit.fit(real_model, triples[0], config, layers="last1", dev=triples[0])
    by_strength = {row["strength"]: row for row in edit.notes["strengths"]}
    assert by_strength[1.0]["debias"] < 0.9 * by_strength[0.0]["debias"]
    assert by_strength[1.0]["retention"] > by_strength[0.0]["retention"] == 0
    assert by_strength[1.0]["kl"] > by_strength[0.0]["kl"] == 0
    assert by_strength[1.0]["gap"] < by_strength[0.0]["gap"]
    assert by_strength[1.0]["association"] == pytest.approx(abs(by_strength[1.0]["gap_group"]))
    assert fingerprint(real_model.original_model) == before[0]
    assert torch.equal(logits(real_model), before[1])


@pytest.mark.slow
def test_an_editor_s_shift_is_the_same_from_a_bundle_and_in_plain_transformers(
    real_model, plain_model, triples, tmp_path
):
    config = BiasEditConfig(
        n_edits=8, n_query=4, n_support=16, rank=4, steps=2, eval_every=2, batch_size=8
    )
    edit = BiasEdit.fit(real_model, triples[0], config, layers="last12", dev=triples[1])
    # whatever strength was chosen, 0 included, leaves nothing or little to compare
    edit.scale_(5.0)
    loaded = tracelab.load_intervention(edit.save(tmp_path / "edit"))
    assert torch.equal(logits(real_model, loaded), logits(real_model, edit))
    with torch.no_grad(), loaded.attach(plain_model):
        torch.testing.assert_close(plain_model(TOKENS).logits, logits(real_model, edit), **CLOSE)
    assert edit.notes["curves"][0]["step"] == 0


@pytest.mark.slow
def test_the_attention_loss_alone_brings_attention_together(real_model, triples):
    config = KLAADConfig(
        lam1=0.0,
        lam2=1.0,
        lam3=0.0,
        trainable="attn_last",
        rank=4,
        lr=5e-3,
        epochs=4,
        batch_size=8,
        eval_every=8,
        choose="loss",
        max_kl=1e9,
        max_lms_loss=100.0,
    )
    edit = KLAAD.fit(real_model, triples[0], config, dev=triples[1])
    measured = KLAADLoss(real_model, tokenise(real_model, triples[0]), config, 29)
    zero = tracelab.WeightDelta.low_rank(real_model, layers=[29], modules=["attn.q", "attn.k"])
    after, before = (measured.measure(e, range(16)) for e in (edit, zero))
    assert after["attention"] < 0.9 * before["attention"]
    assert edit.name == "klaad(gender)"
