"""What tells tensors apart: a hash of their values, for the identity of an edit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that change when any value of any tensor changes."""
    held = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return hashlib.sha256(save(held)).hexdigest()[:16]
