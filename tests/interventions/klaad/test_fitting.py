"""How KLAAD trains its deltas, what it leaves as it was, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.interventions.edits import logits, without_time
from tests.interventions.klaad.models import (
    EVEN,
    GIVEN,
    KINDS,
    LAMS,
    LAST,
    QUICK,
    fit,
    loss_of,
    only,
    same,
)
from tests.interventions.triple_records import records
from tracelab.datasets import stereoset
from tracelab.errors import TracelabError
from tracelab.interventions import KLAAD, KLAADConfig, load_intervention
from tracelab.interventions.klaad import klaad
from tracelab.interventions.klaad.klaad import KLAADLoss
from tracelab.interventions.training import trained_delta
from tracelab.interventions.training.loop import TRAINING
from tracelab.interventions.training.triples import tokenise
from tracelab.model import load as models

# --- training
# -----------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize(
    ("kind", "lams"),
    [
        *(
            pytest.param(kind, EVEN, id=kind, marks=[] if kind == "llama" else pytest.mark.slow)
            for kind in KINDS
        ),
        *(pytest.param("llama", only(name), id=name, marks=pytest.mark.slow) for name in LAMS),
    ],
)
def test_training_lowers_the_loss_of_what_it_trains_on(tiny, kind, lams):
    model, config = tiny(kind), {**lams, "margin": 1.0, "epochs": 4}
    edit = fit(model, **config)
    zero = KLAAD.build(edit.spec(), edit.origin)
    before, after = (
        loss_of(model, **config).measure(each, range(12))["loss"] for each in (zero, edit)
    )
    assert after < 0.97 * before
    for shape in edit.spec().maps:
        if shape.layer < LAST:
            assert edit.part(shape.point).lora_B.any()


def test_the_state_that_is_kept_is_the_best_on_the_development_triples(model):
    edit = fit(model, GIVEN[:9], GIVEN[9:], epochs=6, patience=9, lr=0.1)
    scores = [row["loss"] for row in edit.notes["curves"] if row["split"] == "dev"]
    assert min(scores) < min(scores[0], scores[-1])
    measured = loss_of(model, GIVEN[9:]).measure(edit, range(3))
    assert measured["loss"] == pytest.approx(min(scores), abs=1e-5)


@pytest.mark.slow
def test_training_and_development_triples_share_no_target(model, monkeypatch):
    given = [
        record
        for bias in ("gender", "religion")
        for record in stereoset(bias, split="test")[::9][:20]
    ]
    seen = []
    monkeypatch.setattr(
        klaad, "tokenise", lambda model, part: seen.append(part) or tokenise(model, part)
    )
    edit = KLAAD.fit(
        model, given, KLAADConfig(trainable="attn_last", **{**QUICK, "batch_size": 40})
    )
    train, dev = seen
    assert sorted(r.id for r in [*train, *dev]) == sorted(r.id for r in given)
    for part in (train, dev):
        assert {r.bias_type for r in part} == {"gender", "religion"}
    assert not {(r.bias_type, r.target) for r in train} & {(r.bias_type, r.target) for r in dev}
    assert edit.name == "klaad(gender+religion)"
    usable = [len(tokenise(model, part).records) for part in (train, dev)]
    assert [edit.notes["n_train"], edit.notes["n_dev"]] == usable


def test_with_development_records_given_all_others_are_trained_on(model):
    edit = fit(model, GIVEN[:8], GIVEN[8:], trainable="attn_last")
    assert (edit.notes["n_train"], edit.notes["n_dev"]) == (8, 4)
    assert edit.name == "klaad(gender)"


@pytest.mark.slow
def test_intersentence_records_are_trained_on_with_their_context(tiny_model):
    model, given = tiny_model("llama"), stereoset("gender", split="test", task="intersentence")[:2]
    for record, ids in zip(given, loss_of(model, given).triples.sequences[::3], strict=True):
        assert model.tokenizer.decode(ids) == f"{record.context} {record.stereotype.text}"
    assert fit(model, given, trainable="attn_last").notes["n_train"] == 2


def test_a_fit_is_that_of_its_seed_whatever_the_global_one(model):
    made = []
    for global_seed, seed in ((0, 5), (1, 5), (0, 6)):
        torch.manual_seed(global_seed)
        made.append(fit(model, seed=seed))
    first, again, other = made
    assert same(first, again)
    assert without_time(first) == without_time(again)
    assert not same(first, other)
    assert first.notes["curves"] != other.notes["curves"]


def stopping_at(step: int, monkeypatch) -> list[int]:
    """Interrupts the fit in a step; returns the list of the steps that are taken."""
    taken: list[int] = []
    real = KLAADLoss.backward

    def backward(self, edit, batch):
        if len(taken) == step:
            raise KeyboardInterrupt
        taken.append(len(taken))
        return real(self, edit, batch)

    monkeypatch.setattr(KLAADLoss, "backward", backward)
    return taken


def test_an_interrupted_fit_resumes_to_the_same_edit(model, tmp_path, monkeypatch):
    config = {"epochs": 3, "patience": 9, "checkpoint": tmp_path}
    whole = fit(model, **{**config, "checkpoint": None})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopping_at(5, patch)
        fit(model, **config)
    taken = stopping_at(99, monkeypatch)
    resumed = fit(model, **config)
    assert len(taken) == 9 - 4  # the last look was at step 4
    assert without_time(resumed) == without_time(whole)
    assert same(resumed, whole)
    assert not same(whole, KLAAD.build(whole.spec(), whole.origin))


@pytest.mark.parametrize("changed", ["config", "data", "dev"])
def test_a_fit_of_something_else_is_not_resumed(model, tmp_path, monkeypatch, changed):
    config = KLAADConfig(trainable="attn_last", **QUICK)
    given = {"data": GIVEN[:6], "config": config, "dev": GIVEN[6:]}
    other = {"data": GIVEN[:5], "config": config.replace(lam2=0.5), "dev": GIVEN[7:]}
    KLAAD.fit(model, **given, checkpoint=tmp_path)
    taken = stopping_at(99, monkeypatch)
    KLAAD.fit(model, **given, checkpoint=tmp_path)
    assert not taken  # it was whole
    KLAAD.fit(model, **{**given, changed: other[changed]}, checkpoint=tmp_path)
    assert len(taken) == 2


# --- what is left as it was
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_fit_leaves_the_base_model_as_it_was(model, monkeypatch, interrupted):
    first = next(model.parameters()).requires_grad_(False)  # stays frozen
    try:
        values = {name: value.clone() for name, value in model.state_dict().items()}
        trainable = [parameter.requires_grad for parameter in model.parameters()]
        before = logits(model)
        assert set(trainable) == {True, False}
        if interrupted:
            stopping_at(1, monkeypatch)
            with pytest.raises(KeyboardInterrupt):
                fit(model)
        else:
            fit(model)
        assert [parameter.requires_grad for parameter in model.parameters()] == trainable
        assert all(parameter.grad is None for parameter in model.parameters())
        after = model.state_dict()
        assert after.keys() == values.keys()
        assert all(torch.equal(value, after[name]) for name, value in values.items())
        assert torch.equal(logits(model), before)
    finally:
        first.requires_grad_(True)


def test_a_saved_edit_comes_back_with_its_configuration(model, tmp_path):
    edit = fit(model, per_head=True, reduction="sum", align="pad", pool="mean", lam2=0.3, seed=3)
    back = load_intervention(edit.save(tmp_path / "kept"))
    assert isinstance(back, KLAAD)
    assert (back.config, back.bias, back.name) == (edit.config, "gender", "klaad(gender)")
    assert back.notes == edit.notes
    assert torch.equal(logits(model, back), logits(model, edit))
    assert (logits(model, back) - logits(model)).abs().max() > 0.1
    assert back.settings()["config"] == edit.config.settings()


# --- what is refused
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reduction": "max"}, "unknown reduction 'max': choose one of mean, sum, batchmean"),
        ({"align": "words"}, "unknown align 'words': choose one of match, pad, equal_only"),
        ({"pool": "first"}, "unknown pool 'first': choose one of last, mean"),
        ({"trainable": "mlp"}, "unknown trainable 'mlp': choose one of all, attn_last"),
        (
            {"lam2": -0.1},
            "lam2 is at least 0, not -0.1",
        ),
        ({"lam3": float("nan")}, "lam3 is a finite number, not nan"),
        ({"lam1": float("inf")}, "lam1 is a finite number, not inf"),
        (dict.fromkeys(LAMS.values(), 0.0), r"not all 0: not \(0.0, 0.0, 0.0\)"),
        ({"margin": float("nan")}, "margin is a finite number, not nan"),
        ({"lr": 0.0}, "lr is above 0, not 0.0"),
        ({"lr": float("inf")}, "lr is a finite number, not inf"),
        *(
            ({name: 0}, f"{name} is at least 1, not 0")
            for name in ("rank", "epochs", "batch_size", "eval_every", "patience")
        ),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(wrong, message):
    with pytest.raises(TracelabError, match=message) as refused:
        KLAADConfig(**wrong)
    assert "\n" not in str(refused.value)


def with_fault(model, monkeypatch, kind: str) -> None:
    faults = {kind: "it does not fire on this architecture"}
    monkeypatch.setitem(models._FACTS, model, replace(models.model_facts(model), faults=faults))


def test_a_model_whose_attention_cannot_be_read_is_refused_before_any_work(tiny, monkeypatch):
    with_fault(tiny("gpt2"), monkeypatch, "pattern")

    def work(*args, **options):
        raise AssertionError("it began")

    monkeypatch.setattr(klaad, "tokenise", work)
    for name in ("split_by_target", "train"):
        monkeypatch.setattr(trained_delta, name, work)
    with pytest.raises(
        TracelabError,
        match=r"^blocks\.3\.attn\.hook_pattern cannot be used on tiny-gpt2: it does not fire on this architecture$",  # noqa: E501
    ):
        KLAAD.fit(tiny("gpt2"), GIVEN)


def test_a_model_whose_last_hidden_state_cannot_be_read_is_refused(tiny, monkeypatch):
    with_fault(tiny("gpt2"), monkeypatch, "final_norm")
    with pytest.raises(
        TracelabError, match=r"^ln_final\.hook_out cannot be used on tiny-gpt2: it does not fire"
    ):
        fit(tiny("gpt2"))


def test_records_that_cannot_be_trained_on_are_refused(model):
    with pytest.raises(TracelabError, match="gender has one target term: none can be held out"):
        KLAAD.fit(model, records(4, targets=("nurse",), bias="gender"))
    with pytest.raises(TracelabError, match="no usable triple among 0 records"):
        KLAAD.fit(model, [], dev=GIVEN)


def test_a_loss_that_is_not_finite_at_the_first_step_is_refused(model, monkeypatch):
    monkeypatch.setattr(
        klaad, "language_loss", lambda scores, tokens, mask: scores.sum() * float("nan")
    )
    with pytest.raises(
        TracelabError, match=r"the loss is nan before the first step: lower the learning rate"
    ):
        fit(model)


@pytest.mark.parametrize("lr", [1e3, 1e9])
def test_a_training_that_diverges_and_stays_finite_is_refused_and_keeps_nothing(
    model, lr, tmp_path
):
    with pytest.raises(
        TracelabError, match=r"klaad\(gender\): the training diverged .*: lower the learning rate"
    ):
        fit(model, lr=lr, checkpoint=tmp_path)
    assert not (tmp_path / TRAINING).exists()
