"""The one way to resume: what a request has made so far is stored under the request itself.

An entry of a checkpoint folder is two names: ``NAME`` is what was made, a file or a folder of its
own, and ``NAME.key`` the request that made it, as JSON. A request that differs in anything (model,
weights, data, settings, versions, seed) finds nothing and begins anew; so does one that finds what
cannot be read, whatever happened to it. A key never stands beside what another request made, so a
run may be killed at any moment. Both names are listed as tracelab's (:mod:`.ownership`), and one
process at a time works in the folder (:mod:`.locks`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from tracelab.errors import TracelabError, warn
from tracelab.storage.files import atomic_file, recover
from tracelab.storage.locks import locked
from tracelab.storage.ownership import (
    ChangedSinceWritten,
    adopt,
    is_named,
    is_ours,
    made_by_tracelab,
    named_in,
    require_folder,
    require_ours,
)

MARKERS = ("result.json", "tracelab.json")
OWN = (*MARKERS, "README.md", "*.parquet", "*.safetensors")
"""What results and bundles write, to know a damaged one by."""

T = TypeVar("T")


@runtime_checkable
class Saved(Protocol):
    """What writes itself into a folder: results and interventions."""

    def save(self, path: Any, /) -> Path: ...  # noqa: D102


S = TypeVar("S", bound=Saved)


def resumed(
    folder: Path | str | None,
    name: str,
    read: Callable[[Path], S],
    request: Any,
    make: Callable[[], S],
    *,
    say: Callable[[str], None] | None = None,
    making: str = "measuring",
) -> S:
    """What an equal request stored as an entry, or else a new one, which is stored.

    Args:
        folder: of the checkpoint; None stores nothing.
        read: reads what ``save`` wrote.
        request: JSON values that tell everything it depends on.
        say: told what happens; without it a warning tells of an entry that cannot be read.
        making: what making it is called.

    Raises:
        TracelabError: nothing can be written there, or somebody's own files lie there; before
            anything is made.
    """
    with open_entry(folder, name, request, say=say) as entry:
        found = entry.load(read)
        if found is None:
            if say is not None:
                say(f"{name}: {making}")
            found = make()
            entry.save(found.save)
    return found


@contextmanager
def open_entry(
    folder: Path | str | None,
    name: str,
    request: Any,
    *,
    say: Callable[[str], None] | None = None,
) -> Iterator[Entry]:
    """An entry of a folder, which no other process works in meanwhile; see :func:`resumed`."""
    if folder is None:
        yield Entry(None, request, say)
        return
    require_folder(folder)
    with locked(folder):
        yield Entry(Path(folder) / name, request, say)


class Entry:
    """What one request has made so far. Without a path nothing is found and nothing stored."""

    def __init__(self, path: Path | None, request: Any, say: Callable[[str], None] | None) -> None:
        self._path, self._say = path, say
        self._key = json.dumps(request, sort_keys=True).encode()
        self._is_whole = False  # what lies there was made by this request, and can be read

    def load(self, read: Callable[[Path], T]) -> T | None:
        """What an equal request stored, if it is whole.

        Raises:
            TracelabError: it is not, and somebody's own files lie in its place.
        """
        if self._path is None:
            return None
        recover(self._path)
        key = _key_of(self._path)
        if key.is_file() and key.read_bytes() == self._key:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", ChangedSinceWritten)
                    found = read(self._path)
            except MemoryError:
                raise
            except Exception as error:  # damage surfaces as whatever a reader happens to raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                said = f"{self._path.name}: {self._path} cannot be read ({reason})"
                (warn if self._say is None else self._say)(said)
            else:
                if self._say is not None:
                    self._say(f"{self._path.name}: resumed from {self._path}")
                self._is_whole = True
                return found
        _require_ours(self._path)
        return None

    def save(self, write: Callable[[Path], object]) -> None:
        """Store what was made, so far or in the end.

        Args:
            write: writes it to a path, whole or not at all.

        Raises:
            TracelabError: somebody's own files lie in its place.
        """
        if self._path is None:
            return
        if not self._is_whole:
            _require_ours(self._path)
            _remove(self._path)  # with a damaged manifest it would pass for somebody's own
        adopt([self._path, _key_of(self._path)])
        write(self._path)
        if not self._is_whole:
            with atomic_file(_key_of(self._path)) as path:
                path.write_bytes(self._key)
        self._is_whole = True

    def load_lines(self) -> list[dict[str, Any]]:
        """What an equal request appended, without lines that were cut or altered; more can be
        appended then."""
        lines = self.load(_whole_lines) or []
        self.save(lambda path: _write_lines(path, lines))
        return lines

    def append(self, values: dict[str, Any]) -> None:
        """Store one more line: JSON values, with a hash of them."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(values))


def require_entries(folder: Path | str | None, *names: str) -> None:
    """Refuse, before any work, a folder in which entries of these names cannot be stored.

    Raises:
        TracelabError: nothing can be written there, or somebody's own files lie there.
    """
    if folder is None:
        return
    require_folder(folder)
    for name in names:
        _require_ours(Path(folder) / name)


def discard(folder: Path | str | None, name: str) -> None:
    """Remove an entry; what is somebody's own stays."""
    if folder is not None:
        path = Path(folder) / name
        if is_ours(path) and is_ours(_key_of(path)):
            _remove(path)


def _key_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.key")


def _require_ours(path: Path) -> None:
    """Refuse what was not stored here. 0.1 kept no list: its entries are known by a manifest, or by
    the request."""
    key = _key_of(path)
    manifests = [names for marker in MARKERS if (names := named_in(path / marker)) is not None]
    if not manifests and not made_by_tracelab(_json(key)):
        require_ours(key)
    if not path.is_dir():
        require_ours(path)
        return
    own = OWN if key.is_file() or is_ours(path) else ()
    named = next(filter(None, manifests), ())
    for file in sorted(path.iterdir()):
        if not is_named(file, named, own, *(MARKERS if named else ())):
            raise TracelabError(f"{str(path)!r} holds other files ({file.name}): move them away")


def _remove(path: Path) -> None:
    _key_of(path).unlink(missing_ok=True)  # first: it never stands beside another's
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values | {"sha256": _hash(values)}) + "\n"


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    with atomic_file(path) as file:
        file.write_text("".join(map(_line, lines)), encoding="utf-8")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and values.pop("sha256", None) == _hash(values):
            found.append(values)
    return found
