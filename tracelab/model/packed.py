"""Log-probabilities of many sequences, with what they begin with in common run once.

The sentences of a record differ in a word or two, so most begin alike. Here the sequences of a
batch are the paths of a tree: a token that follows the same tokens is one node, and a pass runs
every node once, in one row, with its depth as its position and a mask that lets it attend to itself
and its ancestors. Of each sequence the last token predicts nothing and is no node; nothing is
padded; only nodes that predict something are unembedded.

The pass is that of a plain twin of the model (its weights, modules of its own), which has no hook
points, with the one edit that is on the model, if any, attached to it. Neither the mask nor the
twin suits every architecture and edit (ALiBi counts by the mask; an edit may tie positions of
different texts), and nobody has to know: :func:`scoring_by_tree` gives None where some of the
sequences do not come out as :mod:`.scoring` has them, one text a row on the bridge. In half
precision, where the kinds of attention differ by what is measured, it is never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.gradients import measuring
from tracelab.model.forward_pass import reading
from tracelab.model.hooked import hooks_on, in_training
from tracelab.model.plain import plain_twin, plain_weights
from tracelab.model.plain_blocks import use_onednn

Ids = Sequence[int]
Scorer = Callable[[Sequence[int]], list[Tensor]]
"""Gives the log-probabilities of some of the sequences, named by their numbers."""

CLOSE = 1e-3
"""Largest difference in nats a token between the two ways."""
MOST_NODES, MOST_NODES_CPU = 1024, 192
"""Of a tree: its mask has as many rows and columns. Between 128 and 256 a CPU is quickest: its
caches hold the layers' activations, and the logits are memory that is at hand."""
FEWEST = 8
"""So many sequences are worth the comparison of some of them."""
HEAD_ROWS = 256


@dataclass(frozen=True)
class Tree:
    """Sequences, laid out for one pass.

    Attributes:
        tokens: of each node, parents first.
        depths: of each node, from 0.
        sees: which nodes each node attends to; None: all before it, as the tree is one path.
        paths: of each sequence, the nodes of its tokens but the last.
    """

    tokens: list[int]
    depths: list[int]
    sees: Bool[np.ndarray, "node node"] | None
    paths: list[list[int]]


def tree_of(sequences: Sequence[Ids], firsts: Sequence[int]) -> Tree:
    """The tree of sequences in the order of :func:`tree_batches`.

    Args:
        firsts: first scored token of each; only sequences of the same share nodes, as an edit may
            act on what is read only.
    """
    tokens: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    paths: list[list[int]] = []
    before: tuple[int, Ids, list[int]] = (0, (), [])
    for ids, first in zip(sequences, firsts, strict=True):
        path = before[2][: _in_common((first, ids), before[:2])]
        for depth in range(len(path), len(ids) - 1):
            parents.append(path[-1] if path else -1)
            path.append(len(tokens))
            tokens.append(ids[depth])
            depths.append(depth)
        paths.append(path)
        before = (first, ids, path)
    if parents == list(range(-1, len(tokens) - 1)):
        return Tree(tokens, depths, None, paths)
    sees = np.eye(len(tokens), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    return Tree(tokens, depths, sees, paths)


def tree_batches(
    sequences: Sequence[Ids], firsts: Sequence[int], batch_tokens: int
) -> Iterator[list[int]]:
    """Indices in batches whose trees have at most ``batch_tokens`` nodes; a longer sequence goes
    alone."""
    batch: list[int] = []
    nodes = 0
    before: tuple[int, Ids] = (0, ())
    for index in sorted(range(len(sequences)), key=lambda i: (firsts[i], tuple(sequences[i]))):
        own = (firsts[index], sequences[index])
        length = len(sequences[index]) - 1
        new = length - min(_in_common(own, before), length)
        if batch and nodes + new > batch_tokens:
            yield batch
            batch, nodes, new = [], 0, length
        batch.append(index)
        nodes, before = nodes + new, own
    if batch:
        yield batch


def _in_common(own: tuple[int, Ids], other: tuple[int, Ids]) -> int:
    """How many nodes a sequence shares with the one before it."""
    if own[0] != other[0]:
        return 0
    pairs = zip(own[1][:-1], other[1][:-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@measuring()
def tree_logprobs(
    hf_model: Any, sequences: Sequence[Ids], firsts: Sequence[int]
) -> list[Float[Tensor, "_scored"]]:
    """Log-probability of each token from ``firsts`` on, of the sequences of one batch.

    Args:
        hf_model: a plain ``transformers`` model whose ``forward`` takes ``position_ids`` and
            ``logits_to_keep``.
    """
    tree = tree_of(sequences, firsts)
    parts = hf_model.get_input_embeddings().weight
    options: dict[str, Any] = {}
    if tree.sees is not None:
        lowest = torch.finfo(parts.dtype).min
        hidden = torch.from_numpy(~tree.sees).to(parts.device)
        options["attention_mask"] = torch.zeros(
            1, 1, *hidden.shape, dtype=parts.dtype, device=parts.device
        ).masked_fill_(hidden, lowest)
    spans = [range(first, len(ids)) for ids, first in zip(sequences, firsts, strict=True)]
    places = [path[k - 1] for path, span in zip(tree.paths, spans, strict=True) for k in span]
    targets = [ids[k] for ids, span in zip(sequences, spans, strict=True) for k in span]
    if not places:
        return [torch.empty(0, dtype=torch.float32) for _ in sequences]
    nodes, rows = np.unique(places, return_inverse=True)
    first_read = torch.empty(1, len(tree.tokens), dtype=torch.long)
    for path, first in zip(tree.paths, firsts, strict=True):
        first_read[0, path] = first - 1
    with reading(first_read):
        logits = hf_model(
            input_ids=torch.tensor([tree.tokens], device=parts.device),
            position_ids=torch.tensor([tree.depths], device=parts.device),
            logits_to_keep=torch.from_numpy(nodes).to(parts.device),
            use_cache=False,
            **options,
        ).logits[0]
    # Some rows at a time are turned to fp32, which bounds the memory.
    norms = torch.cat([part.float().logsumexp(-1) for part in logits.split(HEAD_ROWS)])
    chosen = torch.from_numpy(rows).to(logits.device)
    values = logits[chosen, torch.tensor(targets, device=logits.device)].float()
    values = (values - norms[chosen]).cpu()
    return list(values.split([len(span) for span in spans]))


_TWINS: WeakKeyDictionary[nn.Module, tuple[Any, Any, dict[str, Tensor]]] = WeakKeyDictionary()


@contextmanager
def quick_twin(model: TransformerBridge) -> Iterator[Any]:
    """Within the block, the plain twin of a bridge in fp32, with PyTorch's own attention where the
    architecture takes it; None: there can be none.

    Its modules are kept for as long as the bridge has the same parameters, and hold the weights
    within the block only: a bridge that is moved or dropped leaves nothing behind.
    """
    hf_model: Any = model.original_model
    parameters = list(hf_model.parameters())
    kinds = [(id(each), each.dtype, each.device) for each in parameters]
    if model not in _TWINS or _TWINS[model][0] != kinds:
        twin, wanted = None, {}
        if len({kind[1:] for kind in kinds}) == 1 and kinds[0][1] == torch.float32:
            with suppress(Exception):  # adapters, quantised or exchanged modules, own classes
                twin = plain_twin(hf_model)
                wanted = {name: each.to("meta") for name, each in twin.state_dict().items()}
                with suppress(AttributeError, ValueError, ImportError):  # its own way stays
                    twin.set_attn_implementation("sdpa")
                use_onednn(twin)
        _TWINS[model] = (kinds, twin, wanted)
    _, twin, wanted = _TWINS[model]
    if twin is None:
        yield None
        return
    own = dict(twin.named_parameters())
    try:
        weights = plain_weights(hf_model, wanted)
        for name, parameter in own.items():
            parameter.data = weights[name]
        yield twin
    finally:
        for parameter in own.values():
            parameter.data = parameter.data.new_empty(0)


@dataclass(frozen=True)
class ByTree:
    """Batches of sequences, and what scores one."""

    batches: list[list[int]]
    score: Scorer


@contextmanager
def scoring_by_tree(
    model: TransformerBridge,
    sequences: Sequence[Ids],
    firsts: Sequence[int],
    one_a_row: Scorer,
    batch_tokens: int,
) -> Iterator[ByTree | None]:
    """Within the block, what scores the sequences by their trees; None where it cannot be had, does
    not give the same, or would share nothing.

    The largest tree and that of the longest sequence are run, and of each the sequences at its
    beginning, middle and end and the longest are compared.

    Args:
        one_a_row: what scores some of the sequences, the way that this one must equal.
        batch_tokens: most nodes of a tree, up to :data:`MOST_NODES` or :data:`MOST_NODES_CPU`.
    """
    edits = {id(hook.edit): hook.edit for hook in hooks_on(model)}
    (edit,) = edits.values() if len(edits) == 1 else (None,)
    on_cpu = next(model.original_model.parameters()).device.type == "cpu"
    most = MOST_NODES_CPU if on_cpu else MOST_NODES
    batches = list(tree_batches(sequences, firsts, min(batch_tokens, most)))
    shared = [k for k, batch in enumerate(batches) if _branches(sequences, firsts, batch)]
    if (
        len(sequences) < FEWEST
        or not shared
        or len(edits) > 1
        or (edits and (edit is None or edit.needs_rows))
        or in_training(model)
    ):
        yield None
        return
    tried = {max(shared, key=lambda k: _n_nodes(sequences, firsts, batches[k]))}
    tried |= {max(shared, key=lambda k: max(len(sequences[i]) for i in batches[k]))}
    done: dict[int, list[Tensor]] = {}
    with quick_twin(model) as twin, ExitStack() as stack:

        def by_tree(batch: Sequence[int]) -> list[Tensor]:
            return tree_logprobs(twin, [sequences[i] for i in batch], [firsts[i] for i in batch])

        def score(batch: Sequence[int]) -> list[Tensor]:
            if batch[0] in done:
                return done.pop(batch[0])
            try:
                return by_tree(batch)
            except Exception:  # memory, most likely: what rows take is known
                return [one_a_row([i])[0] for i in batch]

        same = twin is not None
        try:
            if same and edit is not None:
                stack.enter_context(edit.on_twin(twin))
            for batch in [batches[k] for k in tried] if same else []:
                done[batch[0]] = by_tree(batch)
                longest = max(range(len(batch)), key=lambda k: len(sequences[batch[k]]))
                for k in {0, len(batch) // 2, len(batch) - 1, longest}:
                    (expected,) = one_a_row([batch[k]])
                    same &= torch.allclose(
                        done[batch[0]][k], expected, rtol=0, atol=CLOSE, equal_nan=True
                    )
        except Exception:  # whatever it is, the other way says it again if it is of the sequences
            same = False
        if not same:
            stack.close()
        yield ByTree(batches, score) if same else None


def _n_nodes(sequences: Sequence[Ids], firsts: Sequence[int], batch: Sequence[int]) -> int:
    common = sum(
        _in_common((firsts[j], sequences[j]), (firsts[i], sequences[i])) for i, j in pairwise(batch)
    )
    return sum(len(sequences[i]) - 1 for i in batch) - common


def _branches(sequences: Sequence[Ids], firsts: Sequence[int], batch: Sequence[int]) -> bool:
    """Whether the tree of a batch is more than one path, so that its mask matters."""
    return any(
        _in_common((firsts[j], sequences[j]), (firsts[i], sequences[i])) < len(sequences[i]) - 1
        for i, j in pairwise(batch)
    )
