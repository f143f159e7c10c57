"""Bundles: an intervention as a folder that loads elsewhere, holding nothing that could be
executed.

    tracelab.json          method, configuration, base model, points, tensor shapes, what made it (:mod:`.manifest`)
    tensors.safetensors    its tensors
    README.md              a model card, for people (:mod:`.card`)

Loading trusts none of it: the manifest is checked against its seal and a schema, the tensors
against its SHA-256 and against the shapes that the configuration implies, their file's size before
it is read, and every value must be finite. The method is looked up among classes that the reader is
handed, never imported by name; other files in the folder are not read. No method is known here:
:mod:`.methods` has them.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tracelab.errors import TracelabError, quoted
from tracelab.gradients import measuring
from tracelab.interventions import manifest as manifests
from tracelab.interventions.card import card
from tracelab.interventions.manifest import Manifest, Part, TensorInfo
from tracelab.interventions.names import CARD, MANIFEST, OWN_FILES, TENSORS
from tracelab.interventions.registry import with_own
from tracelab.storage.files import atomic_folder
from tracelab.storage.ownership import require_replaceable

if TYPE_CHECKING:
    from tracelab.interventions.base import Intervention

_HEADER = 2**24
"""Bytes that the names and shapes in a tensors file may take."""

DEEPEST = 16
"""How deep stacks may lie in each other: what no person makes is a fault, or an attack."""


def require_loadable(intervention: Intervention, kinds: Any) -> None:
    """Refuse an intervention that nothing could load again.

    Args:
        kinds: class or classes of your own that the reader will be given.

    Raises:
        TracelabError: a class that is neither tracelab's nor in ``kinds``.
    """
    classes = with_own(kinds)
    for part in intervention.modules() if intervention.has_members else [intervention]:
        if hasattr(part, "kind") and hasattr(part, "spec") and type(part) not in classes:
            own = type(part).__name__
            raise TracelabError(
                f"{own} is a class of your own, which tracelab cannot load by itself: save it "
                f"with kinds=({own},), and load it with the same"
            )


def save_bundle(intervention: Intervention, path: Path | str, *, place: str = "") -> Path:
    """Write an intervention as a bundle; a bundle at ``path`` is replaced whole.

    Args:
        place: where its card says that it is loaded from; default: the folder's name.

    Raises:
        TracelabError: ``path`` holds something else, or a stack holds itself.
    """
    folder = Path(path)
    require_replaceable(folder, OWN_FILES, marker=MANIFEST)
    part = part_of(intervention)  # first: it refuses a stack that holds itself
    tensors = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in intervention.state_dict().items()
    }
    content = save(tensors)
    manifest = Manifest(
        format="tracelab",
        format_version=2,
        part=part,
        tensors={name: _info(value) for name, value in tensors.items()},
        sha256=hashlib.sha256(content).hexdigest(),
        versions={
            name: version(name)
            for name in ("tracelab", "torch", "transformers", "transformer-lens")
        },
    )
    with atomic_folder(folder) as made:
        (made / TENSORS).write_bytes(content)
        (made / MANIFEST).write_bytes(manifests.write(manifest))
        (made / CARD).write_text(
            card(intervention.name, manifest, place or folder.name), encoding="utf-8"
        )
    return folder


@measuring()
def read_bundle(
    path_or_hub_id: Path | str,
    kinds: Iterable[type[Intervention]],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    allow_mismatch: bool = False,
) -> Intervention:
    """Read a bundle from a folder or a hub repository.

    Args:
        kinds: the classes that it may be built of, by their ``kind``.
        revision: branch, tag or commit of a hub repository.
        token: of the hub, for a repository that needs one.
        allow_mismatch: accept a model with other weights than the one the edit was made for (never
            other shapes).

    Raises:
        TracelabError: no bundle there, or one that is damaged, altered, of an unknown kind, or from
            a newer version.
    """
    folder, root = _folder(path_or_hub_id, revision, token)
    manifest = manifests.read(
        _read(folder, MANIFEST, root, manifests.LARGEST), where=str(folder / MANIFEST)
    )
    with torch.device("meta"):  # shapes without memory, whatever sizes the manifest claims
        intervention = _build(manifest.part, {cls.kind: cls for cls in kinds})
    wanted = {name: _info(value) for name, value in intervention.state_dict().items()}
    _require_same(wanted, manifest.tensors, "the manifest lists")
    size = sum(value.numel() * value.element_size() for value in intervention.state_dict().values())
    content = _read(folder, TENSORS, root, size + _HEADER)
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise TracelabError(
            f"{folder / TENSORS} is not the file that the manifest describes: truncated or altered"
        )
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise TracelabError(f"{folder / TENSORS} is not a safetensors file: {error}") from error
    _require_same(wanted, {name: _info(value) for name, value in tensors.items()}, "the file holds")
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise TracelabError(
                f"tensor {quoted(name)} of the bundle has values that are not finite"
            )
    intervention.load_state_dict(tensors, strict=True, assign=True)
    for part in intervention.modules():
        if hasattr(part, "allow_mismatch"):
            part.allow_mismatch = allow_mismatch  # type: ignore[assignment]
    return intervention.eval()


def part_of(intervention: Intervention, depth: int = 0) -> Part:
    """What a manifest says of an intervention."""
    _require_depth(depth)
    members = (
        tuple(part_of(m, depth + 1) for m in cast(Any, intervention))
        if intervention.has_members
        else ()
    )
    # Through JSON, so that a note that a manifest cannot hold is refused now and not when it is
    # read.
    try:
        notes = json.loads(json.dumps(intervention.notes))
    except TypeError as error:
        raise TracelabError(
            f"the notes of {intervention.name} hold what JSON cannot: {error}"
        ) from error
    return Part(
        kind=intervention.kind,
        spec=intervention.spec().model_dump(mode="json"),
        origin=intervention.origin,
        notes=notes,
        strength=intervention.strength,
        members=members,
    )


def _build(part: Part, kinds: Mapping[str, type[Intervention]], depth: int = 0) -> Intervention:
    if part.kind not in kinds:
        raise TracelabError(
            f"unknown kind of intervention {quoted(part.kind)}: this version knows "
            f"{', '.join(kinds)}; a class of your "
            "own is given with kinds="
        )
    _require_depth(depth)
    cls = kinds[part.kind]
    if cls.has_members and part.origin is not None:
        raise TracelabError("the bundle's stack names a model (origin), which only its members do")
    if cls.has_members and part.strength != 1:
        raise TracelabError("the bundle's stack has a strength, which only its members do")
    if not cls.has_members and part.origin is None:
        raise TracelabError(
            f"the bundle's {part.kind} names no model that it was made for (origin: null): fit it "
            "and save it again"
        )
    try:
        spec = cls.Spec.model_validate_json(json.dumps(part.spec), strict=True)
        intervention = cls.build(spec, part.origin)
        members = [_build(member, kinds, depth + 1) for member in part.members]
    except ValidationError as error:
        raise TracelabError(
            f"the bundle's {part.kind} is not valid: {manifests.first(error)}"
        ) from error
    except TracelabError:
        raise
    except Exception as error:  # names and sizes that torch refuses, each in its own way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TracelabError(f"the bundle's {part.kind} is not valid: {reason}") from error
    if cls.has_members:
        cast(Any, intervention).members.extend(members)
    elif members:
        raise TracelabError(f"a bundle of {part.kind} has no members, this one has {len(members)}")
    intervention.notes = part.notes
    if not cls.has_members:
        intervention.set_strength(part.strength)
    return intervention


def _require_depth(depth: int) -> None:
    if depth > DEEPEST:
        raise TracelabError(
            f"a bundle's stacks lie at most {DEEPEST} deep in each other: put their members in one"
        )


def _require_same(wanted: dict[str, TensorInfo], found: dict[str, TensorInfo], what: str) -> None:
    """Refuse tensors that are not those the configuration calls for."""
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise TracelabError(
                f"tensor {quoted(name)}: the configuration calls for {_shown(wanted.get(name))}, "
                f"{what} {_shown(found.get(name))}"
            )


def _folder(
    path_or_hub_id: Path | str, revision: str | None, token: str | bool | None
) -> tuple[Path, Path]:
    """The bundle's folder, and the folder that its files must lie in."""
    try:
        path = Path(path_or_hub_id).expanduser()
        if path.is_dir():
            return path, path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, "~nobody", a zero byte
        raise TracelabError(
            f"no bundle folder at {quoted(str(path_or_hub_id))}: {error}"
        ) from error
    if str(path_or_hub_id).count("/") != 1 or str(path_or_hub_id).startswith((".", "/", "~")):
        raise TracelabError(f"no bundle folder at {quoted(str(path_or_hub_id))}")
    try:
        found = Path(
            snapshot_download(
                str(path_or_hub_id),
                revision=revision,
                token=token,
                allow_patterns=[MANIFEST, TENSORS],
            )
        )
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TracelabError(
            f"no folder and no reachable hub repository {quoted(str(path_or_hub_id))}: {reason}"
        ) from error
    return found, found.resolve().parent.parent  # a snapshot's files are links to blobs beside it


def _read(folder: Path, name: str, root: Path, largest: int) -> bytes:
    """A file of the bundle, if it has at most so many bytes."""
    file = folder / name
    if not file.is_file():
        pickles = sorted(
            f.name for f in folder.iterdir() if f.suffix in {".pt", ".pth", ".bin", ".pkl", ".ckpt"}
        )
        more = f" ({', '.join(pickles)} may hold code and is never read)" if pickles else ""
        raise TracelabError(f"{folder} is no tracelab bundle: it has no {name}{more}")
    if not file.resolve().is_relative_to(root):
        raise TracelabError(f"{file} leads out of the bundle's folder: copy the file itself there")
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size <= largest:
                return opened.read(size)
    except (OSError, MemoryError) as error:
        raise TracelabError(
            f"{file} cannot be read: {str(error) or 'it does not fit into memory'}"
        ) from error
    raise TracelabError(
        f"{file} has {size} bytes where at most {largest} can belong to the bundle: it is another "
        "file"
    )


def _info(value: Tensor) -> TensorInfo:
    return TensorInfo(shape=tuple(value.shape), dtype=str(value.dtype).removeprefix("torch."))


def _shown(info: TensorInfo | None) -> str:
    return "none of that name" if info is None else f"{info.dtype} {quoted(list(info.shape))}"
