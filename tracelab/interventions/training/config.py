"""What the choice of a state, a strength or a field may cost, and the fields that say so; needs no
torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from tracelab.config import Config, Count, NonNegative, Positive


@dataclass(frozen=True)
class Bounds:
    """What an edit may cost.

    Attributes:
        max_kl: to the unedited model on neutral text, nats a token.
        max_lms_loss: points of LMS on held-out records.
        max_perplexity: rise of the perplexity of neutral text, in percent.
    """

    max_kl: float
    max_lms_loss: float
    max_perplexity: float = math.inf

    def allow(self, *, kl: float, lms_loss: float, perplexity_change: float = 0.0) -> bool:
        """Whether it costs no more; never true of a figure that is not a number."""
        return (
            kl <= self.max_kl
            and lms_loss <= self.max_lms_loss
            and perplexity_change <= self.max_perplexity
        )


class ChoosingConfig(Config):
    """How the state and the strength of an edit are chosen on development records."""

    choose: Literal["association", "loss"] = Field(
        "association", description="what the kept state and strength have least of, held-out terms"
    )
    max_kl: Positive = Field(
        0.05, description="most that they may cost: nats a token, neutral text"
    )
    max_lms_loss: NonNegative = Field(1.0, description="and points of LMS")
    n_dev: Count | None = Field(None, description="most development records (none: all)")

    @property
    def bounds(self) -> Bounds:
        """What the edit may cost."""
        return Bounds(self.max_kl, self.max_lms_loss)
