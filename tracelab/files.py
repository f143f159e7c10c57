"""Writing files so that a reader never meets a half-made one.

A file or folder is made under a temporary name beside its target and renamed when it is whole, so an
interruption or a full disk leaves the target as it was.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tracelab.errors import TracelabError


@contextmanager
def atomic_file(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path that becomes ``target`` when the block ends without an error."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: writers (plotly, pandas) read the format from it.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".tmp-", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def require_replaceable(folder: Path, own: Sequence[str], *, marker: str) -> None:
    """Refuse to replace a folder that holds anything but what we write.

    Args:
        own: patterns of the file names that we write.
        marker: the one of them without which a folder is not ours.

    Raises:
        TracelabError: naming a file that is not ours, or a folder without a name of its own (``.``, ``..``, ``/``).
    """
    if folder.name in ("", ".."):
        raise TracelabError(f"{str(folder)!r} cannot be replaced by a new folder: name one inside it")
    if folder.exists() and not folder.is_dir():
        raise TracelabError(f"{str(folder)!r} is a file: name a folder")
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for file in files:
        if not (folder / marker).is_file() or not any(file.match(pattern) for pattern in own):
            raise TracelabError(f"{str(folder)!r} holds other files ({file.name}): name a folder of its own")


@contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``target`` when the block ends without an error."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".tmp-"))
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(temporary, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
