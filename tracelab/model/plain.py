"""A plain ``transformers`` model with the weights of one that is inside a bridge.

A bridge puts ``_original_component`` into names and adds components of its own, so a second, plain
model is made from the configuration and given the weights by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor

from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.model.bridge import is_spread


def plain_weights(hf_model: Any, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors for each name of a plain model's state dict.

    Args:
        hf_model: wrapped by a bridge or not.
        wanted: ``state_dict()`` of a model made from the configuration of this one; it may be
            without memory.

    Raises:
        TracelabError: the model's tensors are not those that its configuration calls for: adapters
            were put into it, its weights are quantised, or a module was exchanged.
    """
    found = {
        name.replace("._original_component", ""): value
        for name, value in hf_model.state_dict().items()
    }
    for name, value in wanted.items():
        own = found.get(name)
        if (
            own is None
            or own.shape != value.shape
            or own.is_floating_point() != value.is_floating_point()
        ):
            what = (
                "is missing"
                if own is None
                else f"is {str(own.dtype).removeprefix('torch.')} {list(own.shape)}"
            )
            raise TracelabError(
                f"the weights of {type(hf_model).__name__} are not those of its configuration: "
                f"{name} {what} "
                "(adapters, quantised or exchanged modules): load a plain checkpoint, with "
                "adapters merged into it"
            )
    return {name: found[name] for name in wanted}


@measuring()
def plain_twin(hf_model: Any) -> Any:
    """A second ``transformers`` model with the same weights (shared, not copied) and modules of its
    own.

    ``hf_model`` may have been wrapped by a bridge, which renames its parameters.

    Raises:
        TracelabError: its weights are not those of its configuration (adapters, quantised or
            exchanged modules), or it is spread over devices.
    """
    if is_spread(hf_model):
        raise TracelabError(
            f"{type(hf_model).__name__} is spread over devices: a plain twin lies on one. Load it "
            "on one device; experts can be those of a smaller model (expert_base)"
        )
    config = type(hf_model.config).from_dict(hf_model.config.to_dict())
    config._attn_implementation = hf_model.config._attn_implementation
    with init_empty_weights(include_buffers=False):
        # the class at hand: nothing is looked up, and no code fetched
        twin = type(hf_model)._from_config(config)
    twin.load_state_dict(plain_weights(hf_model, twin.state_dict()), strict=True, assign=True)
    twin.tie_weights()
    return twin.to(next(hf_model.parameters()).device).eval().requires_grad_(False)
