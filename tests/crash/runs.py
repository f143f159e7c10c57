"""Commands in processes of their own, forked from one that has everything imported, so that many can be interrupted."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracelab.cli import main


@dataclass(frozen=True)
class Command:
    """A command line with an output folder, and how to read what it is for."""

    arguments: tuple[str, ...]
    bundle: bool = False

    def start(self, out: Path, *, largest_file: int | None = None) -> int:
        """Fork; returns the process. Its words go to ``out``'s ``.log``, its rows to ``.json``."""
        json_file = () if self.bundle else ("--json", f"{out}.json")
        line = [*self.arguments, "--out", str(out), *json_file]
        process = os.fork()
        if process:
            return process
        status = 99
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # not pytest's
            if largest_file is not None:  # like a disk that fills up while a file is written
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            status = main(line)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def run(self, out: Path, **options: Any) -> int:
        """Run to the end; returns the status."""
        return finish(self.start(out, **options))

    def interrupted(self, out: Path, number: int, after: float) -> int:
        """Run, and send a signal after so many seconds; returns the status."""
        process = self.start(out)
        time.sleep(after)
        os.kill(process, number)
        return finish(process)

    def result(self, out: Path) -> Any:
        """What the command is for."""
        if self.bundle:
            return (out / "tensors.safetensors").read_bytes()
        return json.loads(Path(f"{out}.json").read_text())["results"]

    def words(self, out: Path) -> str:
        """What was said on both streams, by all runs."""
        return Path(f"{out}.log").read_text(errors="replace")


def finish(process: int) -> int:
    """Wait; the status as a shell has it, but negative for a signal that ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def half_made(out: Path) -> list[Path]:
    """Temporary files beside and under an output."""
    return [path for path in (*out.parent.glob(".tmp-*"), *out.rglob(".tmp-*"), *out.parent.glob("*.partial"))]
