"""BiasEdit's settings, under the paper's names where it has one."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tracelab.config import Count, Finite, NonNegative, Positive, Seed, Width
from tracelab.interventions.training.config import ChoosingConfig
from tracelab.ranges import STEPS_MOST


class BiasEditConfig(ChoosingConfig):
    """How the editor is trained and what shift it makes.

    ``shift="direct"`` is tracelab's, to see what the editor adds; it has no transductive protocol.
    ``query="held_out"`` is what an edit that is carried to unseen text has to stand. The losses are
    in :mod:`tracelab.interventions.training.triple_losses`.
    """

    presets: ClassVar = ("direct", "reference")

    shift: Literal["editor", "direct"] = Field(
        "editor", description="made by an editor (the paper's), or low-rank shifts trained directly"
    )
    delta_rank: Width = Field(8, description="of direct shifts")
    delta_lr: Positive = Field(1e-3, description="of direct shifts, with Adam")
    modules: tuple[str, ...] = Field(("mlp.out",), description="linear maps that are shifted")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of all learning rates; cosine: after a warm-up"
    )
    loss: Literal["reference", "logprob", "preference"] = Field(
        "preference", description="debiasing loss; reference: as released"
    )
    span: Literal["sentence", "filler"] = Field("sentence", description="what the loss compares")
    beta: Positive = Field(4.0, description="of the preference loss")
    margin: Finite = Field(0.1, description="of the preference loss")
    retention: Literal["kl", "reference"] = Field("kl", description="retention loss")
    retain_on: Literal["unrelated", "all", "neutral"] = Field(
        "all",
        description="what is retained: unrelated sentences (the paper's), all three, or "
        "neutral text",
    )
    lam: NonNegative = Field(1.0, description="weight of the retention loss (released: loc_coef)")
    positions: Literal["predicting", "ans_ref"] = Field(
        "predicting", description="cached tokens; ans_ref: as released, one later"
    )
    query: Literal["held_out", "same"] = Field(
        "held_out", description="triples that judge a shift: of other target terms, or its own"
    )
    n_edits: Count = Field(256, description="triples a shift is made from")
    n_query: Count = Field(32, description="triples a step's shift is judged on")
    n_support: Count = Field(512, description="most training triples that are used")
    batch_size: Count = Field(16, description="micro-batch; losses are means over it")
    rank: Width = Field(64, description="of the editor")
    n_blocks: Count = Field(2, description="of the editor")
    lr: Positive = Field(1e-3, description="of the editor: first step size eta of each map")
    ridge: Positive = Field(1e4, description="of the editor's least squares (the paper's: 1)")
    init: Literal["scaled", "normal"] = Field("scaled", description="of the editor")
    meta_lr: Positive = Field(3e-3, description="Adam's learning rate of the editor")
    step_lr: Positive = Field(
        0.03, description="Adam's of eta, as a share of lr (released: meta_lr / lr)"
    )
    steps: int = Field(20, ge=0, le=STEPS_MOST, description="most groups of triples")
    eval_every: Count = Field(10, description="groups between two looks at development triples")
    patience: Count = Field(2, description="looks without improvement that end the training")
    seed: Seed = Field(0, description="of networks and the order of triples")

    @classmethod
    def direct(cls, **changes: object) -> BiasEditConfig:
        """Low-rank shifts of late blocks trained without an editor: for records of more than one
        kind, joined (:meth:`BiasEdit.learned`), and kept from changing neutral text."""
        settings: dict = {
            "shift": "direct",
            "modules": ("mlp.out", "attn.o"),
            "margin": 0.0,
            "retain_on": "neutral",
            "n_query": 16,
            "n_support": 4096,
            "schedule": "cosine",
            "delta_lr": 5e-4,
            "steps": 330,
            "eval_every": 110,
            "patience": 3,
        }
        return cls(**settings | changes)

    @classmethod
    def reference(cls, **changes: object) -> BiasEditConfig:
        """The released settings of GPT2-medium, up to the number of steps: losses, positions,
        sizes, initialisation."""
        released: dict = {
            "loss": "reference",
            "retention": "reference",
            "retain_on": "unrelated",
            "positions": "ans_ref",
            "query": "same",
            "choose": "loss",
            "max_kl": 1e9,
            "max_lms_loss": 100.0,
            "n_edits": 128,
            "n_query": 128,
            "batch_size": 64,
            "rank": 1920,
            "lr": 1e-7,
            "ridge": 1.0,
            "meta_lr": 1e-6,
            "step_lr": 10.0,
            "init": "normal",
            "patience": 5,
            "eval_every": 24,
            "steps": 2400,
        }
        return cls(**released | changes)
