"""What a forward pass under way knows of itself: tokens, padding, cache, and which logits will be
read.

A hook function is given an activation and nothing else. Edits need more: which rows of it are
padding, how many tokens the cache holds already, which positions matter. :func:`watch` makes a
model record this while it runs (it changes nothing), :func:`current_call` tells it to hooks. What
an edit has to remember from one step of a generation to the next (the experts' keys and values) is
kept with the model's own cache, so it is there for as long as the cache is and follows it through
beam search. A model serves one thread at a time.

A pass that Ctrl-C interrupted is never ended by torch, which runs hooks after an ``Exception``
only. So each pass knows the stack frame that runs it, and counts as under way for as long as that
frame is on the stack.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache


@dataclass(frozen=True)
class Reading:
    """Which logits of the forward passes to come are read.

    Attributes:
        first: first column (padding and cached tokens counted) whose logits are read, one for all,
            one a row, or one a token where a row holds several texts.
        generating: whether tokens are being sampled; else given ones are scored.
    """

    first: Int[Tensor, "batch"] | Int[Tensor, "batch pos"] | int
    generating: bool = False


_READING: ContextVar[Reading | None] = ContextVar("reading", default=None)


@contextmanager
def reading(
    first: Int[Tensor, "batch"] | Int[Tensor, "batch pos"] | int, *, generating: bool = False
) -> Iterator[None]:
    """Within the block, say from which column on logits are read; without it, all of them are."""
    token = _READING.set(Reading(first, generating))
    try:
        yield
    finally:
        _READING.reset(token)


@dataclass
class Call:
    """One forward pass of a model.

    Attributes:
        input_ids: the new tokens; None if the model was given embeddings.
        n_texts: rows of the batch; 0 if they are not known.
        attention_mask: of cached and new tokens, 1 = a token; None: no padding.
        position_ids: as the model was given them.
        past_length: columns that the cache holds.
        kept: what edits keep with the cache, each under a key of its own.
        made: what edits share within this pass.
        chosen_columns: the columns whose logits were asked for, if they were given by index.
        reading: which logits are read; None: all.
        frame: the stack frame that runs the pass.
    """

    input_ids: Int[Tensor, "batch pos"] | None = None
    n_texts: int = 0
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    past_length: int = 0
    kept: dict[Any, Cache] = field(default_factory=dict)
    made: dict[Any, Any] = field(default_factory=dict)
    chosen_columns: Int[Tensor, "columns"] | None = None
    reading: Reading | None = None
    frame: FrameType | None = None

    @property
    def several_a_row(self) -> bool:
        """Whether a mask a token and places of tokens let a row hold several texts."""
        mask, places = self.attention_mask, self.position_ids
        return mask is not None and mask.ndim == 4 and places is not None and places.ndim == 2

    def real(self, shape: torch.Size, device: torch.device) -> Bool[Tensor, "batch pos"]:
        """Which of the new columns hold a token, for activations of ``shape`` ``[batch, pos,
        …]``."""
        batch, pos = shape[:2]
        if self.attention_mask is None or self.attention_mask.ndim != 2:
            return torch.ones(batch, pos, dtype=torch.bool, device=device)
        return (self.attention_mask[:, -pos:] != 0).to(device).expand(batch, pos)

    def read(
        self, shape: torch.Size, device: torch.device, *, shift: int = 0
    ) -> Bool[Tensor, "batch pos"]:
        """Which of the new columns hold a token whose logits are read, ``shift`` columns later if
        not 0."""
        real = self.real(shape, device)
        if self.reading is None:
            return real
        first = torch.as_tensor(self.reading.first, device=device)
        if first.ndim == 2:
            return real & (self._columns(shape, device) >= first + shift)
        columns = self.past_length + torch.arange(shape[1], device=device)
        return real & (columns >= first.reshape(-1, 1) + shift)

    def index(self, shape: torch.Size, device: torch.device) -> Int[Tensor, "batch pos"]:
        """Each new column's place in its text, from 0, padding before it not counted."""
        batch, pos = shape[:2]
        if self.attention_mask is None or self.attention_mask.ndim != 2:
            return self._columns(shape, device)
        places = (self.attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return places[:, -pos:].to(device).expand(batch, pos)

    def _columns(self, shape: torch.Size, device: torch.device) -> Int[Tensor, "batch pos"]:
        """Each new column's number; where a mask a token lets a row hold several texts, that of its
        own text."""
        batch, pos = shape[:2]
        if self.several_a_row:
            return cast(Tensor, self.position_ids).to(device).expand(batch, pos)
        return (self.past_length + torch.arange(pos, device=device)).expand(batch, pos)


@dataclass
class _Watched:
    """The passes of a model that are under way, an inner one after its outer one, and what records
    them."""

    begun: list[Call] = field(default_factory=list)
    users: int = 0
    handles: list[RemovableHandle] = field(default_factory=list)

    @property
    def calls(self) -> list[Call]:
        """The passes that were begun and not ended, without those whose frames have left the
        stack."""
        _drop_interrupted(self.begun)
        return self.begun


_WATCHED: WeakKeyDictionary[nn.Module, _Watched] = WeakKeyDictionary()


def current_call(hf_model: nn.Module) -> Call:
    """The forward pass of a watched model that is under way (an empty one while only a part of it
    runs)."""
    watched = _WATCHED.get(hf_model)
    calls = watched.calls if watched is not None else []
    return calls[-1] if calls else Call(reading=_READING.get())


def watch(hf_model: nn.Module) -> None:
    """Record the forward passes of a ``transformers`` model, until :func:`unwatch` is called as
    often."""
    watched = _WATCHED.setdefault(hf_model, _Watched())
    watched.users += 1
    _remove(watched.handles)
    watched.handles = [
        hf_model.register_forward_pre_hook(_begin, with_kwargs=True),
        # Anew, so that it comes after all hooks that are there: to them the call is still under
        # way. Also after an error: a call that failed must not stay under way.
        hf_model.register_forward_hook(_end, always_call=True),
    ]


def unwatch(hf_model: nn.Module) -> None:
    """Undo one :func:`watch`."""
    watched = _WATCHED[hf_model]
    watched.users -= 1
    if not watched.users:
        _remove(watched.handles)
        del _WATCHED[hf_model]


def _drop_interrupted(calls: list[Call]) -> None:
    """Forget the passes whose frames have left the stack."""
    if not calls:
        return
    running, frame = set(), sys._getframe()
    while frame is not None:
        running.add(frame)
        frame = frame.f_back  # type: ignore[assignment]
    calls[:] = [call for call in calls if call.frame is None or call.frame in running]


def _running_frame() -> FrameType | None:
    """The frame of torch that runs the module whose hook is asking, its hooks included."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    return frame


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _begin(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
    ids = args[0] if args else kwargs.get("input_ids")
    mask, position_ids = given.get("attention_mask"), given.get("position_ids")
    texts = ids if isinstance(ids, Tensor) else given.get("inputs_embeds")
    cache, chosen = given.get("past_key_values"), given.get("logits_to_keep")
    call = Call(
        input_ids=ids if isinstance(ids, Tensor) and not ids.is_floating_point() else None,
        n_texts=len(texts) if isinstance(texts, Tensor) else 0,
        attention_mask=mask if isinstance(mask, Tensor) else None,
        position_ids=position_ids if isinstance(position_ids, Tensor) else None,
        past_length=cache.get_seq_length() if isinstance(cache, Cache) else 0,
        chosen_columns=chosen if isinstance(chosen, Tensor) else None,
        reading=_READING.get(),
        frame=_running_frame(),
    )
    if call.past_length:
        call.kept = getattr(cache, "kept_by_edits", {})
    # A copy of a watched model has its hooks, and is not known yet.
    _WATCHED.setdefault(module, _Watched()).calls.append(call)


def _end(module: nn.Module, args: tuple, output: Any) -> None:
    call = _WATCHED[module].calls.pop()
    cache = getattr(output, "past_key_values", None)
    if isinstance(cache, Cache) and call.kept and not call.past_length:
        cache.kept_by_edits = call.kept  # type: ignore[attr-defined]
        # As further layers of the model's cache they are reordered, repeated and cropped with it.
        for kept in call.kept.values():
            cache.layers.extend(kept.layers)
