"""Folders of the cache: made once and whole, known by the hashes of their files, made again when
they are damaged.

``checksums.json`` in such a folder names every file with its size, its times and its SHA-256. At
each use sizes and times are looked at, which takes no time, and a file whose times have changed is
hashed; ``whole=True`` hashes all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from tracelab.errors import TracelabError
from tracelab.storage.files import atomic_file, atomic_folder

CHECKSUMS = "checksums.json"


def cached_folder(
    target: Path,
    make: Callable[[Path], None],
    what: str,
    *,
    whole: bool = False,
    known: str | None = None,
) -> Path:
    """The folder ``target``, made by ``make`` in an empty one, under a lock, if it is not there or
    is damaged.

    Args:
        what: is said to be fetched or made, on stderr.
        whole: hash every file.
        known: hash of the content (:func:`content_hash`) by which a folder without hashes, as 0.1
            made, is taken.
    """
    if damage(target, whole=whole) is None:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        fault = damage(target, whole=whole)
        if fault is None:  # another process made it while this one waited
            return target
        without_hashes = (
            target.is_dir() and not (target / CHECKSUMS).is_file() and any(target.iterdir())
        )
        if without_hashes and known is not None and content_hash(target) == known:
            write_checksums(target)
            return target
        workshop = target.parent / f".fetch-{target.name}"
        # of a killed process: nobody else can be using it under the lock
        shutil.rmtree(workshop, ignore_errors=True)
        found = f" ({target.name} is damaged: {fault})" if target.exists() else ""
        print(f"tracelab: {what} into {target.parent}{found}", file=sys.stderr)
        if target.exists() and not target.is_dir():
            target.unlink()
        try:
            with atomic_folder(target) as made:
                make(made)
                write_checksums(made)
        except TracelabError as error:
            if without_hashes:  # nothing says that it is damaged
                print(
                    f"tracelab: {target.name} has no hashes and is used as it is: {error}",
                    file=sys.stderr,
                )
                write_checksums(target)
            elif target.exists():
                raise TracelabError(f"{str(target)!r} is damaged ({fault}), and {error}") from error
            else:
                raise
    return target


def damage(target: Path, *, whole: bool = False) -> str | None:
    """What is wrong with a folder, if anything; times that changed while the content did not are
    noted."""
    if not target.is_dir():
        return "it is not there"
    try:
        files = json.loads((target / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        changed = False
        for name, noted in files.items():
            file = target / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != noted["size"]:
                return f"{name} has {file.stat().st_size} bytes, not {noted['size']}"
            same_times = _times(file) == noted["times"]
            if (whole or not same_times) and file_hash(file) != noted["sha256"]:
                return f"{name} was altered"
            changed |= not same_times
    except OSError as error:
        return f"{error.filename and Path(error.filename).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{CHECKSUMS} cannot be read"
    if changed:  # copied, or moved: so that it is not hashed at each use
        with suppress(OSError):  # a cache that only others may write
            write_checksums(target)
    return None


def write_checksums(folder: Path) -> None:
    """Note what is in a folder."""
    files: dict[str, Any] = {}
    for file in _files(folder):
        entry = {"size": file.stat().st_size, "times": _times(file), "sha256": file_hash(file)}
        files[file.relative_to(folder).as_posix()] = entry
    with atomic_file(folder / CHECKSUMS) as path:
        path.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def content_hash(folder: Path) -> str:
    """A hash of all files of a folder and their names."""
    lines = [
        f"{file.relative_to(folder).as_posix()} {file_hash(file)}\n" for file in _files(folder)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_hash(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)


def _times(file: Path) -> list[int]:
    """Times of the last change of content and, which nothing can set back, of anything about a
    file."""
    status = os.stat(file)
    return [status.st_mtime_ns, status.st_ctime_ns]
