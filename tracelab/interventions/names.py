"""The names of a bundle's files, said without torch."""

from __future__ import annotations

MANIFEST, TENSORS, CARD = "tracelab.json", "tensors.safetensors", "README.md"
OWN_FILES = (MANIFEST, TENSORS, CARD)
