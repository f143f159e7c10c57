"""The gap and its parts: by hand, and on models of which the answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from tests.tiny import tiny_hf
from tracelab.datasets import crows_pairs, gender_twins, stereoset, winobias
from tracelab.datasets.gender_swap import swap_gender_words
from tracelab.evaluate.association import association_samples, with_parts
from tracelab.evaluate.benchmarks.crows_pairs import crows_pairs_scores
from tracelab.evaluate.benchmarks.stereoset import stereoset_scores
from tracelab.evaluate.benchmarks.winobias import exchanged, winobias_scores
from tracelab.model import assets
from tracelab.model.load import from_hf
from tracelab.model.scoring import score
from tracelab.model.tokens import encode

UNITS = pd.DataFrame(
    [
        ("gender", "nurse", 0.5, 0.3),
        ("gender", "nurse", 0.1, np.nan),  # without a twin
        ("gender", "son", -0.2, 0.2),
        ("race", "Ghana", 0.4, np.nan),
    ],
    columns=["bias_type", "target", "gap", "swapped"],
).assign(gap_total=lambda t: 10 * t["gap"], swapped_total=lambda t: 10 * t["swapped"])


def value(table: pd.DataFrame, metric: str, bias: str = "gender") -> float:
    (row,) = table[(table["metric"] == metric) & (table["bias"] == bias)].to_dict("records")
    return row["value"]


def test_the_parts_are_half_the_difference_and_half_the_sum():
    samples = association_samples(with_parts(UNITS), by="target")
    found = {
        (s.bias, name): (float(f(s.means)), s.n) for s in samples for name, f in s.metrics.items()
    }
    assert found["gender", "gap"] == (pytest.approx(((0.5 + 0.1) / 2 - 0.2) / 2), 3)
    assert found["gender", "gap_group"] == (pytest.approx((0.1 - 0.2) / 2), 2)
    assert found["gender", "gap_blind"] == (pytest.approx((0.4 + 0.0) / 2), 2)
    assert found["gender", "gap_group_total"] == (pytest.approx(10 * (0.1 - 0.2) / 2), 2)
    assert found["race", "gap"] == (pytest.approx(0.4), 1)
    assert ("race", "gap_group") not in found  # nothing can be exchanged: no number
    assert found["overall", "gap"] == (pytest.approx((0.3 - 0.2 + 0.4) / 3), 4)


def test_a_twins_gap_is_that_of_the_exchanged_texts(real_model, plain_model, tokenizer):
    records = [record for record, _ in gender_twins(stereoset("gender"))][:3]
    found = stereoset_scores(real_model, records, context_bos=True).sentences
    for record, row in zip(records, found.to_dict("records"), strict=True):
        logprobs = []
        for text in (record.stereotype.text, record.anti_stereotype.text):
            ids = [tokenizer.bos_token_id, *tokenizer(swap_gender_words(text)).input_ids]
            with torch.no_grad():
                table = plain_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            logprobs.append([float(table[j - 1, ids[j]]) for j in range(1, len(ids))])
        stereo, anti = logprobs
        assert row["swapped"] == pytest.approx(np.mean(stereo) - np.mean(anti), abs=1e-4)
        assert row["swapped_total"] == pytest.approx(np.sum(stereo) - np.sum(anti), abs=1e-3)


@pytest.fixture(scope="module")
def blind():
    """A model to which a gender word and its partner are one token, and what each such token is to
    it."""
    tokenizer = AutoTokenizer.from_pretrained(assets.model_dir())
    hf_model = tiny_hf("llama", len(tokenizer))
    kinds = "he she", "his her him", "man woman", "father mother", "boy girl", "son daughter"
    same = {}
    for kind in kinds:
        for made in (str.lower, str.capitalize):
            for before in ("", " "):
                tokens = [tokenizer(before + made(word)).input_ids for word in kind.split()]
                single = [ids[0] for ids in tokens if len(ids) == 1]
                same |= dict.fromkeys(single, single[0] if single else None)
    with torch.no_grad():
        for part in (hf_model.get_input_embeddings(), hf_model.get_output_embeddings()):
            for token, first in same.items():
                part.weight[token] = part.weight[first]
    return from_hf(hf_model, tokenizer, model_id="blind"), same


def test_a_model_that_cannot_tell_the_genders_apart_has_no_group_dependent_gap(blind):
    model, same = blind

    def only_known_words(record, twin):
        for a, b in zip(
            (record.stereotype, record.anti_stereotype),
            (twin.anti_stereotype, twin.stereotype),
            strict=True,
        ):
            both = [encode(model, s.text).ids for s in (a, b)]
            if len(both[0]) != len(both[1]):
                return False
            if any(
                p != q and same.get(p) != q and same.get(q) != p for p, q in zip(*both, strict=True)
            ):
                return False
        return True

    found = gender_twins(stereoset("gender"))
    records = [record for record, twin in found if only_known_words(record, twin)][:30]
    assert len(records) == 30
    table = stereoset_scores(model, records).table
    assert value(table, "gap_group") == pytest.approx(0, abs=1e-6)
    assert value(table, "gap_group_total") == pytest.approx(0, abs=1e-5)
    assert value(table, "gap_blind") == pytest.approx(value(table, "gap"), abs=1e-6)
    assert abs(value(table, "gap")) > 1e-3


def test_without_twins_only_the_gap_is_there(tiny_model):
    records = stereoset("gender", limit=6)
    table = stereoset_scores(tiny_model("llama"), records, twins=False).table
    assert {"gap", "gap_total"} <= set(table["metric"])
    assert "gap_group" not in set(table["metric"])


def test_a_gap_of_crows_pairs_is_that_of_what_is_shared_and_of_the_groups_own_words(tiny_model):
    scores = crows_pairs_scores(tiny_model("llama"), crows_pairs("gender", limit=20))
    table, pairs = scores.table, scores.pairs
    shared = pairs["crows_shared_more"] - pairs["crows_shared_less"]  # by a plain loop elsewhere
    total = pairs["crows_sum_more"] - pairs["crows_sum_less"]
    assert value(table, "gap_group_total") == pytest.approx(shared.mean())
    assert value(table, "gap_group") == pytest.approx((shared / pairs["n_shared"]).mean())
    assert value(table, "gap_total") == pytest.approx(total.mean())
    assert value(table, "gap_blind_total") == pytest.approx((total - shared).mean())


def test_occupations_change_places_with_their_articles():
    record = next(r for r in winobias(split="dev") if r.pro.text.startswith("The developer argued"))
    assert exchanged(record.pro) == (
        "The designer argued with the developer because " + record.pro.text.split("because ")[1]
    )
    twice = [r for r in winobias() if exchanged(r.pro) is None]
    assert len(twice) < 100


def test_the_swapped_gap_of_winobias_is_that_of_the_exchanged_sentences(tiny_model):
    model, records = tiny_model("llama"), winobias(limit=12)
    scores = winobias_scores(model, records)
    table = scores.table
    assert value(table, "gap_total", "overall") == pytest.approx(
        value(table, "logprob_gap", "overall"), abs=1e-4
    )
    known = scores.pairs.dropna(subset="swapped").set_index("id")
    assert len(known) >= 10
    assert not np.allclose(known["gap"], known["swapped"])
    for record in records:
        if record.id in known.index:
            found = score(model, [exchanged(record.pro), exchanged(record.anti)])
            row = known.loc[record.id]
            assert row["swapped"] == pytest.approx(found.mean[0] - found.mean[1], abs=1e-5)
            assert row["swapped_total"] == pytest.approx(found.sum[0] - found.sum[1], abs=1e-4)
