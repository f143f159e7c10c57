"""Whether an edit fits a model, asked where it is put on and not found by a forward pass that
breaks.

A bundle says how wide its tensors are and by which module path its points are reached in plain
``transformers``. Both are data. Widths of linear maps are read off the modules; for what other
modules give out, the model's configuration is run once without memory (on torch's ``meta`` device),
which costs no more than building its modules. An architecture that cannot be run so is not checked
further.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError, quoted
from tracelab.interventions.point_edit import PointEdit
from tracelab.model.hook_points import Point
from tracelab.model.load import model_facts


def require_bridge_fits(model: TransformerBridge, edit: PointEdit) -> None:
    """Refuse a bridge that has other widths where the edit acts.

    Raises:
        TracelabError: naming both.
    """
    point, name = edit.point, model_facts(model).model_id
    if point.linear:
        require_map(point, name, bridged_map(model, point), edit.d_in, edit.d_out)
    elif point.kind != "logits":
        require_fit(point, name, model.cfg.d_model, edit.d_out, "outputs")


def require_plain_fits(hf_model: nn.Module, edit: PointEdit, module: nn.Module, path: str) -> None:
    """Refuse a ``transformers`` model whose module at the path is not what the edit acts on.

    Raises:
        TracelabError: naming both.
    """
    if edit.point.kind == "logits":
        return
    require_layer(edit.point, path)
    if edit.point.linear:
        require_map(edit.point, f"the module {path!r}", module, edit.d_in, edit.d_out)
    else:
        require_output(hf_model, edit.point, path, edit.d_out)


def require_fit(point: Point, where: str, found: int | None, wanted: int | None, side: str) -> None:
    """Refuse a width that an edit was not made for; None is one that is not known.

    Raises:
        TracelabError: naming both.
    """
    if None not in (found, wanted) and found != wanted:
        raise TracelabError(
            f"the edit at {point} is for {side} of {quoted(wanted)} features, and {where} has "
            f"{found}: "
            "it was made for another model, or changed since"
        )


def require_map(
    point: Point, where: str, module: nn.Module, d_in: int | None, d_out: int | None
) -> None:
    """Refuse a linear map of other widths than a delta's.

    Raises:
        TracelabError: naming both.
    """
    widths = _linear_widths(module) or (None, None)
    require_fit(point, where, widths[0], d_in, "inputs")
    require_fit(point, where, widths[1], d_out, "outputs")


def bridged_map(model: TransformerBridge, point: Point) -> nn.Module:
    """The ``transformers`` module of a linear map of a bridge."""
    component: Any = model.get_submodule(str(point))
    return getattr(component, "original_component", component)


def require_output(hf_model: nn.Module, point: Point, path: str, d_out: int | None) -> None:
    """Refuse a module whose output is no activation of this width.

    Raises:
        TracelabError: it gives out something else, or is not run at all.
    """
    widths = _output_widths(hf_model)
    if widths is None:
        return
    if path not in widths or widths[path] is None:
        what = "is not run in a forward pass" if path not in widths else "gives out no tensor"
        raise TracelabError(f"{point} cannot be edited at the module {quoted(path)}: it {what}")
    require_fit(point, f"the module {quoted(path)}", widths[path], d_out, "outputs")


def require_layer(point: Point, path: str) -> None:
    """Refuse a module path that leads into another layer than the point's.

    Raises:
        TracelabError: naming both.
    """
    numbers = [part for part in path.split(".") if part.isdecimal()]
    if point.layer is not None and numbers[:1] != [str(point.layer)]:
        raise TracelabError(
            f"{point} cannot be edited at the module {quoted(path)}: it is of another layer"
        )


def _linear_widths(module: nn.Module) -> tuple[int, int] | None:
    """Input and output width of a ``Linear`` or of GPT-2's ``Conv1D``."""
    for names in (("in_features", "out_features"), ("nx", "nf")):
        d_in, d_out = (getattr(module, name, None) for name in names)
        if isinstance(d_in, int) and isinstance(d_out, int):
            return d_in, d_out
    return None


_WIDTHS: WeakKeyDictionary[nn.Module, dict[str, int | None] | None] = WeakKeyDictionary()


def _output_widths(hf_model: Any) -> dict[str, int | None] | None:
    """Features of what each module that is run gives out first, by path; None if the model cannot
    be run this way."""
    if hf_model not in _WIDTHS:
        seen: dict[str, int | None] = {}
        try:
            with torch.device("meta"), torch.no_grad():
                twin = type(hf_model)._from_config(hf_model.config).eval()
                for path, module in twin.named_modules():
                    module.register_forward_hook(_noting(seen, path))
                twin(torch.zeros((1, 2), dtype=torch.long))
        except (
            Exception
        ):  # an architecture that looks at values, or a wrapper that is no transformers model
            _WIDTHS[hf_model] = None
        else:
            _WIDTHS[hf_model] = seen
    return _WIDTHS[hf_model]


def _noting(seen: dict[str, int | None], path: str) -> Any:
    def note(module: nn.Module, args: tuple, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        seen[path] = first.shape[-1] if isinstance(first, Tensor) and first.ndim > 1 else None

    return note
