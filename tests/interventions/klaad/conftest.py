"""The tiny models that the tests of KLAAD share."""

from __future__ import annotations

import pytest

from tests.interventions.klaad.models import KINDS
from tests.interventions.triple_records import save_word_tokenizer, word_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """``tiny(kind)``: a small random model whose vocabulary is the records' words."""
    folder = tmp_path_factory.mktemp("words")
    save_word_tokenizer(folder)
    return {kind: word_model(kind, folder) for kind in KINDS}.__getitem__


@pytest.fixture
def model(tiny):
    return tiny("llama")


@pytest.fixture(autouse=True)
def _nothing_stays_on_the_models(tiny):
    yield
    for kind in KINDS:
        assert not list(tiny(kind).list_hooks())
        assert all(parameter.grad is None for parameter in tiny(kind).parameters())
