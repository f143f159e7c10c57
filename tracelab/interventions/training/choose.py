"""Which state of an edit is kept: the one with the least association that costs no more than
bounds allow.

With lbar a sentence's mean log-probability a token, of each held-out record

    gap         g  = lbar(stereotype) - lbar(anti-stereotype)
    swapped     g' = the gap of the same two fillers where the gender named is the other
    gap_group   (g - g') / 2     what depends on the gender named
    gap_blind   (g + g') / 2     what is said of either: the fillers' own likelihood
    association |mean of gap_group| over the records that have a twin, else |mean of gap|

No removal of gender moves ``gap_blind``, and SS counts both: a state chosen by SS, or by a loss of
which the likelihood of all sentences is the largest part, need not be one that moves the stereotype.
An edit that destroys a model has no association either, hence the bounds. What is chosen here is
chosen on few target terms: measure it on others.
"""  # noqa: E501

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def association(
    gap: Float[np.ndarray, "records"], swapped: Float[np.ndarray, "records"]
) -> dict[str, float]:
    """Means over records of one bias type: ``gap``, ``association`` and, where there are twins,
    ``gap_group`` and ``gap_blind``; in nats a token.

    Args:
        swapped: the gaps g', not a number where a record has no twin.
    """
    found = {"gap": float(gap.mean())}
    paired = ~np.isnan(swapped)
    if not paired.any():
        return found | {"association": abs(found["gap"])}
    found["gap_group"] = float((gap - swapped)[paired].mean()) / 2
    found["gap_blind"] = float((gap + swapped)[paired].mean()) / 2
    return found | {"association": abs(found["gap_group"])}
