"""Two ways of the same work, timed in turn in one process, and the line that a script prints last.

Every script here runs both sides on the same work, checks that their results agree, and prints as
its last line one of JSON: ``ratio`` is the seconds of the reference over ours (median, smallest and
largest over the rounds), ``agreement`` the largest difference of a result, ``goal`` the ratio that
was aimed at. ``cpu_ratio`` is the same of processors' seconds (to a hundredth), which other work on
the machine moves less. Where ours must do more than the reference (a harvest beside a bare forward
pass), the goal is below 1: a cost of at most 1.15 times is a ratio of at least 1 / 1.15 = 0.87. A
script of several comparisons says the others under ``more`` of that line.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def compare(
    name: str,
    goal: float,
    ours: Callable[[], Any],
    reference: Callable[[], Any],
    difference: Callable[[Any, Any], float],
    *,
    rounds: int,
    close: float,
) -> dict[str, Any]:
    """Time both in turn, after one round that is not counted; returns the facts of the last line.

    Args:
        difference: the largest difference between a result of ours and one of the reference.
        close: the largest that is let pass.
    """
    found = difference(ours(), reference())
    if not found <= close:
        raise SystemExit(f"{name}: the results differ by {found:.3g}, more than {close:g}")
    ratios, of_cpu, seconds = [], [], []
    for round_number in range(rounds):
        taken, cpu = {}, {}
        for way in (ours, reference) if round_number % 2 else (reference, ours):
            before, started = sum(os.times()[:4]), time.perf_counter()
            way()
            taken[way] = time.perf_counter() - started
            cpu[way] = sum(os.times()[:4]) - before
        ratios.append(taken[reference] / taken[ours])
        of_cpu.append(cpu[reference] / max(cpu[ours], 0.01))
        seconds.append((taken[ours], taken[reference]))
        print(
            f"{name} {round_number + 1}/{rounds}: ours {taken[ours]:.2f} s, reference "
            f"{taken[reference]:.2f} s, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    return {
        "name": name,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "cpu_ratio": round(statistics.median(of_cpu), 3),
        "seconds": round(statistics.median(s for s, _ in seconds), 3),
        "reference_seconds": round(statistics.median(s for _, s in seconds), 3),
        "agreement": found,
        "goal": round(goal, 3),
        "command": " ".join(["python", *sys.argv]),
    }


def options(
    doc: str | None, *, rounds: int, parent: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """``--quick``, ``--rounds`` and what ``parent`` adds; one thread from here on."""
    parser = argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[parent] if parent else [],
    )
    parser.add_argument("--quick", action="store_true", help="less work, under two minutes")
    parser.add_argument("--rounds", type=int, help=f"default {rounds}, or 2 if quick")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # work of a process of its own
    found = parser.parse_args()
    torch.set_num_threads(1)
    found.rounds = found.rounds or (min(2, rounds) if found.quick else rounds)
    return found


def in_a_process(work: str) -> dict[str, Any]:
    """What this script prints as ``--child WORK`` in a process of its own."""
    run = subprocess.run(
        [sys.executable, sys.argv[0], "--child", work], capture_output=True, text=True
    )
    if run.returncode:
        raise SystemExit(f"{work}: {run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def peak_mib() -> float:
    """Largest resident memory of this process so far (Linux). ``getrusage`` would give that of the
    process which started this one, if it is larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    """Let :func:`peak_mib` begin anew from what this process needs now; what it has freed goes back
    to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def say(facts: dict[str, Any], *more: dict[str, Any]) -> None:
    """Print the last line."""
    print(json.dumps(facts | ({"more": list(more)} if more else {})))
