"""What tells a model's weights apart, as they are now: a short print for people, a whole hash for
caches.

:func:`fingerprint` is what edits and results name a model by: a sample of every parameter, the same
in float32 and bfloat16. :func:`weights_hash` sees every bit, for what is kept and handed out again;
it reads all weights each time, as nothing tells of a change through ``.data``.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components.joint_qkv_attention import (
    JointQKVAttentionBridge,
)


def fingerprint(hf_model: nn.Module, samples: int = 64) -> str:
    """A short hash of a model's weights: fast, and the same in every process.

    Of each parameter its shape and ``samples`` evenly spaced values are hashed, rounded to bf16 so
    that one checkpoint has one fingerprint in float32 and bfloat16. Names do not count: wrapping a
    model in a bridge renames its parameters.

    Returns:
        16 hexadecimal digits.
    """
    prints = []
    for parameter in own_parameters(hf_model):
        flat = parameter.detach().flatten()
        count = min(samples, flat.numel())
        index = torch.arange(count, device="cpu") * flat.numel() // count
        values = flat[index.to(flat.device)].to(torch.bfloat16).cpu().view(torch.int16)
        shape = json.dumps(list(parameter.shape)).encode()
        prints.append(hashlib.sha256(shape + values.numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(prints))).hexdigest()[:16]


def weights_hash(hf_model: nn.Module) -> str:
    """16 hexadecimal digits that change with any bit of any weight (in the dtype and on the device
    that they have)."""
    return _joined(own_parameters(hf_model))


def buffers_hash(hf_model: nn.Module) -> str:
    """The same of the buffers: rotary frequencies, scales, masks."""
    return _joined(list(hf_model.buffers()))


def own_parameters(hf_model: nn.Module) -> list[nn.Parameter]:
    """The model's parameters, without the split copies of a joint query-key-value weight that a
    bridge adds."""
    copies = {
        id(parameter)
        for module in hf_model.modules()
        if isinstance(module, JointQKVAttentionBridge)
        for split in (module.q, module.k, module.v)
        for parameter in split.parameters()
    }
    return [parameter for parameter in hf_model.parameters() if id(parameter) not in copies]


def _joined(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for part in sorted(map(_digest, tensors)):
        digest.update(part)
    return digest.hexdigest()[:16]


def _digest(tensor: Tensor) -> bytes:
    values = tensor.detach().contiguous()
    head = f"{values.dtype} {list(values.shape)}".encode()
    flat = values.flatten().view(torch.uint8)
    if values.device.type == "cpu":
        return head + zlib.crc32(memoryview(flat.numpy().data)).to_bytes(4, "big")
    # What does not lie in this memory is not fetched: sums of the bytes of every row and of every
    # column.
    table = flat.reshape(values.shape[0] if values.ndim > 1 else 1, -1)
    sums = [table.sum(dim, dtype=torch.int64).cpu().numpy().tobytes() for dim in (0, 1)]
    return head + hashlib.sha256(b"".join(sums)).digest()
