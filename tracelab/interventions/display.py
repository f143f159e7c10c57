"""An edit as a person reads it: one line, and a small table in a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from tracelab.config import Config
from tracelab.metrics import label

if TYPE_CHECKING:
    from tracelab.interventions.base import Intervention


def line(edit: Intervention) -> str:
    """``<KLAAD klaad(gender), made for smollm2, 1,843,200 values>``."""
    made_for = "" if edit.origin is None else f", made for {edit.origin.model_id}"
    return f"<{type(edit).__name__} {edit.name}{made_for}, {_size(edit)}>"


def html(edit: Intervention) -> str:
    """What it is, what it was made for and of, where it acts, and what it was measured to do;
    everything escaped."""
    rows = {name: str(value) for name, value in facts(edit).items()}
    table = pd.DataFrame({"": rows.keys(), edit.name: rows.values()})
    return table.to_html(index=False, border=0)


def facts(edit: Intervention) -> dict[str, Any]:
    """Method, model, data, layers, strength, settings that are not as by default, size, and what
    the notes say that it did on development records and to neutral text."""
    found: dict[str, Any] = {"method": edit.kind}
    if edit.has_members:
        found["members"] = ", ".join(member.name for member in edit) or "none"  # type: ignore[attr-defined]
        return found | {"size": _size(edit)}
    if edit.origin is not None:
        found["model"] = edit.origin.model_id
    if data := _data(edit):
        found["data"] = data
    if places := _places(edit.paths()):
        found["layers"] = places
    found["strength"] = f"{edit.strength:g}"
    config = getattr(edit, "config", None)
    if isinstance(config, Config):
        fields = type(config).model_fields
        own = {name: value for name, value in config if value != fields[name].default}
        found["settings"] = ", ".join(f"{k}={v}" for k, v in own.items()) or "as by default"
    found["size"] = _size(edit)
    if did := [*_chosen(edit), *_agreement(edit.notes), *_cost(edit.notes)]:
        found["on development records"] = "; ".join(did)
    if metrics := edit.notes.get("metrics"):
        found["metrics"] = metrics
    if "fit_seconds" in edit.notes:
        found["fit seconds"] = edit.notes["fit_seconds"]
    return found


COUNTS = {
    "n_train": "to train on",
    "n_dev": "for development",
    "n_pairs": "pairs",
    "n_neutral": "neutral texts",
    "left_out": "left out",
}
"""Notes that count what an edit was fitted on, in words."""


def _data(edit: Intervention) -> str:
    bias = getattr(edit, "bias", "") or ", ".join(
        spec.attribute for spec in getattr(edit, "attributes", ())
    )
    counts = {name: edit.notes[name] for name in COUNTS if name in edit.notes}
    summed = {k: sum(n.values()) if isinstance(n, dict) else n for k, n in counts.items()}
    counted = [f"{n} {COUNTS[name]}" for name, n in summed.items()]
    return ", ".join(filter(None, [bias, *counted]))


def _places(points: Iterable[str]) -> str:
    """``hook_resid_post of layers 0 to 7``, from the names of the points."""
    layers: dict[str, list[int]] = {}
    for point in points:
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", point)
        own = layers.setdefault(found[2] if found else point, [])
        own += [int(found[1])] if found else []
    return "; ".join(f"{k} of {_numbers(sorted(v))}" if v else k for k, v in layers.items())


def _numbers(layers: list[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers))}"


def _chosen(edit: Intervention) -> list[str]:
    """Figures of development triples at the strength that was chosen, from those of the unedited
    model; in a copy of another strength none is known."""
    table = edit.notes.get("strengths") or []
    rows = [row for row in table if row["strength"] == edit.notes.get("strength")]
    if edit.strength != 1 or not rows or not (before := table[0]) or before["strength"] != 0:
        return []
    words = {"kl": "KL to the unedited"}
    return [
        f"{words.get(name) or label(name)} {before[name]:.3g} → {rows[0][name]:.3g}"
        for name in rows[0]
        if name in before and name not in ("strength", "perplexity_change")
    ]


def _agreement(notes: dict[str, Any]) -> list[str]:
    said = []
    for row in notes.get("agreement") or []:
        if row["layer"] is None:
            change = f"{row['kl_before']:.3g} → {row['kl_after']:.3g} nats ({row['n']} texts)"
            said.append(f"the model's KL from even {row['attribute']} {change}")
    return said


def _cost(notes: dict[str, Any]) -> list[str]:
    if not {"kl", "perplexity_change"} <= notes.keys():
        return []
    change = f"perplexity {notes['perplexity_change']:+.3g} %"
    return [f"neutral text: KL {notes['kl']:.3g} nats a token, {change}"]


def _size(edit: Intervention) -> str:
    return f"{sum(value.numel() for value in edit.state_dict().values()):,} values"
