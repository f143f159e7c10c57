"""Bundles: an intervention as a folder that loads elsewhere, holding nothing that could be executed.

    tracelab.json          method, configuration, base model, points, tensor shapes, what made it
    tensors.safetensors    its tensors
    README.md              a model card, for people

Loading trusts none of it: the manifest is checked against a schema, the tensors against its SHA-256 and against the
shapes that the configuration implies, and every value must be finite. The method is looked up in a closed table,
never imported by name; other files in the folder are not read.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tracelab.errors import TracelabError
from tracelab.files import atomic_folder, require_replaceable
from tracelab.gradients import measuring
from tracelab.interventions.base import Intervention, Origin
from tracelab.interventions.biasedit import BiasEdit, BiasEditSpec
from tracelab.interventions.experts import Experts, ExpertsSpec
from tracelab.interventions.fairmed import FairMed, FairMedSpec
from tracelab.interventions.klaad import KLAAD, KLAADSpec
from tracelab.interventions.stack import Stack, StackSpec
from tracelab.interventions.weight_delta import WeightDelta, WeightDeltaSpec

FORMAT_VERSION = 1
MANIFEST, TENSORS, CARD = "tracelab.json", "tensors.safetensors", "README.md"
OWN_FILES = (MANIFEST, TENSORS, CARD)

REGISTRY: dict[str, tuple[type[Intervention], type[BaseModel]]] = {
    FairMed.kind: (FairMed, FairMedSpec),
    Experts.kind: (Experts, ExpertsSpec),
    BiasEdit.kind: (BiasEdit, BiasEditSpec),
    KLAAD.kind: (KLAAD, KLAADSpec),
    WeightDelta.kind: (WeightDelta, WeightDeltaSpec),
    Stack.kind: (Stack, StackSpec),
}
"""Every method that a bundle can hold."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Part(_Strict):
    """One intervention; a stack has members."""

    kind: str
    spec: dict[str, Any]
    origin: Origin | None
    notes: dict[str, Any] = {}
    members: tuple[Part, ...] = ()


class TensorInfo(_Strict):
    """What the tensors file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str


class Manifest(_Strict):
    """The content of ``tracelab.json``."""

    format: Literal["tracelab"]
    format_version: int = Field(ge=1)
    part: Part
    tensors: dict[str, TensorInfo]
    sha256: str
    versions: dict[str, str]


def save_bundle(intervention: Intervention, path: Path | str) -> Path:
    """Write an intervention as a bundle; a bundle at ``path`` is replaced whole.

    Raises:
        TracelabError: ``path`` holds something else.
    """
    folder = Path(path)
    require_replaceable(folder, OWN_FILES, marker=MANIFEST)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in intervention.state_dict().items()}
    content = save(tensors)
    manifest = Manifest(
        format="tracelab",
        format_version=FORMAT_VERSION,
        part=_part(intervention),
        tensors={name: _info(value) for name, value in tensors.items()},
        sha256=hashlib.sha256(content).hexdigest(),
        versions={name: version(name) for name in ("tracelab", "torch", "transformers", "transformer-lens")},
    )
    with atomic_folder(folder) as made:
        (made / TENSORS).write_bytes(content)
        (made / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (made / CARD).write_text(_card(intervention, manifest), encoding="utf-8")
    return folder


@measuring()
def load_intervention(
    path_or_hub_id: Path | str, *, revision: str | None = None, allow_mismatch: bool = False
) -> Intervention:
    """Read a bundle from a folder or a hub repository.

    Args:
        revision: branch, tag or commit of a hub repository.
        allow_mismatch: accept a model with other weights than the one the edit was made for (never other shapes).

    Raises:
        TracelabError: no bundle there, or one that is damaged, altered, or from a newer version.
    """
    folder, root = _folder(path_or_hub_id, revision)
    text = _read(folder, MANIFEST, root).decode("utf-8", errors="replace")
    manifest = _manifest(text, where=str(folder / MANIFEST))
    content = _read(folder, TENSORS, root)
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise TracelabError(f"{folder / TENSORS} is not the file that the manifest describes: truncated or altered")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise TracelabError(f"{folder / TENSORS} is not a safetensors file: {error}") from error
    with torch.device("meta"):  # shapes without memory, whatever sizes the manifest claims
        intervention = _build(manifest.part)
    _check(intervention, tensors, manifest)
    intervention.load_state_dict(tensors, strict=True, assign=True)
    for part in intervention.modules():
        if isinstance(part, Intervention):
            part.allow_mismatch = allow_mismatch
    return intervention.eval()


def _part(intervention: Intervention) -> Part:
    members = tuple(_part(member) for member in intervention) if isinstance(intervention, Stack) else ()
    # Through JSON, so that a note that a manifest cannot hold is refused now and not when it is read.
    return Part(
        kind=intervention.kind,
        spec=intervention.spec().model_dump(mode="json"),
        origin=intervention.origin,
        notes=json.loads(json.dumps(intervention.notes)),
        members=members,
    )


def _build(part: Part) -> Intervention:
    if part.kind not in REGISTRY:
        raise TracelabError(f"unknown kind of intervention {part.kind!r}: this version knows {', '.join(REGISTRY)}")
    cls, spec_type = REGISTRY[part.kind]
    try:
        spec = spec_type.model_validate_json(json.dumps(part.spec), strict=True)
        intervention = cls.build(spec, part.origin)
        members = [_build(member) for member in part.members]
    except ValidationError as error:
        raise TracelabError(f"the bundle's {part.kind} is not valid: {_first(error)}") from error
    except (KeyError, TypeError, RuntimeError) as error:  # names and sizes that torch refuses
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TracelabError(f"the bundle's {part.kind} is not valid: {reason}") from error
    if isinstance(intervention, Stack):
        intervention.members.extend(members)
    elif members:
        raise TracelabError(f"a bundle of {part.kind} has no members, this one has {len(members)}")
    intervention.notes = part.notes
    return intervention


def _check(intervention: Intervention, tensors: dict[str, Tensor], manifest: Manifest) -> None:
    """Refuse tensors that are not those the configuration and the manifest call for."""
    wanted = {name: _info(value) for name, value in intervention.state_dict().items()}
    for what, found in (
        ("the manifest lists", manifest.tensors),
        ("the file holds", {n: _info(t) for n, t in tensors.items()}),
    ):
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise TracelabError(
                    f"tensor {name!r}: the configuration calls for {_shown(wanted.get(name))}, "
                    f"{what} {_shown(found.get(name))}"
                )
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise TracelabError(f"tensor {name!r} of the bundle has values that are not finite")


def _manifest(text: str, where: str) -> Manifest:
    try:
        content = json.loads(text)
        newest = content["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TracelabError(f"{where} is not the manifest of a tracelab bundle") from error
    if isinstance(newest, int) and newest > FORMAT_VERSION:
        raise TracelabError(
            f"{where} has format version {newest}, this tracelab reads up to {FORMAT_VERSION}: install a newer one"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise TracelabError(f"{where} is not valid: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}{more}"


def _folder(path_or_hub_id: Path | str, revision: str | None) -> tuple[Path, Path]:
    """The bundle's folder, and the folder that its files must lie in."""
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path, path.resolve()
    if str(path_or_hub_id).count("/") != 1 or str(path_or_hub_id).startswith((".", "/", "~")):
        raise TracelabError(f"no bundle folder at {str(path_or_hub_id)!r}")
    try:
        found = Path(snapshot_download(str(path_or_hub_id), revision=revision, allow_patterns=[MANIFEST, TENSORS]))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TracelabError(f"no folder and no reachable hub repository {str(path_or_hub_id)!r}: {reason}") from error
    return found, found.resolve().parent.parent  # a snapshot's files are links to blobs beside it


def _read(folder: Path, name: str, root: Path) -> bytes:
    file = folder / name
    if not file.is_file():
        pickles = sorted(f.name for f in folder.iterdir() if f.suffix in {".pt", ".pth", ".bin", ".pkl", ".ckpt"})
        more = f" ({', '.join(pickles)} may hold code and is never read)" if pickles else ""
        raise TracelabError(f"{folder} is no tracelab bundle: it has no {name}{more}")
    if not file.resolve().is_relative_to(root):
        raise TracelabError(f"{file} leads out of the bundle's folder: copy the file itself there")
    return file.read_bytes()


def _info(value: Tensor) -> TensorInfo:
    return TensorInfo(shape=tuple(value.shape), dtype=str(value.dtype).removeprefix("torch."))


def _shown(info: TensorInfo | None) -> str:
    return "none of that name" if info is None else f"{info.dtype} {list(info.shape)}"


def _card(intervention: Intervention, manifest: Manifest) -> str:
    part = manifest.part
    origins = [p.origin for p in (part, *part.members) if p.origin is not None]
    base = origins[0] if origins else None
    model = base.model_id if base else "any model"
    weights = f" (weights {base.fingerprint})" if base else ""
    metrics = part.notes.get("metrics")
    measured = f"\nMetrics before and after: `{json.dumps(metrics, indent=1)}`\n" if metrics else ""
    head = f"---\nlibrary_name: tracelab\ntags: [{part.kind}, bias]\n---\n"
    return f"""{head}
# {intervention.name}

An edit of {model}{weights}, as TransformerLens hooks. It changes no weights.

```python
import tracelab

model = tracelab.load()  # {model}
edit = tracelab.load_intervention("path/to/this/folder")
with edit.applied(model):
    ...
```

Configuration: `{json.dumps(part.spec.get("config", {}))}`
{measured}
Made with tracelab {manifest.versions["tracelab"]}; it holds {len(manifest.tensors)} tensors and no code.
"""
