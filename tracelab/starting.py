"""Ctrl-C while the imports of a command run, which takes seconds: one line, and the status of an interruption.

Imported before anything else. In a process that is no ``tracelab`` command it does nothing.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType


def is_command() -> bool:
    """Whether this process is ``tracelab …`` or ``python -m tracelab.cli …``."""
    name = sys.argv[0] if sys.argv else ""
    by_module = name == "-m" and "tracelab.cli" in sys.orig_argv
    return by_module or os.path.splitext(os.path.basename(name))[0] == "tracelab"


def one_line_for_an_interruption(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Stands in for ``sys.excepthook``."""
    if issubclass(kind, KeyboardInterrupt):
        print("tracelab: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if is_command():
    sys.excepthook = one_line_for_an_interruption
