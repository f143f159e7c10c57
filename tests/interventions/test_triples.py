"""Triples as tokens: where the fillers are, what is left out, and a split that shares no target
term."""

from __future__ import annotations

from collections import Counter

import pytest
from transformers import AutoTokenizer

from tests.interventions.triple_records import record, records
from tests.tiny import tiny_hf
from tracelab.datasets import stereoset
from tracelab.datasets.records import Sentence
from tracelab.datasets.stereoset import StereoSetRecord
from tracelab.errors import TracelabError
from tracelab.interventions.training.triples import LABELS, split_by_target, tokenise
from tracelab.model import assets
from tracelab.model.load import from_hf


def about(bias: str, target: str, number: int) -> StereoSetRecord:
    return record(
        f"The {target} is BLANK.", "bad", "good", "table", number=number, bias=bias, target=target
    )


@pytest.fixture(scope="module")
def with_bos(tokenizer):
    """A model before whose texts stands a BOS token."""
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    return from_hf(tiny_hf("llama", len(tokenizer)), own, model_id="with-bos", prepend_bos=True)


# --- tokens
# ---------------------------------------------------------------------------------------------------------  # noqa: E501


def test_the_repr_is_one_line(tiny_model):
    assert repr(tokenise(tiny_model("llama"), records(20))) == "Triples(race, n = 20, 0 left out)"


def test_sentences_are_three_a_record_in_the_order_of_the_labels(tiny_model, tokenizer):
    given = records(20)
    triples = tokenise(tiny_model("llama"), given)
    assert triples.records == tuple(given)
    assert len(triples.sequences) == len(triples.fillers) == 60
    for number, each in enumerate(given):
        for label in LABELS:
            index = triples.index(number, label)
            assert list(triples.sequences[index]) == tokenizer(getattr(each, label).text).input_ids


def test_the_fillers_positions_decode_to_the_fillers(tiny_model, tokenizer):
    triples = tokenise(tiny_model("llama"), stereoset("gender")[:60])
    assert len(triples.records) > 50
    several = 0
    for number, each in enumerate(triples.records):
        for label in LABELS:
            sentence, index = getattr(each, label), triples.index(number, label)
            words = " ".join(sentence.text[span.start : span.end] for span in sentence.filler)
            ids = [triples.sequences[index][position] for position in triples.fillers[index]]
            assert tokenizer.decode(ids).strip() == words
            several += len(ids) > 1
    assert several > 0


def test_with_bos_all_sentences_begin_with_it_and_no_filler_is_at_its_place(with_bos, tiny_model):
    plain, with_it = (tokenise(model, records(10)) for model in (tiny_model("llama"), with_bos))
    for before, after in zip(plain.sequences, with_it.sequences, strict=True):
        assert after == (with_bos.tokenizer.bos_token_id, *before)
    for before, after in zip(plain.fillers, with_it.fillers, strict=True):
        assert after == tuple(position + 1 for position in before)


def test_of_a_context_with_two_blanks_both_fillers_count(tiny_model, tokenizer):
    triples = tokenise(
        tiny_model("llama"), [record("A BLANK man is a BLANK man.", "bad", "good", "table")]
    )
    positions = triples.fillers[0]
    assert [tokenizer.decode([triples.sequences[0][p]]) for p in positions] == [" bad", " bad"]
    assert len(set(positions)) == 2


def test_of_an_intersentence_record_the_continuation_is_the_filler(tiny_model, tokenizer):
    continuations = [
        Sentence(str(i), text)
        for i, text in enumerate(("He is bad.", "He's good!", "Tables are odd"))
    ]
    context = "I never had a brother."
    given = [
        StereoSetRecord(str(i), "intersentence", "gender", "brother", context, *continuations)
        for i in range(2)
    ]
    triples = tokenise(tiny_model("llama"), given)
    assert triples.left_out == {}
    for number, each in enumerate(given):
        for label in LABELS:
            index = triples.index(number, label)
            ids, positions = triples.sequences[index], triples.fillers[index]
            assert list(ids) == tokenizer(f"{each.context} {getattr(each, label).text}").input_ids
            assert positions == tuple(range(positions[0], len(ids)))
            assert tokenizer.decode(ids[: positions[0]]) == each.context
            assert tokenizer.decode(ids[positions[0] :]) == f" {getattr(each, label).text}"


def test_a_space_that_is_a_token_of_its_own_belongs_to_the_context(tiny_model, tokenizer):
    context, texts = "I never had a brother.", ("2 of them", "3 of them", "4 of them")
    continuations = [Sentence(str(i), text) for i, text in enumerate(texts)]
    given = StereoSetRecord("0", "intersentence", "gender", "brother", context, *continuations)
    triples = tokenise(tiny_model("llama"), [given])
    for ids, positions, text in zip(triples.sequences, triples.fillers, texts, strict=True):
        assert tokenizer.decode(ids[: positions[0]]) == f"{context} "
        assert tokenizer.decode([ids[p] for p in positions]) == text


# --- what is left out
# -----------------------------------------------------------------------------------------------


def test_a_record_whose_filler_cannot_be_found_is_left_out_and_counted(tiny_model):
    usable = record("They are BLANK.", "bad", "good", "table", number=1)
    blank_less = record("They are nice.", "bad", "good", "table", number=2)
    triples = tokenise(tiny_model("llama"), [blank_less, usable, blank_less])
    assert triples.records == (usable,)
    assert triples.left_out == {"no filler in the sentence": 2}
    assert len(triples.sequences) == len(triples.fillers) == 3


def test_a_filler_that_begins_a_text_is_left_out_unless_bos_comes_before_it(
    tiny_model, with_bos, tokenizer
):
    first = record("BLANK people came.", "Bad", "Good", "Table", number=1)
    assert [len(tokenizer(word).input_ids) for word in ("Bad", "Good")] == [1, 1]
    usable = record("They are BLANK.", "bad", "good", "table", number=2)
    triples = tokenise(tiny_model("llama"), [first, usable])
    assert triples.records == (usable,)
    assert triples.left_out == {"nothing predicts the filler": 1}
    with_it = tokenise(with_bos, [first, usable])
    assert with_it.records == (first, usable)
    assert with_it.fillers[0] == (1,)
    assert with_it.left_out == {}


def test_of_a_long_filler_that_begins_a_text_the_tokens_that_are_predicted_remain(
    tiny_model, tokenizer
):
    words = ("Xylographically", "Quizzaciously")
    sizes = [len(tokenizer(word).input_ids) for word in words]
    assert min(sizes) > 1
    triples = tokenise(tiny_model("llama"), [record("BLANK people came.", *words, "Table")])
    assert triples.left_out == {}
    assert [triples.fillers[i] for i in (0, 1)] == [tuple(range(1, size)) for size in sizes]


def test_an_unrelated_sentence_needs_no_filler(tiny_model):
    usable = record("They are BLANK.", "bad", "good", "table")
    odd = StereoSetRecord(**{**vars(usable), "unrelated": Sentence("odd", "No such context here.")})
    triples = tokenise(tiny_model("llama"), [odd])
    assert triples.left_out == {}
    assert triples.fillers[triples.index(0, "unrelated")] == ()


def test_if_no_record_is_left_the_reasons_are_named(tiny_model):
    blank_less = record("They are nice.", "bad", "good", "table", number=1)
    first = record("BLANK people came.", "Bad", "Good", "Table", number=2)
    message = r"no usable triple among 3 records \(no filler in the sentence: 2, nothing predicts the filler: 1\)"  # noqa: E501
    with pytest.raises(TracelabError, match=message):
        tokenise(tiny_model("llama"), [blank_less, first, blank_less])
    with pytest.raises(
        TracelabError, match=r"no usable triple among 0 records \(none were given\)"
    ):
        tokenise(tiny_model("llama"), [])


# --- the split
# ------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_and_development_share_no_target_and_lose_no_record(seed):
    given = stereoset()
    train, dev = split_by_target(given, seed=seed)
    assert {r.target for r in train}.isdisjoint({r.target for r in dev})
    assert Counter(r.id for r in [*train, *dev]) == Counter(r.id for r in given)


def test_the_share_of_target_terms_of_each_bias_type_is_for_development():
    given = [about("gender", f"g{i % 10}", i) for i in range(40)]
    given += [about("race", f"r{i % 50}", 100 + i) for i in range(100)]
    for share in (0.2, 0.5):
        _, dev = split_by_target(given, share=share)
        terms = Counter(bias for bias, _ in {(r.bias_type, r.target) for r in dev})
        assert terms == {"gender": 10 * share, "race": 50 * share}


def test_the_seed_makes_the_split():
    given = stereoset("race", limit=300)
    assert split_by_target(given, seed=0) == split_by_target(given, seed=0)
    assert split_by_target(given, seed=0) != split_by_target(given, seed=1)


def test_the_split_of_a_bias_type_does_not_depend_on_the_others():
    gender = [about("gender", f"g{i % 10}", i) for i in range(40)]
    race = [about("race", f"r{i % 50}", 100 + i) for i in range(100)]
    _, alone = split_by_target(gender)
    _, together = split_by_target([*race, *gender])
    assert [r for r in together if r.bias_type == "gender"] == alone


def test_two_target_terms_are_split_one_each_and_a_single_one_is_refused():
    two = [about("gender", "nurse", 0), about("gender", "nurse", 1), about("gender", "boss", 2)]
    train, dev = split_by_target(two)
    assert sorted(len({r.target for r in part}) for part in (train, dev)) == [1, 1]
    with pytest.raises(
        TracelabError, match="gender has one target term: none can be held out for development"
    ):
        split_by_target(two[:2])
    with pytest.raises(TracelabError, match="race has one target term"):
        split_by_target([*two, about("race", "them", 3)])
