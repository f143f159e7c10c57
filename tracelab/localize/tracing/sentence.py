"""Clean, corrupted and restored runs of one sentence, and the plain way to make them.

``plain_trace`` runs the whole model once a state, with hooks, as the reference implementations do.
It is the oracle of the fast way (:mod:`.fast`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracelab.gradients import measuring
from tracelab.model.load import model_facts, require_hook
from tracelab.model.partial_forward import BlockRunner, Watcher
from tracelab.model.scoring import logprobs_of

COMPONENTS = ("resid", "mlp", "attn")
HOOKED = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}


@dataclass(frozen=True)
class Noise:
    """What is added to the embeddings of a sentence: ``values`` at ``positions``, one row a
    sample."""

    positions: tuple[int, ...]
    values: Float[Tensor, "samples noised d_model"]

    def before(self, stop: int) -> Noise:
        """What of it is at positions before ``stop``."""
        kept = [row for row, position in enumerate(self.positions) if position < stop]
        return Noise(tuple(self.positions[row] for row in kept), self.values[:, kept])


@dataclass(frozen=True)
class TracedSentence:
    """Tokens, the noise on them, and where states are restored, one position at a time."""

    ids: Int[Tensor, "pos"]
    noise: Noise
    positions: Sequence[int]


@dataclass(frozen=True)
class TracedStates:
    """Which states are restored, at each position.

    Attributes:
        layers: at which states are restored, one layer (or window around it) at a time.
        components: of :data:`COMPONENTS`.
        window: layers restored together for ``mlp`` and ``attn``.
    """

    layers: Sequence[int]
    components: Sequence[str]
    window: int

    def windows(self, component: str, n_layers: int) -> list[range]:
        """The layers restored together at each of ``layers``."""
        if component == "resid":
            return [range(layer, layer + 1) for layer in self.layers]
        return [window_layers(layer, self.window, n_layers) for layer in self.layers]


@dataclass(frozen=True)
class SentenceTrace:
    """Scores of one sentence, each the log-probability of its tokens from ``first`` on.

    Attributes:
        clean: of the clean run.
        corrupted: mean over noise samples.
        restored: by component, mean over noise samples with that state restored.
    """

    clean: float
    corrupted: float
    restored: dict[str, Float[Tensor, "positions layers"]]


Tracer = Callable[[BlockRunner, Sequence[TracedSentence], int, TracedStates], list[SentenceTrace]]
"""Traces a pair's sentences, which are the same before ``first``, noise included. They are scored
from ``first`` on, which is at least 1."""


def window_layers(layer: int, window: int, n_layers: int) -> range:
    """Layers restored together for an MLP or attention state: ``layer − w/2 … layer + w/2 − 1``,
    clipped.

    ROME's and BiasEdit's window of 10 is off-centre by one and shorter near both ends of the model.
    """
    return range(max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2))


def plain_traces(
    runner: BlockRunner, sentences: Sequence[TracedSentence], first: int, states: TracedStates
) -> list[SentenceTrace]:
    """Each sentence by :func:`plain_trace`."""
    return [plain_trace(runner, sentence, first, states) for sentence in sentences]


@measuring()
def plain_trace(
    runner: BlockRunner, sentence: TracedSentence, first: int, states: TracedStates
) -> SentenceTrace:
    """Trace one sentence, one full forward pass of the bridge a state."""
    model, n_layers = runner.model, model_facts(runner.model).n_layers
    noise = sentence.noise
    tokens = sentence.ids[None].to(model.cfg.device)
    rows = tokens.expand(len(noise.values), -1)
    clean: dict[str, dict[int, Tensor]] = {c: {} for c in states.components}
    hooks = [
        (require_hook(model, HOOKED[component], layer), _keep(clean[component], layer))
        for component in states.components
        for layer in range(n_layers)
    ]
    with model.hooks(fwd_hooks=hooks):
        clean_score = _sum_logprobs(model(tokens), tokens, first).mean()
    noise_hook = (require_hook(model, "embed"), lambda value, hook: noising(noise)(value))

    def put_back(component: str, layer: int, position: int):
        def hook(value: Float[Tensor, "samples pos d_model"], hook: object) -> Tensor:
            value = value.clone()
            value[:, position] = clean[component][layer][0, position]
            return value

        return require_hook(model, HOOKED[component], layer), hook

    def run(extra: list[Any]) -> Tensor:
        with model.hooks(fwd_hooks=[noise_hook, *extra]):
            return _sum_logprobs(model(rows), rows, first).mean()

    corrupted = run([])
    shape = len(sentence.positions), len(states.layers)
    restored = {c: torch.empty(shape, dtype=torch.float32) for c in states.components}
    for component, table in restored.items():
        for index, position in enumerate(sentence.positions):
            for column, window in enumerate(states.windows(component, n_layers)):
                table[index, column] = run([put_back(component, n, position) for n in window])
    return SentenceTrace(float(clean_score), float(corrupted), restored)


def noising(noise: Noise) -> Watcher:
    """Adds noise to the embeddings."""

    def add(embeddings: Float[Tensor, "samples pos d_model"]) -> Tensor:
        embeddings = embeddings.clone()
        embeddings[:, list(noise.positions)] += noise.values.to(embeddings)
        return embeddings

    return add


def _keep(store: dict[int, Tensor], key: int) -> Callable[..., None]:
    def hook(value: Tensor, hook: object) -> None:
        store[key] = value.detach()

    return hook


def _sum_logprobs(
    logits: Float[Tensor, "rows pos vocab"], tokens: Int[Tensor, "rows pos"], first: int
) -> Float[Tensor, "rows"]:
    return logprobs_of(logits[:, first - 1 : -1], tokens[:, first:]).sum(dim=1)
