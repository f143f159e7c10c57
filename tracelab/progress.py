"""Progress bars with the time left: on a terminal, none when piped."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress(*, total: int, what: str, unit: str = "it") -> tqdm:
    """A tqdm bar on stderr, silent where stderr is not a terminal."""
    return tqdm(total=total, desc=what, unit=unit, disable=not sys.stderr.isatty(), leave=False)
