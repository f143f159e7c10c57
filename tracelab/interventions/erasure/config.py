"""Erasure's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tracelab.config import Config, NonNegative, Seed, Width


class ErasureConfig(Config):
    """How the directions are found and how far they are removed."""

    rank: Width = Field(1, description="directions removed at each layer")
    method: Literal["paired", "leace", "mean", "pca", "random"] = Field(
        "paired", description="how they are found"
    )
    strength: NonNegative = Field(
        1.0, description="share of them that is removed; 0 changes nothing"
    )
    shrink: float = Field(
        0.02, gt=0, le=1, description="of the covariance towards its mean variance"
    )
    seed: Seed = Field(0, description="of the directions of method random")
