"""Where an interrupted ``fit``, ``trace`` or measurement in shards is resumed from: the folder
``X.checkpoint`` beside the bundle or result ``X``."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracelab.cli.output import result_name
from tracelab.storage.checkpoint import discard
from tracelab.storage.files import PREFIX
from tracelab.storage.locks import LOCK, locked
from tracelab.storage.ownership import LIST, require_folder, require_ours

VERBS = ("fit", "trace")
TOOLS = (LIST, LOCK)


def require_checkpoint(target: Path | str) -> Path:
    """The folder for a bundle or result; refused, before any work, if anything but a checkpoint is
    there.

    Raises:
        TracelabError: naming it.
    """
    whole = Path(os.path.abspath(target))
    folder = whole.with_name(f"{whole.name}.checkpoint")
    if os.path.lexists(folder) and not folder.is_dir():
        require_ours(folder)
    require_folder(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name not in TOOLS and not path.name.startswith(PREFIX):
            require_ours(path)
    return folder


@contextmanager
def checkpoint_of(options: argparse.Namespace) -> Iterator[Path | None]:
    """Hold the folder for a command, alone, if it has one; it is removed when the block ends
    without an error."""
    options.shards = []  # names of entries, as they are asked for
    in_shards = getattr(options, "engine", None) is not None
    if (options.verb_name not in VERBS and not in_shards) or options.out is None:
        yield None
        return
    is_fit = options.verb_name == "fit"
    folder = require_checkpoint(options.out if is_fit else Path(options.out, result_name(options)))
    with locked(folder):
        done = False
        try:
            yield folder
            done = True
        finally:
            for name in options.shards if done else ():
                discard(folder, name)  # others may be of another command's that was interrupted
            if (done and not in_shards) or {path.name for path in folder.glob("*")} <= set(TOOLS):
                shutil.rmtree(folder, ignore_errors=True)
