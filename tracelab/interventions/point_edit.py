"""One change at one point, and the hook functions that make it: of a bridge, and of plain torch.

The same function runs on both, so both compute the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tracelab.errors import TracelabError
from tracelab.model.forward_pass import current_call
from tracelab.model.hook_points import Point

Hooks = list[tuple[str, Callable[[Tensor, Any], Tensor | None]]]


@dataclass(frozen=True)
class PointEdit:
    """One change at one point.

    Attributes:
        point: where.
        function: for an activation or the logits ``(value) -> new value``; for a linear map
            ``(input, output) -> new output``.
        d_in, d_out: features of a linear map's input, and of what is changed, that the function
            needs; None: any.
    """

    point: Point
    function: Callable[..., Tensor]
    d_in: int | None = None
    d_out: int | None = None


def share(old: Tensor, new: Tensor, strength: float) -> Tensor:
    """``old + strength · (new - old)`` in fp32; a logit that both rule out (-inf) stays so."""
    old, new = old.float(), new.float()
    return torch.where(new == old, old, old + strength * (new - old))


def at_strength(edit: PointEdit, strength: float) -> PointEdit:
    """A share of a change: ``h + strength · (h' - h)`` in fp32; at 0 ``h`` itself, at 1 ``h'``."""

    def scaled(*values: Tensor) -> Tensor:
        old = values[-1]  # of a linear map: its output
        if strength == 0:
            return old
        return share(old, _same_shape(edit.point, old, edit.function(*values)), strength)

    return edit if strength == 1 else replace(edit, function=scaled)


def _same_shape(point: Point, old: Tensor, new: Tensor) -> Tensor:
    # What has a batch of 1 would be broadcast in silence.
    if new.shape != old.shape:
        raise RuntimeError(f"the edit at {point} made {tuple(new.shape)} of {tuple(old.shape)}")
    return new


def _checked(point: Point, old: Tensor, new: Tensor) -> Tensor:
    return _same_shape(point, old, new).to(old.dtype)


def activation_hook(edit: PointEdit) -> Callable[[Tensor, Any], Tensor]:
    """Of a bridge, for an activation or the logits."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        return _checked(edit.point, value, edit.function(value))

    return hook


def linear_hooks(name: str, edit: PointEdit) -> Hooks:
    """Of a bridge, for a linear map: one keeps its input, one changes its output."""
    inputs: list[Tensor] = []

    def before(value: Tensor, hook: Any) -> None:
        inputs[:] = [value]

    def after(value: Tensor, hook: Any) -> Tensor:
        if not inputs:
            raise RuntimeError(
                f"{name}.hook_in did not fire before {name}.hook_out on this architecture"
            )
        return _checked(edit.point, value, edit.function(inputs.pop(), value))

    return [(f"{name}.hook_in", before), (f"{name}.hook_out", after)]


def forward_hook(edit: PointEdit, hf_model: nn.Module) -> Callable[..., Any]:
    """Of a module of a plain model: ``register_forward_hook`` takes it."""

    def changed(value: Tensor) -> Tensor:
        whole = _as_batch(value, hf_model)
        return _checked(edit.point, whole, edit.function(whole)).reshape(value.shape)

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        if edit.point.linear:
            return _checked(edit.point, output, edit.function(args[0], output))
        if edit.point.kind == "logits":
            if not hasattr(output, "logits"):
                raise TracelabError(
                    "an edit of the logits needs transformers' named output: give no "
                    "return_dict=False"
                )
            if output.get("loss") is not None:
                raise TracelabError(
                    "transformers computed the loss before the logits were edited: give no labels, "
                    "and compute it "
                    "from the logits"
                )
            output.logits = _checked(edit.point, output.logits, edit.function(output.logits))
            return output
        return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

    return hook


def _as_batch(value: Tensor, hf_model: nn.Module) -> Float[Tensor, "batch pos d_model"]:
    """An activation with its texts apart: plain OPT's MLP gives out ``[batch · pos, d_model]``."""
    texts = current_call(hf_model).n_texts
    return value if value.ndim != 2 or not texts else value.unflatten(0, (texts, -1))


def flat_input(value: Float[Tensor, "..."]) -> Float[Tensor, "*rows d_in"]:
    """A linear map's input with the heads of an attention output joined, in fp32.

    Plain OPT gives its MLP ``[batch · pos, d_in]``, which is passed as it is.
    """
    return (value if value.ndim == 2 else value.flatten(start_dim=2)).to(torch.float32)
