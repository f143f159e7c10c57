"""The ``README.md`` of a bundle: a model card, for people and for the hub."""

from __future__ import annotations

import json
from typing import Any

from tracelab.errors import one_line
from tracelab.escaping import code_for_markdown, for_markdown
from tracelab.interventions.manifest import Manifest


def card(name: str, manifest: Manifest) -> str:
    """The card of an edit called ``name``; what it quotes is text, whatever it holds."""
    part = manifest.part
    origins = [p.origin for p in (part, *part.members) if p.origin is not None]
    base = origins[0] if origins else None
    model = base.model_id if base else "any model"
    weights = f" (weights {for_markdown(base.fingerprint)})" if base else ""
    metrics = part.notes.get("metrics")
    measured = f"\nMetrics before and after: {_json(metrics)}\n" if metrics else ""
    head = f"---\nlibrary_name: tracelab\ntags: [{part.kind}, bias]\n---\n"
    return f"""{head}
# {for_markdown(name)}

An edit of {for_markdown(model)}{weights}, as TransformerLens hooks. It changes no weights.

```python
import tracelab

model = tracelab.load()  # {one_line(model)}
edit = tracelab.load_intervention("path/to/this/folder")
with edit.applied(model):
    ...
```

Configuration: {_json(part.spec.get("config", {}))}
{measured}
Made with tracelab {manifest.versions["tracelab"]}; it holds {len(manifest.tensors)} tensors and no code.
"""  # noqa: E501


def _json(value: Any) -> str:
    return code_for_markdown(json.dumps(value))
