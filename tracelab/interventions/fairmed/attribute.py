"""The probers of one social attribute: what a bundle says of them, and their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from tracelab.interventions.fairmed.neutraliser import LayerProber
from tracelab.localize.probing.probes import LayerProbes


class AttributeSpec(BaseModel):
    """The probers of one attribute: its groups, those of them that enter F1, the layers, the
    sizes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attribute: str
    groups: tuple[str, ...]
    scored: tuple[str, ...]
    layers: tuple[NonNegativeInt, ...]
    d_model: PositiveInt
    hidden: PositiveInt

    @classmethod
    def of(cls, made: LayerProbes, layers: Sequence[int] | None) -> Self:
        """Of probes, at their best layers or at these."""
        _, d_model, hidden = made.probers["w1"].shape
        return cls(
            attribute=made.settings["attribute"],
            groups=tuple(made.settings["groups"]),
            scored=tuple(made.settings["groups_scored"]),
            layers=tuple(sorted(made.top_layers if layers is None else set(layers))),
            d_model=d_model,
            hidden=hidden,
        )


class AttributeProbers(nn.Module):
    """Probers of one attribute, one row a layer of ``spec.layers``."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    norm_std: Tensor

    def __init__(self, spec: AttributeSpec) -> None:
        super().__init__()
        n, d, hidden, groups = len(spec.layers), spec.d_model, spec.hidden, len(spec.groups)
        shapes = {
            "w1": (n, d, hidden),
            "b1": (n, 1, hidden),
            "w2": (n, hidden, groups),
            "b2": (n, 1, groups),
        }
        for name, shape in {**shapes, "norm_std": (n,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32))
        self.spec = spec

    def layer(self, layer: int, groups: str | Sequence[str] = "all") -> LayerProber:
        """The prober of a layer; among some groups only, its distribution is the softmax of their
        logits."""
        row = self.spec.layers.index(layer)
        among = (
            {"all": self.spec.groups, "scored": self.spec.scored}.get(groups)
            if isinstance(groups, str)
            else groups
        )
        # An attribute of which no group is named keeps all of them.
        chosen = [i for i, name in enumerate(self.spec.groups) if name in (among or ())] or slice(
            None
        )
        return LayerProber(
            self.w1[row], self.b1[row], self.w2[row][:, chosen], self.b2[row][:, chosen]
        )

    def std(self, layer: int) -> float:
        """Standard deviation of the layer's activation norm over training prompts."""
        return float(self.norm_std[self.spec.layers.index(layer)])
