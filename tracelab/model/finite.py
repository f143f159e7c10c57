"""Numbers that are not finite are refused where they are made, before they become a score.

A comparison with NaN is false and counts as "no hit": one NaN among the weights would give SS 0 and
no bias at all. A model computes such logits if its weights hold NaN, if half precision overflows,
or under an edit that is too strong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tracelab.errors import TracelabError

CAUSE = "the model's weights, its dtype (float16 overflows) or an edit that is on it are at fault"


def require_finite(
    values: Sequence[Float[Tensor, "..."]], numbers: Sequence[int], what: str = "text"
) -> None:
    """Refuse log-probabilities that are not finite.

    Args:
        values: of each text.
        numbers: of the texts, for the message.

    Raises:
        TracelabError: naming the first such text and what was found.
    """
    if values and not torch.cat([each.reshape(-1) for each in values]).isfinite().all():
        number, found = min(
            (
                (n, each)
                for n, each in zip(numbers, values, strict=True)
                if not each.isfinite().all()
            ),
            key=lambda pair: pair[0],
        )
        raise TracelabError(
            f"the log-probabilities of {what} {number} are not finite ({_kind(found)}): {CAUSE}"
        )


def require_finite_logits(
    logits: Float[Tensor, "rows *pos vocab"], numbers: Sequence[int], what: str = "text"
) -> None:
    """Refuse logits of which no distribution can be made: NaN, +inf, or -inf everywhere.

    Single logits of -inf, by which edits and samplers rule tokens out, are no fault.

    Args:
        numbers: of the texts that the rows are of, for the message.

    Raises:
        TracelabError: naming the first such text.
    """
    largest = logits.amax(dim=-1)  # NaN if there is one
    if not largest.isfinite().all():
        wrong = [row for row in range(len(largest)) if not largest[row].isfinite().all()]
        row = min(wrong, key=lambda row: numbers[row])
        raise TracelabError(
            f"the logits after {what} {numbers[row]} are not finite ({_kind(largest[row])}): "
            f"{CAUSE}"
        )


def require_finite_change(values: Float[Tensor, "..."], where: str) -> None:
    """Refuse the change of a weight, or a changed weight, that is not finite.

    Raises:
        TracelabError: naming where it is.
    """
    if not values.isfinite().all():
        raise TracelabError(
            f"the edit overflows at {where} ({_kind(values)}): fit it again, or scale it down"
        )


def _kind(values: Tensor) -> str:
    if values.isnan().any():
        return "NaN"
    return "inf" if values.isposinf().any() else "-inf"
