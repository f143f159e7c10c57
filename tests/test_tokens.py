from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.tiny import tiny_hf
from tracelab import assets
from tracelab.errors import TracelabError
from tracelab.model import from_hf
from tracelab.tokens import Span, bos_id, encode, length_batches, pad, token_texts

TEXT = "The mother’s café 😀 isn't she's  there."


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


def span_of(text: str, part: str) -> Span:
    return Span(text.index(part), text.index(part) + len(part))


def test_ids_are_the_tokenizers_own_without_special_tokens(model, tokenizer):
    assert list(encode(model, TEXT).ids) == tokenizer(TEXT, add_special_tokens=False).input_ids
    assert tokenizer.decode(encode(model, TEXT).ids) == TEXT


def test_bos_comes_first_when_asked_for_and_stands_for_no_character(model, tokenizer):
    with_bos, without = (encode(model, TEXT, prepend_bos=bos) for bos in (True, False))
    assert with_bos.ids == (tokenizer.bos_token_id, *without.ids)
    assert 0 not in with_bos.positions(Span(0, len(TEXT)))
    assert with_bos.positions(Span(0, 3)) == [p + 1 for p in without.positions(Span(0, 3))]


@pytest.mark.parametrize("word", ["The", "mother", "café", "😀", "isn't", "she", "there"])
def test_the_tokens_of_a_span_are_the_fewest_that_hold_it(model, tokenizer, word):
    encoding = encode(model, TEXT)
    positions = encoding.positions(span_of(TEXT, word))
    assert positions == list(range(positions[0], positions[-1] + 1))
    assert word in tokenizer.decode([encoding.ids[p] for p in positions])
    for fewer in (positions[1:], positions[:-1]):
        assert word not in tokenizer.decode([encoding.ids[p] for p in fewer])


def test_a_text_without_a_token_is_refused(model):
    with pytest.raises(TracelabError, match="no token in the text ''"):
        encode(model, "", prepend_bos=True)


def test_where_there_is_no_bos_the_eos_token_stands_before_a_text():
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    own.bos_token = None
    model = from_hf(tiny_hf("llama", len(own)), own, model_id="no-bos")
    model.tokenizer.bos_token = None
    assert bos_id(model) == model.tokenizer.eos_token_id
    assert encode(model, "a", prepend_bos=True).ids[0] == model.tokenizer.eos_token_id
    model.tokenizer.eos_token = None
    with pytest.raises(TracelabError, match="no BOS and no EOS"):
        bos_id(model)


def test_padding_is_on_the_right_and_masked(model):
    tokens, mask = pad(model, [(5, 6, 7), (8,)])
    assert tokens[0].tolist() == [5, 6, 7]
    assert tokens[1, 0] == 8
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert tokens.dtype == torch.long


@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    budget=st.integers(1, 100),
    equal=st.booleans(),
)
def test_batches_hold_every_sequence_once_within_the_budget(lengths, budget, equal):
    batches = list(length_batches(lengths, budget, equal=equal))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
        if equal:
            assert {lengths[i] for i in batch} == {longest}


def test_batches_are_filled_before_a_new_one_begins():
    assert list(length_batches([4, 2, 2, 4, 2], 8)) == [[1, 2, 4], [0, 3]]
    assert list(length_batches([3, 2, 2, 2, 3], 6, equal=True)) == [[1, 2, 3], [0, 4]]


def test_labels_show_leading_spaces(model):
    ids = encode(model, "She is\nhere").ids
    assert "".join(token_texts(model, ids)) == "She·is⏎here"
