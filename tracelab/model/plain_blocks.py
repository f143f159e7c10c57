"""Single blocks of a model on its plain twin: the same numbers, in less time.

What runs blocks many thousand times pays for what a bridge is for: its hook points cost 12 to 17 %,
it keeps attention eager, which on short texts takes 1.5 times as long as PyTorch's own kernel. A
plain ``transformers`` model with the same weights (:mod:`.plain`) has neither, and plain forward
hooks show and replace the contributions of its attention and MLP modules.

Its linear maps go to oneDNN where it is there (fp32 on a CPU): the default library of PyTorch's
builds leaves half of an AMD processor's vector width idle, on an Intel one both are equal. The
weights stay where they are.

Nothing of this is assumed: a :class:`PlainBlockRunner` is made only if, on a few tokens, the twin
has the logits and contributions of the model. Edits and a person's own hooks are on the bridge, not
on the twin, so with any of them on there is none either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.model.hook_points import Point, module_path
from tracelab.model.hooked import hooks_on, in_training
from tracelab.model.load import model_facts
from tracelab.model.partial_forward import (
    BlockRunner,
    KeyValues,
    Watcher,
    _named,
    _replaced,
)
from tracelab.model.plain import plain_twin

SHOWN = ("embed", "resid_post", "mlp_out", "attn_out")
"""Kinds of hook points that a plain model's modules show."""
ATTENTION = ("sdpa", "eager")
"""Implementations of attention, the quickest first and the bridge's last; the first with the
model's numbers is taken."""
CHECK_TOKENS = 12


def block_runner(model: TransformerBridge) -> BlockRunner:
    """The quickest runner that has the numbers of the model as it is now, hooks included."""
    try:
        return PlainBlockRunner(model)
    except Exception:  # whatever it is, the model itself can be run
        return BlockRunner(model)


class PlainBlockRunner(BlockRunner):
    """A :class:`BlockRunner` that runs the blocks of a plain twin.

    Raises:
        TracelabError: hooks are on the model, it has no plain twin, or the twin's numbers are
            others.
    """

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        hf_model = cast(Any, model.original_model)
        if hooks_on(model) or in_training(model):
            raise TracelabError("the plain twin of a model is not what runs: hooks are on")
        if len({parameter.device for parameter in hf_model.parameters()}) > 1:
            raise TracelabError("a plain twin lies on one device, the model on several")
        self._paths = _paths(model)
        self.runs = plain_twin(hf_model)
        use_onednn(self.runs)
        path = model.adapter.translate_transformer_lens_path("blocks")
        self.blocks = cast(nn.ModuleList, self.runs.get_submodule(path))
        self._key_values: list[KeyValues] = []
        # In half precision each implementation rounds in its own way: only the bridge's will do.
        exact = model.cfg.dtype == torch.float32
        if not any(map(self._has_the_numbers, ATTENTION if exact else ATTENTION[-1:])):
            raise TracelabError(f"the plain twin of {model_facts(model).model_id} computes others")

    def logits(  # noqa: D102
        self,
        tokens: Int[Tensor, "batch pos"],
        cache: DynamicCache | None = None,
        *,
        start: int = 0,
    ) -> Float[Tensor, "batch read vocab"]:
        kept, skipped = self._reading(tokens.shape[1], start)
        cached = {"past_key_values": cache, "use_cache": cache is not None}
        return self.runs(tokens, **cached, **kept).logits[:, skipped:]

    @contextmanager
    def watching(  # noqa: D102
        self, watchers: Iterable[tuple[str, int | None, Watcher]]
    ) -> Iterator[None]:
        handles = []
        try:
            for kind, layer, function in watchers:
                if kind == "resid_pre":
                    block, hook = self.blocks[cast(int, layer)], _on_input(function)
                    handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
                else:
                    module = self.runs.get_submodule(self._paths[kind, layer])
                    handles.append(module.register_forward_hook(_on_output(function)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @measuring()
    def _has_the_numbers(self, attention: str) -> bool:
        """Whether logits, residuals and contributions are those of the bridge, on a few tokens."""
        with suppress(ValueError, ImportError):  # it has no such attention
            self.runs.set_attn_implementation(attention)
        if self.runs.config._attn_implementation != attention:
            return False
        tokens = torch.arange(10, 10 + CHECK_TOKENS, device=self.model.cfg.device)
        tokens = torch.stack([tokens, tokens.flip(0)]) % self.model.cfg.d_vocab
        seen: list[dict[Any, Tensor]] = []
        for runner in (BlockRunner(self.model), self):
            values: dict[Any, Tensor] = {}
            places = [(kind, layer, _store(values, (kind, layer))) for kind, layer in self._paths]
            with runner.watching(places):
                values["logits"] = runner.logits(tokens)
            seen.append(values)
        close = max(1e-4, 4 * torch.finfo(seen[0]["logits"].dtype).eps)
        return all(
            value.shape == seen[1][place].shape
            and bool((value - seen[1][place]).abs().max() <= close * value.abs().max())
            for place, value in seen[0].items()
        )

    def _recorded(self, start: int, length: int) -> list[dict[str, Any]]:
        """By a pass whose blocks only note how they are called, and whose cache is of one run."""
        tokens = torch.zeros((1, length), dtype=torch.long, device=self.model.cfg.device)
        if not self._key_values or self._key_values[0][0].shape[2] < length:
            handle = self.blocks[0].register_forward_hook(self._note_form)
            try:
                self._key_values = self.key_values(tokens)
            finally:
                handle.remove()
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._key_values if start else ()):
            cache.update(keys[:, :, :start], values[:, :, :start], layer)
        noting = _Note(list(self.blocks), self._blocks_return_tuples)
        with _replaced(self.blocks, noting):
            self.logits(tokens[:, start:], cache)
        return noting.calls


class _Note(nn.Module):
    """Stands for all blocks of a model, returns its input, and notes the arguments of each call."""

    def __init__(self, blocks: list[nn.Module], as_tuple: bool) -> None:
        super().__init__()
        self._stand_for, self._as_tuple = tuple(blocks), as_tuple
        self.calls: list[dict[str, Any]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(_named(self._stand_for[len(self.calls)], args, kwargs))
        resid = args[0] if args else kwargs["hidden_states"]
        return (resid,) if self._as_tuple else resid


def _paths(model: TransformerBridge) -> dict[tuple[str, int | None], str]:
    """The plain module of each hook point.

    Raises:
        TracelabError: there is none.
    """
    paths = {}
    for kind in SHOWN:
        for layer in (None,) if kind == "embed" else range(model_facts(model).n_layers):
            path = module_path(model, Point(kind, layer))
            if path is None:
                raise TracelabError(f"no module of a plain model shows {Point(kind, layer)}")
            paths[kind, layer] = path
    return paths


def _on_input(function: Watcher) -> Callable[..., None]:
    """A forward pre-hook that shows a function the residual that a block is given."""

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        function(args[0] if args else kwargs["hidden_states"])

    return hook


def _on_output(function: Watcher) -> Callable[..., Any]:
    """A forward hook that gives a function the tensor of a module's output, and puts back what it
    returns."""

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        value = function(output[0] if isinstance(output, tuple) else output)
        if value is None or not isinstance(output, tuple):
            return value
        return (value, *output[1:])

    return hook


def _store(values: dict[Any, Tensor], key: Any) -> Watcher:
    def keep(value: Tensor) -> None:
        values[key] = value.detach()

    return keep


class _OneDnnProduct(torch.autograd.Function):
    """``x Wᵀ + b`` by oneDNN, and the gradient of ``x`` too: PyTorch knows none of its operator.
    The weights are frozen and get none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        linear = torch.ops.mkldnn._linear_pointwise
        return linear(gradient, weight.t(), None, "none", [], ""), None, None


class _OneDnnLinear(nn.Module):
    """A linear map by oneDNN, with the weights of another."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        if x.requires_grad and torch.is_grad_enabled():
            return cast(Tensor, _OneDnnProduct.apply(x, self.weight, self.bias))
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


@measuring()
def use_onednn(model: nn.Module) -> bool:
    """Exchange the linear maps of a plain model for oneDNN's where they can be; whether any was."""
    linears = [
        (path, module)
        for path, module in model.named_modules()
        if type(module) is nn.Linear
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    ]
    usable = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if not usable or not linears:
        return False
    try:  # an operator of PyTorch's compiler: it may go
        _OneDnnLinear(linears[0][1])(torch.zeros(2, linears[0][1].in_features))
    except (AttributeError, RuntimeError):
        return False
    for path, module in linears:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, _OneDnnLinear(module))
    return True
