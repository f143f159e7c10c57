"""Gradients on for what learns, off for what measures, whatever is set around a call.

Notebooks begin with ``torch.set_grad_enabled(False)`` or put everything under
``torch.inference_mode()``. What trains an edit is inside :func:`learning`, what only measures
inside :func:`measuring`; both are context managers and decorators, and both leave inference mode,
whose tensors no later training could use, and a default device, which is for tensors of one's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


@contextmanager
def learning() -> Iterator[None]:
    """Within the block gradients are computed."""
    with torch.inference_mode(False), torch.enable_grad(), _no_default_device():
        yield


@contextmanager
def measuring() -> Iterator[None]:
    """Within the block no gradient is computed."""
    with torch.inference_mode(False), torch.no_grad(), _no_default_device():
        yield


def _no_default_device() -> AbstractContextManager[Any]:
    """Tensors are made in main memory unless a device is named; free where that is so anyhow."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def leave_inference_mode(module: nn.Module) -> None:
    """Replace tensors of a module that were made under ``torch.inference_mode()`` by normal copies;
    ties stay ties.

    No gradient can pass through the others, not even when they are constants.
    """
    copies: dict[int, torch.Tensor] = {}

    def normal(value: torch.Tensor) -> torch.Tensor:
        if id(value) not in copies:
            copy = value.detach().clone()
            learns = isinstance(value, nn.Parameter)
            copies[id(value)] = (
                nn.Parameter(copy, requires_grad=value.requires_grad) if learns else copy
            )
        return copies[id(value)]

    with measuring():
        for part in module.modules():
            for kept in (part._parameters, part._buffers):
                for name, value in kept.items():
                    if value is not None and value.is_inference():
                        kept[name] = normal(value)  # type: ignore[assignment]
