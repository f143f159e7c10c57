"""A PEFT adapter on disk becomes a model: its base, with the adapter's change in the weights.

The base is what ``adapter_config.json`` names: a folder, from the adapter's own folder or else from
the working folder, or a hub id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import find_adapter_config_file

from tracelab.errors import TracelabError, quoted, warn
from tracelab.model.loading import why_not

_CONFIG = "adapter_config.json"


def is_adapter(folder: str, revision: str | None, token: str | bool | None = None) -> bool:
    """Whether a folder, or a hub repository, holds an adapter and is no model of its own.

    Raises:
        TracelabError: adapters lie in its subfolders, and nothing tells which one is meant.
    """
    if find_adapter_config_file(folder, revision=revision, token=token) is not None:
        return True
    if (inner := _inner(folder)) and not (Path(folder) / "config.json").is_file():
        raise TracelabError(
            f"{folder!r} holds the adapters {', '.join(inner)}: name the folder of one of them, "
            f"such as {str(Path(folder) / inner[0])!r}"
        )
    return False


def merged(
    model_id: str, folder: str, dtype: torch.dtype, where: dict[str, Any]
) -> tuple[Any, Any]:
    """The base model of an adapter with the adapter's change in its weights, and the tokenizer.

    Args:
        where: ``revision`` and ``token``, if they were asked for, and ``trust_remote_code``.
    """
    try:
        from peft import PeftConfig, PeftModelForCausalLM
    except ImportError:
        raise TracelabError(
            f"{folder!r} is a PEFT adapter: pip install 'tracelab[peft]', or merge it first"
        ) from None
    access = {name: where[name] for name in ("token",) if name in where}
    config = PeftConfig.from_pretrained(folder, revision=where.get("revision"), **access)
    named = config.base_model_name_or_path or ""
    base = _base(folder, named)
    trust = {"trust_remote_code": where["trust_remote_code"], **access}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    except (OSError, ValueError):  # an adapter alone
        tokenizer = None
    try:
        hf_model = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, revision=config.revision, **trust
        )
        # As PEFT does: the adapter was tuned with tokens of its own.
        embeddings: Any = hf_model.get_input_embeddings()
        if tokenizer is not None and len(tokenizer) > embeddings.num_embeddings:
            hf_model.resize_token_embeddings(len(tokenizer))
        wrapped = PeftModelForCausalLM.from_pretrained(
            hf_model, folder, revision=where.get("revision"), **access
        )
    except Exception as error:  # a broken file surfaces as whatever its reader happens to raise
        raise TracelabError(
            f"cannot load the model {model_id!r}, an adapter, on its base {quoted(named)}: "
            f"{why_not(error)} Have the base where adapter_config.json says (from the adapter's "
            "folder, from the working folder, or on the hub), or merge the adapter first"
        ) from error
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        kind = wrapped.peft_config["default"].peft_type
        raise TracelabError(
            f"the adapter {folder!r} ({kind}) cannot be merged into weights: load its base {base!r}"
        )
    found = wrapped.merge_and_unload(safe_merge=True)
    others = _inner(folder)
    more = f"; its folder holds others, which were not: {', '.join(others)}" if others else ""
    warn(f"the adapter {folder!r} was merged into the weights of its base {base!r}{more}")
    return found, tokenizer or AutoTokenizer.from_pretrained(base, **trust)


def _base(folder: str, named: str) -> str:
    """Where the base lies: beside the adapter, where a relative path leads to a folder there."""
    beside = Path(folder) / named
    local = named and Path(folder).is_dir() and beside.is_dir()
    return str(beside.resolve()) if local else named


def _inner(folder: str) -> list[str]:
    """The adapters that lie in subfolders, as PEFT writes all but the one called "default"."""
    return sorted(file.parent.name for file in Path(folder).glob(f"*/{_CONFIG}"))
