"""What tracelab may replace, and where it can write at all: asked before any work.

One rule: only what tracelab marked as its own is replaced. A folder that is written as a whole (a
result, a bundle, an export) carries a manifest that says so and names its files; a file among
others (a table, a figure, a report's page) is named in the list ``.tracelab`` beside it. Everything
else is somebody's, and is refused with its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from errno import ENOSPC
from pathlib import Path
from typing import Any

from tracelab.errors import TracelabError

LIST = ".tracelab"
_HEAD = (
    "# Written by tracelab, which may replace what is named below; "
    "everything else in this folder is yours.\n"
)
_LONGEST = 255  # bytes of a name, on every file system in use
_LONG = 180  # of a name to which endings are added


def file_name(text: str) -> str:
    """A name for a file or folder: no separator in it, and room for endings; a long one is cut and
    told by its hash."""
    name = text.replace("/", "-").replace(os.sep, "-")
    content = os.fsencode(name)
    if len(content) <= _LONG:
        return name
    return (
        f"{content[: _LONG - 9].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:8]}"
    )


class ChangedSinceWritten(UserWarning):
    """A file of ours was changed by hand: a person may read it, a checkpoint makes it again."""


def require_folder(folder: Path | str) -> None:
    """Refuse, before any work, what cannot be or become a folder that can be written.

    Raises:
        TracelabError: it says what stands in the way.
    """
    text = os.fspath(folder)
    if not text:
        raise TracelabError("the name of the folder is empty: name one")
    existing = _nearest(text, "folder")
    if not existing.is_dir():
        what = "a file" if existing.is_file() else "no folder"
        inside = "" if existing == _absolute(text) else f", and {text!r} would lie in it"
        raise TracelabError(f"{str(existing)!r} is {what}{inside}: name a folder")
    _require_writable(existing, text)


def require_file(file: Path | str) -> None:
    """Refuse, before any work, a path under which no file can be written.

    Raises:
        TracelabError: it says what stands in the way.
    """
    text = os.fspath(file)
    if not text or text.endswith("/") or os.path.isdir(text):
        raise TracelabError(
            f"{text!r} is a folder: name a file"
            if text
            else "the name of the file is empty: name one"
        )
    existing = _nearest(text, "file")
    if existing != _absolute(text):
        require_folder(_absolute(text).parent)
    elif existing.is_file():
        _require_writable(Path(os.path.realpath(existing)).parent, text)
    elif existing.is_socket() or not os.access(existing, os.W_OK):
        raise TracelabError(f"{text!r} cannot be written to: name a file")


def require_replaceable(folder: Path | str, own: Sequence[str], *, marker: str) -> None:
    """Refuse to replace a folder that holds anything but what we wrote.

    Args:
        own: patterns of the file names that we write, where the marker names none (``"files"``).
        marker: the JSON file without which a folder is not ours, and which says that tracelab wrote
            it.

    Raises:
        TracelabError: naming a file that is not ours, or what stands in the way of a folder.
    """
    folder = Path(folder)
    require_folder(folder)
    if folder.name in ("", "..") or folder.resolve() == Path.cwd():
        what = "has no name of its own, or is the folder you are in"
        raise TracelabError(
            f"{str(folder)!r} {what}, and cannot be replaced by a new folder: name one inside it"
        )
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    names = named_in(folder / marker)
    for file in files:
        if names is None or not is_named(file, names, own, marker):
            raise TracelabError(
                f"{str(folder)!r} holds other files ({file.name}): name a folder of its own"
            )
    if folder.is_dir():
        _require_writable(folder.resolve().parent, str(folder))


def is_named(file: Path, names: Sequence[str], own: Sequence[str], *markers: str) -> bool:
    """Whether a file is one that a manifest names, to the letter; or, where it names none, one of
    the patterns."""
    return file.name in (*markers, *names) if names else any(file.match(pattern) for pattern in own)


def named_in(marker: Path) -> tuple[str, ...] | None:
    """The files that a manifest of ours names (none, if it leaves them to its format); None: it is
    not ours."""
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    files = content.get("files")
    if isinstance(files, list | dict) and ("edit" in content or "result" in content):
        return tuple(map(str, files))
    return () if content.get("format") == "tracelab" or made_by_tracelab(content) else None


def made_by_tracelab(content: Any) -> bool:
    """Whether a manifest or request without a list, as 0.1 wrote them, names the tracelab that
    wrote it."""
    if not isinstance(content, dict):
        return False
    settings = content.get("settings", content)
    versions = settings.get("versions") if isinstance(settings, dict) else None
    return isinstance(versions, dict) and "tracelab" in versions


def is_ours(path: Path) -> bool:
    """Whether a file or folder among others is listed as tracelab's; also one that is not there, or
    empty."""
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return True
    return path.name in _listed(path.parent)


def require_ours(path: Path) -> None:
    """Refuse to write over what tracelab did not write.

    Raises:
        TracelabError: naming it.
    """
    if not is_ours(path):
        raise TracelabError(
            f"{str(path)!r} was not written by tracelab: move it away, or name another folder"
        )


def claim(path: Path) -> Path:
    """List a file or folder, before it is written, as tracelab's; returns it.

    Raises:
        TracelabError: there is one that is not.
    """
    require_ours(path)
    adopt([path])
    return path


def adopt(paths: Sequence[Path]) -> None:
    """List what is known to be tracelab's from elsewhere, as from the form of what 0.1 wrote."""
    for path in paths:
        if path.name in _listed(path.parent):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.parent / LIST
        line = json.dumps(path.name) + "\n"
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:  # one write, at the end: of two processes neither loses a line
            before = os.fstat(handle).st_size
            content = ((_HEAD if before == 0 else "") + line).encode()
            if os.write(handle, content) < len(content):  # a disk with room for half a line
                os.ftruncate(handle, before)
                raise OSError(ENOSPC, os.strerror(ENOSPC), str(file))
        finally:
            os.close(handle)


def _listed(folder: Path) -> set[str]:
    try:
        lines = (folder / LIST).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    names = set()
    for line in lines if lines and lines[0] == _HEAD.strip() else ():
        try:
            names.add(str(json.loads(line)))
        except ValueError:
            continue
    return names


def _absolute(text: str) -> Path:
    return Path(os.path.abspath(text))


def _nearest(text: str, what: str) -> Path:
    """The nearest of a path and its parents that exists."""
    try:
        path = Path(os.path.abspath(text))
        if any(len(os.fsencode(part)) > _LONGEST for part in path.parts):
            raise TracelabError(
                f"the name {text[:40]!r}… is too long for a {what}: name a shorter one"
            )
        existing = next(each for each in (path, *path.parents) if os.path.lexists(each))
        if existing.is_symlink():
            os.stat(existing)  # a link that leads nowhere
    except TracelabError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            if what == "file" and existing == path and Path(os.path.realpath(path)).parent.is_dir():
                return Path(os.path.realpath(path)).parent  # it becomes what the link names
            raise TracelabError(
                f"{str(existing)!r} is a link that leads nowhere: name another {what}"
            ) from None
        reason = getattr(error, "strerror", None) or str(error)
        raise TracelabError(f"{text!r} cannot be a {what} ({reason}): name another") from None
    return existing


def _require_writable(folder: Path, text: str) -> None:
    try:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise TracelabError(
            f"nothing can be written into {str(folder)!r} ({reason}), for {text!r}"
        ) from None
