"""On which device the activation of a point is: models may be spread over several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.model.hook_points import Point

DeviceOf = Callable[[Point], torch.device]


def on_bridge(model: TransformerBridge) -> DeviceOf:
    """That of the point's block; of a point outside the blocks, the model's first."""

    def device_of(point: Point) -> torch.device:
        part: Any = model.original_model if point.layer is None else model.blocks[point.layer]
        return next(part.parameters()).device

    return device_of


def on_plain(hf_model: nn.Module, module: Callable[[nn.Module, Point], nn.Module]) -> DeviceOf:
    """That of the point's module; of one without weights, the model's first.

    Args:
        module: finds the module of a point.
    """
    first = next(hf_model.parameters())

    def device_of(point: Point) -> torch.device:
        if point.layer is None:
            return first.device
        return next(module(hf_model, point).parameters(), first).device

    return device_of
