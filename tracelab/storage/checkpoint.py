"""Results and edits kept in a folder under what was asked for, so that the same request is not
carried out again.

``NAME/`` holds what was made and ``NAME.key`` the request that made it; a request that differs in
anything (model, weights, data, settings, versions, seed) finds nothing and makes it anew, and so
does one that finds what cannot be read, whatever happened to it. One process at a time makes
something in a folder (:mod:`.locks`).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from tracelab.errors import TracelabError
from tracelab.storage.files import atomic_file, recover
from tracelab.storage.locks import locked
from tracelab.storage.ownership import ChangedSinceWritten, is_named, named_in, require_folder

MARKERS = ("result.json", "tracelab.json")
OWN = (*MARKERS, "README.md", "*.parquet", "*.safetensors")
"""What results and bundles write, to know a damaged one by."""


@runtime_checkable
class Saved(Protocol):
    """What writes itself into a folder: results and interventions."""

    def save(self, path: Any, /) -> Path: ...  # noqa: D102


S = TypeVar("S", bound=Saved)


def kept(
    folder: Path,
    name: str,
    load: Callable[[Path], S],
    request: Any,
    make: Callable[[], S],
    *,
    say: Callable[[str], None] = lambda text: None,
    making: str = "measuring",
) -> S:
    """What an equal request left in ``folder / name``, or else a new one, which is left there.

    Args:
        load: reads what ``save`` wrote.
        request: JSON values that tell everything it depends on.
        say: told what happens.
        making: what making it is called.

    Raises:
        TracelabError: nothing can be written there, or somebody's own files lie there; before
            anything is made.
    """
    key = json.dumps(request, sort_keys=True)
    file = folder / f"{name}.key"
    require_folder(folder)
    with locked(folder):
        recover(folder / name)
        if file.is_file() and file.read_bytes() == key.encode():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", ChangedSinceWritten)
                    found = load(folder / name)
            except Exception as error:  # damage surfaces as whatever a reader happens to raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                say(f"{name}: what lies in {folder / name} cannot be read ({reason})")
            else:
                say(f"{name}: taken from {folder / name}")
                return found
        _require_nothing_else_in(folder / name, file)
        say(f"{name}: {making}")
        made = make()
        file.unlink(missing_ok=True)  # a key never stands beside what another request made
        _remove(folder / name)  # with a damaged manifest it would pass for somebody's own
        made.save(folder / name)
        with atomic_file(file) as path:
            path.write_text(key, encoding="utf-8")
    return made


def _require_nothing_else_in(folder: Path, key: Path) -> None:
    """Refuse what was not kept here: neither a manifest of ours nor, if that is damaged, the key
    says that it was."""
    own = OWN if key.is_file() else ()
    named = [names for marker in MARKERS if (names := named_in(folder / marker))]
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not is_named(file, named[0] if named else (), own, *(MARKERS if named else ())):
            raise TracelabError(f"{str(folder)!r} holds other files ({file.name}): move them away")


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    elif os.path.lexists(folder):
        folder.unlink()
