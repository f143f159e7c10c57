"""Tiny models and a bundle that the tests of interventions share."""

from __future__ import annotations

import pytest

from tests.interventions.edits import bridged, random_delta, random_experts, random_fairmed
from tracelab.interventions import Stack


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def small(tokenizer):
    """A model with other weights and the vocabulary of ``model``."""
    return bridged(len(tokenizer), 1, "small")


@pytest.fixture
def kept(model, tmp_path):
    """A bundle of a stack of all kinds."""
    edit = Stack([random_fairmed(model), random_experts(model), random_delta(model, layers=(2,))])
    return edit.save(tmp_path / "kept")
