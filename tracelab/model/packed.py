"""Log-probabilities of many sequences, with what they begin with in common run once.

The sentences of a record differ in a word or two, so most begin alike. Here the sequences of a
batch are the paths of a tree: a token that follows the same tokens is one node, and a pass runs
every node once, in one row, with its depth as its position and a mask that lets it attend to itself
and its ancestors. Of each sequence the last token predicts nothing and is no node; nothing is
padded; only nodes that predict something are unembedded.

The pass is that of a plain twin of the model (its weights, modules of its own), which has no hook
points, with the one edit that is on the model, if any, attached to it. Neither the mask nor the
twin suits every architecture and edit (ALiBi counts by the mask; an edit may tie positions of
different texts), and nobody has to know: :func:`scoring_by_tree` gives None where three of the
sequences do not come out as :mod:`.scoring` has them, one text a row on the bridge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.model.forward_pass import reading
from tracelab.model.hooked import hooks_on, in_training
from tracelab.model.plain import plain_twin
from tracelab.model.plain_blocks import use_onednn

Ids = Sequence[int]
Scorer = Callable[[Sequence[int]], list[Tensor]]
"""Gives the log-probabilities of some of the sequences, named by their numbers."""

CLOSE = {torch.float32: 1e-3}
"""Largest difference in nats a token between the two ways; of half precision :data:`CLOSE_HALF`."""
CLOSE_HALF = 0.1
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


_TWINS: WeakKeyDictionary[nn.Module, tuple[Any, Any]] = WeakKeyDictionary()


def quick_twin(model: TransformerBridge) -> Any:
    """The plain twin of a bridge, made once for as long as the bridge has the same weights, with
    PyTorch's own attention where the architecture takes it; None: there can be none, or it would
    not share the weights."""
    hf_model: Any = model.original_model
    parameters = list(hf_model.parameters())
    state = [(id(each), each.data_ptr(), each.dtype) for each in parameters]
    if model not in _TWINS or _TWINS[model][0] != state:
        twin: Any = None
        if len({each.device for each in parameters}) == 1:
            with suppress(TracelabError):  # adapters, quantised or exchanged modules
                twin = plain_twin(hf_model)
            with suppress(AttributeError, ValueError, ImportError):  # its own way stays
                twin.set_attn_implementation("sdpa")
            if twin is not None:
                use_onednn(twin)
        _TWINS[model] = (state, twin)
    return _TWINS[model][1]


@contextmanager
def scoring_by_tree(
    model: TransformerBridge,
    sequences: Sequence[Ids],
    firsts: Sequence[int],
    one_a_row: Scorer,
) -> Iterator[Scorer | None]:
    """Within the block, what scores a batch of the sequences by their tree; None where it cannot be
    had or does not give the same.

    Args:
        one_a_row: what scores some of the sequences, given by their numbers, the way that this one
            must equal.
    """
    edits = {id(hook.edit): hook.edit for hook in hooks_on(model)}
    (edit,) = edits.values() if len(edits) == 1 else (None,)
    several = len(edits) > 1 or (edits and edit is None)
    twin = None if several or in_training(model) else quick_twin(model)
    if twin is None:
        yield None
        return

    def by_tree(batch: Sequence[int]) -> list[Tensor]:
        return tree_logprobs(twin, [sequences[i] for i in batch], [firsts[i] for i in batch])

    chosen = _tried(sequences, firsts)
    expected = torch.cat(one_a_row(chosen))
    close = CLOSE.get(next(twin.parameters()).dtype, CLOSE_HALF)
    with ExitStack() as stack:
        try:
            if edit is not None:
                stack.enter_context(edit.on_twin(twin))
            found = torch.cat(by_tree(chosen))
            same = torch.allclose(found, expected, rtol=0, atol=close, equal_nan=True)
        except Exception:  # whatever it is, the other way has just been seen to work
            same = False
        if not same:
            stack.close()
        yield by_tree if same else None


def _tried(sequences: Sequence[Ids], firsts: Sequence[int]) -> list[int]:
    """The shortest, the longest, and the one that shares most with the longest."""
    numbers = range(len(sequences))
    longest = max(numbers, key=lambda i: len(sequences[i]))
    shortest = min(numbers, key=lambda i: len(sequences[i]))
    own = (firsts[longest], sequences[longest])
    nearest = max(
        (i for i in numbers if i != longest),
        key=lambda i: _in_common((firsts[i], sequences[i]), own),
        default=longest,
    )
    chosen = {longest, shortest, nearest}
    return sorted(chosen, key=lambda i: (firsts[i], tuple(sequences[i])))
