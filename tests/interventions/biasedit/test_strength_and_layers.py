"""Shifts without an editor, the strength of an edit, bundles, and which layers are edited."""

from __future__ import annotations

import copy
import math
from functools import partial as bound

import pytest
import torch

from tests.interventions.biasedit.models import (
    DEV,
    FITTED,
    KINDS,
    OWN,
    SMALL,
    TRAIN,
    logits,
    random_shifts,
    triple_model,
)
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.transductive import transductive_scores
from tracelab.interventions import BiasEdit, BiasEditConfig, WeightDelta, load_intervention
from tracelab.interventions.biasedit import biasedit
from tracelab.interventions.biasedit.biasedit import edited_layers
from tracelab.interventions.training import development
from tracelab.interventions.training.development import STRENGTHS, Choice, Development, scaled
from tracelab.interventions.training.triples import tokenise

# --- without an editor
# ----------------------------------------------------------------------------------------------


def test_a_direct_shift_is_low_rank_and_takes_adams_steps(tiny, strength_1):
    model, given = tiny("llama"), TRAIN[:4]
    config = BiasEditConfig.direct(
        **{**SMALL, "query": "same", "steps": 1, "modules": ("mlp.out",), "schedule": "constant"},
        delta_rank=2,
        delta_lr=0.05,
    )
    # Developed on what it is trained on, so that the state after the step is the better one.
    edit = BiasEdit.fit(model, given, config, layers=[1], dev=given)
    (a, b), (moved_a, moved_b) = (
        WeightDelta.low_rank(model, layers=[1], rank=2).parameters(),
        edit.parameters(),
    )
    assert a.shape[0] == b.shape[1] == 2
    # Adam's first step is as long as its learning rate wherever there is a gradient; at B = 0, that
    # of A is 0.
    assert torch.equal(moved_a, a)
    lengths = moved_b.detach().abs()
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.05), atol=1e-3, rtol=0)


def test_a_direct_shift_is_kept_in_a_bundle_and_has_no_transductive_protocol(
    tiny, direct, tmp_path
):
    model = tiny("llama")
    edit = copy.deepcopy(direct)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter += 0.1
    back = load_intervention(edit.save(tmp_path / "kept"))
    assert back.config == edit.config
    assert back.config.shift == "direct"
    assert {shape.rank for shape in back.spec().maps} == {2}
    assert not torch.equal(logits(model, edit), logits(model))
    assert torch.equal(logits(model, back), logits(model, edit))
    for each in (edit, back):
        with pytest.raises(
            TracelabError, match="no editor network: a bundle holds none, nor has a direct shift"
        ):
            next(each.for_groups(model, DEV))


def test_the_strength_of_a_direct_shift_scales_what_it_adds_to_the_weights(tiny, direct):
    edit = copy.deepcopy(direct)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter += 0.1
    before = [part.weight().detach().clone() for part in edit.maps.values()]
    edit.scale_(0.25)
    for part, weight in zip(edit.maps.values(), before, strict=True):
        torch.testing.assert_close(part.weight().detach(), 0.25 * weight)


# --- the strength
# ---------------------------------------------------------------------------------------------------  # noqa: E501


def test_an_edit_whose_best_strength_is_0_says_that_it_changes_nothing(tiny, monkeypatch):
    monkeypatch.setattr(development, "STRENGTHS", ())
    monkeypatch.setattr(development.Choice, "share", lambda *_: 1.0)
    with pytest.warns(
        UserWarning, match="changes nothing: no strength lowered the loss .* KL .* at most 99 and"
    ):
        edit = BiasEdit.fit(tiny("llama"), TRAIN, FITTED, layers="last1", dev=DEV)
    assert all(not value.any() for value in edit.state_dict().values())


@pytest.mark.parametrize("choose", ["association", "loss"])
def test_the_strength_has_the_least_of_what_is_chosen_by_within_the_bounds(tiny, choose):
    model, given = tiny("llama"), TRAIN[:6]
    options = {"query": "same", "loss": "logprob", "steps": 12, "eval_every": 12, "delta_lr": 1e-2}
    config = BiasEditConfig.direct(
        **SMALL
        | options
        | {"n_query": 6, "n_edits": 6, "choose": choose, "max_kl": 0.5, "max_lms_loss": 10.0}
    )
    # Developed on what it is trained on, so that it lowers both.
    edit = BiasEdit.fit(model, given, config, layers="last12", dev=given)
    table = edit.notes["strengths"]
    strengths = [row["strength"] for row in table]
    usual = [each for each in strengths if each in (0.0, *STRENGTHS)]
    assert usual == [0.0, *STRENGTHS][: len(usual)]
    assert len(strengths) - len(usual) <= 1  # the one that just keeps the bound
    # stronger ones than the first beyond the bound on KL are not looked at
    assert all(row["kl"] <= 0.5 for row in table[:-1])
    assert strengths[-1] == STRENGTHS[-1] or table[-1]["kl"] > 0.5
    allowed = [
        row for row in table if row["lms"] >= table[0]["lms"] - 10 and row["kl"] <= config.max_kl
    ]
    chosen = next(row for row in table if row["strength"] == edit.notes["strength"])
    assert chosen["strength"] > 0
    assert chosen in allowed
    assert chosen[choose] == min(row[choose] for row in allowed)
    # The row of the chosen strength is what the edit as it is handed out does.
    triples = tokenise(model, given)
    again = triple_model(model, edit.config, given, layers=(2, 3)).measure(edit, range(6))
    again |= Development(model, triples, 2).measure(edit)
    assert {name: chosen[name] for name in again} == pytest.approx(again, abs=1e-3)


BASE = {"association": 0.04, "lms": 80.0, "kl": 0.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({0.75: (0.01, 80.0, 0.01)}, 0.75),
        ({0.75: (0.01, 79.0, 0.05)}, 0.75),  # costs just as much as it may
        ({0.75: (0.01, 78.9, 0.01), 1.0: (0.02, 80.0, 0.01)}, 1.0),  # the best costs LMS
        ({0.75: (0.02, 80.0, 0.01), 1.0: (0.01, 80.0, 0.051)}, 0.75),  # the best costs KL
        ({0.5: (0.02, 80.0, 0.01), 1.0: (0.02, 80.0, 0.02)}, 0.5),  # of equals the weaker
        ({0.5: (float("nan"), 80.0, 0.01), 1.0: (0.03, 80.0, 0.02)}, 1.0),
        ({}, 0.0),  # if nothing helps, no edit
    ],
)
def test_strengths_by_hand(fitted, changes, expected):
    edit = copy.deepcopy(fitted("llama")[0])
    edit.set_([torch.ones(s.d_in, s.d_out) for s in edit.spec().maps])
    rows = {strength: (0.05, 80.0, 0.0) for strength in STRENGTHS} | changes
    figures = {strength: dict(zip(BASE, row, strict=True)) for strength, row in rows.items()}

    def by_hand() -> dict[str, float]:
        strength = next(iter(edit.parameters())).max().item()  # 1 at strength 1
        return figures.get(strength, {"association": 0.05, "lms": 0.0, "kl": 0.05})

    config = FITTED.replace(choose="association", max_kl=0.05, max_lms_loss=1.0)
    strength, table = scaled(edit, Choice(config, BASE), by_hand)
    assert strength == expected
    assert table[0] == {"strength": 0.0} | BASE
    for row in table[1:]:
        if row["strength"] in figures:
            assert row == pytest.approx(
                {"strength": row["strength"]} | figures[row["strength"]], nan_ok=True
            )
    assert all((parameter == strength).all() for parameter in edit.parameters())


def test_a_strength_that_just_keeps_the_bound_is_tried(fitted):
    shift, config = (
        copy.deepcopy(fitted("llama")[0]),
        FITTED.replace(choose="association", max_kl=0.05),
    )
    shift.set_([torch.ones(s.d_in, s.d_out) for s in shift.spec().maps])

    def by_square() -> dict[str, float]:
        strength = next(iter(shift.parameters())).max().item()
        return {"association": 0.04 - 0.03 * strength, "lms": 80.0, "kl": 0.5 * strength**2}

    strength, table = scaled(shift, Choice(config, BASE), by_square)
    assert strength == pytest.approx(0.98 * 0.1**0.5, abs=1e-3)
    assert max(row["kl"] for row in table[:-1]) <= 0.05


def test_a_state_counts_at_the_strength_that_the_bound_on_kl_allows():
    config = FITTED.replace(choose="association", max_kl=0.05, max_lms_loss=1.0)
    choice = Choice(config, BASE)
    assert choice.score({"association": 0.01, "lms": 79.5, "kl": 0.05}) == 0.01
    half = choice.score({"association": 0.01, "lms": 79.5, "kl": 4 * 0.05})
    assert half == pytest.approx((0.01 + BASE["association"]) / 2)
    # half of a loss of 4 points is more than is allowed, half of 1.9 is not
    assert choice.score({"association": 0.01, "lms": 76.0, "kl": 0.2}) == BASE["association"]
    assert choice.score({"association": 0.01, "lms": 78.1, "kl": 0.2}) == half
    # an association that changes its sign is 0 on the way
    signed = Choice(config, BASE | {"gap_group": 0.04})
    over = {"association": 0.04, "gap_group": -0.04, "lms": 80.0, "kl": 0.2}
    assert signed.score(over) == pytest.approx(0.0)
    assert math.isnan(choice.score({"association": 0.01, "lms": 79.5, "kl": float("nan")}))
    with pytest.raises(TracelabError, match="none of 1 edits is within"):
        choice.best([{"association": 0.01, "lms": 10.0, "kl": 0.0}])


# --- bundles
# --------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_edit_comes_back_with_its_logits_and_settings_but_without_editors(
    tiny, fitted, tmp_path, kind
):
    model, edit = tiny(kind), copy.deepcopy(fitted(kind)[0])
    edit.set_(random_shifts(model, (2, 3)))
    back = load_intervention(edit.save(tmp_path / "kept"))
    assert type(back) is BiasEdit
    assert not torch.equal(logits(model, edit), logits(model))
    assert torch.equal(logits(model, back), logits(model, edit))
    assert (back.config, back.bias, back.name, back.notes) == (
        edit.config,
        edit.bias,
        edit.name,
        edit.notes,
    )
    assert back.spec() == edit.spec()
    assert back.state_dict().keys() == {f"maps.blocks-{layer}-mlp-out.delta" for layer in (2, 3)}
    with pytest.raises(
        TracelabError,
        match="this edit has no editor network: a bundle holds none, .*; fit one in this process",
    ):
        _ = back.editors
    with pytest.raises(TracelabError, match="has no editor network"):
        next(back.for_groups(model, DEV))
    with pytest.raises(TracelabError, match="has no editor network"):
        transductive_scores(model, back, DEV)


# --- layers
# ---------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last1", [3]),
        ("last2", [2]),
        ("last12", [2, 3]),
        ("last123", [1, 2, 3]),
        ("last31", [1, 3]),
        ("last11", [3]),
        ("last4", [0]),
        ("late", [3]),
        ([3, 0, 3], [0, 3]),
        (range(2), [0, 1]),
    ],
    ids=str,
)
def test_layers_are_counted_from_the_end_or_given(tiny, layers, expected):
    assert edited_layers(tiny("llama"), layers, []) == expected


@pytest.mark.parametrize(
    "layers", ["last", "last0", "first1", "1,2", "last1,2", "lastly", " last1", "last1 ", ""]
)
def test_words_for_layers_that_are_not_understood_are_refused(tiny, layers):
    with pytest.raises(
        TracelabError,
        match=rf"layers '{layers}' are not understood: give numbers, \"auto\", \"late\", or",
    ):
        edited_layers(tiny("llama"), layers, [])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("last5", "layers 'last5': the model has 4"),
        ("last19", "layers 'last19': the model has 4"),
        ([4], "layer 4 is out of range: tiny-llama has layers 0 to 3"),
        ([-1], "layer -1 is out of range"),
        ([], "at least one layer"),
    ],
)
def test_layers_that_the_model_lacks_are_refused(tiny, layers, message):
    with pytest.raises(TracelabError, match=message):
        BiasEdit.fit(tiny("llama"), TRAIN, OWN, layers=layers, dev=DEV)


def test_automatic_layers_are_the_three_whose_mlp_has_the_largest_traced_effect(tiny, monkeypatch):
    model = tiny("llama")
    trace = bound(biasedit.causal_trace, n_samples=1)
    monkeypatch.setattr(biasedit, "causal_trace", trace)
    found = edited_layers(model, "auto", TRAIN[:2])
    effects = trace(model, TRAIN[:2], components=("mlp",), window=3).effects
    largest = {layer: effects[effects["layer"] == layer]["nie"].max() for layer in range(4)}
    (left_out,) = set(range(4)) - set(found)
    assert found == sorted(found)
    assert all(largest[left_out] < largest[layer] for layer in found)
