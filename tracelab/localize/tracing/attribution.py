"""Attribution tracing: the effect of every restored state to first order, from one backward pass.

    IE(state)  ≈  ∂ log p / ∂ state  ·  (clean state − corrupted state)        in the corrupted run

averaged over noise samples: attribution patching (Nanda, 2023; Syed et al., 2023, arXiv 2310.10348)
of the states that :mod:`.fast` restores. A forward and a backward pass give the gradients of all
layers, positions and components at once. With ``ig_steps`` of k the gradient is the mean over k
points of the straight line from the corrupted to the clean embeddings, the corrupted end first (as
EAP-IG, Hanna et al., 2024, arXiv 2403.17806), which takes k times as long.

**Windows.** Restoring MLPs a to b at a position sets each to its clean value, so what an earlier
one would make of a later one is overwritten. The gradient of the earlier one has that path in it:
the sum of ``gradient · change`` over the window counts it twice. Where a block's MLP follows its
attention, what is added before MLP l acts through it by ``∂/∂attn_l − ∂/∂mlp_l``, so

    IE(a … b)  ≈  Σ_l ∂/∂mlp_l · δ_l  −  Σ_l (∂/∂attn_l − ∂/∂mlp_l) · Σ_{a ≤ k < l} δ_k

with δ = clean − corrupted. Two paths are still counted twice, as one backward pass does not tell
them apart: what attention at a position makes of that position alone (so windows of ``attn`` are
the plain sum), and that of MLPs beside their attention (GPT-NeoX, Falcon), where the second term is
zero. A window of one layer, and ``resid``, are exactly of first order.

It is a screen, not a measurement: where the model saturates, the first order is far off. Under an
edit that holds something fixed on the way back (FairMed's step) it is of what the edit leaves free.
TransformerLens' ``attribution_patch`` does not fit: it adds up the positions of a node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tracelab.gradients import learning, measuring
from tracelab.localize.tracing.sentence import (
    COMPONENTS,
    HOOKED,
    SentenceTrace,
    TracedSentence,
    TracedStates,
)
from tracelab.localize.tracing.shared_runs import LOGIT_BYTES
from tracelab.model.load import model_facts
from tracelab.model.partial_forward import BlockRunner, Watcher
from tracelab.model.scoring import logprobs_of

BATCH_POSITIONS = 1024
"""Positions run at once."""

ByLayer = dict[str, Float[Tensor, "layers rows pos d_model"]]
"""Of each component, a value of the states of all layers."""


@measuring()
def attribution_traces(
    runner: BlockRunner,
    sentences: Sequence[TracedSentence],
    first: int,
    states: TracedStates,
    *,
    ig_steps: int = 1,
) -> list[SentenceTrace]:
    """Trace sentences that are the same before ``first``, noise included, to first order.

    ``restored`` of a trace is the corrupted score plus the effect as above, so that what follows
    from restored scores follows from these too.

    Args:
        ig_steps: points at which the gradient is taken.
    """
    # MLPs' windows need what is added before each MLP: attention's gradients tell.
    needed = {*states.components} | ({"attn"} if "mlp" in states.components else set())
    batch = _Batch.of(runner, sentences, first, [c for c in COMPONENTS if c in needed])
    samples = len(sentences[0].noise.values)
    clean, n_layers = batch.run(1), model_facts(runner.model).n_layers
    windows = {c: states.windows(c, n_layers) for c in states.components}
    scores = torch.zeros_like(clean.scores)
    effects = {c: scores.new_zeros(len(w), *batch.tokens.shape) for c, w in windows.items()}
    for some in torch.arange(samples).split(batch.samples_at_once):
        found, corrupted, gradients = _corrupted_runs(batch, some, ig_steps)
        scores += batch.by_side(found)
        change = {
            c: repeat(of_layers, "l side p d -> l (side n) p d", n=len(some)) - corrupted[c]
            for c, of_layers in clean.stacked().items()
        }
        for component, layers in windows.items():
            for effect, rows in zip(
                effects[component], _first_order(component, layers, gradients, change), strict=True
            ):
                effect += batch.by_side(rows)
    traces = []
    for side, sentence in enumerate(sentences):
        low = float(scores[side] / samples)
        restored = {c: _restored(sentence, low, e[:, side] / samples) for c, e in effects.items()}
        traces.append(SentenceTrace(float(clean.scores[side]), low, restored))
    return traces


def _first_order(
    component: str, windows: Sequence[range], gradients: ByLayer, change: ByLayer
) -> Iterator[Float[Tensor, "rows pos"]]:
    """The effect of each window of layers, restored together."""
    own = (gradients[component] * change[component]).sum(dim=-1)
    if component != "mlp":
        yield from (own[window.start : window.stop].sum(dim=0) for window in windows)
        return
    through = gradients["attn"] - gradients["mlp"]
    added = change["mlp"].cumsum(dim=0) - change["mlp"]  # by all MLPs before, in the window or not
    own = own - (through * added).sum(dim=-1)
    for window in windows:
        layers = slice(window.start, window.stop)
        outside = (through[layers].sum(dim=0) * added[window.start]).sum(dim=-1)
        yield own[layers].sum(dim=0) + outside


def _restored(
    sentence: TracedSentence, corrupted: float, effects: Float[Tensor, "windows pos"]
) -> Float[Tensor, "positions windows"]:
    """Scores with states restored; the corrupted one where restoring changes nothing."""
    shape = len(sentence.positions), len(effects)
    table = torch.full(shape, corrupted, dtype=torch.float32)
    for row, position in enumerate(sentence.positions):
        # A state before any noise is clean already, and the last token is not run.
        if min(sentence.noise.positions) <= position < len(sentence.ids) - 1:
            table[row] += effects[:, position].cpu()
    return table


@dataclass(frozen=True)
class _Batch:
    """A pair's sentences without their last tokens, which predict nothing, one a row.

    Attributes:
        first: first scored token.
        components: whose states are read.
        tokens: padded at the end, which changes nothing before it.
        targets, scored: what is predicted from ``first`` on, and whether it is a token.
    """

    runner: BlockRunner
    sentences: Sequence[TracedSentence]
    first: int
    components: Sequence[str]
    tokens: Int[Tensor, "side pos"]
    targets: Int[Tensor, "side read"]
    scored: Bool[Tensor, "side read"]

    @classmethod
    def of(
        cls,
        runner: BlockRunner,
        sentences: Sequence[TracedSentence],
        first: int,
        components: Sequence[str],
    ) -> _Batch:
        """On the model's device."""
        ids = pad_sequence([sentence.ids for sentence in sentences], batch_first=True)
        lengths = torch.tensor([len(sentence.ids) for sentence in sentences])
        scored = torch.arange(ids.shape[1]) < lengths[:, None]
        ids, scored = ids.to(runner.model.cfg.device), scored.to(runner.model.cfg.device)
        read = ids[:, first:], scored[:, first:]
        return cls(runner, sentences, first, components, ids[:, :-1], *read)

    @property
    def samples_at_once(self) -> int:
        """Noise samples whose rows and logits fit into memory that is at hand."""
        logits = LOGIT_BYTES * (1 if self.tokens.device.type == "cpu" else 16)
        by_logits = logits // (4 * self.runner.model.cfg.d_vocab * self.targets.numel())
        return max(1, min(BATCH_POSITIONS // self.tokens.numel(), by_logits))

    def by_side(self, rows: Float[Tensor, "rows *rest"]) -> Float[Tensor, "side *rest"]:
        """Sums over noise samples."""
        return rows.unflatten(0, (len(self.sentences), -1)).sum(dim=1)

    def run(self, samples: int, corrupt: Watcher | None = None) -> _Run:
        """Each sentence some times; rows are (side, sample), side-major.

        Args:
            corrupt: changes the embeddings.
        """
        tokens, targets, scored = (
            repeat(tensor, "side pos -> (side n) pos", n=samples)
            for tensor in (self.tokens, self.targets, self.scored)
        )
        states: dict[str, list[Tensor]] = {component: [] for component in self.components}
        watchers: list[tuple[str, int | None, Watcher]] = [
            (HOOKED[component], layer, states[component].append)
            for layer in range(model_facts(self.runner.model).n_layers)
            for component in self.components
        ]
        if corrupt is not None:
            watchers.append(("embed", None, corrupt))
        with self.runner.watching(watchers):
            logits = self.runner.logits(tokens, start=self.first - 1)
        found = logprobs_of(logits, targets.to(logits.device)) * scored.to(logits.device)
        return _Run(found.sum(dim=1), states)


@dataclass(frozen=True)
class _Run:
    """Log-probability of what is scored in each row, and the states of each component by layer."""

    scores: Float[Tensor, "rows"]
    states: dict[str, list[Float[Tensor, "rows pos d_model"]]]

    def gradients(self) -> ByLayer:
        """Of the scores, by the states."""
        by = [state for layers in self.states.values() for state in layers]
        found = iter(torch.autograd.grad(self.scores.sum(), by))
        return {c: self._at_one_place([next(found) for _ in s]) for c, s in self.states.items()}

    def stacked(self) -> ByLayer:
        """The states, without a graph."""
        return {c: self._at_one_place(states).detach() for c, states in self.states.items()}

    def _at_one_place(self, states: Sequence[Tensor]) -> Float[Tensor, "layers rows pos d_model"]:
        """In fp32: a model's layers may be on several devices."""
        return torch.stack([state.float().to(self.scores.device) for state in states])


def _corrupted_runs(
    batch: _Batch, samples: Int[Tensor, "some"], ig_steps: int
) -> tuple[Float[Tensor, "rows"], ByLayer, ByLayer]:
    """Of some noise samples: scores, states, and gradients (their mean over the steps)."""
    noises = [sentence.noise.before(len(sentence.ids) - 1) for sentence in batch.sentences]

    def noising_by(share: float) -> Watcher:
        def add(embeddings: Float[Tensor, "rows pos d_model"]) -> Tensor:
            embeddings = embeddings.detach().clone()
            for noise, rows in zip(noises, embeddings.chunk(len(noises)), strict=True):
                rows[:, list(noise.positions)] += share * noise.values[samples].to(rows)
            return embeddings.requires_grad_()  # the weights are frozen: gradients begin here

        return add

    with learning():
        run = batch.run(len(samples), noising_by(1.0))
        gradients = run.gradients()
        scores, states = run.scores.detach(), run.stacked()
        for step in range(1, ig_steps):
            run = batch.run(len(samples), noising_by(1.0 - step / ig_steps))
            for component, more in run.gradients().items():
                gradients[component] += more
    return scores, states, {component: total / ig_steps for component, total in gradients.items()}
