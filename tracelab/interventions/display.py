"""An edit as a person reads it: one line, and a small table in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from tracelab.config import Config

if TYPE_CHECKING:
    from tracelab.interventions.base import Intervention


def line(edit: Intervention) -> str:
    """``<KLAAD klaad(gender), made for smollm2, 1,843,200 values>``."""
    made_for = "" if edit.origin is None else f", made for {edit.origin.model_id}"
    return f"<{type(edit).__name__} {edit.name}{made_for}, {_size(edit)}>"


def html(edit: Intervention) -> str:
    """What it is, what it was made for and of, and where it acts; everything escaped."""
    rows = {name: str(value) for name, value in facts(edit).items()}
    table = pd.DataFrame({"": rows.keys(), edit.name: rows.values()})
    return table.to_html(index=False, border=0)


def facts(edit: Intervention) -> dict[str, Any]:
    """Method, model, points, settings that are not as by default, size, and the fit."""
    found: dict[str, Any] = {"method": edit.kind}
    if edit.origin is not None:
        found["model"] = edit.origin.model_id
        found["weights"] = edit.origin.fingerprint
    if points := list(edit.paths()):
        found["points"] = ", ".join(points[:3]) + (f", … ({len(points)})" if points[3:] else "")
    config = getattr(edit, "config", None)
    if isinstance(config, Config):
        fields = type(config).model_fields
        own = {name: value for name, value in config if value != fields[name].default}
        found["settings"] = ", ".join(f"{k}={v}" for k, v in own.items()) or "as by default"
    found["size"] = _size(edit)
    for name in ("data_hash", "strength", "fit_seconds"):
        if name in edit.notes:
            found[name.replace("_", " ")] = edit.notes[name]
    return found


def _size(edit: Intervention) -> str:
    return f"{sum(value.numel() for value in edit.state_dict().values()):,} values"
