"""Edits go into process pools: pickled, copied and sent, they give the same numbers; results
too."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import cloudpickle
import pandas as pd
import pytest
import torch

from tests.interventions.edits import logits, random_delta, random_experts, random_fairmed
from tests.interventions.test_bundle import EDITS, parts
from tracelab.datasets import stereoset
from tracelab.errors import TracelabError
from tracelab.evaluate import stereoset_scores
from tracelab.interventions import (
    KLAAD,
    BiasEdit,
    BiasEditConfig,
    Experts,
    FairMed,
    KLAADConfig,
    Stack,
)
from tracelab.interventions.biasedit.biasedit import BiasEditSpec
from tracelab.interventions.klaad.klaad import KLAADSpec

WAYS = {
    "pickle": lambda edit: pickle.loads(pickle.dumps(edit)),
    "cloudpickle": lambda edit: pickle.loads(cloudpickle.dumps(edit)),
    "deepcopy": copy.deepcopy,
}


def of_triples(model):
    """BiasEdit and KLAAD with the maps of a random delta."""
    maps, origin = random_delta(model).spec().maps, random_delta(model).origin
    return [
        BiasEdit(BiasEditSpec(maps=maps, config=BiasEditConfig(), bias="gender"), origin),
        KLAAD(KLAADSpec(maps=maps, config=KLAADConfig(), bias="gender"), origin),
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*EDITS, "of triples"])
def test_an_edit_that_was_pickled_or_copied_gives_the_same_numbers(model, name, way):
    edit = Stack(of_triples(model)) if name == "of triples" else EDITS[name](model)
    edit.notes = {"seed": 3}
    edit.allow_mismatch = True
    before = logits(model, edit)  # it has run: its experts are under way, its noise is drawn
    with edit.observed():
        other = WAYS[way](edit)
    assert not any(part.is_observed for part in parts(other))
    assert (type(other), other.spec(), other.notes, other.name) == (
        type(edit),
        edit.spec(),
        edit.notes,
        edit.name,
    )
    assert other.allow_mismatch
    assert [part.origin for part in parts(other)] == [part.origin for part in parts(edit)]
    assert torch.equal(logits(model, other), before)
    assert torch.equal(logits(model, edit), before)


def test_an_edit_can_be_pickled_while_it_is_applied(model):
    edit = random_experts(model)
    with edit.applied(model):
        other = pickle.loads(pickle.dumps(edit))
    assert torch.equal(logits(model, other), logits(model, edit))


def test_the_cost_and_the_noise_of_a_process_are_not_pickled(model):
    edit = random_fairmed(model, lam=2.0, init="random")
    logits(model, edit)
    assert len(edit.cost())
    other: FairMed = WAYS["pickle"](edit)
    assert other.cost().empty
    assert len(pickle.dumps(edit)) < 4 * 256 * model.cfg.d_model  # less than one block of noise


def test_experts_of_another_base_are_pickled_without_it_and_copied_with_it(model, small):
    edit = Experts(random_delta(small), None)
    edit.expert_base = small
    assert torch.equal(logits(model, copy.deepcopy(edit)), logits(model, edit))
    sent = WAYS["pickle"](edit)
    with pytest.raises(
        TracelabError, match="set edit.expert_base to the loaded model they were tuned on"
    ):
        sent.hooks(model)
    sent.expert_base = small
    assert torch.equal(logits(model, sent), logits(model, edit))


def _sum(edit) -> float:
    return float(sum(value.double().sum() for value in edit.state_dict().values()))


@pytest.mark.slow
def test_edits_go_through_a_process_pool(model):
    edits = [random_experts(model), Stack([random_fairmed(model), random_experts(model)])]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_sum, edits) == [_sum(edit) for edit in edits]


def test_a_result_that_was_pickled_is_the_same(tiny_model):
    scores = stereoset_scores(tiny_model("llama"), stereoset("gender", limit=4))
    other = pickle.loads(pickle.dumps(scores))
    assert other.settings == scores.settings
    pd.testing.assert_frame_equal(other.frame, scores.frame)
