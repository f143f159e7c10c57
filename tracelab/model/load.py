"""Load a causal language model as a TransformerLens bridge, and know what was loaded.

:func:`load` takes the embedded default, a hub id, a local folder, a GGUF file (:mod:`.reading`), or
a ``transformers`` model in memory. What identifies the model and how it is to be read does not
change and is kept (:class:`ModelFacts`); its weights, dtype and device may, and are looked at when
they are asked for (:class:`ModelInfo`, which every result records).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from tracelab.errors import TracelabError, require_choice, warn
from tracelab.gradients import leave_inference_mode, measuring
from tracelab.model.bridge import (
    keeps_its_place,
    quantization,
    require_bridge,
    require_present,
    require_whole,
)
from tracelab.model.forward_pass import watch
from tracelab.model.hook_points import check_hook_points, hook_name
from tracelab.model.hooked import hook_keys, in_training
from tracelab.model.reading import read
from tracelab.model.weights import buffers_hash, fingerprint, weights_hash

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelFacts:
    """What stays the same of a loaded model, whatever becomes of its weights."""

    model_id: str
    revision: str | None
    prepend_bos: bool  # whether texts get a BOS token, unless a call says otherwise
    n_layers: int
    faults: dict[str, str] = field(default_factory=dict)  # hook-point kind -> why it is refused
    adapter: str | None = (
        None  # the PEFT adapter that was merged into the weights when they were loaded
    )
    trust_remote_code: bool = False  # whether code that comes with the model was allowed to run
    quantization: str | None = None  # how transformers keeps its weights, if in fewer bits
    in_memory: bool = False  # whether it was given as a model, not by a name


@dataclass(frozen=True)
class ModelInfo(ModelFacts):
    """What identifies a model, as it is now, and how tracelab reads it."""

    fingerprint: str = ""  # of the weights; the same for float32 and bfloat16 of one checkpoint
    dtype: str = ""
    device: str = ""
    training: bool = (
        False  # whether it is in training mode, where dropout makes every number another
    )

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values, for the settings of a result; what is seldom so only
        where it is."""
        plain = {key: value for key, value in asdict(self).items() if key != "faults"}
        return {key: value for key, value in plain.items() if value or key not in _SELDOM}


_SELDOM = ("adapter", "trust_remote_code", "quantization", "in_memory", "training")

_FACTS: WeakKeyDictionary[TransformerBridge, ModelFacts] = WeakKeyDictionary()
_TOKENIZERS: WeakKeyDictionary[TransformerBridge, Any] = WeakKeyDictionary()


@measuring()
def load(
    name_or_path: str | Path | nn.Module | None = None,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization_config: Any = None,
    prepend_bos: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
) -> TransformerBridge:
    """Load a causal language model as a ``TransformerBridge`` in evaluation mode.

    Args:
        name_or_path: a hub id, a local folder, a GGUF file, or None for the embedded default
            (SmolLM2-135M-Instruct, 4-bit weights de-quantised); or a ``transformers`` model in
            memory, which is rewired in place: keep no clean copy of it to compare with.
        tokenizer: of a model in memory; otherwise, instead of the model's own.
        dtype: ``torch.dtype`` or its name; log-probabilities are summed in fp32 whatever it is.
            Default: float32, and of a model in memory its own.
        device: default: CUDA if there is one, else the CPU; a model in memory stays where it is.
        device_map: instead of ``device``: where ``transformers`` puts which parts (``"auto"``).
        quantization_config: of ``transformers``, such as a ``BitsAndBytesConfig``: weights are
            kept in fewer bits. What is computed with them is another model's: compare it with
            itself.
        prepend_bos: whether texts get a BOS token. Default: what the model's own tokenizer does
            (SmolLM2 and GPT-2 add none, Gemma does).
        revision: branch, tag or commit of a hub model.
        token: of the hub, for a model that needs one; default: that of ``hf auth login``. It is
            kept nowhere.
        trust_remote_code: whether Python code that comes with the model may run; nothing ever asks
            for it.

    Raises:
        TracelabError: no such model, no way to reach the hub, a model that needs code of its own,
            an architecture that the bridge does not support, or options that do not go together.
    """
    if isinstance(dtype, str):
        dtype = DTYPES[require_choice("dtype", dtype, DTYPES)]
    if device is not None and device_map is not None:
        raise TracelabError("device and device_map both say where the model goes: give one")
    if isinstance(name_or_path, nn.Module):
        given = (device_map, quantization_config, revision, token, trust_remote_code or None)
        if any(value is not None for value in given):
            raise TracelabError(
                "device_map, quantization_config, revision, token and trust_remote_code are of a "
                "model that is read; the one given is in memory: give them to its from_pretrained"
            )
        return _in_memory(name_or_path, tokenizer, dtype, device, prepend_bos)
    device = None if device_map is not None else _usable_device(device)
    access = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    how = {"device_map": device_map, "quantization_config": quantization_config}
    model_id, hf_model, own_tokenizer, adapter = read(
        name_or_path,
        tokenizer,
        dtype=torch.float32 if dtype is None else dtype,
        access={name: value for name, value in access.items() if value is not None},
        how={name: value for name, value in how.items() if value is not None},
        device=device,
    )
    model = from_hf(
        hf_model, own_tokenizer, model_id=model_id, device=device, prepend_bos=prepend_bos
    )
    _FACTS[model] = replace(_FACTS[model], adapter=adapter, trust_remote_code=trust_remote_code)
    return model


def _in_memory(
    hf_model: nn.Module,
    tokenizer: Any,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    prepend_bos: bool | None,
) -> TransformerBridge:
    """A bridge to a model that somebody has loaded already, called as its configuration says."""
    name = type(hf_model).__name__
    config = getattr(hf_model, "config", None)
    named = str(getattr(config, "name_or_path", "") or name)
    model_id = Path(named).name if Path(named).is_dir() else named
    if isinstance(hf_model, TransformerBridge):
        raise TracelabError("this model is loaded already: it is what tracelab.load() gives")
    require_whole(hf_model, model_id)
    if isinstance(tokenizer, str | Path):
        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise TracelabError(f"no tokenizer can be read from {tokenizer}: {reason}") from error
    if keeps_its_place(hf_model):
        if dtype is not None or device is not None:
            raise TracelabError(
                f"{model_id} stays as transformers has placed or quantised it: leave dtype and "
                "device out, or load it so"
            )
    elif dtype is not None:
        hf_model.to(dtype)
    model = from_hf(hf_model, tokenizer, model_id=model_id, device=device, prepend_bos=prepend_bos)
    _FACTS[model] = replace(_FACTS[model], in_memory=True)
    return model


def _usable_device(device: str | torch.device | None) -> str:
    name = str(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    try:
        torch.zeros(1, device=name).item()  # read back: "meta" takes tensors and computes nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise TracelabError(
            f"the device {name!r} cannot be used here ({reason}): try device='cpu'"
        ) from error
    return name


@measuring()
def from_hf(
    hf_model: Any,
    tokenizer: Any,
    *,
    model_id: str,
    device: str | torch.device | None = "cpu",
    prepend_bos: bool | None = None,
) -> TransformerBridge:
    """Wrap a ``transformers`` model and its tokenizer as a bridge that tracelab knows.

    The model is rewired in place, as ``TransformerBridge.boot_transformers`` does: keep no clean
    copy of it to compare with. The tokenizer is used as it is in memory; the bridge gets a copy
    that puts BOS before texts. A ``device`` of None leaves the model where it is.

    Raises:
        TracelabError: a wrapper (``PeftModel``, ``torch.compile``, data parallel) instead of the
            model, adapters that are not merged, or an architecture that the bridge does not
            support.
    """
    require_whole(hf_model, model_id)
    require_present(hf_model, model_id)
    if not callable(tokenizer):
        raise TracelabError(
            f"{model_id!r} needs its tokenizer, not {tokenizer!r}: give what AutoTokenizer loads"
        )
    first = next(hf_model.parameters())
    if device is None or keeps_its_place(hf_model):
        device = str(first.device)
    device = _usable_device(device)
    if prepend_bos is None:  # of the tokenizer as given, not as TransformerLens has it
        prepend_bos = tokenizer_adds_bos(tokenizer)
    if prepend_bos and tokenizer.bos_token_id is None:
        raise TracelabError(f"{model_id!r} has no BOS token: load it with prepend_bos=False")
    leave_inference_mode(hf_model)
    config = hf_model.config
    if not config.architectures:  # empty on a model read from GGUF
        config.architectures = [type(hf_model).__name__]
    hf_model.eval()
    if not keeps_its_place(hf_model):
        hf_model.to(device)
    try:
        model = TransformerBridge.boot_transformers(
            model_id,
            hf_model=hf_model,
            tokenizer=_adding_bos(tokenizer),
            device=device,
            dtype=first.dtype if first.dtype.is_floating_point else hf_model.dtype,
        )
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise TracelabError(f"TransformerLens cannot bridge {model_id!r}: {reason}") from error
    except AttributeError as error:  # a module lacks the parts that its place calls for
        raise TracelabError(
            f"TransformerLens cannot bridge {model_id!r}: {error}; put back the module that was "
            "exchanged (to switch a part off, set the weights of its last linear map to 0)"
        ) from error
    model.eval()
    _TOKENIZERS[model] = tokenizer
    _FACTS[model] = _describe(model, model_id, prepend_bos)
    return model


def given_tokenizer(model: TransformerBridge) -> Any:
    """The tokenizer as it was given to :func:`from_hf`; of a bridge that you booted yourself, the
    bridge's."""
    return _TOKENIZERS.get(model, model.tokenizer)


def _adding_bos(tokenizer: Any) -> Any:
    """A copy that puts BOS before texts, as a bridge wants it; TransformerLens would read one from
    disk instead."""
    made = copy.deepcopy(tokenizer)
    if made.bos_token is not None and not tokenizer_adds_bos(made):
        with suppress(ValueError):  # a BOS token that tokenizers' templates cannot name
            made.add_bos_token = True
    made.init_kwargs = (
        {"name_or_path": made.name_or_path} | made.init_kwargs | {"add_bos_token": True}
    )
    return made


def model_facts(model: TransformerBridge) -> ModelFacts:
    """What stays the same of a model; made on first use for a bridge that you booted yourself."""
    require_bridge(model)
    if model not in _FACTS:
        _FACTS[model] = _describe(model, model.cfg.model_name, _habit_before_booting(model))
    return _FACTS[model]


def model_info(model: TransformerBridge) -> ModelInfo:
    """What tracelab knows of a model, its weights, dtype and device as they are now."""
    facts = model_facts(model)
    first = next(model.original_model.parameters())
    return ModelInfo(
        **{each.name: getattr(facts, each.name) for each in fields(ModelFacts)},
        fingerprint=fingerprint(model.original_model),
        dtype=str(first.dtype).removeprefix("torch."),
        device=str(first.device),
        training=in_training(model),
    )


def model_key(model: TransformerBridge) -> dict[str, Any]:
    """What a model computes depends on this: for the keys of checkpoints.

    Under one name of its own, so that it overwrites none of the key that it is joined to.
    """
    hf_model, tokenizer = cast(Any, model.original_model), model.tokenizer
    reads = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else ""
    config = {
        name: value for name, value in hf_model.config.to_dict().items() if name != "_name_or_path"
    }
    state = {
        "info": model_info(model).settings(),
        "weights": weights_hash(hf_model),
        "buffers": buffers_hash(hf_model),
        "config": _hash(sorted((name, repr(value)) for name, value in config.items())),
        "tokenizer": _hash((tokenizer.special_tokens_map, reads)),
        "hooks": hook_keys(model),
    }
    return {"model_state": state}


def _hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def tokenizer_adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its BOS token before a text when left to itself."""
    ids = tokenizer("a").input_ids
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _habit_before_booting(model: TransformerBridge) -> bool:
    """Whether the tokenizer of a bridge that you booted yourself adds BOS as published.

    Booting by hand leaves a tokenizer that always does, and nothing in memory tells what it did
    before: the published one is asked, if it is the same tokenizer; else it is as the bridge itself
    does with texts.
    """
    try:
        published = AutoTokenizer.from_pretrained(
            model.tokenizer.name_or_path, trust_remote_code=False
        )
        if published.get_vocab() == model.tokenizer.get_vocab():
            return tokenizer_adds_bos(published)
    except (OSError, ValueError):
        pass
    return bool(model.cfg.default_prepend_bos)


def require_hook(model: TransformerBridge, kind: str, layer: int | None = None) -> str:
    """The name of a hook point, if this model has it and it does what it should.

    Raises:
        TracelabError: the layer does not exist, or the check at load found the hook point wanting.
    """
    info = model_facts(model)
    if layer is not None and not 0 <= layer < info.n_layers:
        raise TracelabError(
            f"layer {layer} is out of range: {info.model_id} has layers 0 to {info.n_layers - 1}"
        )
    if kind in info.faults:
        name = hook_name(kind, layer)
        raise TracelabError(f"{name} cannot be used on {info.model_id}: {info.faults[kind]}")
    return hook_name(kind, layer)


def _describe(model: TransformerBridge, model_id: str, prepend_bos: bool) -> ModelFacts:
    watch(model.original_model)
    faults = check_hook_points(model)
    if "not finite" in faults.get("logits", ""):
        warn(f"nothing can be measured on {model_id!r}: {faults['logits']}")
    return ModelFacts(
        model_id=model_id,
        revision=getattr(model.original_model.config, "_commit_hash", None),
        prepend_bos=prepend_bos,
        n_layers=model.cfg.n_layers,
        faults=faults,
        quantization=quantization(model.original_model),
    )
