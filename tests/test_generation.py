"""Continuations: what a seed, a batch, the padding and the cache may and may not change."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

import tracelab
from tests.interventions.edits import random_delta
from tracelab.errors import TracelabError

PROMPTS = ["The nurse said that", "He", "My neighbours from the north are all"]
GREEDY = {"do_sample": False, "max_new_tokens": 5}


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def texts(result):
    return result.frame["continuation"].tolist()


def test_a_seed_repeats_whatever_the_global_one_and_does_not_disturb_it(model):
    first = tracelab.generate(model, PROMPTS, seed=3)
    torch.manual_seed(99)
    again = tracelab.generate(model, PROMPTS, seed=3)
    other = tracelab.generate(model, PROMPTS, seed=4)
    assert texts(first) == texts(again)
    assert all(a != b for a, b in zip(texts(first), texts(other), strict=True))
    torch.manual_seed(99)
    expected = torch.random.get_rng_state()
    tracelab.generate(model, PROMPTS[:1], seed=3)
    assert torch.equal(torch.random.get_rng_state(), expected)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "uncached"]
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_prompts_of_different_lengths_are_continued_as_one_at_a_time(tiny_model, kind, options):
    model = tiny_model(kind)
    together = tracelab.generate(model, PROMPTS, **GREEDY, **options)
    two_a_batch = tracelab.generate(model, PROMPTS, batch_size=2, **GREEDY, **options)
    alone = [
        texts(tracelab.generate(model, [prompt], **GREEDY, **options))[0] for prompt in PROMPTS
    ]
    assert texts(together) == texts(two_a_batch) == alone
    assert len(set(alone)) == 3


def test_greedy_text_is_the_most_likely_token_after_each(model):
    ids = model.tokenizer(PROMPTS[0], add_special_tokens=False).input_ids
    length = len(ids)
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert texts(tracelab.generate(model, PROMPTS[:1], **GREEDY)) == [
        model.tokenizer.decode(ids[length:])
    ]


def test_each_sample_of_each_prompt_is_a_row_in_order(model):
    result = tracelab.generate(
        model, PROMPTS, num_return_sequences=4, max_new_tokens=3, batch_size=2
    )
    frame = result.frame
    assert frame["prompt_id"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert frame["sample"].tolist() == [0, 1, 2, 3] * 3
    assert frame["prompt"].tolist() == [prompt for prompt in PROMPTS for _ in range(4)]
    assert len(set(frame["continuation"])) > 9


def test_a_prompt_is_told_with_the_models_own_bos_unless_said_otherwise(model):
    with_bos = tracelab.generate(model, PROMPTS, prepend_bos=True, **GREEDY)
    assert texts(with_bos) != texts(tracelab.generate(model, PROMPTS, **GREEDY))
    assert texts(tracelab.generate(model, PROMPTS, prepend_bos=False, **GREEDY)) == texts(
        tracelab.generate(model, PROMPTS, **GREEDY)
    )


def test_an_edit_that_is_applied_acts_on_what_is_sampled(model):
    before = tracelab.generate(model, PROMPTS, **GREEDY)
    with random_delta(model).applied(model):
        edited = tracelab.generate(model, PROMPTS, **GREEDY)
    assert texts(edited) != texts(before)
    assert texts(tracelab.generate(model, PROMPTS, **GREEDY)) == texts(before)


def test_the_settings_tell_how_it_was_sampled(model):
    settings = tracelab.generate(
        model, PROMPTS, max_new_tokens=2, top_p=0.5, temperature=0.7, seed=6
    ).settings
    assert settings["model"]["model_id"] == "tiny-llama"
    assert (settings["seed"], settings["top_p"], settings["temperature"], settings["top_k"]) == (
        6,
        0.5,
        0.7,
        0,
    )
    assert (settings["max_new_tokens"], settings["num_beams"], settings["do_sample"]) == (
        2,
        1,
        True,
    )


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt to continue"),
        (["The", ""], {}, "no token in the text ''"),
        (["The"], {"max_new_tokens": 0}, "max_new_tokens is at least 1, not 0"),
        (["The"], {"temperature": 0.0}, "temperature is a number above 0, not 0.0"),
        (
            ["The"],
            {"num_return_sequences": 2, "do_sample": False},
            "cannot generate so: Greedy methods",
        ),
        (["The"], {"batch_size": 0}, "batch_size is at least 1, not 0"),
        (["The"], {"batch_size": -1}, "batch_size is at least 1, not -1"),
        (["The"], {"num_beams": 0}, "num_beams is at least 1, not 0"),
        (["The"], {"num_return_sequences": 0}, "num_return_sequences is at least 1, not 0"),
    ],
)
def test_what_cannot_be_generated_is_refused(model, prompts, options, message):
    with pytest.raises(TracelabError, match=message):
        tracelab.generate(model, prompts, **options)


def test_a_single_prompt_may_be_given_as_a_string(model):
    result = tracelab.generate(model, PROMPTS[0], **GREEDY)
    assert result.frame["prompt"].tolist() == PROMPTS[:1]
    assert texts(result) == texts(tracelab.generate(model, PROMPTS[:1], **GREEDY))


@pytest.mark.parametrize("top_p", [2.0, 0.0])
def test_a_nucleus_that_is_no_probability_is_refused(model, top_p):
    with pytest.raises(TracelabError, match="top_p is above 0 and at most 1"):
        tracelab.generate(model, ["He"], top_p=top_p)


UNSEEN = {
    "repetition_penalty": 1.8,
    "min_p": 0.4,
    "typical_p": 0.2,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(40000)),
    "bad_words_ids": [[i] for i in range(500)],
    "forced_eos_token_id": 5,
    "length_penalty": 9.0,
    "min_new_tokens": 4,
    "max_length": 7,
    "temperature": 0.1,
    "num_beams": 2,
    "sequence_bias": [[[7], 90.0]],
    "watermarking_config": {"bias": 9.0},
}


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"seed": 3}, {"do_sample": False, "num_beams": 2}]
)
def test_of_the_checkpoints_generation_config_only_the_end_tokens_act(model, options):
    hf_model = model.original_model
    expected = tracelab.generate(model, PROMPTS[:2], max_new_tokens=6, **options)
    kept = hf_model.generation_config
    try:
        for name, value in UNSEEN.items():
            own = hf_model.generation_config = GenerationConfig(
                bos_token_id=1, eos_token_id=2, pad_token_id=0, **{name: value}
            )
            found = tracelab.generate(model, PROMPTS[:2], max_new_tokens=6, **options)
            assert texts(found) == texts(expected), name
            assert found.settings == expected.settings, name
            assert hf_model.generation_config is own
    finally:
        hf_model.generation_config = kept


def test_the_checkpoints_end_tokens_end_a_text_and_are_recorded(model):
    whole = model.tokenizer(PROMPTS[0], add_special_tokens=False).input_ids
    with torch.no_grad():
        end = int(model(torch.tensor([whole]))[0, -1].argmax())
    kept = model.original_model.generation_config
    model.original_model.generation_config = GenerationConfig(
        eos_token_id=[49151 + 99, end], pad_token_id=0
    )
    try:
        found = tracelab.generate(model, PROMPTS[:1], **GREEDY)
    finally:
        model.original_model.generation_config = kept
    assert found.settings["eos_token_id"] == [end]
    assert texts(found) == [model.tokenizer.decode([end])]


def test_the_generation_config_is_put_back_after_an_error(model):
    kept = model.original_model.generation_config
    with pytest.raises(TracelabError, match="cannot generate so"):
        tracelab.generate(model, PROMPTS, do_sample=False, num_return_sequences=2)
    assert model.original_model.generation_config is kept
