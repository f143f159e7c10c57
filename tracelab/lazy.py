"""Public names that are imported on first use (PEP 562): what needs no torch does without."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any


def names_from(
    module: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose names stand in other modules: ``{name:
    module}``. Its own modules are found too."""

    def find(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
            setattr(sys.modules[module], name, value)
            return value
        whole = f"{module}.{name}"
        if not name.startswith("_") and importlib.util.find_spec(whole) is not None:
            return importlib.import_module(whole)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    def listed() -> list[str]:
        own = vars(sys.modules[module])
        return sorted({*own, *own.get("__all__", ()), *homes})

    return find, listed
