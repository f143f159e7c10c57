"""What a step of BiasEdit is made from and judged on, the transductive protocol, editors of several
shapes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.interventions.biasedit.models import (
    DEV,
    KINDS,
    OWN,
    SMALL,
    TRAIN,
    dense_delta,
    shapes_of,
    triple_model,
)
from tests.interventions.triple_records import records
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.stereoset import stereoset_scores
from tracelab.evaluate.benchmarks.transductive import transductive_scores
from tracelab.interventions import BiasEdit, BiasEditConfig
from tracelab.interventions.biasedit.biasedit import _batches
from tracelab.interventions.biasedit.triple_model import Editors
from tracelab.interventions.training.loop import TRAINING
from tracelab.interventions.training.triples import LABELS, tokenise

# --- refusals
# -------------------------------------------------------------------------------------------------------  # noqa: E501


def test_a_query_of_other_target_terms_needs_two_of_them(tiny):
    one = records(6, targets=("nurse",))
    with pytest.raises(
        TracelabError, match='query="held_out" needs triples of two target terms or more'
    ):
        BiasEdit.fit(tiny("llama"), one, OWN, layers="last1", dev=DEV)


def test_a_loss_that_is_not_finite_at_the_first_step_is_an_error_and_leaves_the_model_clean(tiny):
    config = BiasEditConfig(**SMALL, lr=1e300)
    with pytest.raises(
        TracelabError, match=r"the loss is nan before the first step: lower the learning rate"
    ):
        BiasEdit.fit(tiny("llama"), TRAIN, config, layers="last1", dev=DEV)


# --- what a step is made from and judged on
# -------------------------------------------------------------------------


def steps(config: BiasEditConfig, model, n: int):
    triples = tokenise(model, TRAIN)
    batches = _batches(triples, config)
    return triples, [next(batches) for _ in range(n)]


def test_held_out_steps_are_judged_on_other_target_terms_than_they_are_made_from(tiny):
    triples, found = steps(BiasEditConfig(**SMALL, query="held_out"), tiny("llama"), 50)
    for made_from, judged_on in found:
        terms = [{triples.records[i].target for i in rows} for rows in (made_from, judged_on)]
        assert terms[0].isdisjoint(terms[1])
        assert 0 < len(made_from) == len(set(made_from)) <= 4
        assert 0 < len(judged_on) == len(set(judged_on)) <= 3
    for side in (0, 1):
        assert {i for step in found for i in step[side]} == set(range(len(TRAIN)))


def test_same_steps_are_judged_on_what_they_are_made_from(tiny):
    _, found = steps(BiasEditConfig(**SMALL, query="same"), tiny("llama"), 50)
    for made_from, judged_on in found:
        assert judged_on == made_from[:3]
        assert len(set(made_from)) == 4
    assert {i for step in found for i in step[0]} == set(range(len(TRAIN)))


@pytest.mark.parametrize("query", ["same", "held_out"])
def test_the_seed_makes_the_steps(tiny, query):
    first, again, other = (
        steps(BiasEditConfig(**SMALL, query=query, seed=seed), tiny("llama"), 5)[1]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert first[0] != first[1]


# --- the transductive protocol
# --------------------------------------------------------------------------------------


def shifts_by_group(edit: BiasEdit, model, given) -> list[tuple[list, list[torch.Tensor]]]:
    """Groups, and the shifts as they were while each group's turn it was."""
    return [
        (group, [parameter.detach().T.clone() for parameter in shift.parameters()])
        for group, shift in edit.for_groups(model, given)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_in_order_of_n_edits_records_with_the_rest_last(tiny, fitted, kind):
    given = records(10, start=50)
    found = shifts_by_group(fitted(kind)[0], tiny(kind), given)
    assert [group for group, _ in found] == [given[:4], given[4:8], given[8:]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_groups_edit_is_the_editors_shift_of_its_own_triples(tiny, fitted, kind):
    # Keys and gradients are cached of all records together here, so padding and neighbours are
    # others.
    model, edit, given = tiny(kind), fitted(kind)[0], records(10, start=50)
    everything = triple_model(model, edit.config, given, layers=(2, 3))
    for number, (_, shifts) in enumerate(shifts_by_group(edit, model, given)):
        rows = everything.cached(range(4 * number, min(4 * number + 4, 10)))
        with torch.no_grad():
            expected = edit.editors.shifts(rows)
        for shift, slow in zip(shifts, expected, strict=True):
            assert slow.any()
            torch.testing.assert_close(shift, slow, atol=1e-4 * float(slow.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_groups_edit_does_not_depend_on_the_other_groups(tiny, fitted, kind):
    model, edit, given = tiny(kind), fitted(kind)[0], records(10, start=50)
    before = (
        copy.deepcopy(edit.editors.state_dict()),
        [p.detach().clone() for p in edit.parameters()],
    )
    together = shifts_by_group(edit, model, given)
    alone = [shifts_by_group(edit, model, group)[0] for group, _ in reversed(together)][::-1]
    for (_, first), (_, second) in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(together[0][1][0], together[1][1][0])
    # Neither the editor (its normaliser) nor the fitted edit has learnt anything from test triples.
    assert all(
        torch.equal(value, before[0][name]) for name, value in edit.editors.state_dict().items()
    )
    assert all(torch.equal(a, b) for a, b in zip(edit.parameters(), before[1], strict=True))


def test_transductive_scores_are_those_of_each_group_under_its_own_edit(tiny, fitted):
    model, edit, given = tiny("llama"), copy.copy(fitted("llama")[0]), records(10, start=50)
    scores = transductive_scores(model, edit, given)
    start = 0
    for _, shifts in shifts_by_group(edit, model, given):
        delta = dense_delta(model, (2, 3))
        delta.set_(shifts)
        with delta.applied(model):
            own = stereoset_scores(model, given[start : start + 4])
        part = scores.sentences[start : start + 4]
        for label in LABELS:
            np.testing.assert_allclose(part[label], own.sentences[label], rtol=1e-6)
        start += 4
    plain = stereoset_scores(model, given).sentences
    assert list(scores.sentences["id"]) == list(plain["id"]) == [record.id for record in given]
    assert not np.allclose(scores.sentences["stereotype"], plain["stereotype"], atol=1e-4)
    assert set(scores.table["edit"]) == {"biasedit(race), transductive"}


# --- editors of several shapes
# --------------------------------------------------------------------------------------


def test_maps_of_one_shape_share_a_network_and_others_have_their_own(tiny):
    shapes = list(shapes_of(tiny("llama"), (0, 1, 3)))
    wide = shapes[1].model_copy(update={"d_in": 16})
    editors = Editors([shapes[0], wide, shapes[2]], OWN)
    assert set(editors.networks) == {"64x32", "16x32"}
    assert editors.networks["64x32"].step.shape == (2,)
    assert editors.networks["16x32"].step.shape == (1,)
    generator = torch.Generator().manual_seed(0)
    rows = [
        [torch.randn(6, size, generator=generator) for size in sizes]
        for sizes in ((64, 16, 64), (32, 32, 32))
    ]
    editors.update((rows[0], rows[1]))
    with torch.no_grad():
        editors.networks["64x32"].step[1] = 0  # of the third map alone
        first, second, third = editors.shifts((rows[0], rows[1]))
    assert first.any()
    assert second.any()
    assert not third.any()
    assert editors.networks["64x32"].normaliser.count == 12
    assert editors.networks["16x32"].normaliser.count == 6


def test_the_step_sizes_have_a_learning_rate_of_their_own_and_no_parameter_is_forgotten(tiny):
    config = BiasEditConfig(**SMALL, meta_lr=1e-3, step_lr=0.5)
    editors = Editors(shapes_of(tiny("llama")), config)
    others, step_sizes = editors.groups(config)
    assert (others["lr"], step_sizes["lr"]) == (1e-3, 0.5)
    assert [id(p) for p in step_sizes["params"]] == [
        id(network.step) for network in editors.networks.values()
    ]
    grouped = sorted(id(p) for group in (others, step_sizes) for p in group["params"])
    assert grouped == sorted(id(p) for p in editors.parameters())


def test_an_editor_that_diverges_is_refused(tiny):
    with pytest.raises(TracelabError, match="lower (the learning rate|meta_lr)"):
        BiasEdit.fit(
            tiny("llama"), TRAIN, BiasEditConfig(**SMALL, meta_lr=1e9), layers="last1", dev=DEV
        )


def test_a_direct_shift_that_diverges_is_refused_and_keeps_nothing(tiny, tmp_path):
    config = BiasEditConfig.direct(**{**SMALL, "steps": 2}, delta_lr=1e9)
    with pytest.raises(
        TracelabError, match=r"biasedit\(race\): the training diverged .*: lower the learning rate"
    ):
        BiasEdit.fit(tiny("llama"), TRAIN, config, layers="last1", dev=DEV, checkpoint=tmp_path)
    assert not (tmp_path / TRAINING).exists()
