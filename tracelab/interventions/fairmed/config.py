"""FairMed's configuration, and what the released code has in its place."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tracelab.config import Config, Count, NonNegative, Positive, Seed
from tracelab.errors import TracelabError, require_choice
from tracelab.ranges import SEEDS_MOST

GROUPS = ("scored", "all")

PUBLISHED_LAM = {
    "age": 4.0,
    "disability": 3.0,
    "gender": 5.0,
    "nationality": 4.0,
    "physical_appearance": 6.0,
    "race": 8.0,
    "religion": 7.0,
    "ses": 9.0,
    "sexual_orientation": 6.0,
}
"""The paper's radius for LLaMA-2-Chat 7B on BBQ, by attribute."""


class FairMedConfig(Config):
    """How activations are neutralised, and how the probers are trained.

    ``tol`` is meant for two groups. Where one of C groups has a share δ from 1/C, ``KL(U ‖ p)`` is
    at least ``δ² C² / (2 (C - 1))`` (to second order), so that an activation is neutral below

        tol · C² / (4 (C - 1)),    where every share is within √(tol / 2) of 1/C:

    .001 lets no share be further off than .022, be it of two groups or of eleven. The released
    code's .03, which ``norm="code"`` does not scale, calls shares of .38 and .62 even.

    ``radius="adaptive"``: a quarter of ε, doubled up to 4 ε for those activations (layer by layer,
    input by input) that are not yet neutral, an open question of the paper. It is of use to fixed
    steps. Polyak's go as far as each activation needs whatever the radius: there it ends where four
    times the radius does, after twice as many steps. What
    is read, and so what ``positions`` means, tracelab's own functions say
    (:func:`tracelab.model.forward_pass.reading`); in any other forward pass it is every token.
    Among ``groups``, one that the model hardly ever names draws most of a perturbation to itself.
    """

    presets: ClassVar = ("published",)

    target: Literal["probers", "balance"] = Field(
        "probers",
        description="what is made even: what probers read of activations; balance: the model's own "
        "logits of the groups' words, exactly (a control, and no other field but groups matters)",
    )
    lam: NonNegative = Field(
        3.0, description="radius ε of a layer, in standard deviations of its activation norm"
    )
    steps: int = Field(20, ge=0, le=1000, description="most gradient steps")
    step: Literal["polyak", "fixed"] = Field(
        "polyak", description="size of a step: by the KL and its slope; fixed: by the radius"
    )
    step_frac: Positive = Field(1 / 15, description="size of a fixed step, in radii")
    tol: NonNegative = Field(
        0.001,
        description="an activation with KL below tol C^2 / (4 (C - 1)) is neutral: each of C "
        "groups' shares is then within sqrt(tol / 2) of 1/C",
    )
    norm: Literal["l2", "code"] = Field("l2", description="geometry of the ball; code: as released")
    grad: Literal["l2", "sign"] = Field("l2", description="step along the gradient or its signs")
    init: Literal["zero", "random"] = Field("zero", description="start; random: as released")
    radius: Literal["fixed", "adaptive"] = Field("fixed", description="of the ball")
    direction: Literal["adversarial", "random"] = Field(
        "adversarial", description="random: the control, a random direction of the same length"
    )
    positions: Literal["predictive", "published", "all"] = Field(
        "predictive",
        description="tokens that are edited: those whose logits are read; answer tokens when "
        "scoring, the last three of a prompt and each new one when generating; all",
    )
    groups: str | tuple[str, ...] = Field(
        "scored",
        description="among which the distribution is to be uniform: scored (those that enter F1), "
        "all (as the paper), or their names",
    )
    n_seeds: int = Field(3, ge=1, le=SEEDS_MOST, description="splits of the probers' data")
    split: Literal["concept_template", "concept", "sentence"] = Field(
        "concept_template", description="what is held out of the probers; sentence: the paper's"
    )
    standardise: bool = Field(
        True, description="whether probers' inputs are standardised by layer; the paper's are not"
    )
    top_k: Count | None = Field(None, description="layers to choose by F1; 9 of 32 in proportion")
    seed: Seed = Field(
        0, description="of random directions, and of the probers' splits unless probes are given"
    )

    @model_validator(mode="after")
    def _one_control(self) -> Self:
        if self.target == "balance" and self.direction == "random":
            raise TracelabError(
                "target='balance' has a closed form and no direction: leave direction out"
            )
        return self

    @model_validator(mode="after")
    def _groups_to_compare(self) -> Self:
        if isinstance(self.groups, str):
            require_choice("groups", self.groups, GROUPS)
        elif len(set(self.groups)) < len(self.groups):
            raise TracelabError(f"a group stands twice in {list(self.groups)}: name each once")
        elif len(self.groups) == 1:
            raise TracelabError(
                f"a distribution over one group, {self.groups[0]!r}, is always uniform: name two "
                "or more"
            )
        return self

    @classmethod
    def published(cls, attribute: str, **changes: Any) -> Self:
        """What the released code does, with the paper's radius for an attribute (the mean of them
        for another)."""
        lam = PUBLISHED_LAM.get(attribute, sum(PUBLISHED_LAM.values()) / len(PUBLISHED_LAM))
        code: dict[str, Any] = {"lam": lam, "norm": "code", "grad": "sign", "init": "random"}
        code |= {"step": "fixed", "tol": 0.03, "positions": "published", "groups": "all"}
        code |= {"standardise": False}
        return cls(**code | changes)

    @classmethod
    def preset(cls, name: str, bias: str, **changes: Any) -> Self:
        """``published``, with the radius of the attribute."""
        require_choice(f"preset of {cls.__name__}", name, cls.presets)
        return cls.published(bias, **changes)
