"""The configurations of experts: how logits are mixed, and how the experts are tuned."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from tracelab.config import Config, Count, Finite, Positive, Seed, Width
from tracelab.ranges import EPOCHS_MOST

LinearMap = Literal["mlp.in", "mlp.gate", "mlp.out", "attn.q", "attn.k", "attn.v", "attn.o"]
"""Of :data:`tracelab.model.hook_points.LINEAR_MAPS`, said without torch."""


class FinetuneConfig(Config):
    """How an expert is tuned: low-rank deltas of these linear maps, AdamW, texts line by line.

    The paper's recipe is not public. On the embedded model these values give each gender expert
    alone 1.8 times the base's perplexity on neutral text (``analyses/03_experts.ipynb``); the
    authors' own have 1.2 to 2 times.
    """

    rank: Width = Field(16, description="of the experts' deltas")
    modules: tuple[LinearMap, ...] = Field(
        ("mlp.in", "mlp.out", "attn.o"), description="linear maps that get a delta"
    )
    lr: Positive = Field(5e-4, description="AdamW's learning rate")
    epochs: int = Field(1, ge=1, le=EPOCHS_MOST, description="over the texts")
    batch_size: Count = Field(8, description="texts a step")
    block_size: Count = Field(64, description="longer texts are cut to so many tokens")
    seed: Seed = Field(0, description="of the deltas' start and the order of texts")


class ExpertsConfig(Config):
    """How logits are mixed, and how the experts are tuned."""

    alpha: Finite = Field(
        1.0, description="strength; 0 is the unedited model, negative swaps the two"
    )
    filter_order: Literal["after", "base_first"] = Field(
        "after", description="what nucleus sampling cuts: the sum, or the target's own distribution"
    )
    top_p: float = Field(0.9, gt=0, le=1, description="the nucleus that base_first keeps")
    training: FinetuneConfig | None = Field(None, description="how the experts are tuned")

    def seeded(self, seed: int) -> Self:
        """With this seed in the tuning."""
        return self.replace(training=(self.training or FinetuneConfig()).seeded(seed))
