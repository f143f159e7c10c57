"""How many processor threads a command computes with, and how they wait for each other.

Threads of one product wait for the last of them. They wait by spinning (OpenMP's default), which is
quickest as long as each has a core of its own. Beside other work one of them is off its core for
some milliseconds now and again, and the others spin for it through each of the hundred small
products of a pass: two threads were then several times slower than one (``docs/speed.md`` has the
figures). So a command takes as many threads as there are free cores when it begins,

    threads = max(1, floor(free cores + 1/4)),  free = sum over its cores of (1 - share in use)

of the cores that it may use (affinity, a container's quota) and that are not another thread of the
same core, and lets them spin shortly, as work may come that was not there at the beginning.

Only the command line chooses, and only before torch is there: in somebody's own process the number
is theirs, ``torch.set_num_threads(n)``. What is in ``OMP_NUM_THREADS`` is what is taken. Sums are
in another order with another number of threads: results differ by rounding (``settings["threads"]``
says the number).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from math import floor, inf
from pathlib import Path

WINDOW = 0.2
"""Seconds for which the other work on the machine is watched."""
SPINS = "1000"
"""Turns that a waiting thread spins before it sleeps, of GNU's OpenMP; its default is 300,000."""
_QUOTA = ("cpu.max", "cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us")
"""Of control groups, version 2 and 1."""


def settle(asked: int | None) -> None:
    """Set the number of threads of this process and those it starts: as asked, else as in
    ``OMP_NUM_THREADS``, else by what is free if torch is not there yet."""
    torch = sys.modules.get("torch")
    if asked is None and (torch is not None or os.environ.get("OMP_NUM_THREADS", "").strip()):
        return
    if torch is not None:
        torch.set_num_threads(asked)
        return
    os.environ["OMP_NUM_THREADS"] = str(asked or free_threads())
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def free_threads(window: float = WINDOW) -> int:
    """As many threads as cores are free now.

    Args:
        window: seconds for which it watches what is in use.
    """
    import psutil

    in_use = [share / 100 for share in psutil.cpu_percent(window, percpu=True)]
    allowed = list(range(len(in_use)))
    if hasattr(os, "sched_getaffinity"):  # Linux
        allowed = [core for core in sorted(os.sched_getaffinity(0)) if core < len(in_use)]
    return chosen_threads([in_use[core] for core in allowed], psutil.cpu_count(False), quota())


def chosen_threads(in_use: Sequence[float], physical: int | None = None, quota: float = inf) -> int:
    """The number of threads for cores of which others use these shares.

    Args:
        in_use: 0 to 1, of each core that may be used.
        physical: cores of the machine, where a core has several threads; None: unknown.
        quota: cores' worth of time that a container may use.

    >>> chosen_threads([0.02, 0.05]), chosen_threads([1.0, 0.05]), chosen_threads([1.0, 1.0])
    (2, 1, 1)
    """
    free = min(sum(1 - share for share in in_use), physical or inf, quota)
    return max(1, floor(free + 1 / 4))


def quota(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores' worth of time that the control group (a container) gives this process; infinite where
    it sets no bound."""
    for names in _QUOTA:
        try:
            words = " ".join((folder / name).read_text() for name in names.split()).split()
            most, period = map(int, words)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if most > 0 and period > 0:
            return most / period
    return inf
