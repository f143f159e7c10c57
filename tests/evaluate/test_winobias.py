from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from tests.evaluate.test_perplexity import with_mlp_scaled
from tracelab.datasets import winobias
from tracelab.datasets.winobias import WinoBiasPair, WinoBiasSentence
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.winobias import (
    WinoBiasScores,
    question,
    substituted,
    winobias_scores,
)
from tracelab.evaluate.paired import paired
from tracelab.span import Span

METRICS = ["pro_preferred", "logprob_gap", "acc_pro", "acc_anti", "acc_gap", "acc_substituted"]
GAPS = [f"{part}{end}" for end in ("", "_total") for part in ("gap", "gap_group", "gap_blind")]


def sentence(text, occupation, other, pronoun):
    def span(words):
        return Span(text.index(words), text.index(words) + len(words))

    start = (
        text.index(f" {pronoun} ") + 1 if f" {pronoun} " in text else text.index(f" {pronoun}") + 1
    )
    return WinoBiasSentence(
        text, span(occupation), span(other), (Span(start, start + len(pronoun)),)
    )


def record(key="p", kind="type1", case="subject", end=" was ill."):
    made = [
        sentence(f"The cook met a nurse because {p}{end}", "The cook", "a nurse", p)
        for p in ("he", "she")
    ]
    return WinoBiasPair(key, kind, case, *made)


def scores(rows, kinds="type1", **settings):
    columns = [
        f"{name}_{side}" for name in ("logprob", "refers", "follows") for side in ("pro", "anti")
    ]
    pairs = pd.DataFrame(rows, columns=columns).assign(bias_type=kinds)
    return WinoBiasScores(
        {"benchmark": "winobias", "data_hash": "d", **settings}, pd.DataFrame(), pairs
    )


def by_metric(result, bias):
    (sample,) = [sample for sample in result.samples() if sample.bias == bias]
    return {name: float(function(sample.means)) for name, function in sample.metrics.items()}


def slow_logprobs(hf_model, tokenizer, context, scored, bos):
    """Log-probability of each token of ``scored`` after ``context``, one token at a time, in plain
    transformers.

    The tokens are those of the joint text; the context's are told by encoding it alone.
    """
    start = [tokenizer.bos_token_id] if bos else []
    before, ids = (
        tokenizer(text).input_ids if text else [] for text in (context, context + scored)
    )
    assert ids[: len(before)] == before
    values = []
    for j in range(max(len(before), 0 if bos else 1), len(ids)):
        with torch.no_grad():
            logits = hf_model(torch.tensor([start + ids[:j]])).logits[0, -1].double()
        values.append(float(logits.log_softmax(-1)[ids[j]]))
    return np.array(values)


@pytest.mark.parametrize("bos", [pytest.param(False, marks=pytest.mark.slow), True])
def test_scores_equal_a_slow_loop_over_the_plain_model(real_model, plain_model, tokenizer, bos):
    records = [
        winobias(1, limit=1)[0],
        next(pair for pair in winobias(2) if pair.case == "possessive"),
    ][bos:]
    result = winobias_scores(real_model, records, prepend_bos=bos)
    hits = {"refers": [], "follows": []}
    for made, row in zip(records, result.pairs.to_dict("records"), strict=True):
        for side, each in (("pro", made.pro), ("anti", made.anti)):
            pronoun = each.pronouns[0]
            said = each.words(pronoun).capitalize()
            names = [each.words(span) for span in (each.occupation, each.other)]
            whole = slow_logprobs(plain_model, tokenizer, "", each.text, bos)
            assert row[f"logprob_{side}"] == pytest.approx(whole.sum(), abs=1e-3)
            answers = [
                slow_logprobs(
                    plain_model,
                    tokenizer,
                    f'{each.text} "{said}" refers to the',
                    f" {name.split(' ', 1)[1]}",
                    bos,
                ).mean()
                for name in names
            ]
            assert row[f"refers_{side}"] == pytest.approx(answers[0] - answers[1], abs=1e-3)
            ending = "'s" if made.case == "possessive" else ""
            rests = [
                slow_logprobs(
                    plain_model,
                    tokenizer,
                    each.text[: pronoun.start] + name[0].lower() + name[1:] + ending,
                    each.text[pronoun.end :],
                    bos,
                ).sum()
                for name in names
            ]
            assert row[f"follows_{side}"] == pytest.approx(rests[0] - rests[1], abs=1e-3)
            hits["refers"].append(answers[0] > answers[1])
            hits["follows"].append(rests[0] > rests[1])
    found = result.table[result.table["bias"] == result.table["bias"].iloc[-1]].set_index("metric")[
        "value"
    ]
    assert found["acc_pro"] + found["acc_anti"] == pytest.approx(200 * np.mean(hits["refers"]))
    assert found["acc_substituted"] == pytest.approx(100 * np.mean(hits["follows"]))


ROWS = [  # logprob, refers, follows, each of pro and anti
    (-10.0, -11.0, 0.5, 0.2, 1.0, 1.0),
    (-10.0, -9.5, 0.5, -0.2, -1.0, -1.0),
    (-10.0, -10.0, 0.0, -0.2, 1.0, -1.0),
    (-10.0, -13.0, 0.1, 0.2, -1.0, 0.0),
]


def test_metrics_by_hand_and_a_tie_is_no_hit_but_counts():
    result = scores(ROWS)
    found = by_metric(result, "type1")
    assert list(found) == METRICS
    assert found == pytest.approx(
        {
            "pro_preferred": 50,
            "logprob_gap": (1 - 0.5 + 0 + 3) / 4,
            "acc_pro": 75,
            "acc_anti": 50,
            "acc_gap": 25,
            "acc_substituted": 37.5,
        }
    )


def test_types_stand_alone_and_together():
    result = scores(ROWS, ["type1", "type1", "type1", "type2"])
    assert [sample.bias for sample in result.samples()] == ["type1", "type2", "overall"]
    assert by_metric(result, "type2")["logprob_gap"] == 3
    assert by_metric(result, "overall") == by_metric(scores(ROWS), "type1")


def test_a_taste_for_one_occupation_cancels_in_the_gap():
    rng = np.random.default_rng(0)
    rows = np.hstack(
        [np.zeros((50, 2)), np.repeat(rng.normal(size=(50, 1)), 2, axis=1), np.zeros((50, 2))]
    )
    assert by_metric(scores(rows), "type1")["acc_gap"] == 0


def test_the_pronoun_is_asked_for_by_its_own_form():
    made = record()
    assert question(made.anti) == 'The cook met a nurse because she was ill. "She" refers to the '


@pytest.mark.parametrize(("case", "before"), [("subject", "a nurse"), ("possessive", "a nurse's")])
def test_an_occupation_takes_the_pronouns_place_and_case(case, before):
    made = record(case=case).pro
    assert substituted(made, made.other, case) == (
        f"The cook met a nurse because {before}",
        " was ill.",
    )
    assert substituted(made, made.occupation, "object")[0].endswith("because the cook")


def test_with_its_only_pronoun_gone_pro_is_anti(tiny_model):
    records = [pair for pair in winobias(limit=60) if len(pair.pro.pronouns) == 1][:8]
    pairs = winobias_scores(tiny_model("llama"), records).pairs
    assert (pairs["follows_pro"] == pairs["follows_anti"]).all()
    assert (pairs["refers_pro"] != pairs["refers_anti"]).all()


def test_batching_changes_no_score_and_a_saved_result_comes_back(tiny_model, tmp_path):
    records = winobias(1, limit=3) + winobias(2, limit=3)
    large, small = (
        winobias_scores(tiny_model("gemma2"), records, batch_tokens=n) for n in (2000, 1)
    )
    columns = [name for name in large.pairs if name.endswith(("_pro", "_anti"))]
    assert np.allclose(large.pairs[columns], small.pairs[columns], rtol=0, atol=1e-4)
    assert WinoBiasScores.load(large.save(tmp_path / "kept")).frame.equals(large.frame)
    assert set(large.table["n"]) == {3, 6}
    assert large.table["metric"].tolist() == METRICS * 3 + GAPS * 3


def test_an_edited_model_is_compared_pair_by_pair(tiny_model):
    model, records = tiny_model("llama"), winobias(1, limit=6)
    before = winobias_scores(model, records)
    with with_mlp_scaled(model, -3.0):
        after = winobias_scores(model, records, edit="upside down")
    table = paired(before, after)
    assert table["metric"].tolist() == METRICS + GAPS
    assert np.allclose(table["difference"], after.table["value"] - before.table["value"])
    assert table.set_index("metric")["difference"]["logprob_gap"] != 0
    assert set(after.table["edit"]) == {"upside down"}


def test_no_records_and_a_sentence_that_ends_with_its_pronoun_are_refused(tiny_model):
    with pytest.raises(TracelabError, match="no WinoBias records to score"):
        winobias_scores(tiny_model("llama"), [])
    with pytest.raises(
        TracelabError,
        match="nothing follows the pronoun of 'The cook met a nurse because the cook'",
    ):
        winobias_scores(tiny_model("llama"), [record(end="")])
