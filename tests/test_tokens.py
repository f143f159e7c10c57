from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import tracelab
from tests.interventions.edits import random_delta
from tests.tiny import tiny_hf
from tracelab.datasets.records import Pair
from tracelab.errors import TracelabError
from tracelab.evaluate import perplexity
from tracelab.evaluate.benchmarks.hellinger import PromptPair, hellinger
from tracelab.interventions.training.finetune import finetune
from tracelab.localize.attention.attention_gap import attention_gap
from tracelab.model import assets
from tracelab.model.continuations import continuation_logprobs, encode_continuations
from tracelab.model.load import from_hf
from tracelab.model.tokens import (
    Span,
    bos_id,
    context_length,
    continuation_text,
    encode,
    first_token,
    length_batches,
    pad,
    pad_id,
    token_texts,
)

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


LONG = "The baker said that she was tired and went home. " * 20


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo"])
def test_with_learned_positions_a_text_beyond_the_context_is_refused_before_any_work(
    tiny_model, kind
):
    model = tiny_model(kind)
    edit = random_delta(model, modules=("mlp.out",), layers=(1,))
    ran = []
    handle = model.original_model.register_forward_pre_hook(lambda *args: ran.append(1))
    message = f"{{}} 1 has 222 tokens{{}}, tiny-{kind} a context of 128: shorten it"
    prompts = ["A baker", LONG]
    calls = {
        ("text", ""): lambda: tracelab.score(model, prompts, prepend_bos=True),
        ("prompt", " and up to 3 new ones"): lambda: tracelab.generate(
            model, prompts, max_new_tokens=3, prepend_bos=True
        ),
    }
    try:
        edit.hooks(model)
        ran.clear()
        for (what, more), call in calls.items():
            with pytest.raises(TracelabError, match=f"^{message.format(what, more)}"):
                call()
        with pytest.raises(TracelabError, match="^prompt 1 has 221 tokens"):
            tracelab.inspect(model, edit, prompts, allow_hooks=True)
        with pytest.raises(TracelabError, match="^text 1 has 221 tokens"):
            perplexity(model, prompts)
        with pytest.raises(TracelabError, match="^prompt 1 has .* tokens"):
            hellinger(model, [PromptPair("0", "gender", "A woman", LONG)])
        with pytest.raises(TracelabError, match="^pair 0 has .* tokens"):
            attention_gap(model, [Pair("0", "gender", LONG + "He", LONG + "She")])
        with pytest.raises(TracelabError, match="^text 0 has 200 tokens"):
            finetune(model, edit, [LONG], lr=1e-3, epochs=1, batch_size=1, block_size=200, seed=0)
        with pytest.raises(TracelabError, match="^prompt 0 has .* tokens"):
            continuation_logprobs(model, [encode_continuations(model, LONG, [" yes", " no"])])
        assert not ran
    finally:
        handle.remove()


def test_rotary_positions_run_on_with_one_warning(tiny_model):
    model = tiny_model("llama")
    with pytest.warns(
        UserWarning, match="^text 1 .and 1 more. has 221 tokens, tiny-llama a context of 128"
    ) as caught:
        scores = tracelab.score(model, ["A baker", LONG, LONG], prepend_bos=False)
    assert len(caught) == 1
    assert len(scores.logprobs[1]) == 220
    with pytest.warns(UserWarning, match="^prompt 0 has 127 tokens and up to 2 new ones") as caught:
        tracelab.generate(model, [" baker" * 127], max_new_tokens=2)
    assert len(caught) == 1


def test_what_fits_the_context_exactly_is_neither_refused_nor_warned_of(tiny_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("gpt2", "llama"):
            model = tiny_model(kind)
            assert len(tracelab.score(model, [" baker" * 128]).logprobs[0]) == 127
            assert len(tracelab.generate(model, [" baker" * 126], max_new_tokens=2).frame) == 1


@pytest.mark.parametrize(
    ("kind", "sizes", "limit"),
    [
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, None),
        (
            "falcon",
            {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "alibi": True,
                "max_position_embeddings": 64,
            },
            None,
        ),
        (
            "mistral",
            {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "sliding_window": 16,
            },
            512,
        ),
    ],
)
def test_models_without_a_limit_take_any_length(tokenizer, kind, sizes, limit):
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes)
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(AutoModelForCausalLM.from_config(config).eval(), own, model_id=kind)
    assert context_length(model) == limit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(tracelab.score(model, [LONG], prepend_bos=False).logprobs[0]) == 220


@pytest.mark.parametrize("kind", ["gptj", "opt"])
def test_other_tables_of_positions_are_known(tokenizer, kind):
    sizes = {
        "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
        "opt": {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
    }[kind]
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes)
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(AutoModelForCausalLM.from_config(config).eval(), own, model_id=f"tiny-{kind}")
    assert len(tracelab.score(model, [" baker" * 64]).logprobs[0]) == 63
    with pytest.raises(TracelabError, match=f"text 0 has 65 tokens, tiny-{kind} a context of 64"):
        tracelab.score(model, [" baker" * 65])


def test_a_text_that_begins_with_bos_gets_no_second_and_this_is_said(tokenizer):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf("llama", len(own)), own, model_id="chat", prepend_bos=True)
    chat = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who bakes?"}], tokenize=False
    )
    with pytest.warns(UserWarning, match="begins with the BOS token already"):
        encoding = encode(model, chat)
    assert encoding.ids.count(own.bos_token_id) == chat.count(own.bos_token)
    assert encoding.ids == tuple(tokenizer(chat, add_special_tokens=False).input_ids)
    assert encoding.ids == encode(model, chat, prepend_bos=False).ids
    with pytest.warns(UserWarning, match="BOS token already"):
        scores = tracelab.score(model, [chat])
    assert len(scores.logprobs[0]) == len(encoding.ids) - 1
    windows = perplexity(model, [chat], max_length=8).texts["text"]
    assert not windows[0].startswith(own.bos_token * 2)


def beyond(tokenizer, **tokens):
    """A model with the tokens of the tokenizer alone, and a tokenizer that has one more."""
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    own.add_tokens(["<extra>"])
    for name, token in tokens.items():
        setattr(own, name, token)
    return from_hf(tiny_hf("llama", len(tokenizer)), own, model_id="small")


def test_a_token_without_an_embedding_is_named(tokenizer):
    model = beyond(tokenizer)
    message = f"the token '<extra>' .id {len(tokenizer)}. is beyond the {len(tokenizer)} embeddings of small"  # noqa: E501
    with pytest.raises(TracelabError, match=message):
        tracelab.score(model, ["He is <extra> here."])
    with pytest.raises(TracelabError, match=message):
        first_token(model, "<extra>")
    assert len(tracelab.score(model, ["He is here."]).sum) == 1


def test_a_padding_token_without_an_embedding_is_replaced_by_another(tokenizer):
    model = beyond(tokenizer, pad_token="<extra>")
    assert 0 <= pad_id(model) < len(tokenizer)
    together = tracelab.score(model, ["He is here.", "She"], prepend_bos=True).sum
    alone = [
        tracelab.score(model, [text], prepend_bos=True).sum[0] for text in ("He is here.", "She")
    ]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(tracelab.generate(model, ["He is here.", "She"], max_new_tokens=2).frame) == 2


def test_bos_and_eos_without_an_embedding_matter_only_where_they_are_needed(tokenizer):
    model = beyond(tokenizer, bos_token="<extra>", eos_token="<extra>")
    assert len(tracelab.score(model, ["He is here."], prepend_bos=False).sum) == 1
    assert len(tracelab.generate(model, ["He is"], max_new_tokens=2).frame) == 1
    with pytest.raises(TracelabError, match="the bos token '<extra>' .id .*. is beyond the"):
        tracelab.score(model, ["He is here."], prepend_bos=True)


def metaspace():
    """A tokenizer that marks the beginning of words, as Llama 2's."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = ["A woman works in a bakery and a man works in a mill.", "woman", "Awoman"] * 20
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"])
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def word_pieces():
    """A tokenizer that marks the continuation of words, as BERT's."""
    words = ["[UNK]", "[EOS]", "she", "is", "play", "##ing", "##s", "a", "man"]
    inner = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[EOS]")


def test_labels_keep_the_marks_of_every_kind_of_tokenizer(model):
    spaced = from_hf(tiny_hf("llama", 200), metaspace(), model_id="metaspace")
    assert (
        "".join(token_texts(spaced, encode(spaced, "A woman works", prepend_bos=False).ids))
        == "·A·woman·works"
    )
    pieces = from_hf(tiny_hf("llama", 200), word_pieces(), model_id="pieces")
    ids = encode(pieces, "she is playing", prepend_bos=False).ids
    assert token_texts(pieces, ids) == ["she", "is", "play", "##ing"]
    assert token_texts(model, model.tokenizer(" a\n", add_special_tokens=False).input_ids) == [
        "·a",
        "⏎",
    ]


def test_a_continuation_is_decoded_with_its_prompt(model):
    spaced = from_hf(tiny_hf("llama", 200), metaspace(), model_id="metaspace")
    pieces = from_hf(tiny_hf("llama", 200), word_pieces(), model_id="pieces")
    for made, prompt, more in (
        (spaced, "A man and a", " woman works"),
        (pieces, "she is play", "ing a man"),
        (pieces, "she is", " playing"),
        (model, "She said", " that"),
    ):
        before, whole = (
            encode(made, text, prepend_bos=False).ids for text in (prompt, prompt + more)
        )
        assert continuation_text(made, before, whole[len(before) :]) == more
    assert continuation_text(spaced, encode(spaced, "A man", prepend_bos=True).ids, [2]) == ""
