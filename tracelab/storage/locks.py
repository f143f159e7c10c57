"""One process at a time in a folder whose content belongs together: a checkpoint, a report.

The lock is the operating system's, on the file ``.tracelab.lock`` in the folder: it goes with the
process, however that ends. A thread may lock a folder again that it has locked.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".tracelab.lock"


@contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Hold the lock of ``folder``, which is made if need be; waits, and says so, while another
    process holds it."""
    folder = Path(os.path.realpath(folder))
    said = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, is_singleton=True)
        try:
            lock.acquire(timeout=0)
            break
        except FileNotFoundError:  # the other one has finished and taken the folder with it
            continue
        except Timeout:
            if not said:
                print(
                    f"tracelab: another process is writing into {folder}: waiting for it",
                    file=sys.stderr,
                )
                said = True
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.release()
