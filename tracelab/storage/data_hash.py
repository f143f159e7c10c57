"""What tells data apart: a hash of records, or of tensors, for settings and the keys of
checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from safetensors.torch import save
from torch import Tensor


def data_hash(records: Iterable[Any]) -> str:
    """16 hexadecimal digits that change when any field of any record changes."""
    lines = (json.dumps(asdict(record), sort_keys=True) for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that change when any value of any tensor changes."""
    held = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return hashlib.sha256(save(held)).hexdigest()[:16]
