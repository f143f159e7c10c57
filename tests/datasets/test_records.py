from __future__ import annotations

from dataclasses import replace
from functools import partial

import jaxtyping
import pytest

from tracelab import datasets
from tracelab.datasets.records import Pair, check_ids, parse, select
from tracelab.errors import TracelabError
from tracelab.span import Span
from tracelab.storage.data_hash import data_hash

PAIRS = [
    Pair(f"p{i}", bias, "She is kind.", "He is kind.", (Span(0, 3),), (Span(0, 2),))
    for i, bias in enumerate(["race", "gender", "race", "gender", "gender"])
]


def ids(pairs):
    return [pair.id for pair in pairs]


@pytest.mark.parametrize(
    "held",
    [
        datasets.templates("gender"),
        datasets.expert_texts("gender"),
        datasets.group_pairs("gender"),
        datasets.GroupPairs.of("a\nb" * 999, [("x", "y")] * 999),
    ],
    ids=lambda held: type(held).__name__,
)
def test_what_holds_many_texts_has_a_repr_of_one_line(held):
    assert repr(held).startswith(f"{type(held).__name__}(")
    assert "n = " in repr(held)
    assert repr(held).isprintable()
    assert len(repr(held)) < 200


def test_select_keeps_the_benchmarks_order():
    assert ids(select(PAIRS, "gender", what="X")) == ["p1", "p3", "p4"]
    assert ids(select(PAIRS, None, what="X")) == ["p0", "p1", "p2", "p3", "p4"]


def test_the_limit_counts_records_of_the_chosen_bias_type():
    assert ids(select(PAIRS, "gender", 2, what="X")) == ["p1", "p4"]
    assert ids(select(PAIRS, "gender", 99, what="X")) == ["p1", "p3", "p4"]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_no_record_is_refused(limit):
    with pytest.raises(TracelabError, match=f"bias=gender, limit={limit}"):
        select(PAIRS, "gender", limit, what="X")


def test_an_absent_bias_type_is_refused_with_those_present():
    with pytest.raises(TracelabError, match="X has no bias type 'age': choose one of gender, race"):
        select(PAIRS, "age", what="X")


def test_an_id_that_stands_twice_is_named():
    check_ids(PAIRS, "X")
    with pytest.raises(TracelabError, match="X: 1 ids stand twice, the first is 'p2'"):
        check_ids([*PAIRS, PAIRS[2]], "X")


@pytest.mark.parametrize("broken", [KeyError, TypeError, ValueError, IndexError, AttributeError])
def test_a_reader_that_fails_becomes_one_sentence_about_the_file(broken):
    def read():
        raise broken("why")

    with pytest.raises(TracelabError, match=f"{broken.__name__} .*why") as caught:
        parse("f.json", read)
    assert str(caught.value).startswith("f.json is not the benchmark it claims to be")


def test_a_readers_own_sentence_is_kept():
    def read():
        raise TracelabError("record 7 lacks a label")

    with pytest.raises(TracelabError, match="^record 7 lacks a label$"):
        parse("f.json", read)


def test_an_empty_file_is_refused():
    with pytest.raises(TracelabError, match=r"f\.json holds no records"):
        parse("f.json", list)


def test_the_data_hash_changes_with_any_field_and_with_the_order():
    hashes = {data_hash(PAIRS), data_hash(PAIRS[::-1]), data_hash(PAIRS[:-1]), data_hash([])}
    for change in (
        {"id": "q"},
        {"bias_type": "age"},
        {"stereotype": "She is kind"},
        {"anti_stereotype": "he is kind."},
        {"stereotype_words": (Span(0, 2),)},
        {"anti_stereotype_words": ()},
    ):
        hashes.add(data_hash([replace(PAIRS[0], **change), *PAIRS[1:]]))
    assert len(hashes) == 10
    assert data_hash(iter(PAIRS)) == data_hash(list(PAIRS))
    assert len(data_hash(PAIRS)) == 16


@pytest.mark.parametrize("limit", [2.5, "3", True])
@pytest.mark.parametrize(
    "read",
    [
        partial(datasets.stereoset, "gender"),
        datasets.crows_pairs,
        datasets.bbq,
        datasets.bold,
        datasets.redditbias,
        partial(datasets.expert_texts, "gender"),
        partial(datasets.templates, "gender"),
        datasets.winobias,
        datasets.wikitext,
    ],
)
def test_a_limit_that_is_no_whole_number_is_one_sentence(read, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # whoever has no type checks
    options = {}
    if read is datasets.wikitext:
        options["source"] = tmp_path / "wiki.test.tokens"
        options["source"].write_text("some text\n")
    with pytest.raises(TracelabError, match="limit is a whole number, not"):
        read(limit=limit, **options)
