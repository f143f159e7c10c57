"""What measures shards: one process, which loads a model once and keeps it for the next shard.

The result travels as the files that it would be saved as, in one archive, so what comes back from
another machine is what was written there, bit for bit.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.evaluate.scoreboard.cells import FAILURES, reason_of
from tracelab.results import Result
from tracelab.shards.measurements import measurement
from tracelab.shards.spec import ModelSpec, Spec
from tracelab.storage.files import atomic_folder


@dataclass(frozen=True)
class Task:
    """A shard: what is asked, of which records."""

    spec: Spec
    records: Sequence[Any]
    edits: Sequence[dict[str, Any]] = ()
    """The keys of the edits, as they were when the request was made."""


@dataclass(frozen=True)
class Refused:
    """Why a shard cannot be measured."""

    reason: str


class Worker:
    """Measures shards one after the other.

    Args:
        device: for models whose specification names none, or any GPU (``cuda``).
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self._models: dict[ModelSpec, TransformerBridge] = {}

    def __call__(self, task: Task) -> bytes | Refused:
        """The result of a shard, as an archive, or what the measuring function refuses."""
        try:
            return packed(self._measured(task))
        except TracelabError as error:
            return Refused(str(error))
        except (*FAILURES, MemoryError) as error:
            return Refused(f"{type(error).__name__}: {reason_of(error)}")

    def use(self, asked: ModelSpec, model: TransformerBridge) -> None:
        """Take a model that this process has loaded already."""
        self._models = {asked: model}

    def _measured(self, task: Task) -> Result:
        spec = task.spec
        model = self._model(spec.model)
        edit = spec.load_edit()
        if [each.key() for each in spec.edits] != list(task.edits):
            raise TracelabError(
                f"the bundle of {edit.name if edit else 'an edit'} is another one than when the "
                "request was made: run it again"
            )
        with nullcontext() if edit is None else edit.applied(model):
            name = None if edit is None else spec.edit_name or edit.name
            return measurement(spec).run(model, task.records, replace(spec, edit_name=name))

    def _model(self, asked: ModelSpec) -> TransformerBridge:
        if asked not in self._models:
            self._models.clear()  # one model's weights at a time
            own = self._device is not None and asked.device in (None, "cuda")
            device = self._device if own else asked.device
            self._models[asked] = replace(asked, device=device).load()
        return self._models[asked]


def packed(result: Result) -> bytes:
    """The files of a result in one archive."""
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(content, "w") as archive:
        for file in sorted(result.save(Path(folder) / "result").iterdir()):
            archive.write(file, file.name)
    return content.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """Write the files of an archive as ``folder``, whole or not at all."""
    with atomic_folder(folder) as made, zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(made)
