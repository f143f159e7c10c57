"""BiasEdit's settings, under the paper's names where it has one."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict

from tracelab.errors import require_choice
from tracelab.interventions.biasedit.editor import INITS
from tracelab.interventions.training.triple_losses import LOSSES, RETENTIONS, SPANS
from tracelab.ranges import STEPS_MOST, WIDTH_MOST, require_int, require_number, require_seed

SHIFTS = ("editor", "direct")
POSITIONS = ("predicting", "ans_ref")
QUERIES = ("held_out", "same")
RETAINED = ("unrelated", "all")


@dataclass(frozen=True)
class BiasEditConfig:
    """How the editor is trained and what shift it makes.

    Attributes:
        shift: ``editor`` (the paper's), or ``direct``: no editor; low-rank shifts are trained on
            the same losses themselves (tracelab's, to see what the editor adds; it has no
            transductive protocol).
        delta_rank, delta_lr: of direct shifts, with Adam.
        loss, beta, margin, retention: see :mod:`.triple_losses`.
        span: what the loss compares: the whole ``sentence`` (as SS does) or the ``filler``.
        lam: weight of the retention loss (``loc_coef`` in the released code).
        retain_on: sentences on which the unedited model is retained: ``unrelated`` (the paper's) or
            ``all`` three.
        positions: cached tokens: ``predicting`` (whose logits are scored) or ``ans_ref`` (as
            released: one later).
        query: triples on which a step's shift is judged: ``same`` as it was made from (the paper's)
            or of other target terms (``held_out``), which is what an edit that is carried to unseen
            text has to stand.
        n_edits: triples a shift is made from; at most all there are.
        n_query: triples a step's shift is judged on.
        n_support: at most so many training triples are used.
        batch_size: micro-batch; losses are means over it and summed over a group's micro-batches.
        rank, n_blocks, lr, ridge, init: of the
            :class:`~tracelab.interventions.biasedit.editor.Editor`.
        meta_lr: Adam's learning rate of the editor.
        step_lr: Adam's learning rate of eta, as a share of ``lr`` (released: ``meta_lr / lr``, ten
            times eta a step).
        steps: at most so many groups.
        eval_every: groups between two looks at the development triples.
        patience: looks without improvement after which training ends.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # in a bundle's manifest

    shift: str = "editor"
    delta_rank: int = 8
    delta_lr: float = 1e-3
    loss: str = "preference"
    span: str = "sentence"
    beta: float = 4.0
    margin: float = 0.1
    retention: str = "kl"
    retain_on: str = "all"
    lam: float = 1.0
    positions: str = "predicting"
    query: str = "held_out"
    n_edits: int = 256
    n_query: int = 32
    n_support: int = 512
    batch_size: int = 16
    rank: int = 64
    n_blocks: int = 2
    lr: float = 1e-3
    ridge: float = 1e4
    init: str = "scaled"
    meta_lr: float = 3e-3
    step_lr: float = 0.03
    steps: int = 20
    eval_every: int = 10
    patience: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("shift", SHIFTS),
            ("loss", LOSSES),
            ("span", SPANS),
            ("retention", RETENTIONS),
            ("retain_on", RETAINED),
            ("positions", POSITIONS),
            ("query", QUERIES),
            ("init", INITS),
        ):
            require_choice(name, getattr(self, name), choices)
        for name in (
            "n_edits",
            "n_query",
            "n_support",
            "batch_size",
            "n_blocks",
            "eval_every",
            "patience",
        ):
            require_int(name, getattr(self, name))
        for name in ("delta_rank", "rank"):
            require_int(name, getattr(self, name), most=WIDTH_MOST)
        for name in ("delta_lr", "beta", "lr", "ridge", "meta_lr", "step_lr"):
            require_number(name, getattr(self, name), above=0)
        require_number("lam", self.lam, least=0)
        require_int("steps", self.steps, 0, STEPS_MOST)
        require_number("margin", self.margin)
        require_seed(self.seed)

    @classmethod
    def direct(cls, **changes: object) -> BiasEditConfig:
        """Low-rank shifts trained without an editor, with steps to match."""
        settings: dict = {"shift": "direct", "steps": 50, "eval_every": 25}
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
