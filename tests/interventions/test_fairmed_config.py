"""FairMed's configuration: what is refused, and what the released code's preset is."""

from __future__ import annotations

import pytest

from tracelab.errors import TracelabError
from tracelab.interventions.fairmed.config import PUBLISHED_LAM, FairMedConfig

D, HIDDEN = 8, 16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lam": float("nan")}, "lam is a finite number, not nan"),
        ({"lam": float("inf")}, "lam is a finite number, not inf"),
        ({"lam": -1.0}, "lam is at least 0, not -1.0"),
        ({"tol": float("nan")}, "tol is a finite number, not nan"),
        ({"steps": -1}, "steps is at least 0, not -1"),
        ({"steps": 1001}, "steps is at most 1000, not 1001"),
        ({"step_frac": 0.0}, "step_frac is above 0, not 0.0"),
        ({"step_frac": float("nan")}, "step_frac is a finite number, not nan"),
        ({"norm": "l1"}, "unknown norm 'l1': choose one of l2, code"),
        ({"grad": "up"}, "unknown grad 'up': choose one of l2, sign"),
        ({"init": "one"}, "unknown init 'one': choose one of zero, random"),
        ({"radius": "big"}, "unknown radius 'big': choose one of fixed, adaptive"),
        ({"direction": "left"}, "unknown direction 'left': choose one of adversarial, random"),
        (
            {"groups": ("male",)},
            "a distribution over one group, 'male', is always uniform: name two or more",
        ),
        ({"groups": "male"}, "unknown groups 'male': choose one of scored, all"),
        (
            {"positions": "some"},
            "unknown positions 'some': choose one of predictive, published, all",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(wrong, message):
    with pytest.raises(TracelabError, match=message):
        FairMedConfig(**wrong)


@pytest.mark.parametrize("attribute", PUBLISHED_LAM)
def test_the_published_preset_is_the_released_codes_with_the_papers_radius(attribute):
    config = FairMedConfig.published(attribute)
    assert config.lam == PUBLISHED_LAM[attribute]
    assert (config.norm, config.grad, config.init, config.positions) == (
        "code",
        "sign",
        "random",
        "published",
    )
    assert (config.steps, config.step_frac, config.tol) == (20, 1 / 15, 0.03)
    assert FairMedConfig.published(attribute, lam=1.0, steps=3).settings() == {
        **config.settings(),
        "lam": 1.0,
        "steps": 3,
    }


def test_an_attribute_that_the_paper_lacks_gets_the_mean_radius():
    assert FairMedConfig.published("shoe size").lam == pytest.approx(52 / 9)
