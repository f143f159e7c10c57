"""Writing files so that a reader never meets a half-made one, and nothing of anybody else's is
touched.

A file or folder is made under a temporary name beside its target, brought to the disk and renamed
when it is whole, so an interruption or a full disk leaves the target as it was. A link stays a
link: what it leads to is replaced. What is no regular file (a device, a pipe, ``/dev/stdout``) is
never replaced but written to. What a killed process left under temporary names is cleared by the
next one that writes there. Modes are the umask's, or the replaced file's.

What may be replaced, and where anything can be written at all, is said in :mod:`.ownership`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENXIO
from pathlib import Path

from tracelab.errors import TracelabError, warn
from tracelab.storage.ownership import claim

PREFIX = ".tmp-"
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_OURS = re.compile(rf"{re.escape(PREFIX)}{_HOST}-(\d+)-[0-9a-f]{{8}}(\..*)?", re.DOTALL)
_OF_0_1 = re.compile(rf"{re.escape(PREFIX)}[a-z0-9_]{{8}}(-old|\..*)?", re.DOTALL)
_A_DAY = 24 * 3600
_READER_SECONDS = 5.0  # how long a pipe is given to find its reader


@contextmanager
def atomic_file(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path that becomes ``target`` when the block ends without an error.

    Raises:
        TracelabError: ``target`` is a folder, or a link that leads in a circle.
    """
    target = Path(target)
    if is_stream(target):
        with _written_through(target) as path:
            yield path
        return
    target = Path(os.path.realpath(target))
    if target.is_symlink() or target.is_dir():
        raise TracelabError(
            f"{str(target)!r} is {'a folder' if target.is_dir() else 'no file'}: name a file"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_stale(target.parent)
    # The suffix stays: writers (plotly, pandas) read the format from it.
    temporary = _temporary(target.parent, target.suffix)
    # the umask takes its share
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = temporary.stat().st_mode
    try:
        yield temporary
        with suppress(FileNotFoundError):
            mode = target.stat().st_mode
        temporary.chmod(stat.S_IMODE(mode))  # some writers make theirs private
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def own_file(target: Path | str) -> Iterator[Path]:
    """A file among others, written whole or not at all (:func:`atomic_file`) if there is none or it
    is ours.

    Raises:
        TracelabError: a file of that name is not tracelab's.
    """
    with atomic_file(claim(Path(target))) as path:
        yield path


@contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``target`` when the block ends without an error."""
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_stale(target.parent)
    recover(target)
    # killed after its second rename
    shutil.rmtree(target.with_name(f".old-{target.name}"), ignore_errors=True)
    temporary = _temporary(target.parent)
    temporary.mkdir()
    mode = temporary.stat().st_mode & 0o666
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            if path.is_file():
                path.chmod(mode)  # some writers make theirs private
            sync(path)
        _put_in_place(temporary, target)
        sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover(target: Path) -> None:
    """Put back a folder whose replacement was killed between its two renames (where they cannot be
    one)."""
    target = Path(os.path.realpath(target))
    old = target.with_name(f".old-{target.name}")
    if (
        os.path.isdir(old) and not target.exists()
    ):  # not Path.is_dir: the name may be too long for one with ".old-"
        os.replace(old, target)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a system that opens no folders, a file that may not be read
        return
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():  # a full disk may be told only here
            raise
    finally:
        os.close(handle)


def clear_stale(folder: Path) -> None:
    """Remove what processes that are no more left in ``folder`` under temporary names."""
    for path in folder.glob(f"{PREFIX}*"):
        stale = False
        if found := _OURS.fullmatch(path.name):
            stale = not _is_alive(int(found[1]))
        else:  # of 0.1, whose names do not tell the process
            with suppress(OSError):
                stale = (
                    _OF_0_1.fullmatch(path.name) is not None
                    and time.time() - path.stat().st_mtime > _A_DAY
                )
        if stale:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def is_stream(target: Path | str) -> bool:
    """Whether a path is a device, a pipe or a socket, or stands for an open file of a process
    (``/dev/stdout``)."""
    try:
        mode = os.stat(target).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISDIR(mode) and (not stat.S_ISREG(mode) or _leads_through_proc(Path(target)))


def stands_for(target: Path | str, number: int) -> bool:
    """Whether a path is the open file of a number of this process: 1 is its standard output."""
    try:
        return is_stream(target) and os.path.samestat(os.stat(target), os.fstat(number))
    except OSError:
        return False


def _leads_through_proc(path: Path) -> bool:
    path = Path(os.path.abspath(path))
    for _ in range(40):
        path = Path(os.path.realpath(path.parent)) / path.name
        if path.parts[:2] == ("/", "proc"):
            return True
        if not path.is_symlink():
            return False
        path = Path(os.path.normpath(path.parent / os.readlink(path)))
    return False


@contextmanager
def _written_through(target: Path) -> Iterator[Path]:
    """A file elsewhere, whose content is written to ``target`` when the block ends without an
    error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"content{target.suffix}"
        path.touch()
        yield path
        handle = _open_to_write(target)
        if handle is not None:
            with os.fdopen(handle, "wb") as sink, path.open("rb") as source:
                shutil.copyfileobj(source, sink)


def _open_to_write(target: Path) -> int | None:
    """An open file; None where it is a pipe that nobody reads."""
    flags = os.O_WRONLY | (os.O_TRUNC if target.is_file() else 0)
    deadline = time.monotonic() + _READER_SECONDS
    while True:
        try:
            handle = os.open(target, flags | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            if error.errno != ENXIO or not target.is_fifo():
                raise
            if time.monotonic() > deadline:
                warn(f"nobody reads the pipe {str(target)!r}: what was for it is lost")
                return None
            time.sleep(0.05)
        else:
            os.set_blocking(handle, True)
            return handle


def _temporary(folder: Path, suffix: str = "") -> Path:
    return folder / f"{PREFIX}{_HOST}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def _put_in_place(made: Path, target: Path) -> None:
    """Rename a folder over another; what stood there is afterwards under the name ``made``, or
    gone."""
    if not target.exists():
        os.replace(made, target)
        return
    made.chmod(stat.S_IMODE(target.stat().st_mode))
    if _exchanged(made, target):
        return
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(target, old)
    try:
        os.replace(made, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(first: Path, second: Path) -> bool:
    """Let two names change places in one step, where the system can: a kill then never leaves a
    name with nothing."""
    if not sys.platform.startswith("linux"):
        return False
    at_working_folder, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return (
        rename(
            at_working_folder, os.fsencode(first), at_working_folder, os.fsencode(second), exchange
        )
        == 0
    )
