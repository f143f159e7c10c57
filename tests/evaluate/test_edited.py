"""A benchmark before and under an edit."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from tests.interventions.edits import random_delta
from tests.tiny import tiny_hf
from tracelab import Stack
from tracelab.errors import TracelabError
from tracelab.evaluate import edited_scores, paired, perplexity
from tracelab.model import assets
from tracelab.model.load import from_hf

TEXTS = [
    "The cat sat on the mat.",
    "Rain fell on the town.",
    "He sold bread in the market.",
    "It was late.",
]


def test_rows_are_those_of_scoring_twice_and_comparing(tiny_model):
    model = tiny_model("llama")
    edit = random_delta(model)
    found = edited_scores(model, edit, lambda name: perplexity(model, TEXTS, edit=name)).frame
    before = perplexity(model, TEXTS)
    with edit.applied(model):
        after = perplexity(model, TEXTS)
    change = paired(before, after).iloc[0]
    assert found["edit"].isna().tolist() == [True, False]
    assert found["value"].tolist() == [change["before"], change["after"]]
    edited = found.iloc[1]
    assert (
        edited["difference"],
        edited["difference_low"],
        edited["difference_high"],
        edited["p"],
    ) == (
        change["difference"],
        change["low"],
        change["high"],
        change["p"],
    )


def test_an_empty_stack_changes_nothing(tiny_model):
    model = tiny_model("llama")
    found = edited_scores(
        model, Stack([]), lambda name: perplexity(model, TEXTS, edit=name)
    ).frame.iloc[1]
    assert (found["difference"], found["p"]) == (0, 1)
    assert found[["difference_low", "difference_high"]].isna().all()
    assert found["difference_note"] == "no record changed"


def test_given_scores_of_the_unedited_model_are_not_measured_again(tiny_model):
    model, names = tiny_model("llama"), []

    def measure(name):
        names.append(name)
        return perplexity(model, TEXTS, edit=name)

    edited_scores(model, random_delta(model), measure, before=perplexity(model, TEXTS))
    assert names == ["weight_delta"]


def test_an_edit_of_another_model_is_refused_before_anything_is_measured(tiny_model, tokenizer):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    other = from_hf(tiny_hf("llama", len(tokenizer), seed=3), own, model_id="other")

    def measure(name):
        raise AssertionError("measured")

    with pytest.raises(TracelabError, match="was made for tiny-llama"):
        edited_scores(other, random_delta(tiny_model("llama")), measure)
    with torch.no_grad():
        assert not other.list_hooks()
