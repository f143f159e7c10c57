"""Fine-tuning experts: what is learnt, what is left alone, what is refused, and going on after an
interruption."""

from __future__ import annotations

import contextlib

import pytest
import torch

from tests.interventions.edits import logits, without_time
from tracelab.datasets import ExpertTexts
from tracelab.errors import TracelabError
from tracelab.interventions import Experts, ExpertsConfig, FinetuneConfig, WeightDelta

TEXTS = ExpertTexts(
    bias="gender",
    biased=(
        "the nurse is a woman and she cares",
        "the women gossip all day long",
        "a girl is bad at sums",
    )
    * 3,
    anti_biased=(
        "the nurse is a man and he cares",
        "the men gossip all day long",
        "a boy is bad at sums",
    )
    * 3,
    held_out_biased=(),
    held_out_anti_biased=(),
)
TRAINING = FinetuneConfig(rank=4, lr=0.02, epochs=6, batch_size=4)


@pytest.fixture(scope="module")
def tuned(small):
    before = {name: value.clone() for name, value in small.original_model.state_dict().items()}
    asked = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    return Experts.fit(small, TEXTS, ExpertsConfig(alpha=0.5), training=TRAINING), before, asked


def test_tuning_lowers_the_loss_of_both_and_says_so(tuned):
    edit, _, _ = tuned
    assert edit.notes["losses"].keys() == {"expert", "anti_expert"}
    for losses in edit.notes["losses"].values():
        assert len(losses) == 6 * 3
        assert sum(losses[-3:]) < sum(losses[:3]) - 3
    assert (edit.bias, edit.config.alpha, edit.name) == ("gender", 0.5, "experts(gender, α=0.5)")
    assert edit.notes["training"]["lr"] == 0.02


@torch.no_grad()
def loss(model, edit, texts):
    """Mean cross-entropy, one text at a time."""
    with edit.applied(model) if edit else contextlib.nullcontext():
        found = [
            model(model.tokenizer(t, return_tensors="pt").input_ids, return_type="loss")
            for t in texts
        ]
    return float(sum(found) / len(found))


def test_each_expert_has_learnt_its_own_texts(small, tuned):
    edit, _, _ = tuned
    base = loss(small, None, TEXTS.biased[:3])
    own, other = (loss(small, delta, TEXTS.biased[:3]) for delta in (edit.anti_expert, edit.expert))
    assert own < base - 1
    assert own < other
    assert loss(small, edit.expert, TEXTS.anti_biased[:3]) < loss(
        small, edit.anti_expert, TEXTS.anti_biased[:3]
    )


def test_tuning_leaves_the_base_as_it_was(small, tuned):
    edit, before, asked = tuned
    for name, value in small.original_model.state_dict().items():
        assert torch.equal(value, before[name])
    assert {name: parameter.requires_grad for name, parameter in small.named_parameters()} == asked
    assert any(asked.values())
    assert all(parameter.grad is None for parameter in small.parameters())
    assert not small.list_hooks()
    assert all(
        part.any() for delta in (edit.expert, edit.anti_expert) for part in delta.parameters()
    )


def test_the_same_seed_tunes_the_same_experts(small, tuned):
    edit, _, _ = tuned
    again = Experts.fit(small, TEXTS, training=TRAINING)
    assert again.notes["losses"] == edit.notes["losses"]
    for name, value in edit.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_and_leaves_the_model_usable(small, value):
    before, passes = logits(small), []

    def spoil(z, hook):
        passes.append(1)
        # The first pass only measures the maps.
        return z.index_fill(-1, torch.tensor([3]), value) if len(passes) == 3 else z

    with (
        small.hooks(fwd_hooks=[("unembed.hook_out", spoil)]),
        pytest.raises(
            TracelabError, match=r"expert: the loss is (nan|inf) after 1 steps: lower lr=0\.02"
        ),
    ):
        Experts.fit(small, TEXTS, training=TRAINING, allow_hooks=True)
    assert not small.list_hooks()
    assert any(parameter.requires_grad for parameter in small.parameters())
    assert all(parameter.grad is None for parameter in small.parameters())
    assert torch.equal(logits(small), before)


def test_texts_of_no_two_tokens_are_refused(small):
    empty = ExpertTexts("gender", ("a",), ("b",), (), ())
    with pytest.raises(TracelabError, match="expert: no text of at least two tokens"):
        Experts.fit(small, empty, training=TRAINING)


def test_an_interrupted_fit_resumes_from_the_expert_that_is_done(small, tmp_path, monkeypatch):
    from tracelab.interventions.experts import experts as module

    runs, finetune = [], module.finetune

    def interrupted(*args, **kwargs):
        runs.append(kwargs["what"])
        if len(runs) == 2:
            raise KeyboardInterrupt
        return finetune(*args, **kwargs)

    monkeypatch.setattr(module, "finetune", interrupted)
    training = FinetuneConfig(rank=2, modules=("mlp.out",), epochs=1)
    with pytest.raises(KeyboardInterrupt):
        Experts.fit(small, TEXTS, training=training, checkpoint=tmp_path)
    edit = Experts.fit(small, TEXTS, training=training, checkpoint=tmp_path)
    assert runs == ["expert", "anti_expert", "anti_expert"]
    whole = Experts.fit(small, TEXTS, training=training)
    for name, value in whole.state_dict().items():
        assert torch.equal(edit.state_dict()[name], value)
    assert without_time(edit) == without_time(whole)
    runs[:] = ["", ""]
    Experts.fit(
        small,
        TEXTS,
        training=FinetuneConfig(rank=3, modules=("mlp.out",), epochs=1),
        checkpoint=tmp_path,
    )
    assert runs[2:] == ["expert", "anti_expert"]  # of another recipe nothing is resumed
    assert isinstance(edit.expert, WeightDelta)


@pytest.mark.parametrize("lr", [1e3, 1e9, 1e30])
def test_a_training_that_diverges_and_stays_finite_is_refused(small, lr, tmp_path):
    before = logits(small)
    training = FinetuneConfig(rank=2, modules=("mlp.out",), lr=lr, batch_size=4)
    with pytest.raises(
        TracelabError, match=r"expert: the training diverged .*: lower the learning rate"
    ):
        Experts.fit(small, TEXTS, training=training, checkpoint=tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".tracelab.lock"]
    assert torch.equal(logits(small), before)
    assert all(parameter.grad is None for parameter in small.parameters())
