"""Which state of its training KLAAD keeps: the least association within bounds."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.interventions.edits import logits
from tests.interventions.klaad.models import GIVEN, fit, same
from tracelab.datasets import gender_twins, stereoset
from tracelab.errors import TracelabError
from tracelab.interventions import KLAAD, KLAADConfig
from tracelab.interventions.drift import drift
from tracelab.interventions.klaad.klaad import KLAADLoss
from tracelab.interventions.training.development import Development

# sizes at which some looks are within the bounds of the tests and others are not
CHOICE = {"trainable": "attn_last", "epochs": 4, "patience": 99, "lr": 0.1}
WIDE = {"choose": "association", "max_kl": 1e9, "max_lms_loss": 100.0}


@pytest.fixture
def model(tiny):
    return tiny("llama")


def looks(edit) -> list[dict]:
    return [row for row in edit.notes["curves"] if row["split"] == "dev"]


def handed_out(edit) -> dict:
    """What the edit was measured to do at its strength."""
    if "strength" not in edit.notes:
        return kept(edit)
    rows = {row["strength"]: row for row in edit.notes["strengths"]}
    return rows[edit.notes["strength"]]


def kept(edit) -> dict:
    return min(looks(edit), key=lambda row: row["score"])


def test_the_state_kept_has_the_least_association_of_all_looks_not_the_least_loss(
    model, monkeypatch
):
    told = iter([0.5, 0.4, 0.1, *[0.3] * 99])  # the first look is that of the unedited model
    real = Development.measure
    monkeypatch.setattr(
        Development,
        "measure",
        lambda self, edit=None: real(self, edit) | {"association": next(told)},
    )
    edit = fit(model, **CHOICE, **WIDE)
    assert len(looks(edit)) > 3
    assert kept(edit) == looks(edit)[2]
    assert min(looks(edit), key=lambda row: row["loss"]) != kept(edit)
    assert all(row["score"] == row["association"] for row in looks(edit))


def test_it_is_the_state_whose_figures_the_curves_tell(model, monkeypatch):
    seen = []
    real = Development.measure

    def measure(self, edit=None):
        seen.append(self)
        return real(self, edit)

    monkeypatch.setattr(Development, "measure", measure)
    edit = fit(model, **CHOICE, **WIDE)
    again = real(seen[-1], edit)
    for name in ("association", "kl", "lms", "gap"):
        assert again[name] == pytest.approx(kept(edit)[name], abs=2e-6)


@pytest.mark.parametrize("choose", ["association", "loss"])
@pytest.mark.slow
def test_a_state_beyond_the_bounds_is_never_kept_whatever_it_gains(model, choose):
    wide = fit(model, **{**CHOICE, **WIDE, "choose": choose})
    costs = sorted(row["kl"] for row in looks(wide) if row["step"])
    bound = (costs[0] + costs[-1]) / 2
    edit = fit(model, **{**CHOICE, **WIDE, "choose": choose, "max_kl": bound})
    assert any(row["kl"] > bound for row in looks(edit))
    assert handed_out(edit)["kl"] <= bound
    assert not same(edit, wide)


@pytest.mark.parametrize("bound", [{"max_kl": 1e-12}, {"max_lms_loss": 0.0, "max_kl": 1e-12}])
def test_where_every_state_breaks_the_bounds_the_model_stays_and_a_warning_says_so(model, bound):
    with pytest.warns(UserWarning, match=r"klaad\(gender\) changes nothing: no state or strength"):
        edit = fit(model, **CHOICE, **{**WIDE, **bound})
    assert torch.equal(logits(model, edit), logits(model))


def test_an_edit_that_changes_something_says_nothing(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        edit = fit(model, **CHOICE, **WIDE)
    assert not same(edit, KLAAD.build(edit.spec(), edit.origin))


def test_at_most_n_dev_records_are_looked_at(model, monkeypatch):
    sizes = []
    real = KLAADLoss.__init__

    def begun(self, model, triples, *more):
        sizes.append(len(triples.records))
        real(self, model, triples, *more)

    monkeypatch.setattr(KLAADLoss, "__init__", begun)
    edit = fit(model, trainable="attn_last", n_dev=5)
    assert sizes == [len(GIVEN), 5]
    assert edit.notes["n_dev"] == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"choose": "ss"}, "unknown choose 'ss': choose one of association, loss"),
        ({"max_kl": 0.0}, "max_kl is above 0, not 0.0"),
        ({"max_lms_loss": -1.0}, "max_lms_loss is at least 0, not -1.0"),
        ({"n_dev": 0}, "n_dev is at least 1, not 0"),
    ],
)
def test_a_wrong_rule_is_refused_by_name(wrong, message):
    with pytest.raises(TracelabError, match=message):
        KLAADConfig(**wrong)


def test_the_papers_settings_are_a_preset():
    paper = KLAADConfig.preset("paper", "gender")
    assert (paper.lam1, paper.lam2, paper.lam3, paper.margin) == (0.7, 0.15, 0.15, 0.3)
    assert (paper.choose, paper.reduction, paper.epochs) == ("loss", "batchmean", 1)
    assert KLAADConfig.paper(lam2=0.25).lam2 == 0.25


@pytest.mark.slow
@pytest.mark.nightly
def test_on_the_embedded_model_the_state_kept_is_within_the_bounds(real_model):
    pairs = gender_twins(stereoset("gender", split="test", limit=40))
    records = [record for record, _ in pairs]
    config = {"lam1": 0.0, "lam2": 1.0, "lam3": 0.0, "reduction": "batchmean", "lr": 5e-3}
    edit = KLAAD.fit(
        real_model,
        records[:8],
        KLAADConfig(trainable="attn_last", rank=2, eval_every=1, patience=9, max_kl=0.01, **config),
        dev=records[8:16],
    )
    row = handed_out(edit)
    assert row["kl"] <= 0.01
    assert looks(edit)[0]["lms"] - row["lms"] <= 1
    assert row["association"] <= looks(edit)[0]["association"] + 1e-4  # as the notes round it
    texts = ["The cat sat on the mat and slept.", "A long day ends with a short walk home."]
    assert drift(real_model, edit, texts).kl < 0.1
