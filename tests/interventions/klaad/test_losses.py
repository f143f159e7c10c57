"""The losses of KLAAD against sentences run one by one, and what their gradients reach."""

from __future__ import annotations

import pytest
import torch

from tests.interventions.edits import logits, random_delta
from tests.interventions.klaad.models import (
    EVEN,
    GIVEN,
    KINDS,
    LAMS,
    LAST,
    backward,
    fit,
    gradients,
    loss_of,
    one_by_one,
    only,
)
from tracelab.interventions import KLAADConfig
from tracelab.interventions.klaad.klaad import KLAADLoss
from tracelab.interventions.training.finetune import frozen
from tracelab.model.hook_points import LINEAR_MAPS

# --- the losses of a batch
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_layer", [0, LAST])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_the_losses_and_gradients_of_its_sentences_run_one_by_one(
    tiny, kind, first_layer
):
    model, batch = tiny(kind), [3, 9, 5, 10]
    config = {"lam1": 0.5, "lam2": 2.0, "lam3": 1.5, "margin": 0.8}
    edit = random_delta(model, modules=("attn.q", "attn.k"), layers=(LAST,), scale=0.3)
    parts, found = backward(loss_of(model, first_layer=first_layer, **config), edit, batch)

    edit.zero_grad()
    with frozen(model):
        expected = one_by_one(model, edit, [GIVEN[i] for i in batch], KLAADConfig(**config))
        expected["loss"].backward()
    assert parts == pytest.approx(
        {name: value.item() for name, value in expected.items()}, abs=1e-4
    )
    assert min(parts.values()) > 0.01
    for mine, slow in zip(found, gradients(edit), strict=True):
        assert slow.abs().max() > 1e-4
        torch.testing.assert_close(mine, slow, atol=1e-5, rtol=1e-3)


def test_the_options_of_the_attention_loss_reach_it(model):
    edit = random_delta(model, scale=0.1)
    options = [
        {},
        {"per_head": True},
        {"double_softmax": True},
        {"reduction": "sum"},
        {"align": "pad"},
        {"align": "equal_only"},
    ]
    values = [loss_of(model, **option).measure(edit, range(12))["attention"] for option in options]
    assert all(abs(a - b) > 1e-4 for i, a in enumerate(values) for b in values[:i])


def test_the_options_of_the_triplet_loss_reach_it(model):
    edit = random_delta(model, scale=0.1)
    options = [{"margin": 1.0}, {"margin": 1.5}, {"margin": 1.0, "pool": "mean"}]
    values = [loss_of(model, **option).measure(edit, range(12))["triplet"] for option in options]
    assert values[1] > values[0] + 0.1
    assert abs(values[2] - values[0]) > 1e-3


@pytest.mark.parametrize("name", LAMS)
def test_with_one_weight_the_total_is_that_loss(model, name):
    edit, loss = random_delta(model, scale=0.1), loss_of(model, margin=1.0, **only(name))
    parts, _ = backward(loss, edit, range(4))
    assert parts["loss"] == parts[name] > 0
    # All are measured, also those that are not trained on.
    measured = loss.measure(edit, range(4))
    assert measured["loss"] == measured[name] == pytest.approx(parts[name])
    assert min(measured[each] for each in LAMS) > 0


def test_gradients_of_the_losses_add_up_as_weighted(model):
    edit = random_delta(model, layers=(1,), scale=0.1)
    _, mixed = backward(loss_of(model, lam1=0.7, lam2=3.0, lam3=0.2, margin=1.0), edit, range(4))
    single = [
        backward(loss_of(model, margin=1.0, **only(name)), edit, range(4))[1] for name in LAMS
    ]
    for whole, *each in zip(mixed, *single, strict=True):
        assert all(gradient.any() for gradient in each)
        torch.testing.assert_close(
            whole, 0.7 * each[0] + 3.0 * each[1] + 0.2 * each[2], atol=1e-5, rtol=1e-4
        )


def test_attention_and_triplet_losses_are_means_over_triples_whatever_the_chunks(model):
    edit = random_delta(model, scale=0.1)
    made = []
    for size in (5, 2):
        loss = loss_of(model, lam1=0.0, lam2=1.0, lam3=1.0, margin=1.0)
        loss._chunked.size = size
        parts, found = backward(loss, edit, range(2, 7))
        made.append(
            (
                [parts[name] for name in ("loss", "attention", "triplet")],
                loss.measure(edit, range(2, 7)),
                found,
            )
        )
    (whole, whole_measured, whole_gradients), (parts, measured, found) = made
    assert parts == pytest.approx(whole, rel=1e-4)
    for name in ("loss", "attention", "triplet"):
        assert measured[name] == pytest.approx(whole_measured[name], rel=1e-4)
    for mine, expected in zip(found, whole_gradients, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-3)


def test_out_of_memory_a_batch_begins_again_in_halves(model, monkeypatch):
    edit, config = random_delta(model, scale=0.1), {"lam1": 0.0, "lam2": 1.0, "lam3": 1.0}
    expected, gradient = backward(loss_of(model, **config), edit, range(6))
    done: list[int | None] = []
    real = KLAADLoss.losses

    def fails_once(self, chunk, pair, other):
        if len(done) == 1:  # the first chunk has left its gradients
            done.append(None)
            raise RuntimeError("CUDA out of memory.")
        done.append(len(chunk))
        return real(self, chunk, pair, other)

    monkeypatch.setattr(KLAADLoss, "losses", fails_once)
    with pytest.warns(UserWarning, match="out of memory: 2 texts at a time"):
        parts, found = backward(loss_of(model, **config), edit, range(6))
    assert done == [4, None, 2, 2, 2]
    for name in ("loss", "attention", "triplet"):
        assert parts[name] == pytest.approx(expected[name], rel=1e-4)
    for mine, whole in zip(found, gradient, strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-5, rtol=1e-3)


# --- what gradients reach
# -----------------------------------------------------------------------------------------


def test_the_attention_loss_gives_the_last_layers_own_values_outputs_and_mlp_no_gradient(model):
    edit = random_delta(model, modules=LINEAR_MAPS, layers=range(LAST + 1), scale=0.1)
    backward(loss_of(model, **only("attention")), edit, range(4))
    for shape in edit.spec().maps:
        reached = [bool(g.any()) for g in gradients(edit.part(shape.point))]
        attended = shape.layer < LAST or shape.module in ("attn.q", "attn.k")
        assert reached == [attended, attended], shape
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_attn_last_has_deltas_of_the_last_layers_query_and_key_maps_alone(tiny, kind):
    model = tiny(kind)
    edit = fit(model, trainable="attn_last", **EVEN)
    assert [(shape.module, shape.layer, shape.rank) for shape in edit.spec().maps] == [
        ("attn.q", LAST, 2),
        ("attn.k", LAST, 2),
    ]
    assert all(parameter.any() for parameter in edit.parameters())
    assert (logits(model, edit) - logits(model)).abs().max() > 1e-3


def test_all_has_deltas_of_every_linear_map_that_the_architecture_has(tiny):
    for kind, modules in (
        ("llama", LINEAR_MAPS),
        ("gpt2", [m for m in LINEAR_MAPS if m != "mlp.gate"]),
    ):
        edit = fit(tiny(kind), GIVEN[:4])
        assert {(shape.module, shape.layer) for shape in edit.spec().maps} == {
            (module, layer) for module in modules for layer in range(LAST + 1)
        }
