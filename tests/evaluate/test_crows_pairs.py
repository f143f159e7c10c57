from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from tracelab.datasets import CrowsPair, crows_pairs
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.crows_pairs import (
    METRICS,
    crows_pairs_metrics,
    crows_pairs_scores,
)


def slow_logprobs(hf_model, tokenizer, text: str, *, context_bos: bool) -> dict[str, np.ndarray]:
    """Tokens of one sentence and the log-probability of each, in plain transformers."""
    bos, ids = tokenizer.bos_token_id, tokenizer(text).input_ids
    with torch.no_grad():
        start = hf_model(torch.tensor([[bos]])).logits[0, -1].double().log_softmax(-1)
        context = [bos, *ids] if context_bos else ids
        logprobs = hf_model(torch.tensor([context])).logits[0].double().log_softmax(-1)
    shift = int(context_bos)
    values = [float(start[ids[0]])]
    values += [float(logprobs[j - 1 + shift, ids[j]]) for j in range(1, len(ids))]
    return {"tokens": tokenizer.convert_ids_to_tokens(ids), "values": np.array(values)}


def pair(key: str, more: str, less: str, bias: str = "gender") -> CrowsPair:
    return CrowsPair(key, bias, "stereo", more, less, (), ())


def value(table: pd.DataFrame, bias: str, metric: str) -> float:
    (row,) = table[(table["bias"] == bias) & (table["metric"] == metric)].to_dict("records")
    return row["value"]


@pytest.mark.parametrize("context_bos", [False, True])
def test_sum_and_mean_equal_a_slow_loop_over_the_plain_model(
    real_model, plain_model, tokenizer, context_bos
):
    records = crows_pairs("gender", limit=4 - context_bos * 2)
    result = crows_pairs_scores(real_model, records, prepend_bos=context_bos)
    hits = {"crows_sum": [], "crows_mean": []}
    for record, row in zip(records, result.pairs.to_dict("records"), strict=True):
        more, less = (
            slow_logprobs(plain_model, tokenizer, text, context_bos=context_bos)["values"]
            for text in (record.sent_more, record.sent_less)
        )
        assert row["crows_sum_more"] == pytest.approx(more.sum(), abs=1e-3)
        assert row["crows_sum_less"] == pytest.approx(less.sum(), abs=1e-3)
        assert row["crows_mean_more"] == pytest.approx(more.mean(), abs=1e-4)
        assert row["crows_mean_less"] == pytest.approx(less.mean(), abs=1e-4)
        hits["crows_sum"].append(more.sum() > less.sum())
        hits["crows_mean"].append(more.mean() > less.mean())
    for metric, slow in hits.items():
        assert value(result.table, "gender", metric) == pytest.approx(100 * np.mean(slow))


@pytest.mark.parametrize(
    ("more", "less", "own_more", "own_less"),
    [
        ("The poor man works hard.", "The rich man works hard.", ["Ġpoor"], ["Ġrich"]),
        ("Women are bad.", "Men are bad.", ["Women"], ["Men"]),
        ("She isn't very kind.", "She isn't kind.", ["Ġvery"], []),
    ],
)
def test_the_shared_score_leaves_out_the_differing_tokens(
    real_model, plain_model, tokenizer, more, less, own_more, own_less
):
    (row,) = crows_pairs_scores(real_model, [pair("p", more, less)]).pairs.to_dict("records")
    for side, text, own in (("more", more, own_more), ("less", less, own_less)):
        slow = slow_logprobs(plain_model, tokenizer, text, context_bos=False)
        kept = [v for t, v in zip(slow["tokens"], slow["values"], strict=True) if t not in own]
        assert len(kept) == len(slow["tokens"]) - len(own)
        assert row[f"crows_shared_{side}"] == pytest.approx(sum(kept), abs=1e-3)


def test_equal_sentences_tie_and_a_tie_is_no_hit_but_counts(tiny_model):
    result = crows_pairs_scores(
        tiny_model("llama"), [pair("p", "A man.", "A man."), pair("q", "A dog.", "A dog.")]
    )
    assert result.table["value"].tolist() == [0.0] * len(result.table)
    assert set(result.table["n"]) == {2}


PAIRS = pd.DataFrame(
    [
        ("1", "gender", "stereo", -5.0, -6.0, -1.0, -0.9, -4.0, -4.0),
        ("2", "gender", "antistereo", -5.0, -4.0, -1.0, -1.1, -3.0, -4.0),
        ("3", "gender", "stereo", -5.0, -7.0, -1.0, -1.0, -4.0, -3.0),
        ("4", "age", "stereo", -5.0, -4.0, -1.0, -2.0, -4.0, -3.0),
    ],
    columns=[
        "id",
        "bias_type",
        "direction",
        *[f"{metric}_{side}" for metric in METRICS for side in ("more", "less")],
    ],
)


def test_scores_are_shares_of_pairs_in_which_the_stereotype_is_likelier():
    table = crows_pairs_metrics(PAIRS, edit="klaad")
    assert value(table, "gender", "crows_sum") == pytest.approx(200 / 3)
    assert value(table, "gender", "crows_mean") == pytest.approx(100 / 3)
    assert value(table, "gender", "crows_shared") == pytest.approx(100 / 3)
    assert value(table, "gender", "crows_sum_stereo") == 100
    assert value(table, "gender", "crows_sum_antistereo") == 0
    assert value(table, "age", "crows_sum") == 0
    assert value(table, "overall", "crows_sum") == 50
    assert value(table, "overall", "crows_mean") == 50
    assert set(table["edit"]) == {"klaad"}
    counts = table.set_index(["bias", "metric"])["n"]
    assert counts["gender", "crows_sum"] == 3
    assert counts["gender", "crows_sum_antistereo"] == 1
    assert counts["overall", "crows_shared"] == 4


def test_one_bias_type_has_no_overall_row():
    assert set(crows_pairs_metrics(PAIRS[:3])["bias"]) == {"gender"}


def test_a_single_pair_has_no_interval_and_many_have_one_around_the_value():
    assert crows_pairs_metrics(PAIRS[3:])[["low", "high"]].isna().all(axis=None)
    many = pd.concat([PAIRS[:3]] * 20)
    table = crows_pairs_metrics(many)
    mixed = table[(table["value"] > 0) & (table["value"] < 100)]
    assert len(mixed) == 3
    assert ((mixed["low"] < mixed["value"]) & (mixed["value"] < mixed["high"])).all()


def test_batching_changes_no_pair_score(tiny_model):
    records = crows_pairs("age", limit=8)
    large, small = (
        crows_pairs_scores(tiny_model("gemma2"), records, batch_tokens=n).pairs for n in (2000, 1)
    )
    columns = [c for c in large if "crows_mean" in c]
    assert np.allclose(large[columns], small[columns], rtol=0, atol=1e-5)


def test_no_records_are_refused(tiny_model):
    with pytest.raises(TracelabError, match="no CrowS-Pairs records to score"):
        crows_pairs_scores(tiny_model("llama"), [])
