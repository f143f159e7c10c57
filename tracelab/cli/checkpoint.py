"""Where an interrupted ``fit`` keeps what it has: the folder ``X.partial`` beside the bundle
``X``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracelab.errors import TracelabError
from tracelab.storage.files import PREFIX
from tracelab.storage.locks import LOCK, locked
from tracelab.storage.ownership import LIST, adopt, is_ours, named_in, require_folder

NAMES = ("training", "expert", "expert.key", "anti_expert", "anti_expert.key")


def require_partial_folder(out: str) -> Path:
    """The folder for a bundle; refused, before any work, if something is there that no interrupted
    fit left.

    Raises:
        TracelabError: naming it.
    """
    from tracelab.interventions.training.loop import require_partial

    whole = Path(os.path.abspath(out))
    folder = whole.with_name(f"{whole.name}.partial")
    if folder.is_file():
        require_partial(folder)  # 0.1 kept a training in a file
        return folder
    require_folder(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        is_tool = path.name in (LIST, LOCK) or path.name.startswith(PREFIX)
        of_0_1 = path.name in NAMES and named_in(path / "tracelab.json") is not None
        if not (is_tool or of_0_1 or (path.name in NAMES and is_ours(path))):
            raise TracelabError(
                f"{str(path)!r}, where an interrupted fit is kept, was not written by tracelab: "
                "move it away, or name another folder"
            )
    return folder


@contextmanager
def partial_fit(out: str) -> Iterator[Path]:
    """Hold the folder for a bundle, alone; it is removed when the block ends without an error."""
    folder = require_partial_folder(out)
    kept_by_0_1 = None
    if folder.is_file():
        kept_by_0_1 = folder.with_name(f"{PREFIX}{folder.name}")
        os.replace(folder, kept_by_0_1)
    with locked(folder):
        adopt([folder / name for name in NAMES])
        if kept_by_0_1 is not None:
            os.replace(kept_by_0_1, folder / "training")
        done = False
        try:
            yield folder
            done = True
        finally:
            if done or {path.name for path in folder.glob("*")} <= {LIST, LOCK}:
                shutil.rmtree(folder, ignore_errors=True)
