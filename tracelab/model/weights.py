"""What tells a model's weights apart, as they are now: a short print for people, a whole hash for
caches.

:func:`fingerprint` is what edits and results name a model by. With ``w`` the values of a parameter
rounded to bfloat16, written into tables of 1,024 by 1,024 and read as 64-bit words, it hashes

    sum_j w[i, j]  and  sum_i w[i, j]    (mod 2^64, of every row and column of every table)

so a head, a neuron, a row or a single value that was changed or moved is another print, and the
sums are exact: the same on every device, in float32 and in bfloat16. It does not see changes that
bfloat16 rounds away. Nothing tells of a change through ``.data``, so all weights are read each time
(SmolLM2-135M: 0.1 to 0.2 s on one core); :func:`held` keeps prints while tracelab itself is at
work. :func:`same_weights` also reads the prints of before, which saw 64 values of each parameter.

:func:`weights_hash` sees every bit, for what is kept and handed out again.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components.joint_gate_up_mlp import (
    JointGateUpMLPBridge,
)
from transformer_lens.model_bridge.generalized_components.joint_qkv_attention import (
    JointQKVAttentionBridge,
)

MARK = "w2-"
"""What a print begins with; those of before are 16 hexadecimal digits alone."""
_ROW, _CHUNK = 1024, 1024 * 1024
_SMALLEST = 2.0**-16
"""Values up to here count as 0: float16 cannot hold them as bfloat16 does, and a checkpoint in
bfloat16 is to have one print in both."""

_SPLIT: tuple[tuple[type[nn.Module], tuple[str, ...], str], ...] = (
    (JointQKVAttentionBridge, ("q", "k", "v"), "split_qkv_matrix"),
    (JointGateUpMLPBridge, ("gate", "in"), "split_gate_up_matrix"),
)
"""Where a bridge computes with the parts of a joint weight: their names, and what splits it."""

_HELD: ContextVar[WeakKeyDictionary[nn.Module, tuple[Any, str]] | None] = ContextVar(
    "held", default=None
)


def fingerprint(model: nn.Module) -> str:
    """A short hash of a model's weights, the same in every process and on every device.

    Names do not count, as wrapping a model in a bridge renames its parameters, but for the numbers
    in them (layers, experts); buffers do not count.

    Args:
        model: a bridge, or a ``transformers`` model.

    Returns:
        :data:`MARK` and 16 hexadecimal digits.
    """
    hf_model = getattr(model, "original_model", model)
    held, state = _HELD.get(), None
    if held is not None:
        state = _state(hf_model)
        if state is not None and held.get(hf_model, (None, ""))[0] == state:
            return held[hf_model][1]
    digest = hashlib.sha256()
    for part in sorted(place + _sums(value) for place, value in _placed(hf_model)):
        digest.update(part)
    found = MARK + digest.hexdigest()[:16]
    if held is not None and state is not None:
        held[hf_model] = (state, found)
    return found


def same_weights(model: nn.Module, its_print: str) -> bool:
    """Whether a model has the weights that a print, of today or of before, was taken of.

    Args:
        model: a bridge, or a ``transformers`` model.
    """
    return fingerprint_like(its_print, model) == its_print


def fingerprint_like(other: str, model: nn.Module) -> str:
    """The model's print in the form that another has, to compare the two."""
    return fingerprint(model) if other.startswith(MARK) else sampled_fingerprint(model)


@contextmanager
def held() -> Iterator[None]:
    """Within the block a model is printed once, for as long as torch counts no change to it.

    For loops that put an edit on and off: only code that runs in the block and writes to weights
    through ``.data`` would go unseen.
    """
    token = _HELD.set(found if (found := _HELD.get()) is not None else WeakKeyDictionary())
    try:
        yield
    finally:
        _HELD.reset(token)


def sampled_fingerprint(model: nn.Module, samples: int = 64) -> str:
    """The print that tracelab made before, for reading only: of each parameter its shape and
    ``samples`` evenly spaced values, in bfloat16."""
    prints = []
    for parameter in _own(getattr(model, "original_model", model), _SPLIT[:1]):
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
    return _joined(list(hf_model.parameters()))


def buffers_hash(hf_model: nn.Module) -> str:
    """The same of the buffers: rotary frequencies, scales, masks."""
    return _joined(list(hf_model.buffers()))


def _own(hf_model: nn.Module, split: Sequence[Any] = _SPLIT) -> list[nn.Parameter]:
    """The model's parameters, without the parts of joint weights that a bridge adds."""
    added = {
        id(parameter)
        for _, parts, _ in _joints(hf_model, split)
        for part in parts
        for parameter in part.parameters()
    }
    return [parameter for parameter in hf_model.parameters() if id(parameter) not in added]


def _joints(
    hf_model: nn.Module, split: Sequence[Any] = _SPLIT
) -> Iterator[tuple[Any, list[nn.Module], str]]:
    """Each module of a bridge that has a joint weight split, the parts, and what splits it."""
    for module in hf_model.modules():
        for cls, names, splitter in split:
            if isinstance(module, cls):
                yield module, [module.get_submodule(name) for name in names], splitter


def _strayed(hf_model: nn.Module) -> set[int]:
    """The parts, by ``id``, that are no longer what their joint weight says: on some architectures
    (GPT-NeoX, Bloom, Falcon) they are copies, and what the bridge computes with."""
    found: set[int] = set()
    for module, parts, splitter in _joints(hf_model):
        try:
            with torch.device("meta"):  # what carries them needs no values of its own
                anew = getattr(module, splitter)(module.original_component)
        except Exception:  # an adapter's own code, written to run once, at boot
            continue
        for part, made in zip(parts, anew, strict=True):
            for own, joint in zip(part.parameters(), made.parameters(), strict=True):
                same_memory = own.data_ptr() == joint.data_ptr() and own.stride() == joint.stride()
                if not same_memory and not joint.is_meta and not torch.equal(own, joint):
                    found.add(id(own))
    return found


def _placed(hf_model: nn.Module) -> Iterator[tuple[bytes, Tensor]]:
    """The model's parameters, each with the numbers in its name: its layer, its expert."""
    counted = {id(parameter) for parameter in _own(hf_model)} | _strayed(hf_model)
    for name, parameter in hf_model.named_parameters():
        if id(parameter) in counted:
            numbers = re.findall(r"(?<![^.])\d+(?![^.])", name)
            yield f"{'.'.join(numbers)} {list(parameter.shape)} ".encode(), parameter.detach()


def _state(hf_model: nn.Module) -> Any:
    """Which tensors a model has, and how often torch saw them written to; None: torch does not
    count."""
    parameters = list(hf_model.parameters())
    if any(parameter.is_inference() for parameter in parameters):
        return None
    return [(p.data_ptr(), p._version, p.dtype, p.shape) for p in parameters]


def _sums(value: Tensor) -> bytes:
    """A digest of the sums of rows and columns that the module's docstring defines."""
    flat = value.reshape(-1)
    kind = torch.bfloat16
    if not flat.is_floating_point():  # packed weights: their bytes
        flat, kind = flat.contiguous().view(torch.uint8), torch.uint8
    digest = hashlib.sha256(str(kind).encode())
    size = min(_CHUNK, -(-flat.numel() // _ROW) * _ROW)
    buffer = torch.empty(size, dtype=kind, device=flat.device)
    rows, columns = [], []
    for chunk in flat.split(_CHUNK):
        table = buffer[: -(-chunk.numel() // _ROW) * _ROW]
        table[: chunk.numel()].copy_(chunk)
        table[chunk.numel() :].zero_()
        if kind is torch.bfloat16:
            torch.hardshrink(table, _SMALLEST, out=table)
        words = table.view(-1, _ROW).view(torch.int64)
        rows.append(words.sum(dim=1))
        columns.append(words.sum(dim=0))
    for sums in (rows, columns):
        if sums:
            digest.update(torch.cat(sums).cpu().numpy().tobytes())
    return digest.digest()


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
