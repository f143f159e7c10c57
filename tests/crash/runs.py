"""Commands in processes of their own, which can be interrupted, forked from a server that has
everything imported.

The server is a fresh interpreter: without the type checks of the test session, and without pytest's
streams.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tracelab.cli import main
from tracelab.figures import style
from tracelab.report.presets import PRESETS, Preset

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [__name__, "tracelab.localize", "tracelab.evaluate", "tracelab.figures"]
)


@dataclass(frozen=True)
class Command:
    """A command line with an output folder, and how to read what it is for."""

    arguments: tuple[str, ...]
    bundle: bool = False

    def start(self, out: Path, *, largest_file: int | None = None) -> BaseProcess:
        """Start it. Its words go to ``out``'s ``.log``, its rows to ``.json``."""
        json_file = () if self.bundle else ("--json", f"{out}.json")
        ready, tells = SERVER.Pipe(duplex=False)
        process = SERVER.Process(
            target=_run,
            args=(
                [*self.arguments, "--out", str(out), *json_file],
                f"{out}.log",
                largest_file,
                tells,
            ),
        )
        process.start()
        tells.close()
        ready.recv()
        return process

    def run(self, out: Path, **options: Any) -> int:
        """Run to the end; returns the status."""
        return finish(self.start(out, **options))

    def interrupted(self, out: Path, number: int, after: float) -> int:
        """Run, and send a signal after so many seconds; returns the status."""
        process = self.start(out)
        time.sleep(after)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)
        return finish(process)

    def result(self, out: Path) -> Any:
        """What the command is for."""
        if self.bundle:
            return (out / "tensors.safetensors").read_bytes()
        return json.loads(Path(f"{out}.json").read_text())["results"]

    def words(self, out: Path) -> str:
        """What was said on both streams, by all runs."""
        return Path(f"{out}.log").read_text(errors="replace")


def _run(line: list[str], log: str, largest_file: int | None, tells: Connection) -> None:
    """What the new process does; it never returns."""
    status = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(words, 1)
        os.dup2(words, 2)
        PRESETS["crash"] = Preset(prober_seeds=1, trace_pairs=2, trace_samples=1, layer_step=4)
        style.write_images = _no_browser
        if largest_file is not None:  # like a disk that fills up while a file is written
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        tells.send(None)
        status = main(line)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _no_browser(*arguments: Any, **options: Any) -> None:
    """It would outlive a killed process."""
    raise RuntimeError("no browser here")


def finish(process: BaseProcess) -> int:
    """Wait; the status as a shell has it, but negative for a signal that ended the process."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def half_made(out: Path) -> list[Path]:
    """Temporary files beside and under an output."""
    return [
        path
        for path in (
            *out.parent.glob(".tmp-*"),
            *out.rglob(".tmp-*"),
            *out.parent.rglob("*.checkpoint"),
        )
    ]
