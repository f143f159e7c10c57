"""BiasEdit's configuration: the released preset, and what is refused."""

from __future__ import annotations

import pytest

from tracelab.errors import TracelabError
from tracelab.interventions import BiasEditConfig

# --- configuration
# --------------------------------------------------------------------------------------------------


def test_the_reference_preset_has_the_released_settings_and_takes_changes():
    config = BiasEditConfig.reference()
    assert (config.loss, config.retention, config.retain_on) == (
        "reference",
        "reference",
        "unrelated",
    )
    assert (config.positions, config.query, config.span, config.init) == (
        "ans_ref",
        "same",
        "sentence",
        "normal",
    )
    assert (config.n_edits, config.batch_size, config.rank, config.n_blocks) == (128, 64, 1920, 2)
    assert (config.n_query, config.shift, config.ridge) == (128, "editor", 1.0)
    assert (config.lr, config.meta_lr, config.lam, config.patience) == (1e-7, 1e-6, 1.0, 5)
    # eta itself is trained with meta_lr
    assert config.step_lr == pytest.approx(config.meta_lr / config.lr)
    assert BiasEditConfig.reference(lam=4.0, loss="logprob") == config.replace(
        lam=4.0, loss="logprob"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shift": "none"}, "unknown shift 'none': choose one of editor, direct"),
        ({"loss": "kl"}, "unknown loss 'kl': choose one of reference, logprob, preference"),
        ({"span": "word"}, "unknown span 'word': choose one of sentence, filler"),
        ({"retention": "none"}, "unknown retention 'none': choose one of kl, reference"),
        (
            {"retain_on": "some"},
            "unknown retain_on 'some': choose one of unrelated, all, neutral",
        ),
        ({"choose": "ss"}, "unknown choose 'ss': choose one of association, loss"),
        ({"schedule": "linear"}, "unknown schedule 'linear': choose one of constant, cosine"),
        ({"max_kl": 0.0}, "max_kl is above 0, not 0.0"),
        ({"max_lms_loss": -1.0}, "max_lms_loss is at least 0, not -1.0"),
        ({"n_dev": 0}, "n_dev is at least 1, not 0"),
        ({"positions": "ans"}, "unknown positions 'ans': choose one of predicting, ans_ref"),
        ({"query": "other"}, "unknown query 'other': choose one of held_out, same"),
        ({"init": "zero"}, "unknown init 'zero': choose one of scaled, normal"),
        *(
            ({name: 0}, f"{name} is at least 1, not 0")
            for name in (
                "delta_rank",
                "n_edits",
                "n_query",
                "n_support",
                "batch_size",
                "rank",
                "n_blocks",
            )
        ),
        *(({name: -2}, f"{name} is at least 1, not -2") for name in ("eval_every", "patience")),
        *(
            ({name: value}, f"{name} is {what}, not {value}")
            for name in ("delta_lr", "beta", "lr", "ridge", "meta_lr", "step_lr")
            for value, what in (
                (0.0, "above 0"),
                (-1.0, "above 0"),
                (float("nan"), "a finite number"),
                (float("inf"), "a finite number"),
            )
        ),
        ({"lam": -0.5}, "lam is at least 0, not -0.5"),
        ({"lam": float("nan")}, "lam is a finite number, not nan"),
        ({"steps": -1}, "steps is at least 0, not -1"),
        ({"margin": float("inf")}, "margin is a finite number, not inf"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("make", [BiasEditConfig, BiasEditConfig.direct, BiasEditConfig.reference])
def test_a_wrong_configuration_is_refused_in_one_sentence(make, wrong, message):
    with pytest.raises(TracelabError) as refused:
        make(**wrong)
    assert str(refused.value) == message


def test_zero_retention_zero_steps_and_a_negative_margin_are_allowed():
    config = BiasEditConfig(lam=0.0, steps=0, margin=-0.2)
    assert (config.lam, config.steps, config.margin) == (0.0, 0, -0.2)
