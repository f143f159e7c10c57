"""Restored runs that share what they have in common: the same numbers as one full pass a state.

A restored run is the corrupted run with one state put back to its clean value. These facts make all
of them cheap and change no number:

* Restoring at position t and layer l leaves every layer before l, and every position before t, as
  in the corrupted run. A restored run computes positions t, t+1, … of later layers, attending to
  cached keys of the corrupted run before t.
* In layer l itself it changes position t only, whatever else is restored there. So one run of the
  block with clean values at *every* position gives what it leaves at each, for all t at once.
* A pair's sentences are the same up to the filler: a run that is restored before it computes the
  positions up to there once, and only then goes on with either sentence.
* All layers l of one t run as one batch that grows: the run restored at l joins after block l.
  Windows that begin at the same layer are the same run until the shorter one ends: it forks off
  there. Equal windows are one.
* Tokens before ``first`` are not scored, and the last one predicts nothing and is not run.
* Blocks run on the plain twin where it is the same (:mod:`tracelab.model.plain_blocks`), with a
  hook only where a state is put back.

What is left is bounded by what the blocks and the unembedding of so many positions take:
:func:`block_positions` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.gradients import measuring
from tracelab.localize.tracing.cases import Case
from tracelab.localize.tracing.sentence import (
    HOOKED,
    SentenceTrace,
    TracedSentence,
    TracedStates,
)
from tracelab.localize.tracing.shared_runs import (
    SharedRuns,
    few_rows,
    logprobs_at,
    positions_at_once,
    shared_runs,
)
from tracelab.model.memory import Sizes
from tracelab.model.partial_forward import BlockRunner, KeyValues, Watcher

BATCH_POSITIONS = 1024
"""Positions run at once: enough for matrix products, few enough for a CPU's cache."""


@dataclass(frozen=True)
class _Part:
    """Positions ``start`` to ``stop - 1`` of a sentence, which restored runs compute."""

    base: SharedRuns
    start: int
    stop: int

    def corrupted(self, layer: int) -> Float[Tensor, "samples part d_model"]:
        """Residuals before a block."""
        return self.base.before[layer][:, self.start : self.stop]


@measuring()
def fast_traces(
    runner: BlockRunner, sentences: Sequence[TracedSentence], first: int, states: TracedStates
) -> list[SentenceTrace]:
    """Trace sentences that are the same before ``first``, noise included."""
    bases = [shared_runs(runner, sentence, first, states.components) for sentence in sentences]
    traces = []
    for base, sentence in zip(bases, sentences, strict=True):
        corrupted = base.logprobs.sum(dim=1).mean()
        restored = {
            c: corrupted.cpu().repeat(len(sentence.positions), len(states.layers))
            for c in states.components
        }
        traces.append(SentenceTrace(base.clean_score, float(corrupted), restored))
    for position, whose in _changing(sentences, first):
        parts = _parts([bases[i] for i in whose], position, first)
        for component in states.components:
            windows = states.windows(component, len(base.key_values))
            scores = _restored_scores(runner, component, parts, first, windows)
            for i, values in zip(whose, scores, strict=True):
                if position in sentences[i].positions:
                    row = list(sentences[i].positions).index(position)
                    traces[i].restored[component][row] = values.mean(dim=1).cpu()
    return traces


def block_positions(
    sentences: Sequence[TracedSentence],
    first: int,
    states: TracedStates,
    component: str,
    n_layers: int,
) -> tuple[int, int]:
    """How many (position, layer, sample) blocks, and how many positions of the head, the restored
    runs of sentences compute."""
    blocks = heads = 0
    joining, _ = _joining(states.windows(component, n_layers), n_layers)
    passes = sum(n_layers - after for after, windows in joining.items() for _ in windows)
    runs = sum(map(len, joining.values()))
    for position, whose in _changing(sentences, first):
        lengths = [len(sentences[i].ids) - 1 for i in whose]
        fork = _fork(lengths, position, first)
        behind = sum(length - fork for length in lengths) if len(lengths) > 1 else 0
        samples = len(sentences[0].noise.values)
        blocks += samples * passes * (fork - position + behind)
        heads += samples * runs * (fork - max(first - 1, position) + behind)
    return blocks, heads


def trace_bytes(
    model: TransformerBridge, case: Case, samples: int, layers: int, components: int
) -> int:
    """Bytes that :func:`fast_traces` holds at once, by :meth:`~tracelab.model.memory.Sizes.trace`.

    Args:
        layers: how many of them are restored.
        components: how many are asked for.
    """
    length = len(case.stereotype.ids)
    device = next(model.original_model.parameters()).device
    at_once = positions_at_once(device, model.cfg.d_vocab)
    restored = layers * samples * max(1, length - 1 - case.first)
    return Sizes.of(model).trace(
        samples, length - 1, components, min(at_once, BATCH_POSITIONS, restored)
    )


def _changing(sentences: Sequence[TracedSentence], first: int) -> Iterator[tuple[int, list[int]]]:
    """Positions at which restoring changes something, and of which sentences.

    A state before any noise is clean already, and the last token is not run.
    """
    for position in sorted({p for sentence in sentences for p in sentence.positions}):
        found = [
            i
            for i, s in enumerate(sentences)
            if position in s.positions and min(s.noise.positions) <= position < len(s.ids) - 1
        ]
        if position < first and found:
            yield position, found
        else:
            yield from ((position, [i]) for i in found)


def _fork(lengths: Sequence[int], position: int, first: int) -> int:
    """Where the runs of sentences part."""
    return first if len(lengths) > 1 else lengths[0]


def _parts(bases: Sequence[SharedRuns], position: int, first: int) -> list[_Part]:
    """What a run restored at a position computes: what is common to the sentences, then the rest of
    each."""
    fork = _fork([base.length for base in bases], position, first)
    common = _Part(bases[0], position, fork)
    return [common, *(_Part(base, fork, base.length) for base in bases if len(bases) > 1)]


def _restored_scores(
    runner: BlockRunner,
    component: str,
    parts: Sequence[_Part],
    first: int,
    windows: Sequence[range],
) -> list[Float[Tensor, "layers samples"]]:
    """Of each sentence, the scores with each window restored at the first position of the parts."""
    samples, position = parts[0].base.samples, parts[0].start
    sentences = parts[1:] or parts[:1]
    distinct = list(dict.fromkeys(windows))
    size = max(1, BATCH_POSITIONS // (samples * max(part.stop - part.start for part in parts)))
    found: list[list[Tensor]] = [[] for _ in sentences]
    for begin in range(0, len(distinct), size):
        chosen = distinct[begin : begin + size]
        final = _final_residuals(runner, component, parts, chosen)
        skipped = max(first - 1 - position, 0)  # what they predict is not scored
        common = final[0][:, skipped:]
        if len(parts) == 1:
            new = [_head_scores(runner, common, parts[0].base.ids[None, position + skipped + 1 :])]
        else:  # one position predicts the first scored token of each
            nexts = torch.stack([part.base.ids[first : first + 1] for part in sentences])
            new = list(_head_scores(runner, common, nexts).split(1))
            for i, (part, resid) in enumerate(zip(sentences, final[1:], strict=True)):
                new[i] = new[i] + _head_scores(runner, resid, part.base.ids[None, first + 1 :])
        for kept, values in zip(found, new, strict=True):
            kept.append(rearrange(values[0], "(window sample) -> window sample", sample=samples))
    rows = [distinct.index(window) for window in windows]
    unchanged = max(first, position + 1) - first  # these are predicted before the change
    return [
        torch.cat(values)[rows] + part.base.logprobs[:, :unchanged].sum(dim=1)
        for values, part in zip(found, sentences, strict=True)
    ]


def _joining(
    windows: Sequence[range], n_layers: int
) -> tuple[dict[int, list[int]], dict[int, int]]:
    """Before which block each distinct window joins, and from which it forks off (if from any).

    A window is restored in the shared runs' corrupted run at its first layer, and joins after it.
    """
    joining: dict[int, list[int]] = {}
    origin: dict[int, int] = {}
    longest: dict[int, int] = {}
    distinct = list(dict.fromkeys(windows))
    for index in sorted(range(len(distinct)), key=lambda i: -distinct[i].stop):
        window = distinct[index]
        if window.start in longest:
            origin[index] = longest[window.start]
        else:
            longest[window.start] = index
        joining.setdefault(window.stop if index in origin else window.start + 1, []).append(index)
    return joining, origin


def _final_residuals(
    runner: BlockRunner, component: str, parts: Sequence[_Part], windows: Sequence[range]
) -> list[Float[Tensor, "rows part d_model"]]:
    """Of each part, the residuals after the last block; rows are (window, sample), window-major."""
    base, start, n_layers = parts[0].base, parts[0].start, len(parts[0].base.key_values)
    samples = base.samples
    joining, origin = _joining(windows, n_layers)
    order: list[int] = []  # windows as rows
    resids = [part.corrupted(0)[:0] for part in parts]  # no rows yet
    for layer in range(n_layers + 1):
        for index in joining.get(layer, ()):
            new = [part.corrupted(layer) for part in parts]
            if index in origin:
                row = order.index(origin[index]) * samples
                new = [resid[row : row + samples] for resid in resids]
            else:
                restored = base.left(component, layer - 1)[:, start : start + 1]
                new[0] = torch.cat([restored, new[0][:, 1:]], dim=1)
            resids = [torch.cat(both) for both in zip(resids, new, strict=True)]
            order.append(index)
        if not order or layer == n_layers:
            continue
        inside = [row for row, index in enumerate(order) if layer in windows[index]]
        watchers = []
        if inside:
            state = base.clean[component][layer][0, start]
            watchers.append((HOOKED[component], layer, _put_back(state, inside, samples)))
        prefix = _repeated(base.key_values[layer], start, len(order))
        resids[0], prefix = runner.extend(
            layer, resids[0], start=start, length=parts[0].stop, prefix=prefix, watchers=watchers
        )
        for i, part in enumerate(parts[1:], start=1):
            if part.stop > part.start:
                resids[i] = runner.run(
                    layer, resids[i], start=part.start, length=part.stop, prefix=prefix
                )
    rows = torch.tensor([order.index(index) for index in range(len(windows))])
    return [
        rearrange(resid, "(w s) p d -> w s p d", s=samples)[rows].flatten(0, 1) for resid in resids
    ]


def _repeated(key_values: KeyValues, stop: int, times: int) -> KeyValues:
    keys, values = (repeat(t[:, :, :stop], "s h p d -> (w s) h p d", w=times) for t in key_values)
    return keys, values


def _put_back(state: Float[Tensor, "d_model"], inside: Sequence[int], samples: int) -> Watcher:
    """Puts a clean state at the first position of the rows of some windows."""
    rows = torch.tensor([row * samples + sample for row in inside for sample in range(samples)])

    def put_back(value: Float[Tensor, "rows part d_model"]) -> Tensor:
        value = value.clone()
        value[rows, 0] = state
        return value

    return put_back


def _head_scores(
    runner: BlockRunner,
    resid: Float[Tensor, "rows part d_model"],
    targets: Int[Tensor, "sentences part"],
) -> Float[Tensor, "sentences rows"]:
    """Summed log-probabilities of what each sentence has after these positions."""
    if not targets.numel():
        return torch.zeros(len(targets), len(resid), dtype=torch.float32, device=resid.device)
    return torch.cat(
        [
            logprobs_at(runner.head(part), targets).sum(dim=2)
            for part in few_rows(resid, runner.model.cfg.d_vocab)
        ]
    ).T
