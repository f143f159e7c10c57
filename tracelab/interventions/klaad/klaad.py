"""KLAAD: align what the last layer attends to in a stereotype with what it attends to in its
opposite.

The paper fine-tunes the model on CE + attention KL + triplet (:mod:`.klaad_losses`); "without
modifying weights" there means that no weight is edited by hand. Here the base is frozen and
low-rank deltas of linear maps are trained on the same loss and applied as hooks, which is
tracelab's form of it. The attention loss gives the last layer's own value, output and MLP maps no
gradient. The only re-implementation found improved BBQ's disambiguated accuracy and made
CrowS-Pairs worse: look at what the edit does before you trust it.
Source: arXiv 2507.19962; what it leaves open is an option of :class:`KLAADConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil, isfinite
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.stereoset import StereoSetRecord
from tracelab.errors import TracelabError, require_choice
from tracelab.gradients import learning, measuring
from tracelab.interventions.klaad.losses import (
    ALIGNMENTS,
    POOLS,
    REDUCTIONS,
    aligned_positions,
    attention_loss,
    language_loss,
    pooled,
    triplet_loss,
)
from tracelab.interventions.origin import Origin
from tracelab.interventions.training.finetune import frozen
from tracelab.interventions.training.loop import TRAINING, Chunks, train
from tracelab.interventions.training.triple_losses import hits, mean_over, scored, token_logprobs
from tracelab.interventions.training.triples import LABELS, Triples, split_by_target, tokenise
from tracelab.interventions.weight_delta import WeightDelta, WeightDeltaSpec
from tracelab.model.hook_points import LINEAR_MAPS
from tracelab.model.hooked import require_unedited
from tracelab.model.load import model_facts, require_hook
from tracelab.model.partial_forward import SuffixRunner
from tracelab.model.settings import request_of
from tracelab.model.texts import as_records
from tracelab.ranges import EPOCHS_MOST, WIDTH_MOST, require_int, require_number, require_seed
from tracelab.storage.checkpoint import require_entries
from tracelab.storage.data_hash import data_hash

TRAINABLE = ("all", "attn_last")
_DEV_RECORDS = 256


@dataclass(frozen=True)
class KLAADConfig:
    """The losses' weights and readings, and how the deltas are trained.

    Attributes:
        lam1, lam2, lam3: weights of the language, attention and triplet losses (defaults: the
            paper's for Llama).
        margin: ``m`` of the triplet (0.3: the paper's for Llama).
        per_head, double_softmax, reduction: readings of the attention loss.
        align: of sentences of different length: ``"match"``, ``"pad"`` or ``"equal_only"``.
        pool: hidden state of a sentence: its ``"last"`` token's or their ``"mean"``.
        trainable: ``"all"``: deltas of every linear map; ``"attn_last"``: of the last layer's query
            and key maps.
        rank: of the deltas.
        lr: peak of the cosine schedule (AdamW without weight decay; the paper's 1e-5 is for full
            fine-tuning).
        epochs, batch_size: triples a step.
        eval_every: steps between two looks at the development triples.
        patience: looks without improvement after which training ends.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # in a bundle's manifest

    lam1: float = 0.7
    lam2: float = 0.15
    lam3: float = 0.15
    margin: float = 0.3
    per_head: bool = False
    double_softmax: bool = False
    reduction: str = "mean"
    align: str = "match"
    pool: str = "last"
    trainable: str = "all"
    rank: int = 8
    lr: float = 2e-4
    epochs: int = 1
    batch_size: int = 8
    eval_every: int = 50
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("reduction", REDUCTIONS),
            ("align", ALIGNMENTS),
            ("pool", POOLS),
            ("trainable", TRAINABLE),
        ):
            require_choice(name, getattr(self, name), choices)
        lams = (self.lam1, self.lam2, self.lam3)
        if not all(isfinite(lam) and lam >= 0 for lam in lams) or not any(lams):
            raise TracelabError(f"lam1, lam2 and lam3 are at least 0 and not all 0: not {lams}")
        require_number("margin", self.margin)
        require_number("lr", self.lr, above=0)
        require_int("rank", self.rank, most=WIDTH_MOST)
        require_int("epochs", self.epochs, most=EPOCHS_MOST)
        for name in ("batch_size", "eval_every", "patience"):
            require_int(name, getattr(self, name))
        require_seed(self.seed)


class KLAADSpec(WeightDeltaSpec):
    """The deltas' shapes, the configuration, and the bias types of the training data."""

    config: KLAADConfig
    bias: str


class KLAAD(WeightDelta):
    """Attention alignment as low-rank deltas.

    >>> edit = KLAAD.fit(model, tracelab.datasets.stereoset("gender", split="test"))
    >>> with edit.applied(model):
    ...     model(tokens)
    """

    kind = "klaad"
    Spec = KLAADSpec

    def __init__(
        self, spec: KLAADSpec, origin: Origin | None, notes: dict[str, Any] | None = None
    ) -> None:
        super().__init__(spec, origin, notes)
        self.config, self.bias = spec.config, spec.bias

    @classmethod
    @learning()
    def fit(
        cls,
        model: TransformerBridge,
        data: Iterable[StereoSetRecord],
        config: KLAADConfig | None = None,
        *,
        dev: Iterable[StereoSetRecord] | None = None,
        checkpoint: Path | str | None = None,
        allow_hooks: bool = False,
    ) -> KLAAD:
        """Train the deltas on triples.

        Args:
            data: training records; not those that the edit will be scored on.
            dev: development records, which choose the state that is kept; default: those of a fifth
                of the target terms of ``data``.
            checkpoint: folder in which an interrupted fit is stored, and resumed from.
            allow_hooks: fit on a model with hooks on, as it is with them.

        Raises:
            TracelabError: no usable triple, a loss that is not finite at the first step, or
                training that diverges.
        """
        began = perf_counter()
        require_unedited(model, "a fit of KLAAD", allow_hooks=allow_hooks)
        require_entries(checkpoint, TRAINING)
        config = config or KLAADConfig()
        last = model_facts(model).n_layers - 1
        require_hook(model, "pattern", last)
        records, held_out = (
            split_by_target(data, seed=config.seed)
            if dev is None
            else (as_records(data), as_records(dev))
        )
        train_triples, dev_triples = tokenise(model, records), tokenise(model, held_out)
        every = config.trainable == "all"
        shapes = WeightDelta.low_rank(
            model,
            layers=range(last + 1) if every else [last],
            modules=_present(model) if every else ("attn.q", "attn.k"),
            rank=config.rank,
            seed=config.seed,
        )
        bias = "+".join(sorted({record.bias_type for record in train_triples.records}))
        edit = cls(KLAADSpec(maps=shapes.spec().maps, config=config, bias=bias), shapes.origin)
        edit.load_state_dict(shapes.state_dict())
        edit.to(model.cfg.device)
        first = 0 if every else last
        trained, measured = (
            KLAADLoss(model, triples, config, first) for triples in (train_triples, dev_triples)
        )
        shuffled = (
            np.random.default_rng(config.seed).permutation(len(measured))[:_DEV_RECORDS].tolist()
        )
        optimizer = torch.optim.AdamW(edit.parameters(), lr=config.lr, weight_decay=0.0)
        steps = config.epochs * ceil(len(trained) / config.batch_size)

        def evaluate() -> dict[str, float]:
            figures = measured.measure(edit, shuffled)
            return figures | {"score": figures["loss"]}

        key = {"data": data_hash(records), "dev": data_hash(held_out), "config": asdict(config)}
        curves = train(
            edit,
            optimizer,
            _batches(len(trained), config),
            lambda batch: trained.backward(edit, batch),
            evaluate,
            steps=steps,
            eval_every=config.eval_every,
            patience=config.patience,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
            checkpoint=checkpoint,
            key=request_of(model, **key),
            what=f"klaad({bias})",
        )
        curves.require_converged(f"klaad({bias})", checkpoint)
        edit.notes |= {"data_hash": key["data"], "dev_hash": key["dev"], "curves": curves.rows}
        edit.notes |= {
            "left_out": train_triples.left_out,
            "n_train": len(trained),
            "n_dev": len(measured),
        }
        edit.notes |= {"fit_seconds": round(perf_counter() - began, 1)}
        return edit

    @property
    def name(self) -> str:
        """``klaad(gender)``."""
        return f"klaad({self.bias})"

    def spec(self) -> KLAADSpec:
        """The maps, the configuration and the bias types."""
        return KLAADSpec(maps=self._spec.maps, config=self.config, bias=self.bias)

    @classmethod
    def build(cls, spec: Any, origin: Origin | None) -> KLAAD:
        """With zero deltas."""
        return cls(spec, origin)


def _present(model: TransformerBridge) -> list[str]:
    """The linear maps that a block of this architecture has."""
    return [m for m in LINEAR_MAPS if f"blocks.0.{m}.hook_in" in model.hook_dict]


def _batches(n: int, config: KLAADConfig) -> Iterator[list[int]]:
    order = np.random.default_rng(config.seed)
    for _ in range(config.epochs):
        shuffled = order.permutation(n).tolist()
        for start in range(0, n, config.batch_size):
            yield shuffled[start : start + config.batch_size]


class Outputs(NamedTuple):
    """What the losses need of a forward pass, with gradients."""

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    logits: Float[Tensor, "batch pos vocab"]
    pattern: Float[Tensor, "batch head pos pos"]
    hidden: Float[Tensor, "batch pos d_model"]


class KLAADLoss:
    """KLAAD's losses on fixed triples."""

    def __init__(
        self, model: TransformerBridge, triples: Triples, config: KLAADConfig, first_layer: int
    ) -> None:
        self.model, self.triples, self.config = model, triples, config
        self.runner = SuffixRunner(model, triples.sequences, first_layer)
        self.pattern = require_hook(model, "pattern", model_facts(model).n_layers - 1)
        self.hidden = require_hook(model, "final_norm")
        self._chunked = Chunks(config.batch_size)

    def __len__(self) -> int:
        return len(self.triples.records)

    def losses(
        self, chunk: Sequence[int], pair: Outputs, other: Outputs | None
    ) -> dict[str, Float[Tensor, ""]]:
        """``ce``, ``kl``, ``triplet`` and their weighted sum ``loss``: means over triples, ``ce``
        over tokens.

        Args:
            pair: of the stereotypes, then the anti-stereotypes.
            other: of the unrelated sentences; None: the triplet loss is left at 0.
        """
        config, n = self.config, len(chunk)
        halves = [
            language_loss(pair.logits[rows], pair.tokens[rows], pair.mask[rows])
            for rows in (slice(n), slice(n, None))
        ]
        sequences = self.triples.sequences
        stereo, anti = (self._rows(chunk, label) for label in LABELS[:2])
        aligned = [
            aligned_positions(sequences[s], sequences[a], config.align)
            for s, a in zip(stereo, anti, strict=True)
        ]
        kl = attention_loss(
            pair.pattern[:n],
            pair.pattern[n:],
            aligned,
            per_head=config.per_head,
            double_softmax=config.double_softmax,
            reduction=config.reduction,
        )
        parts = {
            "ce": (halves[0] + halves[1]) / 2,
            "kl": kl.mean(),
            "triplet": torch.zeros_like(halves[0]),
        }
        if other is not None:
            h = pooled(pair.hidden, pair.mask, config.pool)
            far = pooled(other.hidden, other.mask, config.pool)
            parts["triplet"] = triplet_loss(h[:n], h[n:], far, config.margin).mean()
        lams = {"ce": config.lam1, "kl": config.lam2, "triplet": config.lam3}
        return {
            "loss": sum(
                (lam * parts[name] for name, lam in lams.items() if lam),
                torch.zeros((), dtype=torch.float32, device=halves[0].device),
            )
        } | parts

    def backward(self, edit: WeightDelta, batch: Sequence[int]) -> dict[str, float]:
        """The losses of a batch under an edit; their gradients are left in its parameters."""
        totals: dict[str, float] = {}

        def accumulate(chunk: Sequence[int]) -> None:
            share = len(chunk) / len(batch)
            with frozen(self.model), edit.applied(self.model):
                other = self._run(self._rows(chunk, "unrelated")) if self.config.lam3 else None
                parts = self.losses(chunk, self._run_pair(chunk), other)
                (parts["loss"] * share).backward()
            _add(totals, parts, share)

        def restart() -> None:
            totals.clear()
            edit.zero_grad()

        self._chunked(accumulate, batch, restart)
        return totals

    @measuring()
    def measure(self, edit: WeightDelta, group: Sequence[int]) -> dict[str, float]:
        """All losses under an edit, also those of weight 0, with ``ss``, ``lms`` and ``gap``."""
        totals: dict[str, float] = {}

        def add(chunk: Sequence[int]) -> None:
            with edit.applied(self.model):
                pair, other = self._run_pair(chunk), self._run(self._rows(chunk, "unrelated"))
            parts = self.losses(chunk, pair, other)
            lbar = [
                mean_over(token_logprobs(o.logits, o.tokens), scored(o.mask)) for o in (pair, other)
            ]
            n = len(chunk)
            _add(totals, parts | hits(lbar[0][:n], lbar[0][n:], lbar[1]), n / len(group))

        self._chunked(add, group, totals.clear)
        return totals

    def _rows(self, chunk: Sequence[int], label: str) -> list[int]:
        return [self.triples.index(i, label) for i in chunk]

    def _run_pair(self, chunk: Sequence[int]) -> Outputs:
        return self._run([row for label in LABELS[:2] for row in self._rows(chunk, label)])

    def _run(self, rows: Sequence[int]) -> Outputs:
        seen: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any) -> None:
            seen[hook.name] = value

        with self.model.hooks(fwd_hooks=[(self.pattern, keep), (self.hidden, keep)]):
            tokens, mask, logits = self.runner(rows)
        return Outputs(tokens, mask, logits, seen[self.pattern], seen[self.hidden])


def _add(totals: dict[str, float], parts: dict[str, Tensor], share: float) -> None:
    for name, value in parts.items():
        totals[name] = totals.get(name, 0.0) + share * value.item()
