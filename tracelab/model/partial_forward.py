"""Forward passes of parts of a model: the last position's logits, single blocks, the head alone.

A bridge can start at a block, but still runs the blocks before it. What tracing needs is finer: run
block ``m`` on residuals of our own making, over positions ``p, p+1, …`` that attend to keys and
values computed before. :class:`BlockRunner` does this for any decoder that the bridge supports, by
recording with which arguments (mask, rotary embeddings, …) the model calls its blocks for a text of
that length, and calling them again with the same arguments. Its ``head`` lets the model finish:
final norm, unembedding, soft-cap.

What training an edit of late blocks needs is coarser: :class:`SuffixRunner` runs fixed sequences
from a block on, with whatever hooks are there, and keeps the residuals before it. What a fit layer
by layer needs is :class:`LayerStates`, which runs each block once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def replaced_blocks(
    model: TransformerBridge, block: nn.Module, stop: int | None = None
) -> Iterator[None]:
    """Within the ``with`` block every block before ``stop`` (None: every one) is ``block``;
    afterwards as before."""
    path = model.adapter.translate_transformer_lens_path("blocks")
    blocks = cast(nn.ModuleList, model.original_model.get_submodule(path))
    kept = list(blocks)[:stop]
    try:
        for index in range(len(kept)):
            blocks[index] = block
        yield
    finally:
        for index, old in enumerate(kept):
            blocks[index] = old


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


class _PrefixCache:
    """Keys and values of earlier positions, put before a block's own; nothing is stored."""

    def __init__(self, prefix: KeyValues) -> None:
        self.prefix = prefix

    def update(
        self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return torch.cat([self.prefix[0], key], dim=2), torch.cat([self.prefix[1], value], dim=2)


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
        self._calls: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self._blocks_return_tuples = False  # known once a call has been recorded

    def key_values(self, tokens: Int[Tensor, "batch pos"]) -> list[KeyValues]:
        """Run the model (hooks in force) and return each block's keys and values."""
        cache = DynamicCache()
        self.model(tokens, past_key_values=cache)
        return [(layer.keys, layer.values) for layer in cast(list[Any], cache.layers)]

    def run(
        self,
        layer: int,
        resid: Float[Tensor, "rows suffix d_model"],
        *,
        start: int,
        length: int,
        prefix: KeyValues,
    ) -> Float[Tensor, "rows suffix d_model"]:
        """Residuals after block ``layer``, given those before it at positions ``start`` to ``length
        - 1``.

        Args:
            prefix: the block's keys and values at positions 0 to ``start - 1``, one row a row of
                ``resid``.
        """
        kwargs = dict(self._arguments(start, length)[layer])
        for name in _CACHE_NAMES & kwargs.keys():
            kwargs[name] = _PrefixCache(prefix)
        output = self.model.blocks[layer](resid, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def head(self, resid: Float[Tensor, "rows pos d_model"]) -> Float[Tensor, "rows pos vocab"]:
        """The model's logits for residuals after the last block: all that comes after the
        blocks."""
        self._arguments(0, 1)
        tokens = torch.zeros(resid.shape[:2], dtype=torch.long, device=resid.device)
        with replaced_blocks(self.model, _Return(resid, self._blocks_return_tuples)):
            return self.model(tokens)

    def _arguments(self, start: int, length: int) -> list[dict[str, Any]]:
        """The keyword arguments with which the model calls each block for positions ``start`` on.

        Recorded once a (start, length) on arbitrary tokens: they do not depend on the text.
        """
        if (start, length) not in self._calls:
            calls: list[dict[str, Any]] = []

            def record(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
                names = list(inspect.signature(module.original_component.forward).parameters)
                calls.append({**dict(zip(names[1:], args[1:], strict=False)), **kwargs})

            def note_form(module: nn.Module, args: tuple, output: Any) -> None:
                self._blocks_return_tuples = isinstance(output, tuple)

            tokens = torch.zeros((1, length), dtype=torch.long, device=self.model.cfg.device)
            cache = DynamicCache()
            if start:
                self.model(tokens[:, :start], past_key_values=cache)
            handles = [
                block.register_forward_pre_hook(record, with_kwargs=True)
                for block in self.model.blocks
            ]
            handles.append(self.model.blocks[0].register_forward_hook(note_form))
            try:
                self.model(tokens[:, start:], past_key_values=cache)
            finally:
                for handle in handles:
                    handle.remove()
            for call in calls:
                call.pop("hidden_states", None)
                for name in _CACHE_NAMES & call.keys():
                    call[name] = None  # `run` puts its own there: do not keep this one alive
            self._calls[start, length] = calls
        return self._calls[start, length]
