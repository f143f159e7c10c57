"""The ``README.md`` of a bundle, an adapter or a merged checkpoint: a model card, for people and
for the hub.

The code block runs as it stands where the model is the embedded one or has a hub id; a model from a
folder is called by that folder's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from tracelab.errors import one_line
from tracelab.escaping import code_for_markdown, for_markdown
from tracelab.interventions.manifest import Manifest, Part
from tracelab.interventions.origin import Origin
from tracelab.model.assets import MODEL

_SHOWN = ("benchmark", "bias", "metric")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_EMBEDDED_LICENCE = "apache-2.0"


def card(name: str, manifest: Manifest, place: str) -> str:
    """The card of an edit called ``name``; what it quotes is text, whatever it holds.

    Args:
        place: folder or hub id that it is loaded from.
    """
    part = manifest.part
    origin = _origin(part)
    model = origin.model_id if origin else ""
    named = f" (weights {for_markdown(origin.fingerprint)})" if origin else ""
    return f"""{_head(model, part, ["tracelab", part.kind, "bias"])}
# {for_markdown(name)}

An edit of {for_markdown(model or "any model")}{named}, as TransformerLens hooks. It changes no weights.

```python
import tracelab

model = tracelab.load({_arguments(origin)})
edit = tracelab.load_intervention({_quoted(place)})
with edit.applied(model):
    print(tracelab.generate(model, "The nurse said that").frame)
```

On a plain `transformers` model it acts by forward hooks: {code_for_markdown("edit.attach(hf_model)")}.

Configuration: {_json(part.spec.get("config", {}))}
{_measured(part)}
{_licence(part)} Made with tracelab {for_markdown(manifest.versions["tracelab"])}; it holds {len(manifest.tensors)} tensors and no code.
"""  # noqa: E501


def adapter_card(name: str, part: Part, base: str, place: str) -> str:
    """The card of a PEFT adapter of an edit."""
    return f"""{_head(base, part, [part.kind, "bias", "lora"], library="peft")}
# {for_markdown(name)} as a LoRA adapter

An edit of {for_markdown(base)}, made with tracelab and written as a PEFT adapter.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained({_quoted(place)})
```

Configuration: {_json(part.spec.get("config", {}))}
{_measured(part)}
{_licence(part)}
"""


def merged_card(name: str, part: Part, base: str, place: str) -> str:
    """The card of a checkpoint with an edit in its weights."""
    return f"""{_head(base, part, [part.kind, "bias"], library="transformers")}
# {for_markdown(base)} with {for_markdown(name)}

The checkpoint of {for_markdown(base)} with an edit of tracelab added to its weights.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({_quoted(place)})
tokenizer = AutoTokenizer.from_pretrained({_quoted(place)})
```

Configuration: {_json(part.spec.get("config", {}))}
{_measured(part)}
{_licence(part)}
"""


def _origin(part: Part) -> Origin | None:
    """The model it was made for; None where the edit fits any."""
    return part.origin or next(filter(None, map(_origin, part.members)), None)


def _head(base: str, part: Part, tags: Sequence[str], library: str = "tracelab") -> str:
    """The metadata that the hub reads, as YAML; its values are JSON, which YAML takes."""
    fields: dict[str, Any] = {"library_name": library, "tags": list(tags)}
    if _HUB_ID.fullmatch(base):
        fields["base_model"] = base
    if licence := _licence_of(part):
        fields["license"] = licence
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---", ""])


def _licence_of(part: Part) -> str:
    named = part.notes.get("license")
    if isinstance(named, str) and named:
        return named
    origin = _origin(part)
    return _EMBEDDED_LICENCE if origin and origin.model_id == MODEL.folder else ""


def _licence(part: Part) -> str:
    given = _licence_of(part)
    own = f"Licence: {for_markdown(given)}." if given else "Licence: none is named."
    return f"{own} The base model and the data that it was fitted on keep theirs."


def _measured(part: Part) -> str:
    """What the edit did, with intervals where they are known."""
    metrics = part.notes.get("metrics")
    if not metrics:
        return ""
    rows = metrics if isinstance(metrics, list) else []
    if not rows or not all(isinstance(row, dict) and "metric" in row for row in rows):
        return f"\nMetrics before and after: {_json(metrics)}\n"
    lines = ["| measured | under the edit | edited − unedited | n |", "|---|---|---|---|"]
    for row in rows:
        what = " ".join(str(row[name]) for name in _SHOWN if row.get(name))
        cells = [what, _interval(row, "value", ""), _interval(row, "difference", "difference_")]
        cells.append(str(row.get("n", "")))
        lines.append(f"| {' | '.join(map(for_markdown, cells))} |")
    return "\nWith 95 % intervals; differences are paired:\n\n" + "\n".join(lines) + "\n"


def _interval(row: Mapping[str, Any], name: str, ends: str) -> str:
    values = [row.get(key) for key in (name, f"{ends}low", f"{ends}high")]
    found = [f"{v:.4g}" for v in values if isinstance(v, int | float) and isfinite(v)]
    return f"{found[0]} [{found[1]}, {found[2]}]" if len(found) == 3 else "".join(found[:1])


def _arguments(origin: Origin | None) -> str:
    """What loads the model that an edit was made for: of a hub repository, at its commit."""
    if origin is None or origin.model_id == MODEL.folder:
        return ""
    commit = origin.revision if _HUB_ID.fullmatch(origin.model_id) else None
    return _quoted(origin.model_id) + (f", revision={_quoted(commit)}" if commit else "")


def _quoted(text: str) -> str:
    """A text in a line of Python that ends no block of Markdown."""
    return json.dumps(one_line(text), ensure_ascii=False).replace("`", "\\u0060")


def _json(value: Any) -> str:
    return code_for_markdown(json.dumps(value))
