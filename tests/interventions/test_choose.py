"""What an edit is chosen by: association on held-out records, and bounds on what it costs."""

from __future__ import annotations

import numpy as np
import pytest

from tracelab.datasets import gender_twins, stereoset
from tracelab.interventions.training.choose import association
from tracelab.interventions.training.config import Bounds
from tracelab.model.scoring import score

NAN = float("nan")


def test_association_is_of_the_part_that_depends_on_the_group_where_there_are_twins():
    gap, swapped = np.array([0.4, -0.2, 3.0]), np.array([0.2, 0.2, NAN])
    found = association(gap, swapped)
    assert found == pytest.approx(
        {"gap": 3.2 / 3, "gap_group": -0.05, "gap_blind": 0.15, "association": 0.05}
    )


def test_association_is_of_the_whole_gap_where_there_is_no_twin():
    found = association(np.array([0.4, -1.0]), np.full(2, NAN))
    assert found == pytest.approx({"gap": -0.3, "association": 0.3})


@pytest.mark.parametrize(
    ("kl", "lms_loss", "allowed"),
    [
        (0.0, -5.0, True),
        (0.1, 1.0, True),
        (0.11, 0.0, False),
        (0.0, 1.01, False),
        (NAN, 0.0, False),
        (0.0, NAN, False),
    ],
)
def test_bounds_are_of_both_and_a_figure_that_is_no_number_breaks_them(kl, lms_loss, allowed):
    assert Bounds(max_kl=0.1, max_lms_loss=1.0).allow(kl=kl, lms_loss=lms_loss) is allowed


@pytest.mark.slow
def test_the_embedded_model_is_likelier_to_say_a_stereotype_of_its_own_gender(real_model):
    pairs = gender_twins(stereoset("gender", split="test", limit=30))
    gap, swapped = (
        score(real_model, [getattr(pair[i], first).text for pair in pairs]).mean
        - score(real_model, [getattr(pair[i], second).text for pair in pairs]).mean
        for i, first, second in (
            (0, "stereotype", "anti_stereotype"),
            (1, "anti_stereotype", "stereotype"),
        )
    )
    found = association(gap, swapped)
    assert 0 < found["association"] == found["gap_group"] < found["gap"]
