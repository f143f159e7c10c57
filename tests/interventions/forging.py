"""Changing a bundle as one would who knows its format: with its seal and its checksum made anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracelab.interventions.bundle import MANIFEST, TENSORS
from tracelab.interventions.manifest import sealed


def seal(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest's content with the seal that belongs to it."""
    content.pop("seal", None)
    (folder / MANIFEST).write_bytes(sealed(json.dumps(content)))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest by a function of its content."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    edit(content)
    seal(folder, content)


def put(folder: Path, content: bytes, *, shapes: dict[str, Any] | None = None) -> None:
    """Put other bytes in the place of the tensors, with their own SHA-256 in the manifest."""
    (folder / TENSORS).write_bytes(content)

    def sign(manifest: dict[str, Any]) -> None:
        manifest["sha256"] = hashlib.sha256(content).hexdigest()
        manifest["tensors"] |= shapes or {}

    change(folder, sign)
