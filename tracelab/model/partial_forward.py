"""Forward passes of parts of a model: the last position's logits, single blocks, the head alone.

A bridge can start at a block, but still runs the blocks before it. What tracing needs is finer: run
block ``m`` on residuals of our own making, over positions ``p, p+1, …`` that attend to keys and
values computed before. :class:`BlockRunner` does this for any decoder that the bridge supports, by
recording with which arguments (mask, rotary embeddings, …) the model calls its blocks for a text of
that length, and calling them again with the same arguments. Its ``head`` lets the model finish:
final norm, unembedding, soft-cap. :mod:`.plain_blocks` has one that does without the bridge, for
what runs very many blocks.

What training an edit of late blocks needs is coarser: :class:`SuffixRunner` runs fixed sequences
from a block on, with whatever hooks are there, and keeps the residuals before it. What a fit layer
by layer needs is :class:`LayerStates`, which runs each block once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from tracelab.gradients import measuring
from tracelab.model.forward_pass import reading
from tracelab.model.load import require_hook
from tracelab.model.tokens import length_batches, pad
from tracelab.progress import progress

KeyValues = tuple[
    Float[Tensor, "_rows kv_heads _prefix d_head"], Float[Tensor, "_rows kv_heads _prefix d_head"]
]


def last_logits(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch vocab"]:
    """Logits at the last position, unembedding only it where the model can."""
    with reading(tokens.shape[1] - 1, generating=True):
        if "logits_to_keep" in inspect.signature(model.original_model.forward).parameters:
            return model(tokens, logits_to_keep=1)[:, -1]
        return model(tokens)[:, -1]


class _Return(nn.Module):
    """A block that ignores its input and returns a given residual, in the form blocks return it."""

    def __init__(self, resid: Tensor, as_tuple: bool) -> None:
        super().__init__()
        self.output = (resid,) if as_tuple else resid

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


def _blocks_of(model: TransformerBridge) -> nn.ModuleList:
    """The list in which the ``transformers`` model inside a bridge has its blocks."""
    path = model.adapter.translate_transformer_lens_path("blocks")
    return cast(nn.ModuleList, model.original_model.get_submodule(path))


@contextmanager
def _replaced(blocks: nn.ModuleList, block: nn.Module, stop: int | None = None) -> Iterator[None]:
    kept = list(blocks)[:stop]
    try:
        for index in range(len(kept)):
            blocks[index] = block
        yield
    finally:
        for index, old in enumerate(kept):
            blocks[index] = old


def replaced_blocks(
    model: TransformerBridge, block: nn.Module, stop: int | None = None
) -> AbstractContextManager[None]:
    """Within the ``with`` block every block before ``stop`` (None: every one) is ``block``;
    afterwards as before."""
    return _replaced(_blocks_of(model), block, stop)


class SuffixRunner:
    """Forward passes of fixed sequences that begin at block ``start``; the residuals before it are
    computed once.

    Edits of block ``start`` and later ones do not change what comes before, so what trains or
    scores them many times need not compute it again. The model itself does the rest, hooks and
    gradients included.

    >>> sequences = [[504, 2100], [504, 2100, 1142], [1348, 416]]  # token ids
    >>> runner = SuffixRunner(model, sequences, start=1)
    >>> with edit.applied(model):  # of block 1 or later ones
    ...     tokens, mask, logits = runner([0, 2])
    >>> tuple(logits.shape)[:2]
    (2, 2)
    """

    def __init__(
        self,
        model: TransformerBridge,
        sequences: Sequence[Sequence[int]],
        start: int,
        *,
        batch_tokens: int = 1024,
    ) -> None:
        self.model, self.sequences, self.start = model, list(sequences), start
        self._resid: list[Tensor] = []
        self._blocks_return_tuples = False
        if start:
            self._keep(batch_tokens)

    @measuring()
    def _keep(self, batch_tokens: int) -> None:
        def note_form(module: nn.Module, args: tuple, output: Any) -> None:
            self._blocks_return_tuples = isinstance(output, tuple)

        kept: list[Tensor] = [torch.empty(0, dtype=torch.float32)] * len(self.sequences)
        lengths = [len(ids) for ids in self.sequences]
        handle = self.model.blocks[0].register_forward_hook(note_form)
        try:
            with progress(
                total=len(lengths), what=f"blocks before {self.start}", unit="text"
            ) as bar:
                for batch in length_batches(lengths, batch_tokens):
                    tokens, mask = pad(self.model, [self.sequences[i] for i in batch])
                    resid = self.model(tokens, attention_mask=mask, stop_at_layer=self.start)
                    for row, i in enumerate(batch):
                        kept[i] = resid[row, : lengths[i]].cpu()
                    bar.update(len(batch))
        finally:
            handle.remove()
        self._resid = kept

    def __call__(
        self, indices: Sequence[int]
    ) -> tuple[
        Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Float[Tensor, "batch pos vocab"]
    ]:
        """Tokens, mask (1 = a token) and logits of some of the sequences, padded on the right."""
        tokens, mask = pad(self.model, [self.sequences[i] for i in indices])
        if not self.start:
            return tokens, mask, self.model(tokens, attention_mask=mask)
        resid = pad_sequence([self._resid[i] for i in indices], batch_first=True).to(tokens.device)
        with replaced_blocks(self.model, _Return(resid, self._blocks_return_tuples), self.start):
            return tokens, mask, self.model(tokens, attention_mask=mask)


class LayerStates:
    """Residuals of fixed sequences after one block after the other, each block run once, with what
    the caller leaves in their place.

    >>> sequences = [[504, 2100], [504, 2100, 1142]]  # token ids
    >>> states = LayerStates(model, sequences)
    >>> after_0 = states.after(0)
    >>> states.leave([x * 0.9 for x in after_0])  # what block 1 will see
    >>> after_1 = states.after(1)
    """

    def __init__(
        self,
        model: TransformerBridge,
        sequences: Sequence[Sequence[int]],
        *,
        batch_tokens: int = 1024,
    ) -> None:
        self.model, self.sequences, self.batch_tokens = model, list(sequences), batch_tokens
        self._resid: list[Tensor] = [torch.empty(0)] * len(self.sequences)
        self._start, self._blocks_return_tuples = 0, False

    @measuring()
    def after(self, layer: int) -> list[Float[Tensor, "_pos d_model"]]:
        """Residuals after block ``layer``, in fp32 on the CPU, with the hooks that are on there.

        Raises:
            TracelabError: the model has no such layer.
        """
        name, seen = require_hook(self.model, "resid_post", layer), []
        stop = layer + 1 if layer + 1 < len(self.model.blocks) else None

        def note_form(module: nn.Module, args: tuple, output: Any) -> None:
            self._blocks_return_tuples = isinstance(output, tuple)

        handle = self.model.blocks[layer].register_forward_hook(note_form)
        try:
            for batch in length_batches(map(len, self.sequences), self.batch_tokens):
                tokens, mask = pad(self.model, [self.sequences[i] for i in batch])
                hooks = [(name, lambda value, hook: seen.append(value))]
                with self._from_kept(batch, tokens.device), self.model.hooks(fwd_hooks=hooks):
                    self.model(tokens, attention_mask=mask, stop_at_layer=stop)
                values = seen.pop().cpu()
                for row, i in enumerate(batch):
                    self._resid[i] = values[row, : len(self.sequences[i])].clone()
        finally:
            handle.remove()
        self._start = layer + 1
        return [resid.float() for resid in self._resid]

    def leave(self, states: Sequence[Float[Tensor, "_pos d_model"]]) -> None:
        """What the next block will see in the place of the residuals just given."""
        self._resid = [new.to(old) for new, old in zip(states, self._resid, strict=True)]

    @contextmanager
    def _from_kept(self, batch: Sequence[int], device: torch.device) -> Iterator[None]:
        if not self._start:
            yield
            return
        resid = pad_sequence([self._resid[i] for i in batch], batch_first=True).to(device)
        block = _Return(resid, self._blocks_return_tuples)
        with replaced_blocks(self.model, block, self._start):
            yield


_CACHE_NAMES = {"past_key_values", "layer_past"}  # what architectures call a block's cache

Watcher = Callable[[Tensor], Tensor | None]
"""What is done with an activation: look at it, or return another in its place."""


class _PrefixCache:
    """Keys and values of earlier positions, put before a block's own.

    Attributes:
        whole: the prefix with the block's own behind it, once the block has run.
    """

    def __init__(self, prefix: KeyValues) -> None:
        self.prefix = prefix
        self.whole: KeyValues | None = None

    def update(
        self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.prefix
        self.whole = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        return self.whole


class BlockRunner:
    """Runs single blocks of a model on given residuals, from a position on.

    >>> runner = BlockRunner(model)
    >>> _, cache = model.run_with_cache(tokens)
    >>> resid, length = cache["blocks.1.hook_resid_pre"], tokens.shape[1]
    >>> k, v = runner.key_values(tokens)[1]  # block 1's keys and values
    >>> after = runner.run(
    ...     1, resid[:, 3:], start=3, length=length, prefix=(k[:, :, :3], v[:, :, :3])
    ... )
    >>> torch.allclose(after, cache["blocks.1.hook_resid_post"][:, 3:], atol=1e-4)
    True
    >>> logits = runner.head(after)  # as if block 1 were the last
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.model = model
        self.runs: Any = model
        """What runs: the bridge, or a model of the same blocks."""
        self.blocks = _blocks_of(model)
        self._calls: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self._blocks_return_tuples = False  # known once a call has been recorded

    def logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        cache: DynamicCache | None = None,
        *,
        start: int = 0,
    ) -> Float[Tensor, "batch read vocab"]:
        """The whole model's from position ``start`` on, with what is on it and within
        :meth:`watching`; no other position is unembedded where the model can do without."""
        kept, skipped = self._reading(tokens.shape[1], start)
        cached = {} if cache is None else {"past_key_values": cache}
        with reading(start) if start else nullcontext():
            return self.runs(tokens, **cached, **kept)[:, skipped:]

    def _reading(self, length: int, start: int) -> tuple[dict[str, int], int]:
        """What the model is told of the positions that are read, and how many logits are then left
        to skip."""
        if (
            start
            and "logits_to_keep" in inspect.signature(self.model.original_model.forward).parameters
        ):
            return {"logits_to_keep": length - start}, 0
        return {}, start

    @contextmanager
    def watching(self, watchers: Iterable[tuple[str, int | None, Watcher]]) -> Iterator[None]:
        """Within the block, watchers are at hook points: (kind, layer, function)."""

        def hooked(function: Watcher) -> Callable[..., Tensor | None]:
            return lambda value, hook: function(value)

        hooks = [
            (require_hook(self.model, kind, layer), hooked(function))
            for kind, layer, function in watchers
        ]
        with self.model.hooks(fwd_hooks=hooks):
            yield

    def key_values(self, tokens: Int[Tensor, "batch pos"]) -> list[KeyValues]:
        """Run the model (hooks in force) and return each block's keys and values."""
        cache = DynamicCache()
        self.logits(tokens, cache)
        return [(layer.keys, layer.values) for layer in cast(list[Any], cache.layers)]

    def run(
        self,
        layer: int,
        resid: Float[Tensor, "rows suffix d_model"],
        *,
        start: int,
        length: int,
        prefix: KeyValues,
        watchers: Sequence[tuple[str, int | None, Watcher]] = (),
    ) -> Float[Tensor, "rows suffix d_model"]:
        """Residuals after block ``layer``, given those before it at positions ``start`` to ``length
        - 1``.

        Args:
            prefix: the block's keys and values at positions 0 to ``start - 1``, one row a row of
                ``resid``.
            watchers: as of :meth:`watching`, while the block runs.
        """
        return self.extend(
            layer, resid, start=start, length=length, prefix=prefix, watchers=watchers
        )[0]

    def extend(
        self,
        layer: int,
        resid: Float[Tensor, "rows suffix d_model"],
        *,
        start: int,
        length: int,
        prefix: KeyValues,
        watchers: Sequence[tuple[str, int | None, Watcher]] = (),
    ) -> tuple[Float[Tensor, "rows suffix d_model"], KeyValues]:
        """As :meth:`run`, and the keys and values at positions 0 to ``length - 1``: the prefix of
        what follows."""
        kwargs = dict(self._arguments(start, length)[layer])
        cache = _PrefixCache(prefix)
        for name in _CACHE_NAMES & kwargs.keys():
            kwargs[name] = cache
        with self.watching(watchers):
            output = self.blocks[layer](resid, **kwargs)
        assert cache.whole is not None, "the block took no cache"
        return (output[0] if isinstance(output, tuple) else output), cache.whole

    def head(self, resid: Float[Tensor, "rows pos d_model"]) -> Float[Tensor, "rows pos vocab"]:
        """The model's logits for residuals after the last block: all that comes after the
        blocks."""
        self._arguments(0, 1)
        tokens = torch.zeros(resid.shape[:2], dtype=torch.long, device=resid.device)
        with _replaced(self.blocks, _Return(resid, self._blocks_return_tuples)):
            return self.logits(tokens)

    def _arguments(self, start: int, length: int) -> list[dict[str, Any]]:
        """The keyword arguments with which the model calls each block for positions ``start`` on.

        Recorded once a (start, length) on arbitrary tokens: they do not depend on the text.
        """
        if (start, length) not in self._calls:
            calls = self._recorded(start, length)
            for call in calls:
                call.pop("hidden_states", None)
                for name in _CACHE_NAMES & call.keys():
                    call[name] = None  # `extend` puts its own there: do not keep this one alive
            self._calls[start, length] = calls
        return self._calls[start, length]

    def _recorded(self, start: int, length: int) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def record(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            calls.append(_named(module, args, kwargs))

        tokens = torch.zeros((1, length), dtype=torch.long, device=self.model.cfg.device)
        cache = DynamicCache()
        if start:
            self.logits(tokens[:, :start], cache)
        handles = [
            block.register_forward_pre_hook(record, with_kwargs=True) for block in self.blocks
        ]
        handles.append(self.blocks[0].register_forward_hook(self._note_form))
        try:
            self.logits(tokens[:, start:], cache)
        finally:
            for handle in handles:
                handle.remove()
        return calls

    def _note_form(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._blocks_return_tuples = isinstance(output, tuple)


def _named(block: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a block's call by name, the residual's position left out."""
    names = list(inspect.signature(getattr(block, "original_component", block).forward).parameters)
    return {**dict(zip(names[1:], args[1:], strict=False)), **kwargs}
