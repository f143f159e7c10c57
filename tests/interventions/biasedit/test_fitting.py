"""The edit that BiasEdit fits: its editor's shift, how it is trained, and what it leaves on the
model."""

from __future__ import annotations

from functools import partial as bound

import pytest
import torch

from tests.interventions.biasedit.models import (
    DEV,
    FITTED,
    KINDS,
    SMALL,
    TOKENS,
    TRAIN,
    Twin,
    dense_delta,
    logits,
    random_shifts,
    same_shifts,
    triple_model,
)
from tests.interventions.edits import without_time
from tests.interventions.triple_records import records
from tracelab.interventions import BiasEdit, BiasEditConfig
from tracelab.interventions.biasedit import biasedit
from tracelab.interventions.biasedit.shift import EditorShift
from tracelab.interventions.biasedit.triple_model import Editors, TripleModel
from tracelab.model.load import fingerprint

# --- the edit
# -------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_as_hooks_is_the_shift_added_to_the_weights(tiny, folder, kind):
    model, shifts = tiny(kind), random_shifts(tiny(kind))
    hooked = logits(model, dense_delta(model))
    with torch.no_grad():
        edited = Twin(kind, folder, shifts).hf(TOKENS).logits
    assert (hooked - logits(model)).abs().max() > 0.1
    torch.testing.assert_close(hooked, edited, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_shift_is_the_unedited_model_bit_for_bit(tiny, kind):
    model = tiny(kind)
    delta = dense_delta(model)
    assert not torch.equal(logits(model, delta), logits(model))
    delta.set_([0 * shift for shift in random_shifts(model)])
    assert torch.equal(logits(model, delta), logits(model))


# --- fitting
# --------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_and_using_an_edit_leave_the_model_as_it_was(tiny, fitted, kind):
    model, (edit, weights, print_of_weights, flags) = tiny(kind), fitted(kind)
    for _, shift in edit.for_groups(model, DEV):
        logits(model, shift)
    assert fingerprint(model.original_model) == print_of_weights
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert any(flags)


def test_the_same_seed_makes_the_same_edit_and_another_seed_another(tiny, fitted, strength_1):
    model = tiny("llama")
    torch.manual_seed(99)  # the fit draws nothing from the global numbers
    again = BiasEdit.fit(model, TRAIN, FITTED, layers="last12", dev=DEV)
    edit, *_ = fitted("llama")
    assert again.notes["curves"] == edit.notes["curves"]
    kept = edit.editors.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in again.editors.state_dict().items())
    other = BiasEdit.fit(model, TRAIN, FITTED.replace(seed=1), layers="last12", dev=DEV)
    assert other.notes["curves"] != again.notes["curves"]


def expected_shifts(editors: Editors, trained: TripleModel, groups) -> list[torch.Tensor]:
    """Mean over groups of the editor's shifts."""
    with torch.no_grad():
        by_group = [editors.shifts(trained.cached(group)) for group in groups]
    return [sum(shifts) / len(groups) for shifts in zip(*by_group, strict=True)]


@pytest.mark.parametrize("n_edits", [99, 8, 4])
def test_the_editors_shift_is_the_mean_over_groups_of_training_triples(tiny, n_edits):
    model, config = tiny("llama"), FITTED.replace(n_edits=n_edits)
    trained, edit = triple_model(model, config), dense_delta(model)
    learner = EditorShift(edit, trained, config)
    learner.step((range(4), range(4, 8)))
    learner.show()
    groups = {
        99: [range(20)],
        8: [range(7), range(7, 14), range(14, 20)],
        4: [range(i, i + 4) for i in range(0, 20, 4)],
    }
    expected = expected_shifts(learner.module, trained, groups[n_edits])
    for parameter, shift in zip(edit.parameters(), expected, strict=True):
        assert shift.any()
        torch.testing.assert_close(
            parameter.detach().T, shift, atol=1e-6 * float(shift.abs().max()), rtol=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_edit_is_its_editors_shift_times_the_strength(tiny, monkeypatch, kind):
    def half(edit, *_):
        edit.scale_(0.5)
        return 0.5, []

    monkeypatch.setattr(biasedit, "scaled", half)
    model, config = tiny(kind), FITTED.replace(n_edits=99)
    edit = BiasEdit.fit(model, TRAIN, config, layers="last12", dev=DEV)
    everything = triple_model(model, config, layers=(2, 3))
    expected = expected_shifts(edit.editors, everything, [range(len(TRAIN))])
    for parameter, shift in zip(edit.parameters(), expected, strict=True):
        tolerance = 1e-4 * float(shift.abs().max())
        torch.testing.assert_close(parameter.detach().T, 0.5 * shift, atol=tolerance, rtol=1e-3)


def test_a_steps_gradient_in_the_editor_equals_finite_differences(tiny):
    # The loss of one group under the shift made from another, through hooks, shift, solve and
    # editor.
    model, config = tiny("llama"), FITTED.replace(n_blocks=1)
    trained, edit, step = triple_model(model, config), dense_delta(model), (range(4), range(4, 8))
    learner = EditorShift(edit, trained, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    learner.module.zero_grad()
    learner.step(step)
    rows = trained.cached(step[0])

    def loss() -> float:
        with torch.no_grad():
            edit.set_(learner.module.shifts(rows))
        figures = trained.measure(edit, step[1])
        return len(step[1]) * figures["loss"] / config.batch_size

    smooth = [  # elsewhere the ReLUs' kinks spoil the differences: see test_editor
        "networks.64x32.step",
        "networks.64x32.log_ridge",
        "networks.64x32.blocks.0.scale",
        "networks.64x32.blocks.0.shift",
    ]
    for name in smooth:
        parameter = learner.module.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=generator)
        slope = float((parameter.grad * direction).sum())
        kept, sides = parameter.detach().clone(), []
        for size in (1e-2, -1e-2):
            parameter.data.copy_(kept + size * direction)
            sides.append(loss())
        parameter.data.copy_(kept)
        assert slope == pytest.approx((sides[0] - sides[1]) / 2e-2, rel=0.02), name


@pytest.mark.parametrize("shift", ["editor", "direct"])
def test_training_lowers_the_loss_it_is_trained_on(tiny, shift, strength_1):
    # Every step on the same triples: without gradients through hooks (shift and solve) this would
    # not fall.
    options = {**SMALL, "n_edits": 6, "n_query": 6, "query": "same", "steps": 12, "eval_every": 12}
    rates = {"lr": 0.1, "ridge": 1.0, "step_lr": 0.3, "meta_lr": 3e-3, "delta_lr": 1e-2}
    config = BiasEditConfig(**options, **rates, shift=shift, loss="logprob", lam=0.1)
    edit = BiasEdit.fit(tiny("llama"), TRAIN[:6], config, layers="last1", dev=TRAIN[:6])
    losses = [row["loss"] for row in edit.notes["curves"] if row["split"] == "train"]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_notes_tell_what_was_trained_on_and_how_it_went(fitted, kind):
    edit, *_ = fitted(kind)
    notes = edit.notes
    assert (notes["n_train"], notes["n_dev"], notes["left_out"]) == (len(TRAIN), len(DEV), {})
    steps = {
        split: [row["step"] for row in notes["curves"] if row["split"] == split]
        for split in ("train", "dev")
    }
    assert steps == {"train": [1, 2], "dev": [0, 1, 2]}
    assert edit.bias == "race"
    assert edit.name == "biasedit(race)"


def test_without_development_records_a_fifth_of_the_target_terms_is_held_out(tiny, strength_1):
    given = records(30, targets=("a", "b", "c", "d", "e", "f", "g", "h", "i", "j"))
    edit = BiasEdit.fit(
        tiny("llama"), given, BiasEditConfig(**{**SMALL, "steps": 0}), layers="last1"
    )
    assert (edit.notes["n_train"], edit.notes["n_dev"]) == (24, 6)


def test_at_most_n_support_training_records_are_used(tiny, strength_1):
    config = BiasEditConfig(**{**SMALL, "steps": 0, "n_support": 7})
    edits = [
        BiasEdit.fit(tiny("llama"), data, config, layers="last1", dev=DEV)
        for data in (TRAIN, TRAIN[:7])
    ]
    assert [edit.notes["n_train"] for edit in edits] == [7, 7]
    first_looks = [edit.notes["curves"][0]["loss"] for edit in edits]
    assert first_looks[0] != first_looks[1]  # a sample, not the first seven


def test_an_interrupted_fit_resumes_to_the_same_edit(tiny, tmp_path, monkeypatch, strength_1):
    model, config = tiny("llama"), BiasEditConfig(**{**SMALL, "steps": 4, "eval_every": 2})
    fit = bound(BiasEdit.fit, model, TRAIN, config, layers="last1", dev=DEV)
    whole, calls, backward = fit(), [], TripleModel.backward

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return backward(self, *args)

    monkeypatch.setattr(TripleModel, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=tmp_path)
    resumed = fit(checkpoint=tmp_path)
    assert len(calls) == 4 + 2
    assert same_shifts(resumed, whole)
    assert without_time(resumed) == without_time(whole)
    # Of other data nothing is resumed.
    calls[:] = range(10)
    BiasEdit.fit(model, TRAIN[:10], config, layers="last1", dev=DEV, checkpoint=tmp_path)
    assert len(calls) == 10 + 4
