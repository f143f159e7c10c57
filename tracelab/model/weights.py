"""What tells a model's weights apart, as they are now: a short print for people, a whole hash for caches.

:func:`fingerprint` is what edits and results name a model by: a sample of every parameter, the same in float32 and
bfloat16. :func:`weights_hash` sees every bit, for what is kept and handed out again; it reads all weights, and so is
kept with the parameters' addresses, versions and fingerprint, and made anew when one of them is another.
"""

from __future__ import annotations

import hashlib
import json
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components.joint_qkv_attention import JointQKVAttentionBridge

_HASHES: WeakKeyDictionary[nn.Module, tuple[tuple, str]] = WeakKeyDictionary()


def fingerprint(hf_model: nn.Module, samples: int = 64) -> str:
    """A short hash of a model's weights: fast, and the same in every process.

    Of each parameter its shape and ``samples`` evenly spaced values are hashed, rounded to bf16 so that
    one checkpoint has one fingerprint in float32 and bfloat16. Names do not count: wrapping a model in
    a bridge renames its parameters.

    Returns:
        16 hexadecimal digits.
    """
    prints = []
    for parameter in own_parameters(hf_model):
        flat = parameter.detach().flatten()
        count = min(samples, flat.numel())
        index = torch.arange(count) * flat.numel() // count
        values = flat[index.to(flat.device)].to(torch.bfloat16).cpu().view(torch.int16)
        shape = json.dumps(list(parameter.shape)).encode()
        prints.append(hashlib.sha256(shape + values.numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(prints))).hexdigest()[:16]


def weights_hash(hf_model: nn.Module) -> str:
    """16 hexadecimal digits that change with any bit of any weight (in the dtype that they have)."""
    state = (fingerprint(hf_model), memory_state(hf_model))
    known = _HASHES.get(hf_model)
    if known is None or known[0] != state:
        digest = hashlib.sha256()
        for part in sorted(_digest(parameter) for parameter in own_parameters(hf_model)):
            digest.update(part)
        known = _HASHES[hf_model] = (state, digest.hexdigest()[:16])
    return known[1]


def memory_state(hf_model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Address and version of each parameter: another tuple after a change in place, a new parameter or a move."""
    return tuple(
        (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
        for parameter in hf_model.parameters()
    )


def own_parameters(hf_model: nn.Module) -> list[nn.Parameter]:
    """The model's parameters, without the split copies of a joint query-key-value weight that a bridge adds."""
    copies = {
        id(parameter)
        for module in hf_model.modules()
        if isinstance(module, JointQKVAttentionBridge)
        for split in (module.q, module.k, module.v)
        for parameter in split.parameters()
    }
    return [parameter for parameter in hf_model.parameters() if id(parameter) not in copies]


def _digest(parameter: Tensor) -> bytes:
    values = parameter.detach().cpu().contiguous()
    head = f"{values.dtype} {list(values.shape)}".encode()
    return hashlib.sha256(head + values.flatten().view(torch.uint8).numpy().tobytes()).digest()
