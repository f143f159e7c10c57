"""The base of edits that change one activation at chosen layers, each with tensors of its own.

    class Mine(ActivationEdit):
        kind, Config, point, shape = "mine", MineConfig, "resid_post", {"v": ("d_model",)}
        def change(self, h, *, v): return h + v
        @classmethod
        def learn(cls, edit, model, data): edit.set_(layer, v=...)      # for each layer of edit.layers

A size in ``shape`` is ``d_model`` or the name of a field of the configuration. Tensors begin at
zero; a change that does nothing then lets layers be learnt one after the other, each on what the
layers before it make. All is kept and computed in fp32.
"""  # noqa: E501

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from time import perf_counter
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.interventions.base import Edit, Intervention
from tracelab.interventions.manifest import first
from tracelab.interventions.origin import Origin
from tracelab.model.hook_points import Point
from tracelab.model.hooked import require_unedited
from tracelab.model.load import model_facts
from tracelab.ranges import require_layers, shown
from tracelab.storage.data_hash import data_hash


class MethodConfig(BaseModel):
    """Base of a method's configuration: fields with types, bounds and choices; a violation is one
    sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            fault = error.errors()[0]
            given = "" if fault["type"] == "extra_forbidden" else f", not {shown(fault['input'])}"
            raise TracelabError(f"{type(self).__name__}: {first(error)}{given}") from error


class ActivationSpec(BaseModel):
    """What a bundle needs beside tensors; each method's own has the type of its configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: MethodConfig
    bias: str
    layers: tuple[int, ...]
    d_model: int


class ActivationEdit(Intervention):
    """Base of activation edits; see the module's docstring.

    Attributes:
        Config: of the method.
        point: the kind of hook point that is changed.
        shape: sizes of each tensor of a layer, by name.
        layers: that are edited, ascending.
        bias: of the data it was fitted on.
    """

    Config: ClassVar[type[MethodConfig]]
    point: ClassVar[str]
    shape: ClassVar[dict[str, tuple[str, ...]]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "Config" in vars(cls):
            cls.Spec = create_model(
                f"{cls.__name__}Spec", __base__=ActivationSpec, config=(cls.Config, ...)
            )

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
                size = [
                    spec.d_model if size == "d_model" else getattr(spec.config, size)
                    for size in sizes
                ]
                self.register_buffer(f"{name}_{layer}", torch.zeros(size, dtype=torch.float32))

    @abstractmethod
    def change(
        self, h: Float[Tensor, "batch pos d_model"], **tensors: Tensor
    ) -> Float[Tensor, "batch pos d_model"]:
        """The new activation, of an activation in fp32 and the layer's tensors by name."""

    @classmethod
    @abstractmethod
    def learn(cls, edit: Self, model: TransformerBridge, data: Any) -> None:
        """Find the tensors of each layer and :meth:`set_` them; what else is worth knowing goes
        into ``edit.notes``."""

    @classmethod
    def default_layers(cls, model: TransformerBridge) -> Sequence[int]:
        """Where the method edits unless it is told."""
        return range(model_facts(model).n_layers)

    @classmethod
    def fit(
        cls,
        model: TransformerBridge,
        data: Any,
        config: MethodConfig | None = None,
        *,
        layers: Sequence[int] | None = None,
        allow_hooks: bool = False,
    ) -> Self:
        """Fit the edit on data with a ``bias`` (of :mod:`tracelab.datasets`, or your own).

        Args:
            config: default: ``Config()``.
            layers: default: :meth:`default_layers`.
            allow_hooks: fit on a model with hooks on, as it is with them.

        Raises:
            TracelabError: a layer that does not exist, hooks on the model, or data that do not
                serve.
        """
        require_unedited(model, f"a fit of {cls.kind}", allow_hooks=allow_hooks)
        began = perf_counter()
        facts = model_facts(model)
        wanted = cls.default_layers(model) if layers is None else layers
        chosen = require_layers(wanted, facts.n_layers, facts.model_id)
        origin = Origin.of(model, [Point(cls.point, layer) for layer in chosen])
        values = {"config": config or cls.Config(), "bias": str(data.bias)}
        edit = cls(cls.Spec(**values, layers=tuple(chosen), d_model=model.cfg.d_model), origin)
        edit.to(next(model.original_model.parameters()).device)
        cls.learn(edit, model, data)
        edit.notes |= {
            "data_hash": data_hash([data]),
            "fit_seconds": round(perf_counter() - began, 1),
        }
        return edit

    @torch.no_grad()
    def set_(self, layer: int, **tensors: Tensor) -> None:
        """Copy values into the tensors of a layer."""
        for name, value in tensors.items():
            self.get_buffer(f"{name}_{layer}").copy_(value)

    @property
    def name(self) -> str:
        """``kind(bias)``."""
        return f"{self.kind}({self.bias})"

    def edits(self, hf_model: nn.Module) -> list[Edit]:
        """One edit a layer."""
        return [
            Edit(Point(self.point, layer), self._changer(layer), d_out=self._spec.d_model)
            for layer in self.layers
        ]

    def _changer(self, layer: int):
        def edit(value: Tensor) -> Tensor:
            tensors = {name: self.get_buffer(f"{name}_{layer}") for name in self.shape}
            return self.change(value.float(), **tensors)

        return edit

    def spec(self) -> Any:
        """The configuration, the layers and the width."""
        return self._spec

    @classmethod
    def build(cls, spec: Any, origin: Origin | None) -> Self:
        """With tensors of zeros."""
        return cls(spec, origin)
