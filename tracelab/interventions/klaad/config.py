"""KLAAD's configuration, under the paper's names where it has one."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tracelab.config import Count, Finite, NonNegative, Positive, Seed, Width
from tracelab.errors import TracelabError
from tracelab.interventions.training.config import ChoosingConfig
from tracelab.ranges import EPOCHS_MOST


class KLAADConfig(ChoosingConfig):
    """The losses' weights and readings, and how the deltas are trained and chosen.

    On the embedded model, at the paper's weights, the gradient of the attention loss is a 300th of
    the language loss's with ``reduction="mean"``, which does nothing, and a third of it with
    ``"batchmean"``, which lowers the attention gap by a third (by half at ``lam2=1`` and above);
    association falls no further for it (``figures/05_klaad_ablations.csv``).
    """

    presets: ClassVar = ("paper",)

    lam1: NonNegative = Field(0.7, description="weight of the language loss (the paper's, Llama)")
    lam2: NonNegative = Field(0.15, description="weight of the attention loss")
    lam3: NonNegative = Field(0.15, description="weight of the triplet loss")
    language_on: Literal["both", "anti_stereotype"] = Field(
        "both", description="sentences of the language loss: both (the paper's) or the one"
    )
    margin: Finite = Field(0.3, description="m of the triplet loss (the paper's, Llama)")
    per_head: bool = Field(False, description="attention loss of each head, not of their mean")
    double_softmax: bool = Field(False, description="softmax the attention once more")
    reduction: Literal["mean", "sum", "batchmean"] = Field(
        "mean",
        description="of the attention loss over rows; batchmean: torch's, summed over heads too",
    )
    align: Literal["match", "pad", "equal_only"] = Field(
        "match", description="of sentences of different length"
    )
    pool: Literal["last", "mean"] = Field("last", description="hidden state of a sentence")
    trainable: Literal["all", "attn_last"] = Field(
        "all", description="deltas of every linear map, or of the last layer's query and key"
    )
    rank: Width = Field(8, description="of the deltas")
    lr: Positive = Field(
        2e-4, description="peak of the cosine schedule, AdamW (1e-5 in the paper: of all weights)"
    )
    epochs: int = Field(1, ge=1, le=EPOCHS_MOST, description="over the training triples")
    batch_size: Count = Field(8, description="triples a step")
    eval_every: Count = Field(15, description="steps between two looks at development triples")
    patience: Count = Field(3, description="looks without improvement that end the training")
    seed: Seed = Field(0, description="of the deltas' start and the order of triples")

    @classmethod
    def paper(cls, **changes: object) -> Self:
        """The paper's weights for Llama, its attention loss as it was most likely computed, and the
        state of the least loss whatever it costs (no rule for choosing is published)."""
        published: dict = {
            "reduction": "batchmean",
            "choose": "loss",
            "max_kl": 1e9,
            "max_lms_loss": 100.0,
        }
        return cls(**published | changes)

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        lams = (self.lam1, self.lam2, self.lam3)
        if not any(lams):
            raise TracelabError(f"lam1, lam2 and lam3 are not all 0: not {lams}")
        return self
