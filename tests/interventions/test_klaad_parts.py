"""What each of KLAAD's losses asks of the deltas, told in the curves."""

from __future__ import annotations

import pytest
import torch

from tests.interventions.klaad.models import GIVEN, LAMS, backward, fit, loss_of, only
from tracelab.interventions import KLAAD
from tracelab.interventions.klaad.config import KLAADConfig


@pytest.fixture
def model(tiny):
    return tiny("llama")


def norm(gradients: list[torch.Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in gradients]).norm())


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_gradient_of_a_part_is_that_of_a_fit_on_it_alone(model, batch_size):
    edit = fit(model, GIVEN[:4], trainable="attn_last")
    edit.zero_grad()
    found = loss_of(model, batch_size=batch_size, **only("ce")).gradient_norms(edit, range(8))
    assert all(parameter.grad is None for parameter in edit.parameters())
    for name in LAMS:
        alone = loss_of(model, batch_size=batch_size, **only(name))
        expected = norm(backward(alone, edit, range(8))[1])
        assert expected > 1e-6
        assert found[f"grad_{name}"] == pytest.approx(expected, rel=1e-4)


def test_the_curves_tell_every_gradient_at_each_look_also_of_weight_0(model):
    edit = fit(model, trainable="attn_last", **only("ce"))
    looks = [row for row in edit.notes["curves"] if row["split"] == "dev"]
    assert [row["step"] for row in looks] == [0, 2, 3]
    for row in looks:
        assert all(row[f"grad_{name}"] > 0 for name in LAMS)
    titles = {a.text for a in edit.plot_training().layout.annotations}
    assert "gradient of the attention loss" in titles


def test_the_language_loss_can_be_of_the_anti_stereotype_alone(model):
    zero = KLAAD.build(fit(model, trainable="attn_last").spec(), None)
    both, anti = (
        loss_of(model, language_on=on, batch_size=12).measure(zero, range(12))["ce"]
        for on in ("both", "anti_stereotype")
    )
    mirrored = [  # the stereotype where the anti-stereotype was
        type(r)(**{**vars(r), "stereotype": r.anti_stereotype, "anti_stereotype": r.stereotype})
        for r in GIVEN
    ]
    stereo = loss_of(model, mirrored, language_on="anti_stereotype", batch_size=12)
    assert both == pytest.approx((anti + stereo.measure(zero, range(12))["ce"]) / 2, rel=1e-5)
    assert abs(anti - both) > 1e-3


@pytest.mark.slow
def test_summed_over_heads_and_rows_the_attention_loss_is_near_100_times_as_large(real_model):
    from tracelab.datasets import stereoset
    from tracelab.interventions.klaad.klaad import KLAADLoss
    from tracelab.interventions.training.triples import tokenise
    from tracelab.interventions.weight_delta import WeightDelta

    triples = tokenise(real_model, stereoset("gender", split="test", limit=16))
    zero = WeightDelta.low_rank(real_model, layers=[29], modules=["attn.q", "attn.k"], rank=2)
    mean, batchmean = (
        KLAADLoss(real_model, triples, KLAADConfig(reduction=reduction), 29)
        for reduction in ("mean", "batchmean")
    )
    values = [loss.measure(zero, range(16))["attention"] for loss in (mean, batchmean)]
    assert 50 < values[1] / values[0] < 500
    norms = [loss.gradient_norms(zero, range(16))["grad_attention"] for loss in (mean, batchmean)]
    assert 50 < norms[1] / norms[0] < 500
