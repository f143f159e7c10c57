"""How BiasEdit's editor is trained and used: what is cached of a group of triples, the shift, the
losses under it.

One step, for a group of triples (MALMEN's scheme): the unedited model's debiasing loss gives each
edited map its keys and output gradients; the editor turns them into shifts; the loss of the shifted
model, on the same or on other triples, is backpropagated through shift, ridge and editor. The
model's weights take part as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.gradients import measuring
from tracelab.interventions.biasedit.config import BiasEditConfig
from tracelab.interventions.biasedit.editor import Editor
from tracelab.interventions.training.development import neutral_text
from tracelab.interventions.training.finetune import frozen
from tracelab.interventions.training.loop import Chunks
from tracelab.interventions.training.triple_losses import (
    debias_loss,
    hits,
    mean_over,
    retention_loss,
    scored,
    token_logprobs,
)
from tracelab.interventions.training.triples import Triples
from tracelab.interventions.weight_delta import MapShape, WeightDelta
from tracelab.model.partial_forward import SuffixRunner

N_RETAINED = 200
"""Neutral sentences that are kept from changing."""
TRIPLES_A_SENTENCE = 4
"""For so many triples of a step one neutral sentence is looked at: each costs as much as two."""

ORDER = ("anti_stereotype", "stereotype", "unrelated")
"""Of the sentences of a chunk of triples in a forward pass: the reference's."""

Cached = tuple[list[Float[Tensor, "n _d_k"]], list[Float[Tensor, "n _d_v"]]]


class Seen(NamedTuple):
    """A forward pass of sentences: their numbers, and what the model made of them."""

    rows: Sequence[int]
    tokens: Int[Tensor, "rows pos"]
    mask: Int[Tensor, "rows pos"]
    logits: Float[Tensor, "rows pos vocab"]

    def part(self, rows: slice) -> Seen:
        """Of some of the rows, no wider than the longest of them."""
        width = int(self.mask[rows].sum(dim=1).max())
        cut = (each[rows, :width] for each in self[1:])
        return Seen(self.rows[rows], *cut)


class Editors(nn.Module):
    """The editor networks of several linear maps, one a shape."""

    def __init__(self, shapes: Sequence[MapShape], config: BiasEditConfig) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        sizes = [(shape.d_in, shape.d_out) for shape in shapes]
        self.networks = nn.ModuleDict(
            {
                _name(size): Editor(
                    *size,
                    sizes.count(size),
                    rank=config.rank,
                    n_blocks=config.n_blocks,
                    lr=config.lr,
                    ridge=config.ridge,
                    init=config.init,
                    seed=config.seed,
                )
                for size in dict.fromkeys(sizes)
            }
        )
        # Which map of its shape each is.
        self._places = [(_name(size), sizes[:i].count(size)) for i, size in enumerate(sizes)]

    def groups(self, config: BiasEditConfig) -> list[dict[str, Any]]:
        """The parameters with their learning rates, for the optimiser."""
        steps = [network.step for network in self.networks.values()]
        others = [
            parameter
            for parameter in self.parameters()
            if not any(parameter is step for step in steps)
        ]
        return [{"params": others, "lr": config.meta_lr}, {"params": steps, "lr": config.step_lr}]

    def update(self, cached: Cached) -> None:
        """Let the normalisers see the rows of a group."""
        for (name, _), keys, grads in zip(self._places, *cached, strict=True):
            self.networks[name].normaliser.update(torch.cat([keys, grads], dim=1))  # type: ignore[union-attr,operator]

    def shifts(self, cached: Cached) -> list[Float[Tensor, "_d_k _d_v"]]:
        """The shift of each map for a group of triples."""
        return [
            self.networks[name].shift(keys, grads, index)  # type: ignore[operator]
            for (name, index), keys, grads in zip(self._places, *cached, strict=True)
        ]


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


class TripleModel:
    """A model's losses and scores on fixed triples, from the first edited block on."""

    def __init__(
        self,
        model: TransformerBridge,
        triples: Triples,
        shapes: Sequence[MapShape],
        config: BiasEditConfig,
    ) -> None:
        self.model, self.triples, self.shapes, self.config = model, triples, shapes, config
        self.runner = SuffixRunner(model, triples.sequences, min(shape.layer for shape in shapes))
        self._neutral = (
            neutral_text(model, "retain", N_RETAINED, self.runner.start)
            if config.retain_on == "neutral"
            else None
        )
        self._chunked = Chunks(config.batch_size)
        self._rows_of: dict[int, Cached] = {}

    def __len__(self) -> int:
        return len(self.triples.records)

    def cached(self, group: Sequence[int]) -> Cached:
        """Keys and output gradients of the unedited model's debiasing loss at the cached positions,
        by map.

        Both are constants of a triple, so each triple's are computed once and kept in memory.
        """
        missing = [i for i in group if i not in self._rows_of]
        self._chunked(self._cache, missing, lambda: None)
        rows = [self._rows_of[i] for i in group]
        device = self.model.cfg.device
        keys, grads = (
            [torch.cat([row[side][m] for row in rows]).to(device) for m in range(len(self.shapes))]
            for side in (0, 1)
        )
        return keys, grads

    def _cache(self, chunk: Sequence[int]) -> None:
        seen: dict[str, Tensor] = {}
        names = [str(shape.point) for shape in self.shapes]
        with frozen(self.model), self.model.hooks(fwd_hooks=self._recorders(seen)):
            seen_pair = self._run(chunk, ORDER[:2])
            loss, _ = self._debias(seen_pair)
            grads = torch.autograd.grad(
                loss.sum() / self.config.batch_size, [seen[f"{n}.grad"] for n in names]
            )
        chosen = _positions(seen_pair.mask, self.config.positions).cpu()  # good on any device
        for row, i in enumerate(chunk):
            # the anti-stereotype, then the stereotype
            own = [(r, chosen[r]) for r in (row, row + len(chunk))]
            self._rows_of[i] = (
                [
                    torch.cat([seen[f"{n}.key"][r][at].float() for r, at in own]).cpu()
                    for n in names
                ],
                [
                    torch.cat([grad[r][at].flatten(1).float() for r, at in own]).cpu()
                    for grad in grads
                ],
            )

    def _recorders(self, seen: dict[str, Tensor]) -> list[tuple[str, Any]]:
        def key(value: Tensor, hook: Any) -> None:
            seen[hook.name.replace(".hook_in", ".key")] = value.detach().flatten(2)

        def output(value: Tensor, hook: Any) -> Tensor:
            # the gradient at the output, blocks before it constant
            probe = torch.zeros_like(value, requires_grad=True)
            seen[hook.name.replace(".hook_out", ".grad")] = probe
            return value + probe

        names = [str(shape.point) for shape in self.shapes]
        return [hook for n in names for hook in ((f"{n}.hook_in", key), (f"{n}.hook_out", output))]

    def backward(self, delta: WeightDelta, group: Sequence[int]) -> dict[str, float]:
        """Losses of a group under a delta, of weight 0 as 0; their gradients are left in the
        delta's parameters."""
        totals = np.zeros(2)

        def accumulate(chunk: Sequence[int]) -> None:
            before = self._retained_logits(chunk) if self.config.lam else None
            others = before is not None and self._neutral is None
            with frozen(self.model), delta.applied(self.model):
                seen = self._run(chunk, ORDER if others else ORDER[:2])
                debias, _ = self._debias(seen.part(slice(2 * len(chunk))))
                retention = (
                    torch.zeros_like(debias)
                    if before is None
                    else self._retention(chunk, seen, before)
                )
                ((debias + self.config.lam * retention).sum() / self.config.batch_size).backward()
            totals[:] += debias.detach().sum().item(), retention.detach().sum().item()

        def restart() -> None:
            totals[:] = 0
            delta.zero_grad()

        self._chunked(accumulate, group, restart)
        return _figures(totals / len(group), self.config)

    @measuring()
    def measure(self, delta: WeightDelta | None, group: Sequence[int]) -> dict[str, float]:
        """Losses of a group under a delta, and its ``ss``, ``lms`` and ``gap`` by mean
        log-probability a token."""
        totals = np.zeros(2)
        lbars: list[Tensor] = []

        def add(chunk: Sequence[int]) -> None:
            before = self._retained_logits(chunk)
            with _perhaps(delta, self.model):
                seen, n = self._run(chunk), len(chunk)
                debias, lbar = self._debias(seen.part(slice(2 * n)))
                retention = self._retention(chunk, seen, before)
                unrelated = self._lbar(seen.part(slice(2 * n, None)))
            totals[:] += debias.sum().item(), retention.sum().item()
            lbars.append(torch.stack([*lbar, unrelated]))

        def restart() -> None:
            totals[:] = 0
            lbars.clear()

        self._chunked(add, group, restart)
        found = hits(*torch.cat(lbars, dim=1).double())
        return _figures(totals / len(group), self.config) | {
            name: value.item() for name, value in found.items()
        }

    def _rows(self, chunk: Sequence[int], label: str) -> list[int]:
        return [self.triples.index(i, label) for i in chunk]

    def _run(self, chunk: Sequence[int], labels: Sequence[str] = ORDER) -> Seen:
        """One forward pass of all that is needed of a chunk: each sentence once."""
        rows = [row for label in labels for row in self._rows(chunk, label)]
        return Seen(rows, *self.runner(rows))

    def _debias(self, seen: Seen) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The debiasing loss of each triple and both mean log-probabilities, of [anti; stereo]
        rows."""
        logprobs = token_logprobs(seen.logits, seen.tokens)
        every, chosen = (
            scored(seen.mask, [self.triples.scored(i, span) for i in seen.rows])
            for span in ("sentence", self.config.span)
        )
        n = len(seen.rows) // 2
        loss = debias_loss(
            self.config.loss,
            logprobs[n:],
            chosen[n:],
            logprobs[:n],
            chosen[:n],
            beta=self.config.beta,
            margin=self.config.margin,
        )
        lbar = mean_over(logprobs, every)
        return loss, (lbar[n:], lbar[:n])

    def _retained(self, chunk: Sequence[int]) -> tuple[Callable[..., Any], list[int]]:
        """What must not change while a chunk of triples is trained on, and what runs it."""
        if self._neutral is not None:
            every = len(self._neutral.sequences)
            return self._neutral, [i % every for i in chunk[::TRIPLES_A_SENTENCE]]
        labels = ORDER if self.config.retain_on == "all" else ("unrelated",)
        return self.runner, [i for label in labels for i in self._rows(chunk, label)]

    @measuring()
    def _retained_logits(self, chunk: Sequence[int]) -> Tensor:
        runner, rows = self._retained(chunk)
        return runner(rows)[2]

    def _retention(self, chunk: Sequence[int], seen: Seen, before: Tensor) -> Tensor:
        """The retention loss of each triple; of neutral text the mean over the chunk's.

        Args:
            seen: the three sentences of each triple, unless neutral text is retained.
        """
        runner, rows = self._retained(chunk)
        if self._neutral is not None:
            tokens, mask, after = runner(rows)
            each = retention_loss(self.config.retention, before, after, tokens, mask)
            return each.mean().expand(len(chunk))
        _, tokens, mask, after = seen.part(slice(-len(rows), None))
        each = retention_loss(self.config.retention, before, after, tokens, mask)
        return each.reshape(-1, len(chunk)).mean(dim=0)

    def _lbar(self, seen: Seen) -> Tensor:
        """The mean log-probability of each sentence."""
        places = scored(seen.mask, [self.triples.scored(i) for i in seen.rows])
        return mean_over(token_logprobs(seen.logits, seen.tokens), places)


def _figures(means: np.ndarray, config: BiasEditConfig) -> dict[str, float]:
    debias, retention = map(float, means)
    return {"loss": debias + config.lam * retention, "debias": debias, "retention": retention}


def _positions(mask: Tensor, rule: str) -> Tensor:
    """Which positions are cached."""
    real = mask.bool()
    last = real & ~torch.nn.functional.pad(real[:, 1:], (0, 1))
    if rule == "predicting":
        return real & ~last  # those whose logits are scored: the last token predicts nothing
    chosen = real.clone()
    chosen[:, 0] = False  # as released: the scored tokens themselves
    return chosen


@contextmanager
def _perhaps(delta: WeightDelta | None, model: TransformerBridge) -> Iterator[None]:
    if delta is None:
        yield
    else:
        with delta.applied(model):
            yield
