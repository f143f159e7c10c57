"""An edit that is on a model: for the length of a ``with`` block, or until it is closed.

The same edit twice on one model would act twice, so it is refused; attached again, as by a notebook
cell that is run again, it replaces itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from tracelab.errors import TracelabError
from tracelab.model.hooked import hooks_on


class InForce:
    """Puts hooks on and takes them off again; a block can be entered again after it was left.

    >>> handle = edit.attach(hf_model)          # on
    >>> handle.close()                          # off
    >>> with handle:                            # on for the length of the block
    ...     hf_model(tokens).logits

    Attributes:
        edit: what is put on.
    """

    def __init__(self, edit: Any, put_on: Callable[[], ExitStack], given: Any = None) -> None:
        self.edit = edit
        self._put_on, self._given = put_on, given
        self._on: ExitStack | None = None
        self._entered = False

    def open(self) -> InForce:
        """Put the edit on, if it is not."""
        if self._on is None:
            self._on = self._put_on()
        return self

    def close(self) -> None:
        """Take the edit off, if it is on."""
        on, self._on = self._on, None
        if on is not None:
            on.close()

    def __enter__(self) -> Any:
        if self._entered:
            raise TracelabError(
                f"{self.edit.name} is on already: its block was entered and not left"
            )
        self.open()
        self._entered = True
        return self if self._given is None else self._given

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered = False
        self.close()


_ATTACHED: WeakKeyDictionary[nn.Module, list[InForce]] = WeakKeyDictionary()


def attached(hf_model: nn.Module, handle: InForce) -> InForce:
    """Open a handle on a ``transformers`` model, in the place of those of the same edit that are
    open there.

    Raises:
        TracelabError: one of them is in its block, or holds other edits too, which would be taken
            off with it.
    """
    others = _ATTACHED.setdefault(hf_model, [])
    others[:] = [other for other in others if other._on is not None]
    same = [other for other in others if _share_a_member(other.edit, handle.edit)]
    for other in same:
        if other._entered or not all(
            _share_a_member(part, handle.edit) for part in _leaves(other.edit)
        ):
            raise TracelabError(_twice(other.edit))
    for other in same:
        others.remove(other)
        other.close()
    handle.open()
    others.append(handle)
    return handle


def require_off(model: nn.Module, edit: Any) -> None:
    """Refuse a model on which the edit, or a member of it, is on.

    Raises:
        TracelabError: naming it.
    """
    for other in {
        id(hook.edit): hook.edit for hook in hooks_on(model) if hook.edit is not None
    }.values():
        if _share_a_member(other, edit):
            raise TracelabError(_twice(other))


def _twice(edit: Any) -> str:
    return (
        f"{edit.name} is on this model already and would act twice: "
        "leave its with block, or close() it, first"
    )


def _share_a_member(one: Any, other: Any) -> bool:
    return any(a is b or a.same_as(b) for a in _leaves(one) for b in _leaves(other))


def _leaves(edit: Any) -> Iterator[Any]:
    """The edits of a stack, those of stacks in it too, or the edit itself."""
    members = getattr(edit, "members", None)
    if members is None:
        yield edit
    else:
        for member in members:
            yield from _leaves(member)
