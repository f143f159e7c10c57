"""Weight deltas: a change of linear maps, added at their output from their input.

    y = W x  becomes  y + ΔW x,   ΔW = B A (low rank, as in LoRA) or dense

The base weights are never touched, and the delta is kept and multiplied in fp32 whatever the
model's dtype. A zero delta is the unedited model bit for bit. ``A`` is ``[r, d_in]`` and ``B``
``[d_out, r]``, the orientation of PEFT's ``lora_A`` and ``lora_B``; a new low-rank delta has ``B =
0``, so training starts at the base model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError, require_choice
from tracelab.figures import training_curves
from tracelab.gradients import measuring
from tracelab.interventions.base import Intervention
from tracelab.interventions.origin import Origin
from tracelab.interventions.places import DeviceOf
from tracelab.interventions.point_edit import PointEdit, flat_input
from tracelab.model.hook_points import LINEAR_MAPS, Point
from tracelab.model.load import model_facts
from tracelab.model.texts import Texts, as_texts
from tracelab.ranges import require_int, require_layers, require_seed

_ALWAYS_TAKEN = 16  # the largest rank that a fit has by default: the smallest models are fitted too


class MapShape(BaseModel):
    """A linear map with a delta: where it is, its sizes, and the rank (None: dense)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str
    layer: NonNegativeInt
    d_in: PositiveInt
    d_out: PositiveInt
    rank: PositiveInt | None

    @property
    def point(self) -> Point:
        """Where the delta acts."""
        return Point(self.module, self.layer)


class WeightDeltaSpec(BaseModel):
    """All maps of a weight delta."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    maps: tuple[MapShape, ...]


class _Dense(nn.Module):
    def __init__(self, shape: MapShape) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(shape.d_out, shape.d_in, dtype=torch.float32))

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        return x @ self.delta.T

    def weight(self) -> Float[Tensor, "d_out d_in"]:
        return self.delta


class _LowRank(nn.Module):
    def __init__(self, shape: MapShape) -> None:
        super().__init__()
        assert shape.rank is not None
        self.lora_A = nn.Parameter(torch.zeros(shape.rank, shape.d_in, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(shape.d_out, shape.rank, dtype=torch.float32))

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        return x @ self.lora_A.T @ self.lora_B.T

    def weight(self) -> Float[Tensor, "d_out d_in"]:
        return self.lora_B @ self.lora_A


class WeightDelta(Intervention):
    """Deltas of chosen linear maps.

    >>> delta = WeightDelta.low_rank(model, layers=[1, 2], modules=["mlp.out"], rank=8)
    >>> with delta.applied(model):  # any loss of the model; here the next tokens'
    ...     loss = -model(tokens).log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    >>> loss.backward(inputs=[*delta.parameters()])  # the model itself gets no gradients
    """

    kind = "weight_delta"
    Spec: ClassVar[type[BaseModel]] = WeightDeltaSpec

    def __init__(
        self, spec: WeightDeltaSpec, origin: Origin | None, notes: dict[str, Any] | None = None
    ) -> None:
        for shape in spec.maps:
            require_choice("linear map", shape.module, LINEAR_MAPS)
        if len({shape.point for shape in spec.maps}) < len(spec.maps):
            raise TracelabError("a linear map has two deltas: give each once")
        super().__init__(origin, notes)
        self._spec = spec
        self.maps = nn.ModuleDict(
            {
                _key(shape.point): _Dense(shape) if shape.rank is None else _LowRank(shape)
                for shape in spec.maps
            }
        )

    @classmethod
    @measuring()
    def low_rank(
        cls,
        model: TransformerBridge,
        *,
        layers: Sequence[int],
        modules: Texts = ("mlp.out",),
        rank: int | None = 8,
        seed: int = 0,
    ) -> WeightDelta:
        """A zero delta, ready to be trained; with ``rank=None`` it is dense.

        Args:
            modules: linear maps by TransformerLens name: ``mlp.in, mlp.gate, mlp.out,
                attn.q/k/v/o``.

        Raises:
            TracelabError: no such layer or map, or a rank under 1 or above what any of the maps can
                have.
        """
        if rank is not None:
            require_int("the rank of a delta", rank)
        require_seed(seed)
        layers = require_layers(layers, model_facts(model).n_layers, model_facts(model).model_id)
        modules = as_texts(modules, "linear map")
        for module in modules:
            require_choice("linear map", module, LINEAR_MAPS)
        # Each once: a map named twice would get its delta twice.
        points = list(dict.fromkeys(Point(module, layer) for layer in layers for module in modules))
        if not points:
            raise TracelabError("a weight delta needs at least one layer and one linear map")
        origin = Origin.of(model, points)
        sizes = _map_sizes(model, points)
        largest = max(min(size) for size in sizes)
        if rank is not None and rank > max(largest, _ALWAYS_TAKEN):
            raise TracelabError(
                f"no delta of these maps has a rank above {largest}, their smaller side: not {rank}"
            )
        shapes = tuple(
            MapShape(module=point.kind, layer=point.layer or 0, d_in=d_in, d_out=d_out, rank=rank)
            for point, (d_in, d_out) in zip(points, sizes, strict=True)
        )
        delta = cls(WeightDeltaSpec(maps=shapes), origin)
        generator = torch.Generator().manual_seed(seed)
        for part in delta.maps.values():
            if isinstance(part, _LowRank):  # as peft initialises lora_A
                nn.init.kaiming_uniform_(part.lora_A, a=math.sqrt(5), generator=generator)
        return delta.to(model.cfg.device)

    def edits(self, hf_model: nn.Module) -> list[PointEdit]:
        """One edit a linear map."""
        return [
            PointEdit(shape.point, _adder(self.maps[_key(shape.point)]), shape.d_in, shape.d_out)
            for shape in self._spec.maps
        ]

    def place(self, device_of: DeviceOf) -> None:
        """Each map's delta where the map is."""
        for shape in self._spec.maps:
            self.maps[_key(shape.point)].to(device_of(shape.point))

    def part(self, point: Point) -> nn.Module | None:
        """The module that computes the delta's contribution at a point from the map's input
        (fp32)."""
        return self.maps[_key(point)] if _key(point) in self.maps else None  # noqa: SIM401  ModuleDict has no get

    @measuring()
    def set_(self, shifts: Sequence[Float[Tensor, "_d_in _d_out"]]) -> None:
        """Copy a shift of ``x W`` into each dense delta, in order (a delta is its transpose)."""
        for part, shift in zip(self.maps.values(), shifts, strict=True):
            part.delta.copy_(shift.T)  # type: ignore[operator]

    def plot_training(self) -> go.Figure:
        """Losses and development figures by training step, of an edit that was fitted (BiasEdit,
        KLAAD).

        Raises:
            TracelabError: the notes hold no curves.
        """
        made_for = "" if self.origin is None else self.origin.model_id
        return training_curves(self.notes, name=self.name, made_for=made_for)

    def whole(self) -> Self:
        """The same change as deltas of full strength: this edit, or a copy whose deltas are
        scaled."""
        if self.strength == 1:
            return self
        other = copy.deepcopy(self)
        other.scale_(self.strength)
        other.set_strength(1.0)
        return other

    @measuring()
    def scale_(self, factor: float) -> None:
        """Multiply every delta."""
        for part in self.maps.values():
            (part.delta if isinstance(part, _Dense) else part.lora_B).mul_(factor)  # type: ignore[operator]

    def spec(self) -> WeightDeltaSpec:
        """The maps and their shapes."""
        return self._spec

    @classmethod
    def build(cls, spec: WeightDeltaSpec, origin: Origin | None) -> WeightDelta:
        """A zero delta of these shapes."""
        return cls(spec, origin)


def _key(point: Point) -> str:
    """The point as a module name, in which no dot may stand."""
    return str(point).replace(".", "-")


def _adder(part: nn.Module):
    def add(x: Tensor, y: Tensor) -> Tensor:
        return y.float() + part(flat_input(x)).reshape(y.shape)

    return add


@measuring()
def _map_sizes(model: TransformerBridge, points: Sequence[Point]) -> list[tuple[int, int]]:
    """Input and output width of each map, seen on one token."""
    widths: dict[str, int] = {}

    def note(value: Tensor, hook: Any) -> None:
        widths[hook.name] = value.flatten(start_dim=2).shape[2]

    names = [f"{point}.{side}" for point in points for side in ("hook_in", "hook_out")]
    model.run_with_hooks(
        torch.zeros((1, 1), dtype=torch.long, device=model.cfg.device),
        fwd_hooks=[(n, note) for n in names],
    )
    missing = [name for name in names if name not in widths]
    if missing:
        raise TracelabError(
            f"{missing[0]} does not fire on this architecture: a delta there would change nothing"
        )
    return [(widths[f"{point}.hook_in"], widths[f"{point}.hook_out"]) for point in points]
