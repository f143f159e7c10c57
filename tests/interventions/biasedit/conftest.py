"""Tiny models and edits that the tests of BiasEdit share."""

from __future__ import annotations

import copy

import pytest

from tests.interventions.biasedit.models import DEV, FITTED, KINDS, SMALL, TRAIN
from tracelab.interventions import BiasEdit, BiasEditConfig
from tracelab.interventions.biasedit import biasedit
from tracelab.model.load import fingerprint


@pytest.fixture(autouse=True)
def _nothing_stays_on_the_models(tiny):
    yield
    for kind in KINDS:
        assert not any(tiny(kind).list_hooks().values())
        assert all(parameter.grad is None for parameter in tiny(kind).parameters())


@pytest.fixture(scope="module")
def fitted(tiny):
    """``fitted(kind)``: an edit of the last two blocks, and the model's weights and flags before it
    was fitted."""
    made = {}
    for kind in KINDS:
        model = tiny(kind)
        before = copy.deepcopy(model.state_dict()), fingerprint(model.original_model)
        flags = [parameter.requires_grad for parameter in model.parameters()]
        made[kind] = BiasEdit.fit(model, TRAIN, FITTED, layers="last12", dev=DEV), *before, flags
    return made.__getitem__


@pytest.fixture
def strength_1(monkeypatch):
    """The strength is 1, without looking for a better one."""
    monkeypatch.setattr(biasedit, "scaled", lambda *_: (1.0, []))


@pytest.fixture(scope="module")
def direct(tiny):
    config = BiasEditConfig.direct(**{**SMALL, "eval_every": 2}, delta_rank=2, delta_lr=0.05)
    return BiasEdit.fit(tiny("llama"), TRAIN, config, layers="last12", dev=DEV)
