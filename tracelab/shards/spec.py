"""What is asked of a worker: data that can be written down, sent, and compared.

Two equal specifications ask for the same; the key of one holds the hash of every file of a bundle,
so an edit that was fitted again under the same name is another request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformer_lens.model_bridge import TransformerBridge

from tracelab.evaluate.scoreboard.cells import told_option
from tracelab.interventions.base import Intervention
from tracelab.interventions.methods import load_intervention
from tracelab.interventions.names import MANIFEST
from tracelab.interventions.stack import Stack
from tracelab.model.load import load
from tracelab.storage.cache import file_hash


@dataclass(frozen=True)
class ModelSpec:
    """Which model a worker loads; see :func:`tracelab.load`.

    Attributes:
        name_or_path: a hub id, or a path that every worker can read.
        device: None: the one that the engine gives a worker, else CUDA if there is one.
    """

    name_or_path: str | None = None
    dtype: str = "float32"
    device: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def load(self) -> TransformerBridge:
        """The model."""
        return load(**asdict(self))

    def key(self) -> dict[str, Any]:
        """What tells models apart, as JSON values: with a folder's files by size and time, or the
        commit of what the hub gave before; the device is no part of it."""
        told = {name: value for name, value in asdict(self).items() if name != "device"}
        if self.name_or_path is None:
            return told
        path = Path(self.name_or_path).expanduser()
        if path.exists():
            files = sorted(path.glob("*")) if path.is_dir() else [path]
            facts = {file.name: file.stat() for file in files if file.is_file()}
            return told | {"files": {n: [f.st_size, f.st_mtime_ns] for n, f in facts.items()}}
        return told | {"snapshot": _snapshot(self.name_or_path, "config.json", self.revision)}


@dataclass(frozen=True)
class EditSpec:
    """A bundle at a strength.

    Attributes:
        path: a hub id, or a folder that every worker can read.
    """

    path: str
    strength: float = 1.0
    allow_mismatch: bool = False

    def load(self) -> Intervention:
        """The edit.

        Raises:
            TracelabError: no bundle is there, or a damaged one.
        """
        edit = load_intervention(self.path, allow_mismatch=self.allow_mismatch)
        return edit if self.strength == 1 else edit.scaled(self.strength)

    def key(self) -> dict[str, Any]:
        """What tells edits apart, as JSON values."""
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            return asdict(self) | {"snapshot": _snapshot(self.path, MANIFEST, None)}
        files = sorted(file for file in folder.glob("*") if file.is_file())
        return asdict(self) | {"files": {file.name: file_hash(file) for file in files}}


@dataclass(frozen=True)
class Spec:
    """One request.

    Attributes:
        measurement: ``score/BENCHMARK``, ``score/own-BENCHMARK`` (of your own pairs), ``trace`` or
            ``attention``.
        edits: what is on the model; several are a stack.
        edit_name: the edit's name in tables; default: its own.
        options: keyword arguments of the measuring function, JSON values.
        seed: of the measuring function.
    """

    measurement: str
    model: ModelSpec = field(default_factory=ModelSpec)
    edits: tuple[EditSpec, ...] = ()
    edit_name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def load_edit(self) -> Intervention | None:
        """The edit, or the stack of several; None without any."""
        edits = [each.load() for each in self.edits]
        return None if not edits else edits[0] if len(edits) == 1 else Stack(edits)

    def key(self) -> dict[str, Any]:
        """The request, as JSON values."""
        return {
            "measurement": self.measurement,
            "model": self.model.key(),
            "edits": [each.key() for each in self.edits],
            "edit_name": self.edit_name,
            "options": {name: told_option(name, each) for name, each in self.options.items()},
            "seed": self.seed,
        }


def _snapshot(repository: str, file: str, revision: str | None) -> str | None:
    """The commit under which a hub repository's file was cached; None: it was not, or is no name
    of one."""
    try:
        found = try_to_load_from_cache(repository, file, revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent.name if isinstance(found, str) else None
