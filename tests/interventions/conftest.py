"""Tiny models and a bundle that the tests of interventions share."""

from __future__ import annotations

import pytest

from tests.interventions.edits import bridged, random_delta, random_experts, random_fairmed
from tests.interventions.triple_records import save_word_tokenizer, word_model
from tracelab.interventions import Stack


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def small(tokenizer):
    """A model with other weights and the vocabulary of ``model``."""
    return bridged(len(tokenizer), 1, "small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a small word tokenizer that adds no BOS."""
    path = tmp_path_factory.mktemp("words")
    save_word_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tiny(folder):
    """``tiny(kind)``: a small random model whose vocabulary is the words of the tests' triples."""
    made = {}

    def make(kind: str):
        if kind not in made:
            made[kind] = word_model(kind, folder)
        return made[kind]

    return make


@pytest.fixture
def kept(model, tmp_path):
    """A bundle of a stack of all kinds."""
    edit = Stack([random_fairmed(model), random_experts(model), random_delta(model, layers=(2,))])
    return edit.save(tmp_path / "kept")
