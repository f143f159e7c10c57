"""Load a causal language model as a TransformerLens bridge, and know what was loaded.

:func:`load` takes the embedded default, a hub id, a local folder or a GGUF file. What identifies the
model (id, revision, a fingerprint of its weights) and how it is to be read (dtype, BOS) is kept as a
:class:`ModelInfo`, which every result records.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.joint_qkv_attention import JointQKVAttentionBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from tracelab import assets
from tracelab.calls import watch
from tracelab.errors import TracelabError, require_choice
from tracelab.hook_points import check_hook_points, hook_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelInfo:
    """What identifies a loaded model and how tracelab reads it."""

    model_id: str
    revision: str | None
    fingerprint: str  # of the weights; the same for float32 and bfloat16 of one checkpoint
    dtype: str
    device: str
    prepend_bos: bool  # whether texts get a BOS token, unless a call says otherwise
    n_layers: int
    faults: dict[str, str] = field(default_factory=dict)  # hook-point kind -> why it is refused

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values, for the settings of a result."""
        return {key: value for key, value in asdict(self).items() if key != "faults"}


_INFO: WeakKeyDictionary[TransformerBridge, ModelInfo] = WeakKeyDictionary()


def load(
    name_or_path: str | Path | None = None,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device | None = None,
    prepend_bos: bool | None = None,
    revision: str | None = None,
) -> TransformerBridge:
    """Load a causal language model as a ``TransformerBridge`` in evaluation mode.

    Args:
        name_or_path: a hub id, a local folder, a GGUF file, or None for the embedded default
            (SmolLM2-135M-Instruct, 4-bit weights de-quantised).
        dtype: ``torch.dtype`` or its name; log-probabilities are summed in fp32 whatever it is.
        device: default: CUDA if there is one, else the CPU.
        prepend_bos: whether texts get a BOS token. Default: what the model's own tokenizer does
            (SmolLM2 and GPT-2 add none, Gemma does).
        revision: branch, tag or commit of a hub model.

    Raises:
        TracelabError: no such model, no way to reach the hub, or an architecture that the bridge does
            not support.
    """
    if isinstance(dtype, str):
        dtype = DTYPES[require_choice("dtype", dtype, DTYPES)]
    device = _usable_device(device)
    model_id, folder, gguf = _locate(name_or_path)
    where = {"gguf_file": gguf} if gguf else {"revision": revision} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
        hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where)
    except Exception as error:  # a broken file surfaces as whatever its reader happens to raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TracelabError(
            f"cannot load the model {model_id!r}: {reason} Give a hub id that can be reached, a "
            "folder with config.json, weights and tokenizer, or a .gguf file"
        ) from error
    return from_hf(hf_model, tokenizer, model_id=model_id, device=device, prepend_bos=prepend_bos)


def _usable_device(device: str | torch.device | None) -> str:
    name = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TracelabError(f"the device {name!r} cannot be used here ({reason}): try device='cpu'") from error
    return name


def from_hf(
    hf_model: Any,
    tokenizer: Any,
    *,
    model_id: str,
    device: str | torch.device = "cpu",
    prepend_bos: bool | None = None,
) -> TransformerBridge:
    """Wrap a ``transformers`` model and its tokenizer as a bridge that tracelab knows.

    The model is rewired in place, as ``TransformerBridge.boot_transformers`` does: keep no clean copy
    of it to compare with.
    """
    if prepend_bos is None:  # asked before booting, which changes the tokenizer
        prepend_bos = tokenizer_adds_bos(tokenizer)
    if prepend_bos and tokenizer.bos_token_id is None:
        raise TracelabError(f"{model_id!r} has no BOS token: load it with prepend_bos=False")
    config = hf_model.config
    if not config.architectures:  # empty on a model read from GGUF
        config.architectures = [type(hf_model).__name__]
    print_of_weights = fingerprint(hf_model)
    dtype = next(hf_model.parameters()).dtype
    hf_model.eval().to(device)
    try:
        model = TransformerBridge.boot_transformers(
            model_id, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
        )
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise TracelabError(f"TransformerLens cannot bridge {model_id!r}: {reason}") from error
    model.eval()
    _INFO[model] = _describe(model, model_id, print_of_weights, prepend_bos)
    return model


def model_info(model: TransformerBridge) -> ModelInfo:
    """What tracelab knows of a model; made on first use for a bridge that you booted yourself."""
    if model not in _INFO:
        _INFO[model] = _describe(
            model,
            model.cfg.model_name,
            fingerprint(model.original_model),
            _habit_before_booting(model),
        )
    return _INFO[model]


def tokenizer_adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its BOS token before a text when left to itself."""
    ids = tokenizer("a").input_ids
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _habit_before_booting(model: TransformerBridge) -> bool:
    """Whether the model's tokenizer adds BOS as published; booting replaces it by one that always does."""
    try:
        return tokenizer_adds_bos(AutoTokenizer.from_pretrained(model.tokenizer.name_or_path))
    except (OSError, ValueError):
        return bool(model.cfg.default_prepend_bos)


def fingerprint(hf_model: nn.Module, samples: int = 64) -> str:
    """A short hash of a model's weights: fast, and the same in every process.

    Of each parameter its shape and ``samples`` evenly spaced values are hashed, rounded to bf16 so that
    one checkpoint has one fingerprint in float32 and bfloat16. Names do not count: wrapping a model in
    a bridge renames its parameters.

    Returns:
        16 hexadecimal digits.
    """
    prints = []
    # A bridge adds copies of a joint query-key-value weight, split in three: they are not the model's own.
    copies = {
        id(parameter)
        for module in hf_model.modules()
        if isinstance(module, JointQKVAttentionBridge)
        for split in (module.q, module.k, module.v)
        for parameter in split.parameters()
    }
    for parameter in (p for p in hf_model.parameters() if id(p) not in copies):
        flat = parameter.detach().flatten()
        count = min(samples, flat.numel())
        index = torch.arange(count) * flat.numel() // count
        values = flat[index.to(flat.device)].to(torch.bfloat16).cpu().view(torch.int16)
        shape = json.dumps(list(parameter.shape)).encode()
        prints.append(hashlib.sha256(shape + values.numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(prints))).hexdigest()[:16]


def require_hook(model: TransformerBridge, kind: str, layer: int | None = None) -> str:
    """The name of a hook point, if this model has it and it does what it should.

    Raises:
        TracelabError: the layer does not exist, or the check at load found the hook point wanting.
    """
    info = model_info(model)
    if layer is not None and not 0 <= layer < info.n_layers:
        raise TracelabError(f"layer {layer} is out of range: {info.model_id} has layers 0 to {info.n_layers - 1}")
    if kind in info.faults:
        name = hook_name(kind, layer)
        raise TracelabError(f"{name} cannot be used on {info.model_id}: {info.faults[kind]}")
    return hook_name(kind, layer)


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
    """The folder of a GGUF file's conversion in the cache; where that cannot be written, the file itself."""
    try:
        return str(assets.gguf_dir(gguf)), None
    except OSError as error:
        warnings.warn(
            f"{gguf.name} is converted for this run only, the cache cannot be written ({error})", stacklevel=4
        )
        return str(gguf.parent), gguf.name
    except Exception as error:  # a broken file surfaces as whatever its reader happens to raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TracelabError(f"cannot load the model {gguf.name!r}: {reason} Give another .gguf file") from error


def _describe(model: TransformerBridge, model_id: str, weights: str, prepend_bos: bool) -> ModelInfo:
    watch(model.original_model)
    return ModelInfo(
        model_id=model_id,
        revision=getattr(model.original_model.config, "_commit_hash", None),
        fingerprint=weights,
        dtype=str(model.cfg.dtype).removeprefix("torch."),
        device=str(model.cfg.device),
        prepend_bos=prepend_bos,
        n_layers=model.cfg.n_layers,
        faults=check_hook_points(model),
    )
