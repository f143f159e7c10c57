from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracelab.errors import TracelabError
from tracelab.model.load import load
from tracelab.model.scoring import score, start_logprobs, target_logprobs, token_logprobs

TEXTS = (
    "The nurse said that she was late.",
    "He is a chess player",
    "A",  # one token: without BOS nothing is scored
    "My grandmother’s café serves 😀 only.",
    "The quick brown fox jumps over the lazy dog, as every typist has known for a hundred years.",
)


def slow_logprobs(hf_model, ids: list[int], first: int) -> np.ndarray:
    """log p(token | tokens before it) from ``first`` on, one sequence alone, in plain
    transformers."""
    with torch.no_grad():
        logprobs = hf_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return np.array([float(logprobs[j - 1, ids[j]]) for j in range(first, len(ids))])


@pytest.mark.parametrize("bos", [False, True])
def test_scores_equal_a_slow_loop_over_the_plain_model(real_model, plain_model, tokenizer, bos):
    texts = [text for text in TEXTS if bos or text != "A"]
    scores = score(real_model, texts, prepend_bos=bos)
    for text, logprobs, tokens in zip(texts, scores.logprobs, scores.tokens, strict=True):
        ids = [tokenizer.bos_token_id] * bos + tokenizer(text).input_ids
        assert tokens == tuple(ids[1:])
        assert logprobs == pytest.approx(slow_logprobs(plain_model, ids, 1), abs=1e-4)


def test_the_default_bos_is_the_models(real_model):
    default, without = (
        score(real_model, [TEXTS[0]]),
        score(real_model, [TEXTS[0]], prepend_bos=False),
    )
    assert default.tokens == without.tokens
    assert default.sum == without.sum


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=7),
    batch_tokens=st.integers(1, 80),
    bos=st.booleans(),
    data=st.data(),
)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_padding_and_batch_size_change_no_number(
    tiny_model, kind, lengths, batch_tokens, bos, data
):
    ids = st.integers(20, 40_000)
    sequences = [data.draw(st.lists(ids, min_size=n + 1, max_size=n + 1)) for n in lengths]
    firsts = [data.draw(st.integers(1, n)) for n in lengths]
    model = tiny_model(kind)
    batched = token_logprobs(model, sequences, firsts, batch_tokens=batch_tokens)
    for values, sequence, first in zip(batched, sequences, firsts, strict=True):
        (alone,) = token_logprobs(model, [sequence], [first])
        assert values.shape == (len(sequence) - first,)
        assert torch.allclose(values, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("bos", [False, True])
def test_texts_of_mixed_lengths_score_as_they_do_alone(tiny_model, kind, bos):
    texts = [text for text in TEXTS if bos or text != "A"]
    together = score(tiny_model(kind), texts, prepend_bos=bos, batch_tokens=64)
    for text, logprobs in zip(texts, together.logprobs, strict=True):
        alone = score(tiny_model(kind), [text], prepend_bos=bos).logprobs[0]
        assert logprobs == pytest.approx(alone, abs=1e-5)


def test_a_sequence_of_one_token_has_nothing_to_score_and_disturbs_no_other(tiny_model):
    model = tiny_model("llama")
    alone, long, other = token_logprobs(model, [(9,), (5, 6, 7), (8,)], [1, 1, 1], batch_tokens=1)
    assert (len(alone), len(long), len(other)) == (0, 2, 0)
    assert torch.allclose(long, token_logprobs(model, [(9,), (5, 6, 7)], [1, 1])[1], atol=1e-5)


def test_scores_keep_the_order_of_the_texts(tiny_model):
    model = tiny_model("llama")
    forth, back = score(model, TEXTS, prepend_bos=True), score(model, TEXTS[::-1], prepend_bos=True)
    assert forth.sum == pytest.approx(back.sum[::-1], abs=1e-4)
    assert forth.texts == TEXTS
    assert len(set(forth.sum.round(2))) == len(TEXTS)  # so that another order would show


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("context", "text"),
    [("The nurse is here.", "She was late."), ("He said", "that"), ("A café", "’s 😀 sign")],
)
def test_a_continuation_is_the_tail_of_the_joint_text(
    real_model, plain_model, tokenizer, context, text, bos
):
    scores = score(real_model, [text], [context], prepend_bos=bos)
    ids = [tokenizer.bos_token_id] * bos + tokenizer(f"{context} {text}").input_ids
    (tokens,) = scores.tokens
    assert ids[-len(tokens) :] == list(tokens)
    assert tokenizer.decode(tokens).strip() == text
    expected = slow_logprobs(plain_model, ids, len(ids) - len(tokens))
    assert scores.logprobs[0] == pytest.approx(expected, abs=1e-4)


def test_context_and_continuation_obey_the_chain_rule(real_model):
    context, text = "The nurse is here.", "She was late."
    joint = score(real_model, [f"{context} {text}"], prepend_bos=True).sum[0]
    before = score(real_model, [context], prepend_bos=True).sum[0]
    after = score(real_model, [text], [context], prepend_bos=True).sum[0]
    assert before + after == pytest.approx(joint, abs=1e-3)


def test_a_contexts_tokens_are_not_scored_but_matter(tiny_model):
    model = tiny_model("llama")
    scores = score(model, ["was late"] * 2, ["The nurse", "A dog of mine"])
    assert scores.tokens[0] == scores.tokens[1]
    assert abs(scores.sum[0] - scores.sum[1]) > 0.01


def test_sum_mean_and_frame_agree_with_the_token_values(tiny_model):
    scores = score(tiny_model("llama"), TEXTS, prepend_bos=True)
    for index, values in enumerate(scores.logprobs):
        assert values.dtype == np.float32
        assert scores.sum[index] == pytest.approx(sum(values.tolist()), abs=1e-3)
        assert scores.mean[index] == pytest.approx(sum(values.tolist()) / len(values), abs=1e-4)
    assert scores.frame["text"].tolist() == list(TEXTS)
    assert scores.frame["n_tokens"].tolist() == [len(values) for values in scores.logprobs]
    assert scores.frame["logprob"].to_numpy() == pytest.approx(scores.sum)


def test_the_table_of_tokens_names_them_and_where_they_stand(tiny_model):
    scores = score(tiny_model("llama"), ["was late", "slept"], ["The nurse", "A dog"])
    assert scores.scored["text"].tolist() == [0, 0, 1]
    assert scores.scored["token"].tolist() == ["·was", "·late", "·slept"]
    assert scores.scored["position"].tolist() == [2, 3, 2]
    assert scores.frame["context"].tolist() == ["The nurse", "A dog"]
    assert scores.plot().data[0].x == pytest.approx(np.concatenate(scores.logprobs))


def test_the_data_hash_tells_texts_and_contexts_apart(tiny_model):
    model = tiny_model("llama")
    given = [(["a b"], None), (["b"], ["a"]), (["b"], ["c"])]
    hashes = {score(model, *each).settings["data_hash"] for each in given}
    assert len(hashes) == 3


def test_hooks_on_the_model_are_in_force(tiny_model):
    model = tiny_model("llama")
    clean = score(model, [TEXTS[0]]).sum[0]
    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: 3 * value)]):
        edited = score(model, [TEXTS[0]]).sum[0]
    assert abs(edited - clean) > 0.1
    assert score(model, [TEXTS[0]]).sum[0] == clean


def test_half_precision_logits_are_normalised_in_float32():
    # The exact normaliser of 50,000 equal logits; bf16 has 8 bits and would be off by hundredths.
    logits = torch.full((1, 1, 50_000), 3.0, dtype=torch.bfloat16)
    zero = torch.zeros(1, dtype=torch.long)
    value = target_logprobs(logits, zero, zero, zero)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(-np.log(50_000), abs=1e-5)


def test_chunks_of_positions_change_no_number():
    logits = torch.randn(3, 11, 50)
    rows, positions = torch.randint(3, (40,)), torch.randint(11, (40,))
    targets = torch.randint(50, (40,))
    expected = [
        logits[r, p].log_softmax(0)[t] for r, p, t in zip(rows, positions, targets, strict=True)
    ]
    for chunk in (1, 7, 256):
        values = target_logprobs(logits, rows, positions, targets, chunk)
        assert torch.allclose(values, torch.stack(expected), atol=1e-6)


def test_a_bfloat16_model_scores_nearly_as_in_float32(real_model):
    low = load(dtype="bfloat16")
    texts = list(TEXTS[:2])
    scores = score(low, texts)
    assert all(values.dtype == np.float32 for values in scores.logprobs)
    assert scores.mean == pytest.approx(score(real_model, texts).mean, abs=0.05)


def test_start_logprobs_are_those_after_bos_alone(real_model, plain_model, tokenizer):
    with torch.no_grad():
        logits = plain_model(torch.tensor([[tokenizer.bos_token_id]])).logits[0, -1]
    start = start_logprobs(real_model)
    assert torch.allclose(start, logits.log_softmax(-1), atol=1e-4)
    assert float(start.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_no_text_is_refused(tiny_model):
    with pytest.raises(TracelabError, match="no text to score"):
        score(tiny_model("llama"), [])


def test_unequal_numbers_of_texts_and_contexts_are_refused(tiny_model):
    with pytest.raises(TracelabError, match="2 texts but 1 contexts"):
        score(tiny_model("llama"), ["a", "b"], ["c"])


@pytest.mark.parametrize("text", ["", " "])
def test_a_text_without_a_token_to_score_is_refused(tiny_model, text):
    with pytest.raises(TracelabError, match="no token"):
        score(tiny_model("llama"), ["fine words", text])


def test_a_single_token_is_scored_only_after_bos_or_a_context(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(
        TracelabError, match="no token to score in text 0 .'A'.: prepend BOS or give a context"
    ):
        score(model, ["A"], prepend_bos=False)
    assert len(score(model, ["A"], prepend_bos=True).logprobs[0]) == 1
    assert len(score(model, ["A"], ["Is this"], prepend_bos=False).logprobs[0]) == 1


def test_an_empty_continuation_is_refused(tiny_model):
    with pytest.raises(TracelabError, match="no token to score in text [0-9]+ .''."):
        score(tiny_model("llama"), [""], ["The nurse"])
