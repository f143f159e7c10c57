"""What tells data apart: a hash of records, for settings and the keys of checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any


def data_hash(records: Iterable[Any]) -> str:
    """16 hexadecimal digits that change when any field of any record changes."""
    lines = (json.dumps(asdict(record), sort_keys=True) for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
