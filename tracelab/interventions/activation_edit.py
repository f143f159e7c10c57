"""The base of edits that change one activation at chosen layers, each with tensors of its own.

    class Mine(ActivationEdit):
        kind, Config, point, shape = "mine", MineConfig, "resid_post", {"v": ("d_model",)}

        def change(self, h, *, v):
            return h + v

        def learn(self, model, data):
            for layer in self.layers:
                self.set_(layer, v=...)

A size in ``shape`` is a number, ``d_model`` or the name of a field of the configuration. Tensors
begin at zero; a change that does nothing then lets layers be learnt one after the other, each on
what the layers before it make. All is kept and computed in fp32.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.config import Config
from tracelab.errors import TracelabError, require_choice
from tracelab.interventions.method import Method
from tracelab.interventions.origin import Origin
from tracelab.interventions.point_edit import PointEdit
from tracelab.model.hook_points import EDITED, Point
from tracelab.model.load import model_facts
from tracelab.storage.data_hash import data_hash

POINTS = tuple(kind for kind in EDITED if kind != "logits")
"""Kinds of hook points with activations of the width of the residual stream."""


class ActivationSpec(BaseModel):
    """What a bundle needs beside tensors; each method's own has the type of its configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Config
    bias: str
    layers: tuple[int, ...]
    d_model: int


class ActivationEdit(Method):
    """Base of activation edits; see the module's docstring.

    Attributes:
        point: the kind of hook point that is changed.
        shape: sizes of each tensor of a layer, by name.
        layers: that are edited, ascending.
        bias: of the data it was fitted on.
    """

    SpecBase = ActivationSpec
    needs: ClassVar[tuple[str, ...]] = ("bias",)
    point: ClassVar[str]
    shape: ClassVar[dict[str, tuple[str | int, ...]]]

    def __init__(
        self, spec: Any, origin: Origin | None, notes: dict[str, Any] | None = None
    ) -> None:
        super().__init__(origin, notes)
        self._spec, self.config, self.layers, self.bias = spec, spec.config, spec.layers, spec.bias
        if not spec.layers or sorted(set(spec.layers)) != list(spec.layers) or spec.layers[0] < 0:
            raise TracelabError(
                f"{self.kind} needs layers, ascending and each once, not {list(spec.layers)}"
            )
        for layer in spec.layers:
            for name, sizes in self.shape.items():
                size = [self._size(spec, name, each) for each in sizes]
                self.register_buffer(f"{name}_{layer}", torch.zeros(size, dtype=torch.float32))

    def _size(self, spec: Any, name: str, size: Any) -> int:
        if isinstance(size, int):
            return size
        if size == "d_model":
            return spec.d_model
        if size in type(spec.config).model_fields:
            return getattr(spec.config, size)
        fields = ", ".join(type(spec.config).model_fields)
        raise TracelabError(
            f"a size of {name} in the shape of {type(self).__name__} is {size!r}: it is a number, "
            f"d_model or a field of the configuration ({fields})"
        )

    @abstractmethod
    def change(self, h: Float[Tensor, "batch pos d_model"], *_: Any, **tensors: Any) -> Tensor:
        """The new activation, of an activation in fp32 and the layer's tensors by name."""

    @abstractmethod
    def learn(self, model: TransformerBridge, data: Any) -> None:
        """Find the tensors of each of :attr:`layers` and :meth:`set_` them; what else is worth
        knowing goes into ``notes``."""

    @classmethod
    def default_layers(cls, model: TransformerBridge) -> Sequence[int]:
        """Where the method edits unless it is told."""
        return range(1 if cls.point == "embed" else model_facts(model).n_layers)

    @classmethod
    def point_at(cls, layer: int) -> Point:
        """The point of a layer; there is one embedding, which counts as layer 0's."""
        return Point(cls.point, None if cls.point == "embed" else layer)

    @classmethod
    def learned(
        cls,
        model: TransformerBridge,
        data: Any,
        config: Config,
        *,
        layers: Sequence[int] | None,
        dev: None,
        checkpoint: Path | None,
    ) -> Self:
        """An edit of the layers with tensors of zeros, filled by :meth:`learn`."""
        require_choice(f"point of {cls.__name__}", cls.point, POINTS)
        chosen = sorted(cls.default_layers(model) if layers is None else layers)
        if cls.point == "embed" and chosen != [0]:
            raise TracelabError(f"there is one embedding, layer 0: not {chosen}")
        origin = Origin.of(model, [cls.point_at(layer) for layer in chosen])
        spec = cls.Spec(
            config=config, bias=str(data.bias), layers=tuple(chosen), d_model=model.cfg.d_model
        )
        edit = cls(spec, origin)
        edit.to(next(model.original_model.parameters()).device)
        edit.learn(model, data)
        edit.notes["data_hash"] = data_hash([data])
        return edit

    @torch.no_grad()
    def set_(self, layer: int, **tensors: Any) -> None:
        """Copy values into the tensors of a layer.

        Raises:
            TracelabError: a layer or tensor that the edit has not, or another size.
        """
        for name, value in tensors.items():
            if name not in self.shape or layer not in self.layers:
                raise TracelabError(
                    f"{self.kind} has no {name} at layer {layer}: it has {', '.join(self.shape)} "
                    f"at layers {list(self.layers)}"
                )
            buffer, value = self.get_buffer(f"{name}_{layer}"), torch.as_tensor(value)
            if value.shape != buffer.shape:
                raise TracelabError(
                    f"{name} at layer {layer} has the size {list(buffer.shape)}, not "
                    f"{list(value.shape)}"
                )
            buffer.copy_(value)

    def tell(self, quantity: str, before: Any, after: Tensor, **where: Any) -> None:
        """As :meth:`~tracelab.interventions.base.Intervention.tell`, of the layer that is being
        changed."""
        super().tell(quantity, before, after, **{"layer": self._changing, **where})

    @property
    def own_name(self) -> str:
        """``kind(bias)``."""
        return f"{self.kind}({self.bias})"

    def edits(self, hf_model: nn.Module) -> list[PointEdit]:
        """One edit a layer."""
        return [
            PointEdit(self.point_at(layer), self._changer(layer), d_out=self._spec.d_model)
            for layer in self.layers
        ]

    def _changer(self, layer: int):
        def edit(value: Tensor) -> Tensor:
            named = {name: self.get_buffer(f"{name}_{layer}") for name in self.shape}
            # each layer's where the layer is: a model may be spread over devices
            tensors = {name: each.to(value.device) for name, each in named.items()}
            self._changing = layer
            return self.change(value.float(), **tensors)

        return edit

    def spec(self) -> Any:
        """The configuration, the layers and the width."""
        return self._spec

    @classmethod
    def build(cls, spec: Any, origin: Origin | None) -> Self:
        """With tensors of zeros."""
        return cls(spec, origin)
