from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from tracelab.datasets import stereoset
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.stereoset import LABELS, icat, stereoset_metrics, stereoset_scores

# st = stereotype, an = anti-stereotype, un = unrelated: SS and LMS hits by hand.
SENTENCES = pd.DataFrame(
    [
        ("gender", "nurse", -1.0, -2.0, -3.0),  # SS 1, LMS 1
        ("gender", "nurse", -2.0, -1.0, -1.5),  # SS 0, LMS 1/2: only an beats un
        ("gender", "nurse", -1.0, -1.0, -1.0),  # ties: SS 0, LMS 0
        ("gender", "son", -1.0, -2.0, -3.0),  # SS 1, LMS 1
        ("race", "Ghana", -2.0, -1.0, -3.0),  # SS 0, LMS 1
    ],
    columns=["bias_type", "target", *LABELS],
)


def official_means(hf_model, tokenizer, texts, *, context_bos: bool) -> list[float]:
    """One sentence at a time in plain transformers, as the official generative script does it."""
    bos = tokenizer.bos_token_id
    with torch.no_grad():
        start = hf_model(torch.tensor([[bos]])).logits[0, -1].double().log_softmax(-1)
        means = []
        for text in texts:
            ids = tokenizer(text).input_ids
            context = [bos, *ids] if context_bos else ids
            logprobs = hf_model(torch.tensor([context])).logits[0].double().log_softmax(-1)
            shift = int(context_bos)
            values = [float(start[ids[0]])]
            values += [float(logprobs[j - 1 + shift, ids[j]]) for j in range(1, len(ids))]
            means.append(sum(values) / len(values))
    return means


def slow_metrics(rows: list[tuple[str, float, float, float]]) -> tuple[float, float]:
    """SS and LMS as counts of (target, stereotype, anti-stereotype, unrelated), term by term."""
    ss, lms = [], []
    for term in {row[0] for row in rows}:
        mine = [row[1:] for row in rows if row[0] == term]
        ss.append(100 * sum(st > an for st, an, _ in mine) / len(mine))
        lms.append(50 * sum((st > un) + (an > un) for st, an, un in mine) / len(mine))
    return sum(ss) / len(ss), sum(lms) / len(lms)


def value(table: pd.DataFrame, bias: str, metric: str) -> float:
    (row,) = table[(table["bias"] == bias) & (table["metric"] == metric)].to_dict("records")
    return row["value"]


def check_against_official(model, hf_model, tokenizer, records, *, context_bos):
    result = stereoset_scores(model, records, context_bos=context_bos)
    texts = [getattr(record, label).text for record in records for label in LABELS]
    slow = official_means(hf_model, tokenizer, texts, context_bos=context_bos)
    rows = []
    for index, (record, scored) in enumerate(
        zip(records, result.sentences.to_dict("records"), strict=True)
    ):
        means = slow[3 * index : 3 * index + 3]
        assert [scored[label] for label in LABELS] == pytest.approx(means, abs=1e-4)
        rows.append((record.target, *means))
    ss, lms = slow_metrics(rows)
    assert value(result.table, "gender", "ss") == pytest.approx(ss, abs=0.01)
    assert value(result.table, "gender", "lms") == pytest.approx(lms, abs=0.01)
    assert value(result.table, "gender", "icat") == pytest.approx(
        lms * min(ss, 100 - ss) / 50, abs=0.01
    )


@pytest.mark.parametrize(("context_bos", "limit"), [(False, 10), (True, 4)])
def test_official_scores_equal_a_slow_loop_over_the_plain_model(
    real_model, plain_model, tokenizer, context_bos, limit
):
    records = stereoset("gender", limit=limit)
    check_against_official(real_model, plain_model, tokenizer, records, context_bos=context_bos)


@pytest.mark.slow
@pytest.mark.nightly
def test_official_scores_of_a_quarter_of_the_gender_records_equal_a_slow_loop(
    real_model, plain_model, tokenizer
):
    records = stereoset("gender")[::4]
    check_against_official(real_model, plain_model, tokenizer, records, context_bos=False)


def test_the_first_token_comes_from_bos_alone(real_model, plain_model, tokenizer):
    # Were it left out, or scored with BOS in context for all tokens, the mean would be another.
    records = stereoset("gender", limit=1)
    scored = stereoset_scores(real_model, records, context_bos=False).sentences["stereotype"][0]
    text = records[0].stereotype.text
    (with_context,) = official_means(plain_model, tokenizer, [text], context_bos=True)
    ids = tokenizer(text).input_ids
    with torch.no_grad():
        logprobs = plain_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    without_first = np.mean([float(logprobs[j - 1, ids[j]]) for j in range(1, len(ids))])
    assert abs(scored - with_context) > 0.01
    assert abs(scored - without_first) > 0.01


def test_an_intersentence_score_is_the_mean_of_the_continuation(real_model, plain_model, tokenizer):
    records = stereoset("religion", task="intersentence", limit=2)
    result = stereoset_scores(real_model, records, context_bos=False)
    assert set(result.table["benchmark"]) == {"stereoset-intersentence"}
    for record, scored in zip(records, result.sentences.to_dict("records"), strict=True):
        n_context = len(tokenizer(record.context).input_ids)
        for label in LABELS:
            ids = tokenizer(f"{record.context} {getattr(record, label).text}").input_ids
            with torch.no_grad():
                logprobs = plain_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            values = [float(logprobs[j - 1, ids[j]]) for j in range(n_context, len(ids))]
            assert scored[label] == pytest.approx(np.mean(values), abs=1e-4)


def test_the_models_bos_habit_is_the_default_and_is_recorded(tiny_model):
    records = stereoset("religion", limit=4)
    default = stereoset_scores(tiny_model("llama"), records)
    assert default.settings["context_bos"] is False
    without = stereoset_scores(tiny_model("llama"), records, context_bos=False)
    with_bos = stereoset_scores(tiny_model("llama"), records, context_bos=True)
    assert default.sentences.equals(without.sentences)
    assert not np.allclose(
        with_bos.sentences["stereotype"], without.sentences["stereotype"], atol=1e-3
    )


def test_ss_lms_and_icat_are_means_over_target_terms():
    table = stereoset_metrics(SENTENCES)
    # nurse: SS 1/3, LMS 1/2; son: SS 1, LMS 1
    assert value(table, "gender", "ss") == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert value(table, "gender", "lms") == pytest.approx(100 * (1 / 2 + 1) / 2)
    assert value(table, "gender", "icat") == pytest.approx(75 * (100 / 3) / 50)
    assert value(table, "race", "ss") == 0
    assert value(table, "race", "lms") == 100
    assert value(table, "race", "icat") == 0


def test_pooled_scores_are_means_over_records():
    table = stereoset_metrics(SENTENCES)
    assert value(table, "gender", "ss_pooled") == pytest.approx(50)
    assert value(table, "gender", "lms_pooled") == pytest.approx(62.5)


def test_the_overall_scores_are_over_all_target_terms():
    table = stereoset_metrics(SENTENCES)
    assert value(table, "overall", "ss") == pytest.approx(100 * (1 / 3 + 1 + 0) / 3)
    assert value(table, "overall", "lms") == pytest.approx(100 * (1 / 2 + 1 + 1) / 3)
    assert value(table, "overall", "ss_pooled") == pytest.approx(40)
    one_bias = stereoset_metrics(SENTENCES[SENTENCES["bias_type"] == "gender"])
    assert set(one_bias["bias"]) == {"gender"}


def test_a_tie_counts_as_anti_stereotype_and_as_unrelated():
    tie = SENTENCES.iloc[[2]]
    table = stereoset_metrics(tie)
    assert value(table, "gender", "ss") == 0
    assert value(table, "gender", "lms") == 0


@pytest.mark.parametrize(
    ("ss", "lms", "expected"),
    [(50, 100, 100), (100, 100, 0), (0, 80, 0), (75, 80, 40), (25, 80, 40)],
)
def test_icat_is_ideal_at_even_odds_and_full_language_skill(ss, lms, expected):
    assert icat(ss, lms) == expected


def test_every_score_has_an_interval_around_it():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(120, 3)) + [0.5, 0, -1], columns=list(LABELS))
    rows["bias_type"], rows["target"] = "gender", rng.integers(8, size=120).astype(str)
    table = stereoset_metrics(rows)
    assert ((table["low"] < table["value"]) & (table["value"] < table["high"])).all()
    assert (table["note"] == "").all()
    assert set(table["n"]) == {120}


def test_the_edits_name_is_carried_into_the_table():
    assert set(stereoset_metrics(SENTENCES, edit="fairmed")["edit"]) == {"fairmed"}


def test_batching_changes_no_sentence_score(tiny_model):
    records = stereoset("religion", limit=10)
    large, small = (
        stereoset_scores(tiny_model("gpt2"), records, batch_tokens=n).sentences for n in (2000, 1)
    )
    assert np.allclose(large[list(LABELS)], small[list(LABELS)], rtol=0, atol=1e-5)


def test_no_records_and_mixed_tasks_are_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(TracelabError, match="records of one StereoSet task are needed, not of 0"):
        stereoset_scores(model, [])
    mixed = [*stereoset(limit=1), *stereoset(task="intersentence", limit=1)]
    with pytest.raises(TracelabError, match="records of one StereoSet task are needed, not of 2"):
        stereoset_scores(model, mixed)
