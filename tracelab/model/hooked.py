"""Which hooks are on a model. What is measured under them is not the model as it is.

A hook stays on after an interrupted cell, or was put on a module with ``register_forward_hook``; a
``forward`` that was replaced on a module, and a hook on gradients, count as hooks. Results name the
hooks under which they were measured (``settings["hooks"]``); what needs the model as it is calls
:func:`require_unedited`. Hooks that libraries register on modules for themselves change nothing and
do not count.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from transformer_lens.hook_points import HookPoint

from tracelab.errors import TracelabError
from tracelab.model.bridge import require_bridge

_BOOKKEEPING = ("transformer_lens.", "transformers.", "accelerate.")
"""Modules whose own hooks change nothing; those of :mod:`.forward_pass` do not either."""
_EVERYWHERE = (
    torch_module._global_forward_pre_hooks,
    torch_module._global_forward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_module._global_backward_hooks,
)


@dataclass(frozen=True)
class Hook:
    """One hook, or a replaced ``forward``.

    Attributes:
        place: name of the hook point, or path of the module, that it is on.
        function: what was registered.
        edit: the intervention that it belongs to, if tracelab made it.
    """

    place: str
    function: Callable[..., Any]
    edit: Any = None

    def __str__(self) -> str:
        return f"{self.place} ({_name(self.function)})"


def mark(function: Callable[..., Any], edit: Any) -> Callable[..., Any]:
    """Note on a hook function which edit it belongs to; returns it."""
    function.tracelab_edit = edit  # type: ignore[attr-defined]
    return function


def hooks_on(model: nn.Module) -> list[Hook]:
    """The hooks on a bridge, or on a ``transformers`` model, in the order of its modules."""
    found = [_made("every module", f) for hooks in _EVERYWHERE for f in hooks.values()]
    seen: set[int] = set()
    # A bridge is no parent of the root module that it wraps; a plain model has no such attribute.
    for root in (model, getattr(model, "original_model", None)):
        for path, part in root.named_modules() if isinstance(root, nn.Module) else ():
            if id(part) not in seen:
                seen.add(id(part))
                found += _of(part, path)
    return found


def hook_names(model: nn.Module) -> list[str]:
    """For the settings of a result: the name of each edit that is on, and place and function of
    every other hook."""
    return list(
        dict.fromkeys(
            str(hook) if hook.edit is None else hook.edit.name for hook in hooks_on(model)
        )
    )


def hook_keys(model: nn.Module) -> list[Any]:
    """For the key of a cache: what identifies the edits that are on.

    Where another hook is on, no two calls agree: nothing tells whether a function still does what
    it did, so what is measured under it is never handed out again.
    """
    hooks = hooks_on(model)
    edits = {id(hook.edit): hook.edit for hook in hooks if hook.edit is not None}
    keys: list[Any] = [edit.identity() for edit in edits.values()]
    return keys + [f"{hook} {uuid.uuid4()}" for hook in hooks if hook.edit is None]


def require_unedited(model: nn.Module, what: str, *, allow_hooks: bool | None = None) -> None:
    """Refuse a model with hooks on.

    Args:
        what: who needs the model as it is, as the subject of the message.
        allow_hooks: take the model with its hooks for the model as it is; None: the caller has no
            such option.

    Raises:
        TracelabError: naming the hooks; or the model is in training mode, where dropout makes every
            number another.
    """
    require_bridge(model)
    if in_training(model):
        raise TracelabError(
            f"{what} needs the model in evaluation mode, it is in training mode: call model.eval()"
        )
    if allow_hooks or not (names := hook_names(model)):
        return
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    raise TracelabError(
        f"{what} needs the model as it is, but hooks are on: {shown}. Leave the edit's with block, "
        "close() what is "
        "attached, model.reset_hooks(), remove() the handle or put back the forward"
        + ("" if allow_hooks is None else "; or say allow_hooks=True")
    )


def in_training(model: nn.Module) -> bool:
    """Whether a bridge's model, or any part of it, is in training mode."""
    return any(module.training for module in getattr(model, "original_model", model).modules())


def _of(module: nn.Module, path: str) -> Iterator[Hook]:
    known: dict[int, Callable[..., Any]] = {}
    place = path or type(module).__name__
    if isinstance(module, HookPoint):
        place = module.name or path
        handles = [*module.fwd_hooks, *module.bwd_hooks]
        known = {
            handle.hook.id: handle.user_hook for handle in handles if handle.user_hook is not None
        }
    for hooks in (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    ):
        for number, function in hooks.items():
            if not _is_bookkeeping(own := known.get(number, function)):
                yield _made(place, own)
    forward = vars(module).get("forward")  # put over that of its class
    if forward is not None and not _is_bookkeeping(forward):
        yield _made(f"{place}.forward", forward)


def _made(place: str, function: Callable[..., Any]) -> Hook:
    return Hook(place, function, getattr(function, "tracelab_edit", None))


def _is_bookkeeping(function: Callable[..., Any]) -> bool:
    inner = function.func if isinstance(function, functools.partial) else function
    # Where it was written: functools.wraps copies __module__ from what is wrapped.
    written = getattr(inner, "__globals__", {}).get("__name__", getattr(inner, "__module__", ""))
    return (
        str(written).startswith(_BOOKKEEPING)
        or getattr(inner, "__module__", "") == "tracelab.model.forward_pass"
    )


def _name(function: Callable[..., Any]) -> str:
    inner = function.func if isinstance(function, functools.partial) else function
    return str(getattr(inner, "__qualname__", type(inner).__name__))
