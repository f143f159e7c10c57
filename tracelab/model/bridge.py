"""What a model is here: a bridge that :func:`tracelab.load` makes, and nothing that only looks like
one."""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from tracelab.errors import TracelabError
from tracelab.ranges import shown


def require_bridge(model: Any) -> None:
    """Refuse what is no bridge, at whichever function it arrives.

    Raises:
        TracelabError: saying how to load it.
    """
    if isinstance(model, TransformerBridge):
        return
    if isinstance(model, PreTrainedModel):
        raise TracelabError(
            f"a {type(model).__name__} of transformers has no hook points: load it first, "
            "model = tracelab.load(hf_model, tokenizer=tokenizer)"
        )
    if isinstance(model, str):
        raise TracelabError(
            f"{shown(model)} is a name, not a model: load it first, "
            f"model = tracelab.load({shown(model)})"
        )
    raise TracelabError(f"a model is what tracelab.load() gives, not {shown(model)}")
