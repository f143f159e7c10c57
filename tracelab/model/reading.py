"""From the name of a model to the ``transformers`` model and its tokenizer: the embedded default, a
hub id, a folder, a GGUF file, a PEFT adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tracelab.errors import TracelabError, warn
from tracelab.model import assets
from tracelab.model.adapters import is_adapter, merged
from tracelab.model.loading import why_not
from tracelab.model.memory import require_room


def read(
    name_or_path: Any,
    tokenizer: Any,
    *,
    dtype: torch.dtype,
    access: Mapping[str, Any],
    how: Mapping[str, Any],
    device: str | None = None,
) -> tuple[str, Any, Any, str | None]:
    """Model id, model, tokenizer, and the id of the adapter that was merged, if one was.

    Args:
        tokenizer: one in memory, the name of one, or None for the model's own.
        access: ``revision``, ``token``, ``trust_remote_code`` (never None, the default of
            transformers, which asks on the terminal).
        how: ``device_map`` and ``quantization_config``, if they were asked for.
        device: where the weights will go; None: transformers places them.

    Raises:
        TracelabError: as :func:`tracelab.load`.
    """
    model_id, folder, gguf = _locate(name_or_path)
    where = dict(access)
    if gguf is not None:
        where.pop("revision", None)
        where["gguf_file"] = gguf
    try:
        if gguf is None and is_adapter(folder, access.get("revision"), access.get("token")):
            if how:
                raise TracelabError(
                    f"{model_id!r} is an adapter, which is merged into whole weights: load it "
                    f"without {' and '.join(how)}"
                )
            hf_model, own = merged(model_id, folder, dtype, where)
            return (
                model_id,
                hf_model,
                own if tokenizer is None else _named(tokenizer, access),
                (model_id),
            )
        if tokenizer is None:  # first: it says soonest that there is no such model
            tokenizer = AutoTokenizer.from_pretrained(folder, **where)
        tokenizer = _named(tokenizer, access)
        if gguf is None and device is not None and not how:
            require_room_for_weights(model_id, folder, where, dtype, device)
        hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **how, **where)
    except TracelabError:
        raise
    except Exception as error:  # a broken file surfaces as whatever its reader happens to raise
        raise TracelabError(
            f"cannot load the model {model_id!r}: {why_not(error)} Give a hub id that can be "
            "reached, a "
            "folder with config.json, weights and tokenizer, or a .gguf file"
        ) from error
    return model_id, hf_model, tokenizer, None


def require_room_for_weights(
    model_id: str, folder: str, access: Mapping[str, Any], dtype: torch.dtype, device: str
) -> None:
    """Refuse weights for which there is no room where the model will be, before they are fetched or
    read.

    Raises:
        TracelabError: saying how much is needed, how much there is, and what to change.
    """
    config = AutoConfig.from_pretrained(folder, **access)
    if getattr(config, "quantization_config", None) is not None:
        return  # in fewer bits, of a number that the method knows
    if getattr(config, "auto_map", None):
        return  # code of the model's own is run by from_pretrained only, at the commit asked for
    try:
        with init_empty_weights():
            made = AutoModelForCausalLM.from_config(config)
            made.tie_weights()
    except Exception:  # what cannot be made is told when it is read
        return
    require_room(
        device,
        f"the weights of {model_id!r} in {str(dtype).removeprefix('torch.')}",
        sum(parameter.numel() for parameter in made.parameters()) * dtype.itemsize,
        "load it in bfloat16, quantised (quantization_config), or over several devices "
        '(device_map="auto")',
    )


def _named(tokenizer: Any, access: Mapping[str, Any]) -> Any:
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    others = {name: value for name, value in access.items() if name != "revision"}
    return AutoTokenizer.from_pretrained(tokenizer, **others)


def _locate(name_or_path: str | Path | None) -> tuple[str, str, str | None]:
    """(model id, what to hand to ``from_pretrained``, GGUF file name or None)."""
    if name_or_path is None:
        folder = assets.model_dir()
        return folder.name, str(folder), None
    path = Path(name_or_path).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path.name, *_converted(path)
    if path.is_dir():
        return path.resolve().name, str(path), None
    if path.is_file() or path.suffix == ".gguf" or str(name_or_path).startswith((".", "/", "~")):
        raise TracelabError(f"no model folder and no .gguf file at {str(name_or_path)!r}")
    return str(name_or_path), str(name_or_path), None


def _converted(gguf: Path) -> tuple[str, str | None]:
    """The folder of a GGUF file's conversion in the cache; where that cannot be written, the file
    itself."""
    try:
        return str(assets.gguf_dir(gguf)), None
    except OSError as error:
        warn(
            f"{gguf.name} is converted for this run only, the cache cannot be written ({error})",
        )
        return str(gguf.parent), gguf.name
    except Exception as error:  # a broken file surfaces as whatever its reader happens to raise
        raise TracelabError(
            f"cannot load the model {gguf.name!r}: {why_not(error)} Give another .gguf file"
        ) from error
