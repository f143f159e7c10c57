"""Texts and records in whatever people have them in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tracelab
from tests.interventions.edits import random_delta
from tracelab.datasets import crows_pairs, stereoset
from tracelab.datasets.redditbias import ExpertTexts
from tracelab.errors import TracelabError
from tracelab.evaluate import crows_pairs_scores, perplexity, stereoset_scores
from tracelab.evaluate.bold.text_scorers import text_scorer
from tracelab.model.texts import as_records, as_texts

TEXTS = ["hello there", "hello you"]
CONTEXTS = ["A man said", "A woman said"]
CARRIERS = {
    "tuple": tuple,
    "generator": lambda texts: (text for text in texts),
    "array": np.array,
    "objects": lambda texts: np.array(texts, dtype=object),
    "sorted column": lambda texts: pd.Series(texts, index=[1, 0]),
    "filtered column": lambda texts: pd.Series(texts, index=[4, 9]),
    "index": pd.Index,
    "keys": lambda texts: dict.fromkeys(texts).keys(),
}


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.mark.parametrize("carry", CARRIERS.values(), ids=CARRIERS)
def test_texts_are_read_in_their_order_whatever_holds_them(model, carry):
    expected = tracelab.score(model, TEXTS, CONTEXTS)
    found = tracelab.score(model, carry(TEXTS), carry(CONTEXTS))
    assert found.texts == expected.texts
    assert found.sum.tolist() == expected.sum.tolist()
    assert as_texts(carry(TEXTS)) == TEXTS
    assert {type(text) for text in as_texts(carry(TEXTS))} == {str}


def test_one_string_is_one_text(model):
    assert tracelab.score(model, "A woman said").texts == ("A woman said",)
    assert (
        tracelab.score(model, "hello", "A man said").sum
        == tracelab.score(model, ["hello"], ["A man said"]).sum
    )
    assert len(perplexity(model, "A woman said so.").texts) == 1
    assert ExpertTexts(
        "gender", biased="she bakes", anti_biased=pd.Series(["he bakes"])
    ).biased == ("she bakes",)
    seen = []
    text_scorer(lambda texts: seen.extend(texts) or [0.0])("A woman said")
    assert seen == ["A woman said"]
    with pytest.raises(TracelabError, match="2 texts but 1 contexts"):
        tracelab.score(model, TEXTS, "A man said")


@pytest.mark.parametrize(
    ("gap", "shown"), [(float("nan"), "nan"), (None, "None"), (3, "3"), (pd.NA, "<NA>")]
)
def test_a_missing_text_is_named_by_its_number(model, gap, shown):
    given = [*TEXTS, gap, "more"]
    message = f"{{}} 2 is {shown}, not a string: leave it out, or fill it in"
    for what, call in {
        "text": lambda: tracelab.score(model, pd.Series(given, dtype=object)),
        "context": lambda: tracelab.score(model, ["a"] * 4, given),
        "prompt": lambda: tracelab.generate(model, given),
        "biased text": lambda: ExpertTexts("gender", given, TEXTS),
    }.items():
        with pytest.raises(TracelabError, match=f"^{message.format(what)}$"):
            call()
    with pytest.raises(TracelabError, match=message.format("prompt")):
        tracelab.inspect(model, random_delta(model), given)
    with pytest.raises(TracelabError, match=message.format("text")):
        perplexity(model, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "a list of texts is needed, not None"),
        (5, "a list of texts is needed, not 5"),
        (b"abc", "a list of texts is needed, not b'abc'"),
        (pd.DataFrame({"text": TEXTS}), "not a DataFrame: give one of its columns"),
        ({"a": "b"}, "not a dict: give one of its columns"),
    ],
)
def test_what_holds_no_texts_is_refused(given, message):
    with pytest.raises(TracelabError, match=message):
        as_texts(given)


def test_prompts_and_words_of_inspect_may_be_columns(model):
    edit = random_delta(model)
    plain = tracelab.inspect(model, edit, TEXTS, tokens=["man", "woman"], top=2)
    column = tracelab.inspect(
        model, edit, pd.Series(TEXTS, index=[7, 3]), tokens=pd.Series(["man", "woman"]), top=2
    )
    pd.testing.assert_frame_equal(plain.tokens, column.tokens)
    assert column.settings["prompts"] == TEXTS


def test_records_may_be_a_column_or_a_generator(model):
    records, pairs = stereoset("gender", limit=6), crows_pairs("gender", limit=6)
    expected = stereoset_scores(model, records).frame
    column = pd.Series(records, index=range(6, 0, -1))
    pd.testing.assert_frame_equal(stereoset_scores(model, column).frame, expected)
    lazily = crows_pairs_scores(model, (pair for pair in pairs)).frame
    pd.testing.assert_frame_equal(lazily, crows_pairs_scores(model, pairs).frame)


def test_what_is_no_record_is_named_by_its_number(model):
    with pytest.raises(TracelabError, match="record 1 is 'a text', no record of a data set"):
        stereoset_scores(model, iter([*stereoset("gender", limit=1), "a text"]))
    with pytest.raises(TracelabError, match="record 0 is nan"):
        as_records([float("nan")])


def test_one_benchmark_and_one_component_may_be_named_by_a_string(model):
    board = tracelab.evaluate(
        model, random_delta(model), "local-bias", bias="gender", limit=4, costs=False
    )
    assert set(board.frame["benchmark"]) == {"local-bias"}
    trace = tracelab.causal_trace(
        model, stereoset("gender", limit=4), components="mlp", n_samples=1, layers=[1]
    )
    assert trace.settings["components"] == ["mlp"]
