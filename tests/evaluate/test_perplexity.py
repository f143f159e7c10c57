from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from tracelab.datasets import neutral_sentences
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.perplexity import PerplexityScores, perplexity


def slow_nll(hf_model, tokenizer, text: str, *, bos: bool) -> list[float]:
    """Negative log-probabilities of the tokens of one text, in plain transformers."""
    ids = [tokenizer.bos_token_id] * bos + tokenizer(text).input_ids
    with torch.no_grad():
        logprobs = hf_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-float(logprobs[j - 1, ids[j]]) for j in range(1, len(ids))]


def with_mlp_scaled(model, factor: float):
    """An edit for tests: the last MLP's output times ``factor``."""
    name = f"blocks.{model.cfg.n_layers - 1}.hook_mlp_out"
    return model.hooks(fwd_hooks=[(name, lambda mlp_out, hook: mlp_out * factor)])


@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_is_that_of_a_slow_loop_over_the_plain_model(
    real_model, plain_model, tokenizer, bos
):
    texts = neutral_sentences(3)
    result = perplexity(real_model, texts, prepend_bos=bos)
    slow = [slow_nll(plain_model, tokenizer, text, bos=bos) for text in texts]
    assert result.texts["text"].tolist() == texts
    assert result.texts["nll"].tolist() == pytest.approx([sum(values) for values in slow], abs=1e-3)
    assert result.texts["n_tokens"].tolist() == [len(values) for values in slow]
    (row,) = result.table.to_dict("records")
    assert row["value"] == pytest.approx(math.exp(np.concatenate(slow).mean()), rel=1e-5)
    assert (row["benchmark"], row["bias"], row["edit"], row["metric"], row["n"]) == (
        *("perplexity-bold", "", None, "perplexity"),
        3,
    )


def test_long_texts_count_by_their_tokens(tiny_model):
    short, long = "A dog.", "The old dog sleeps on the warm stones near the river."
    both, first, second = (
        perplexity(tiny_model("llama"), texts) for texts in ([short, long], [short], [long])
    )
    tokens = both.texts["n_tokens"]
    logs = [math.log(result.table["value"].item()) for result in (first, second)]
    assert math.log(both.table["value"].item()) == pytest.approx(
        np.average(logs, weights=tokens), rel=1e-6
    )
    assert tokens[0] < tokens[1]


def test_the_interval_is_near_that_of_resampled_texts(tiny_model):
    result = perplexity(tiny_model("llama"), neutral_sentences(40))
    units = result.texts[["nll", "n_tokens"]].to_numpy(float)

    def statistic(nll, tokens, axis):
        return np.exp(nll.sum(axis) / tokens.sum(axis))

    oracle = bootstrap(
        units.T, statistic, paired=True, method="percentile", n_resamples=5000, rng=0
    ).confidence_interval
    (row,) = result.table.to_dict("records")
    width = oracle.high - oracle.low
    assert row["low"] == pytest.approx(oracle.low, abs=0.15 * width)
    assert row["high"] == pytest.approx(oracle.high, abs=0.1 * width)
    assert row["low"] < row["value"] < row["high"]


def test_one_text_has_no_interval(tiny_model):
    table = perplexity(tiny_model("llama"), ["The dog sleeps."]).table
    assert table[["low", "high"]].isna().all(axis=None)


def test_an_edit_on_the_model_is_measured_and_named(tiny_model):
    model, texts = tiny_model("llama"), neutral_sentences(4)
    plain = perplexity(model, texts)
    with with_mlp_scaled(model, -3.0):
        edited = perplexity(model, texts, edit="upside down", benchmark="perplexity-own")
    assert edited.table["edit"].tolist() == ["upside down"]
    assert (
        edited.table["benchmark"].tolist() == [edited.settings["benchmark"]] == ["perplexity-own"]
    )
    assert abs(edited.table["value"] - plain.table["value"]).item() > 1


def test_batching_changes_no_perplexity_and_the_result_can_be_kept(tiny_model, tmp_path):
    texts = neutral_sentences(6)
    large, small = (perplexity(tiny_model("gpt2"), texts, batch_tokens=n) for n in (2000, 1))
    assert np.allclose(large.texts["nll"], small.texts["nll"], rtol=0, atol=1e-4)
    assert PerplexityScores.load(large.save(tmp_path / "kept")).frame.equals(large.frame)


def test_no_text_and_a_text_without_a_scored_token_are_refused(tiny_model):
    with pytest.raises(TracelabError, match="no text to measure perplexity on"):
        perplexity(tiny_model("llama"), [])
    with pytest.raises(TracelabError, match="no token to score in text 0 .'A'."):
        perplexity(tiny_model("llama"), ["A"], prepend_bos=False)


@pytest.mark.parametrize("bos", [False, True])
def test_windows_are_those_of_a_slow_loop_over_the_plain_model(
    real_model, plain_model, tokenizer, bos
):
    texts = neutral_sentences(8)
    result = perplexity(real_model, texts, max_length=48, prepend_bos=bos)
    ids = tokenizer("\n\n".join(texts)).input_ids
    step = 48 - bos
    windows = [ids[first : first + step] for first in range(0, len(ids), step)]
    slow = []
    for window in windows:
        sequence = torch.tensor([[tokenizer.bos_token_id] * bos + window])
        with torch.no_grad():
            loss = plain_model(sequence, labels=sequence).loss
        slow.append(float(loss) * (sequence.shape[1] - 1))
    assert result.texts["text"].tolist() == [
        tokenizer.decode([tokenizer.bos_token_id] * bos + w) for w in windows
    ]
    assert result.texts["nll"].tolist() == pytest.approx(slow, rel=1e-4)
    assert result.texts["n_tokens"].sum() == len(ids) - (not bos) * len(windows)


def test_a_last_window_of_one_token_is_left_out(tiny_model):
    model = tiny_model("llama")
    n = len(model.tokenizer("The old dog sleeps.").input_ids)
    result = perplexity(model, ["The old dog sleeps."], max_length=n - 1, prepend_bos=False)
    assert result.texts["n_tokens"].tolist() == [n - 2]


@pytest.mark.parametrize("more", [False, True])
def test_a_window_without_a_token_to_score_or_beyond_the_context_is_refused(tiny_model, more):
    model = tiny_model("llama")
    length = model.cfg.n_ctx + 1 if more else 1
    with pytest.raises(
        TracelabError,
        match=f"max_length={length} tokens is not possible: from 2 to {model.cfg.n_ctx}",
    ):
        perplexity(model, ["The old dog sleeps."], max_length=length)
