"""Two workers beside one: seconds of the whole command, start included, for the same table.

    python analyses/speed/workers.py [--quick] [--rounds N]

``tracelab score bbq`` in shards by this process alone, by Ray with two workers and by torchrun with
two processes, each in a command of its own with one thread a worker. The tables must be equal. The
ratio is the seconds of one process over those of two; the start of Ray (and of a second model) is
in it, so it is the nearer to 2 the longer the work.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from comparison import options, say

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "tracelab.cli", "score", "bbq", "--bias", "gender", "--shard-size", "16")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
WAYS = {
    "process": (*COMMAND, "--engine", "process"),
    "ray": (*COMMAND, "--engine", "ray", "--workers", "2"),
    "torchrun": (*TORCHRUN, *COMMAND, "--engine", "torchrun"),
}
GOAL = 1.2


def run(way: str, limit: int) -> tuple[float, Any]:
    """Seconds of a command, and its rows."""
    told = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        words = [sys.executable, *WAYS[way], "--limit", str(limit), "--json", str(file)]
        began = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | told)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{way}: {done.stderr}")
        return seconds, json.loads(file.read_text("utf-8"))["results"]


def main() -> None:
    """Print the rounds, then the last line."""
    chosen = options(__doc__, rounds=1)
    limit = 32 if chosen.quick else 320
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(chosen.rounds):
        rows = {}
        for way, taken in seconds.items():
            taken_now, rows[way] = run(way, limit)
            taken.append(taken_now)
            print(f"{way}: {taken_now:.1f} s", flush=True)
        for way in rows:
            if rows[way] != rows["process"]:
                raise SystemExit(f"the table of {way} is another one than that of one process")
    facts = []
    for way in ("ray", "torchrun"):
        ratios = [one / two for one, two in zip(seconds["process"], seconds[way], strict=True)]
        facts.append(
            {
                "name": f"workers.{way}",
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
                "agreement": 0.0,
                "goal": GOAL,
                "command": " ".join(["python", *sys.argv]),
            }
        )
    say(*facts)


if __name__ == "__main__":
    main()
