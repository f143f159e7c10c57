"""How a command ends when it is not left to end by itself: a closed pipe, SIGTERM.

Like other tools it then says nothing but its status, 128 and the signal's number: 141 where nobody
reads its output any more, 143 after SIGTERM, for which it clears up as it does for Ctrl-C.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

BROKEN_PIPE, TERMINATED = 141, 143

Main = Callable[[Sequence[str] | None], int]


class Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


def ends_quietly(main: Main) -> Callable[..., int]:
    """Wrap a command line's ``main``, which returns a status."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        told = threading.Event()
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, _raise_once(told)) if in_main else None
        try:
            try:
                with _interrupted_for_good(told):
                    status = main(argv)
            # also of --help; at the interpreter's end it would be too late to keep a broken pipe
            # quiet
            finally:
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None and not stream.closed:
                        stream.flush()
        except BrokenPipeError:
            _silence()
            return BROKEN_PIPE
        except OSError as error:  # the output's disk is full
            _silence()
            with suppress(OSError):  # perhaps the errors' disk too
                print(f"tracelab: {error}", file=sys.stderr)
            return 2
        except Terminated:
            return TERMINATED
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, before)
        return TERMINATED if told.is_set() else status

    return wrapped


def _raise_once(told: threading.Event) -> Callable[[int, Any], None]:
    def raise_terminated(number: int, frame: Any) -> None:
        if not told.is_set():  # a second one must not break the clearing up
            told.set()
            raise Terminated

    return raise_terminated


@contextmanager
def _interrupted_for_good(told: threading.Event) -> Iterator[None]:
    """Send an interruption again that came while an object was being deleted, where Python only
    prints it."""
    timers: list[threading.Timer] = []

    def again(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            return before(unraisable)
        told.clear()
        number = signal.SIGTERM if isinstance(unraisable.exc_value, Terminated) else signal.SIGINT
        timers.append(threading.Timer(0.05, os.kill, (os.getpid(), number)))
        timers[-1].start()

    before, sys.unraisablehook = sys.unraisablehook, again
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def _silence() -> None:
    """Let nothing more be written to the closed pipe, not even what is still buffered at the
    interpreter's end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                os.dup2(nowhere, stream.fileno())
            except (OSError, ValueError):
                continue
        except AttributeError:  # there is none
            continue
    os.close(nowhere)
