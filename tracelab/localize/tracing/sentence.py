"""Clean, corrupted and restored runs of one sentence: the fast way, and the plain way as its
oracle.

A restored run is the corrupted run (the same noise in every one) with one state put back to its
clean value. Two facts make it cheap and change nothing:

* Restoring at position t and layer l leaves every layer up to l and every position before t as in
  the corrupted run. So one corrupted cache of residuals, keys and values serves all restored runs,
  and a restored run only computes positions t, t+1, … of the layers after l, attending to cached
  keys before t.
* All layers l of one t run as one batch that grows: the run restored at l joins after block l.

The last token predicts nothing and is not run at all.

``plain_trace`` runs the whole model once a state, with hooks, as the reference implementations do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.gradients import measuring
from tracelab.model.load import model_facts, require_hook
from tracelab.model.partial_forward import BlockRunner, KeyValues
from tracelab.model.scoring import logprobs_of

COMPONENTS = ("resid", "mlp", "attn")
HOOKED = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
HEAD_ROWS = 64
"""Rows unembedded at once: bounds the logits' memory."""


@dataclass(frozen=True)
class Noise:
    """What is added to the embeddings of a sentence: ``values`` at ``positions``, one row a
    sample."""

    positions: tuple[int, ...]
    values: Float[Tensor, "samples noised d_model"]


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


Tracer = Callable[..., SentenceTrace]


def window_layers(layer: int, window: int, n_layers: int) -> range:
    """Layers restored together for an MLP or attention state: ``layer − w/2 … layer + w/2 − 1``,
    clipped.

    ROME's and BiasEdit's window of 10 is off-centre by one and shorter near both ends of the model.
    """
    return range(max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2))


@measuring()
def fast_trace(
    runner: BlockRunner,
    ids: Int[Tensor, "pos"],
    noise: Noise,
    first: int,
    positions: Sequence[int],
    layers: Sequence[int],
    components: Sequence[str],
    window: int,
) -> SentenceTrace:
    """Trace one sentence with shared corrupted caches.

    Args:
        ids: the sentence's tokens.
        first: first scored token, at least 1.
        positions: where states are restored, one position at a time.
        layers: at which states are restored, one layer (or window around it) at a time.
        components: of :data:`COMPONENTS`.
        window: layers restored together for ``mlp`` and ``attn``.
    """
    model, n_layers = runner.model, model_facts(runner.model).n_layers
    samples, targets = len(noise.values), ids[first:].to(model.cfg.device)
    run = [row for row, position in enumerate(noise.positions) if position < len(ids) - 1]
    noise = Noise(tuple(noise.positions[row] for row in run), noise.values[:, run])
    context = ids[None, :-1].to(model.cfg.device)
    clean: dict[str, dict[int, Tensor]] = {component: {} for component in COMPONENTS}
    hooks = [
        (require_hook(model, HOOKED[component], layer), _keep(clean[component], layer))
        for component in components
        for layer in range(n_layers)
    ]
    with model.hooks(fwd_hooks=hooks):
        clean_score = logprobs_of(model(context)[:, first - 1 :], targets[None]).sum()
    before: dict[int, Tensor] = {}  # corrupted residual before each block, and after the last
    keepers = [
        (require_hook(model, "resid_post", n), _keep(before, n + 1)) for n in range(n_layers)
    ]
    keepers.append((require_hook(model, "resid_pre", 0), _keep(before, 0)))
    with model.hooks(fwd_hooks=[*keepers, _noise_hook(model, noise)]):
        key_values = runner.key_values(context.expand(samples, -1))
    logits = runner.head(before[n_layers][:, first - 1 :])
    logprobs = logprobs_of(logits, targets.expand(samples, -1))
    corrupted = logprobs.sum(dim=1).mean()
    restored = {c: corrupted.cpu().repeat(len(positions), len(layers)) for c in components}
    for index, position in enumerate(positions):
        # A state before any noise is clean already, and the last token is not run.
        if position < min(noise.positions) or position == len(ids) - 1:
            continue
        for component in components:
            final = _restored_residuals(
                runner, component, position, layers, clean[component], before, key_values, window
            )
            score_from = max(first, position + 1)  # earlier tokens are predicted before the change
            needed = final[:, score_from - 1 - position :]
            values = torch.cat(
                [
                    logprobs_of(
                        runner.head(part), ids[score_from:].to(part.device).expand(len(part), -1)
                    )
                    for part in needed.split(HEAD_ROWS)
                ]
            ).sum(dim=1)
            values = rearrange(values, "(layer sample) -> layer sample", sample=samples)
            kept = logprobs[:, : score_from - first].sum(dim=1)
            restored[component][index] = (values + kept).mean(dim=1).cpu()
    return SentenceTrace(float(clean_score), float(corrupted), restored)


def _restored_residuals(
    runner: BlockRunner,
    component: str,
    position: int,
    layers: Sequence[int],
    clean: dict[int, Tensor],
    before: dict[int, Tensor],
    key_values: list[KeyValues],
    window: int,
) -> Float[Tensor, "rows suffix d_model"]:
    """Final residuals from ``position`` on of all restored runs; rows are (layer, sample),
    layer-major."""
    model, n_layers = runner.model, len(key_values)
    samples, length = before[0].shape[:2]
    resid = before[0][:0, position:]  # no rows yet
    windows = [window_layers(layer, window, n_layers) for layer in layers]

    def restore(layer: int, inside: list[int]):
        start, end = inside[0] * samples, (inside[-1] + 1) * samples

        def hook(value: Float[Tensor, "rows suffix d_model"], hook: object) -> Tensor:
            value = value.clone()
            value[start:end, 0] = clean[layer][0, position]
            return value

        return require_hook(model, HOOKED[component], layer), hook

    hooks = []
    if component != "resid":
        for layer in range(n_layers):
            inside = [row for row, w in enumerate(windows) if layer in w]
            if inside:
                hooks.append(restore(layer, inside))
    with model.hooks(fwd_hooks=hooks):
        for layer in range(n_layers):
            joining = sum(w.start == layer for w in windows)
            if component != "resid" and joining:
                new = repeat(before[layer][:, position:], "s p d -> (l s) p d", l=joining)
                resid = torch.cat([resid, new])
            if len(resid):
                keys, values = (
                    repeat(t[:, :, :position], "s h p d -> (l s) h p d", l=len(resid) // samples)
                    for t in key_values[layer]
                )
                resid = runner.run(
                    layer, resid, start=position, length=length, prefix=(keys, values)
                )
            if component == "resid" and layer in layers:
                new = before[layer + 1][:, position:].clone()
                new[:, 0] = clean[layer][0, position]
                resid = torch.cat([resid, new])
    return resid


@measuring()
def plain_trace(
    runner: BlockRunner,
    ids: Int[Tensor, "pos"],
    noise: Noise,
    first: int,
    positions: Sequence[int],
    layers: Sequence[int],
    components: Sequence[str],
    window: int,
) -> SentenceTrace:
    """The same numbers, one full forward pass a state: the oracle of :func:`fast_trace`."""
    model, n_layers = runner.model, model_facts(runner.model).n_layers
    tokens = ids[None].to(model.cfg.device)
    rows = tokens.expand(len(noise.values), -1)
    clean: dict[str, dict[int, Tensor]] = {component: {} for component in components}
    hooks = [
        (require_hook(model, HOOKED[component], layer), _keep(clean[component], layer))
        for component in components
        for layer in range(n_layers)
    ]
    with model.hooks(fwd_hooks=hooks):
        clean_score = _sum_logprobs(model(tokens), tokens, first).mean()

    def put_back(component: str, layer: int, position: int):
        def hook(value: Float[Tensor, "samples pos d_model"], hook: object) -> Tensor:
            value = value.clone()
            value[:, position] = clean[component][layer][0, position]
            return value

        return require_hook(model, HOOKED[component], layer), hook

    def run(extra: list[Any]) -> Tensor:
        with model.hooks(fwd_hooks=[_noise_hook(model, noise), *extra]):
            return _sum_logprobs(model(rows), rows, first).mean()

    corrupted = run([])
    restored = {
        c: torch.empty(len(positions), len(layers), dtype=torch.float32) for c in components
    }
    for component, table in restored.items():
        for index, position in enumerate(positions):
            for column, layer in enumerate(layers):
                states = range(layer, layer + 1)
                if component != "resid":
                    states = window_layers(layer, window, n_layers)
                table[index, column] = run([put_back(component, n, position) for n in states])
    return SentenceTrace(float(clean_score), float(corrupted), restored)


def _noise_hook(model: TransformerBridge, noise: Noise) -> tuple[str, Callable[..., Tensor]]:
    def hook(embeddings: Float[Tensor, "samples pos d_model"], hook: object) -> Tensor:
        embeddings = embeddings.clone()
        embeddings[:, list(noise.positions)] += noise.values.to(embeddings)
        return embeddings

    return require_hook(model, "embed"), hook


def _keep(store: dict[int, Tensor], key: int) -> Callable[..., None]:
    def hook(value: Tensor, hook: object) -> None:
        store[key] = value.detach()

    return hook


def _sum_logprobs(
    logits: Float[Tensor, "rows pos vocab"], tokens: Int[Tensor, "rows pos"], first: int
) -> Float[Tensor, "rows"]:
    return logprobs_of(logits[:, first - 1 : -1], tokens[:, first:]).sum(dim=1)
