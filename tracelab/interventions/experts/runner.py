"""Running experts beside a model: one batch for all of them, each with its own keys and values.

The experts of one small model are weight deltas on it, so ``n`` experts are one forward pass of
that model on ``n`` copies of the rows, copy ``i`` with delta ``i``. They run on a plain *twin* of
the small model, which shares its weights but not its modules: a hook on the model itself (another
edit, a cache) is not fired by its experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.interventions.point_edit import flat_input
from tracelab.interventions.sizes import require_layer, require_map
from tracelab.interventions.weight_delta import WeightDelta
from tracelab.model.forward_pass import Call
from tracelab.model.hook_points import Point
from tracelab.model.plain import plain_twin


class ExpertRunner:
    """The logits of ``n`` experts in step with the forward passes of another model.

    Args:
        hf_model: the small model that the deltas are of.
        deltas: one an expert.

    Raises:
        TracelabError: the model computes a map of the deltas together with others, or has other
            widths there.
    """

    def __init__(self, hf_model: Any, deltas: Sequence[WeightDelta]) -> None:
        self.twin = plain_twin(hf_model)
        self._made_of = _identity(hf_model)
        self.deltas = list(deltas)
        modules: dict[Point, nn.Module] = {}
        for delta in deltas:
            for shape in delta.spec().maps:
                path = delta.paths().get(str(shape.point), "")
                modules[shape.point] = module = delta.module(self.twin, shape.point)
                require_layer(shape.point, path)
                require_map(shape.point, f"the module {path!r}", module, shape.d_in, shape.d_out)
        for point, module in sorted(modules.items()):
            module.register_forward_hook(self._adder(point))

    def is_current(self, hf_model: Any) -> bool:
        """Whether the model still has the weights, where they are, that the twin shares."""
        return self._made_of == _identity(hf_model)

    def _adder(self, point: Point) -> Callable[..., Tensor]:
        parts = [delta.part(point) for delta in self.deltas]

        def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            pairs = zip(parts, args[0].chunk(len(parts)), output.chunk(len(parts)), strict=True)
            return torch.cat(
                [
                    y if part is None else (y + part(flat_input(x))).to(y.dtype)
                    for part, x, y in pairs
                ]
            )

        return add

    @measuring()
    def logits(self, call: Call, n_last: int) -> Float[Tensor, "experts batch n_last vocab"]:
        """Logits, in fp32, at the last ``n_last`` columns of a forward pass.

        Raises:
            TracelabError: the model was given embeddings, or a cache that this runner has not
                filled too.
        """
        if self in call.made:  # two edits that mix the same experts
            return call.made[self]
        if call.input_ids is None:
            raise TracelabError("experts read tokens: give the model input_ids, not embeddings")
        trees = call.several_a_row and not call.past_length
        if call.attention_mask is not None and call.attention_mask.ndim != 2 and not trees:
            raise TracelabError("experts need a mask of [batch, columns], not one a query")
        if call.chosen_columns is not None and not trees:
            raise TracelabError(
                "experts need logits_to_keep as a number of last columns, not as indices"
            )
        n = len(self.deltas)
        device = next(self.twin.parameters()).device
        cache = call.kept.get(self)
        if call.past_length and (cache is None or cache.get_seq_length() != call.past_length):
            raise TracelabError(
                f"the cache holds {call.past_length} columns that were computed without the "
                "experts: "
                "fill it with the edit applied"
            )
        if cache is None:
            cache = call.kept[self] = Cache(layer_class_to_replicate=cast(Any, lambda: _Rows(n)))
        inputs = {"attention_mask": call.attention_mask, "position_ids": call.position_ids}
        output = self.twin(
            input_ids=_copies(call.input_ids, n).to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=n_last if call.chosen_columns is None else call.chosen_columns,
            **{
                name: _copies(value, n).to(device)
                for name, value in inputs.items()
                if value is not None
            },
        )
        call.made[self] = output.logits.float().unflatten(0, (n, -1))
        return call.made[self]

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertRunner:
        # A copied cache is still this runner's.
        return self


def _identity(hf_model: Any) -> tuple[Any, ...]:
    return tuple(
        (parameter.data_ptr(), parameter.dtype, parameter.device)
        for parameter in hf_model.parameters()
    )


def _copies(value: Tensor, n: int) -> Tensor:
    return value.repeat(n, *[1] * (value.ndim - 1))


class _Rows(DynamicLayer):
    """Keys and values of ``n`` copies of a batch, one after the other, that follow the batch's
    reordering."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(cast(Any, self._in_all(beam_idx)))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(self._in_all(indices))

    def _in_all(self, rows: Tensor) -> Tensor:
        size = cast(Tensor, self.keys).shape[0] // self.n
        return torch.cat([rows + copy * size for copy in range(self.n)])
