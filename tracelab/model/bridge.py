"""What a model is here: a bridge that :func:`tracelab.load` makes, and nothing that only looks like
one."""

from __future__ import annotations

from typing import Any

import torch
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


def require_whole(hf_model: Any, model_id: str) -> None:
    """Refuse what wraps a model, or parts of it: its weights are not where its configuration
    says."""
    if not isinstance(hf_model, torch.nn.Module):
        raise TracelabError(
            f"a {type(hf_model).__name__} is no transformers model: tracelab.load takes those, "
            "names, folders and .gguf files"
        )
    adapted = sum(
        type(module).__module__.startswith("peft.tuners") for module in hf_model.modules()
    )
    if adapted or type(hf_model).__module__.startswith("peft."):
        raise TracelabError(
            f"{model_id!r} holds PEFT adapters: give the merged model, model.merge_and_unload(), "
            "or load the adapter's "
            "folder by name"
        )
    if not isinstance(hf_model, PreTrainedModel):
        raise TracelabError(
            f"{model_id!r} is a {type(hf_model).__name__}, not a transformers model: give the "
            "model inside it"
        )


def keeps_its_place(hf_model: Any) -> bool:
    """Whether transformers has put the parts of a model where they are, or its weights in few
    bits: it can be neither moved nor converted."""
    return bool(getattr(hf_model, "hf_device_map", None) or quantization(hf_model))


def require_present(hf_model: Any, model_id: str) -> None:
    """Refuse a model with weights that are fetched from main memory or a disk for each pass: they
    could not be read for its fingerprint.

    Raises:
        TracelabError: naming some of them.
    """
    absent = [name for name, each in hf_model.named_parameters() if each.device.type == "meta"]
    if absent:
        raise TracelabError(
            f"{len(absent)} weights of {model_id!r} are offloaded ({absent[0]}, …), as there is no "
            "room for them on its devices: load it in bfloat16, quantised (quantization_config), "
            "or over more GPUs (device_map)"
        )


def is_spread(hf_model: Any) -> bool:
    """Whether the parts of a model lie on several devices, or are brought to one when they run."""
    return len(set((getattr(hf_model, "hf_device_map", None) or {}).values())) > 1


def quantization(hf_model: Any) -> str | None:
    """How the weights are quantised, in words; None: they are not."""
    if getattr(hf_model, "hf_quantizer", None) is None:
        return None
    config = hf_model.hf_quantizer.quantization_config
    bits = [f" {n}-bit" for n in (4, 8) if getattr(config, f"load_in_{n}bit", False)]
    return f"{getattr(config.quant_method, 'value', config.quant_method)}{''.join(bits)}"
