"""KLAAD: align what the last layer attends to in a stereotype with what it attends to in its
opposite.

The paper fine-tunes the model on CE + attention KL + triplet (:mod:`.losses`); "without
modifying weights" there means that no weight is edited by hand. Here the base is frozen and
low-rank deltas of linear maps are trained on the same loss and applied as hooks, which is
tracelab's form of it. The attention loss gives the last layer's own value, output and MLP maps no
gradient. The only re-implementation found improved BBQ's disambiguated accuracy and made
CrowS-Pairs worse, and here attention that is aligned is no association less
(``analyses/klaad_ablations.py``): look at what the edit does before you trust it.
Source: arXiv 2507.19962; what it leaves open is an option of :class:`KLAADConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.records import Record
from tracelab.errors import TracelabError, warn
from tracelab.gradients import measuring
from tracelab.interventions.klaad.config import KLAADConfig
from tracelab.interventions.klaad.losses import (
    aligned_positions,
    attention_loss,
    language_loss,
    pooled,
    triplet_loss,
)
from tracelab.interventions.training.development import Choice, Development, remembered, scaled
from tracelab.interventions.training.finetune import frozen
from tracelab.interventions.training.loop import Chunks
from tracelab.interventions.training.trained_delta import TrainedDelta
from tracelab.interventions.training.triples import LABELS, Triples, tokenise
from tracelab.interventions.weight_delta import WeightDelta
from tracelab.model.hook_points import linear_maps
from tracelab.model.load import model_facts, require_hook
from tracelab.model.partial_forward import SuffixRunner

PARTS = {"ce": "lam1", "attention": "lam2", "triplet": "lam3"}
"""The losses, and the field of the configuration that weighs each."""
_LOSS_RECORDS = 64
"""Development triples on which the losses are measured at each look; the choice is by all."""


class KLAAD(TrainedDelta):
    """Attention alignment as low-rank deltas.

    >>> edit = KLAAD.fit(model, tracelab.datasets.stereoset("gender", split="test"))
    >>> with edit.applied(model):
    ...     tracelab.generate(model, "The nurse said that").frame
    """

    kind = "klaad"
    tried: ClassVar = {
        "reduction": ("mean", "batchmean"),
        "language_on": ("both", "anti_stereotype"),
    }
    Config = KLAADConfig

    @classmethod
    def learned(
        cls,
        model: TransformerBridge,
        data: Iterable[Record],
        config: KLAADConfig,
        *,
        layers: Sequence[int] | None,
        dev: Iterable[Record] | None,
        checkpoint: Path | None,
    ) -> KLAAD:
        """Train the deltas on triples.

        The state that is kept is the one with the least association (or loss) on the development
        triples among those that cost no more than ``max_kl`` and ``max_lms_loss``: if none has
        less than the unedited model, the edit changes nothing, and a warning says so.

        Args:
            data: training records.
            layers: that get deltas, if ``trainable`` is ``"all"``; default: each.
        """
        last = model_facts(model).n_layers - 1
        require_hook(model, "pattern", last)
        every = config.trainable == "all"
        if layers is not None and not every:
            raise TracelabError(f"trainable={config.trainable!r} is of the last layer: give none")
        chosen = [last] if not every else list(range(last + 1)) if layers is None else list(layers)
        records, held_out = cls.split(data, dev, config.seed)
        order = np.random.default_rng(config.seed).permutation(len(held_out))[: config.n_dev]
        looked_at = [held_out[i] for i in order]
        train_triples, dev_triples = tokenise(model, records), tokenise(model, looked_at)
        modules = linear_maps(model) if every else ("attn.q", "attn.k")
        edit = cls.begun(
            model, config, train_triples, layers=chosen, modules=modules, rank=config.rank
        )
        trained, measured = (
            KLAADLoss(model, triples, config, min(chosen))
            for triples in (train_triples, dev_triples)
        )
        development = Development(model, dev_triples, min(chosen))
        few = range(len(measured))[:_LOSS_RECORDS]

        def measure() -> dict[str, float]:
            return measured.measure(edit, few) | development.measure(edit)

        figures = remembered(edit, measure)

        choice = Choice(config, figures())  # of the unedited model so far

        def evaluate() -> dict[str, float]:
            found = figures()
            norms = measured.gradient_norms(edit, few[: config.batch_size])
            return found | norms | {"score": choice.score(found)}

        optimizer = torch.optim.AdamW(edit.parameters(), lr=config.lr, weight_decay=0.0)
        steps = config.epochs * ceil(len(trained) / config.batch_size)
        edit.train_on(
            model,
            records,
            held_out,
            _batches(len(trained), config),
            lambda batch: trained.backward(edit, batch),
            evaluate,
            module=edit,
            optimizer=optimizer,
            steps=steps,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
            checkpoint=checkpoint,
        )
        edit.note_sizes(train_triples, len(trained), len(measured))
        if config.choose == "association" or not choice.allows(figures()):
            strength, table = scaled(edit, choice, figures)
            edit.notes |= {"strength": strength, "strengths": table}
        if not any(part.weight().any() for part in edit.maps.values()):  # type: ignore[operator]
            warn(
                f"{edit.name} changes nothing: no state or strength lowered the {config.choose} of "
                f"the development triples at a KL to the unedited model of at most "
                f"{config.max_kl:g} and a loss of at most {config.max_lms_loss:g} points of LMS "
                '(notes["curves"]); look at it more often, train longer, or on more triples'
            )
        return edit


KLAADSpec = KLAAD.Spec


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
        """``ce``, ``attention``, ``triplet`` and their weighted sum ``loss``: means over triples,
        ``ce`` over tokens.

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
        attention = attention_loss(
            pair.pattern[:n],
            pair.pattern[n:],
            aligned,
            per_head=config.per_head,
            double_softmax=config.double_softmax,
            reduction=config.reduction,
        )
        parts = {
            "ce": halves[1] if config.language_on != "both" else (halves[0] + halves[1]) / 2,
            "attention": attention.mean(),
            "triplet": torch.zeros_like(halves[0]),
        }
        if other is not None:
            h = pooled(pair.hidden, pair.mask, config.pool)
            far = pooled(other.hidden, other.mask, config.pool)
            parts["triplet"] = triplet_loss(h[:n], h[n:], far, config.margin).mean()
        lams = {name: getattr(config, field) for name, field in PARTS.items()}
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

    def gradient_norms(self, edit: WeightDelta, group: Sequence[int]) -> dict[str, float]:
        """``grad_ce``, ``grad_attention``, ``grad_triplet``: the norm of each loss's own gradient
        with respect to all deltas, before its weight, and also where that is 0."""
        parameters = list(edit.parameters())
        sums = {name: [torch.zeros_like(p) for p in parameters] for name in PARTS}

        def accumulate(chunk: Sequence[int]) -> None:
            share = len(chunk) / len(group)
            with frozen(self.model), edit.applied(self.model):
                other = self._run(self._rows(chunk, "unrelated"))
                parts = self.losses(chunk, self._run_pair(chunk), other)
                for name, total in sums.items():
                    found = torch.autograd.grad(
                        parts[name], parameters, retain_graph=True, materialize_grads=True
                    )
                    for kept, gradient in zip(total, found, strict=True):
                        kept += share * gradient

        def restart() -> None:
            for kept in (each for total in sums.values() for each in total):
                kept.zero_()

        self._chunked(accumulate, group, restart)
        return {
            f"grad_{name}": float(torch.stack([kept.norm().cpu() for kept in total]).norm())
            for name, total in sums.items()
        }

    @measuring()
    def measure(self, edit: WeightDelta, group: Sequence[int]) -> dict[str, float]:
        """All losses under an edit, also those of weight 0."""
        totals: dict[str, float] = {}

        def add(chunk: Sequence[int]) -> None:
            with edit.applied(self.model):
                pair, other = self._run_pair(chunk), self._run(self._rows(chunk, "unrelated"))
            _add(totals, self.losses(chunk, pair, other), len(chunk) / len(group))

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
        pattern, hidden = (seen[name].to(logits.device) for name in (self.pattern, self.hidden))
        return Outputs(tokens, mask, logits, pattern, hidden)


def _add(totals: dict[str, float], parts: dict[str, Tensor], share: float) -> None:
    for name, value in parts.items():
        totals[name] = totals.get(name, 0.0) + share * value.item()
