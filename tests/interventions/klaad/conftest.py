"""The tiny models that the tests of KLAAD share."""

from __future__ import annotations

import pytest

from tests.interventions.klaad.models import KINDS


@pytest.fixture
def model(tiny):
    return tiny("llama")


@pytest.fixture(autouse=True)
def _nothing_stays_on_the_models(tiny):
    yield
    for kind in KINDS:
        assert not list(tiny(kind).list_hooks())
        assert all(parameter.grad is None for parameter in tiny(kind).parameters())
