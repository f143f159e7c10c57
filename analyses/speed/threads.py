"""How many threads to compute with, on a machine that does nothing else and beside other work.

    python analyses/speed/threads.py [--quick] [--rounds 9]

Each way is a process of its own with the embedded model loaded, for how OpenMP's threads wait is
settled before torch is there; they are told to work in turn. The other work is two processes that
compute without end, begun and ended by the script.

- ``one``, ``two``: so many threads, waiting as OpenMP does by itself (spinning).
- ``passive``: two that sleep as soon as they wait (``OMP_WAIT_POLICY=PASSIVE``).
- ``chosen``: as the command line does (:mod:`tracelab.threads`): as many as there are free cores,
  counted anew each time, spinning shortly; ``short``: two of that kind. The count, 0.2 seconds
  once a command, is not in the seconds.

The work is of two sizes: ``batch``, 8 sentences scored, and ``tokens``, 4 tokens written one
after the other. ``threads.alone`` and ``threads.beside`` are the sum of both without and with the
other work: ``ratio`` is the worst way's seconds over those of ``chosen``, ``best`` the quickest
way's, ``seconds_of`` the medians of each way. What agrees is the log-probabilities, in nats.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

from comparison import options, say

WAYS: dict[str, dict[str, str]] = {
    "one": {"OMP_NUM_THREADS": "1"},
    "two": {"OMP_NUM_THREADS": "2"},
    "passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "short": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"},
    "chosen": {"GOMP_SPINCOUNT": "1000"},
}
OF_THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SENTENCES = [
    f"The {who} said that the {job} was late for work."
    for who in ("man", "woman")
    for job in ("nurse", "doctor", "teacher", "driver")
]
OTHERS = 2
PARTS = ("batch", "tokens")


def work(way: str) -> None:
    """The child: load, then work at each line read, and say what it took."""
    import torch

    import tracelab
    from tracelab.threads import free_threads

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # `options` has set one
    model = tracelab.load()
    print(flush=True)
    for _ in sys.stdin:
        if way == "chosen":
            torch.set_num_threads(free_threads())
        began = time.perf_counter()
        scores = tracelab.score(model, SENTENCES)
        between = time.perf_counter()
        tracelab.generate(model, ["The nurse said that"], max_new_tokens=4, do_sample=False)
        ended = time.perf_counter()
        told = {
            "batch": between - began,
            "tokens": ended - between,
            "threads": torch.get_num_threads(),
            "scores": scores.table["logprob"].tolist(),
        }
        print(json.dumps(told), flush=True)


class Worker:
    """A process that works in one way when it is told to."""

    def __init__(self, way: str) -> None:
        told = {name: value for name, value in os.environ.items() if name not in OF_THREADS}
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--child", way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=told | WAYS[way],
        )
        self._line()  # it has loaded

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a process that works has ended: run it with --child WAY to see why")
        return line

    def __call__(self) -> dict:
        self.process.stdin.write("work\n")
        self.process.stdin.flush()
        return json.loads(self._line())


@contextmanager
def others(count: int):
    """Processes that compute without end, within the block."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def facts_of(name: str, rounds: list[dict[str, dict]]) -> dict:
    """The facts of the last line."""
    seconds = {way: [each[way]["batch"] + each[way]["tokens"] for each in rounds] for way in WAYS}
    medians = {way: statistics.median(found) for way, found in seconds.items()}
    fixed = [way for way in WAYS if way != "chosen"]
    worst, best = (choose(fixed, key=medians.get) for choose in (max, min))
    ratios = [a / b for a, b in zip(seconds[worst], seconds["chosen"], strict=True)]
    apart = max(
        abs(a - b)
        for each in rounds
        for way in WAYS
        for a, b in zip(each[way]["scores"], rounds[0]["one"]["scores"], strict=True)
    )
    if not apart <= 1e-3:
        raise SystemExit(f"{name}: the log-probabilities differ by {apart:.3g}")
    parts = {
        way: [round(statistics.median(each[way][part] for each in rounds), 2) for part in PARTS]
        for way in WAYS
    }
    return {
        "name": f"threads.{name}",
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "agreement": apart,
        "goal": 1.0,
        "worst": worst,
        "best": best,
        "over_best": round(medians["chosen"] / medians[best], 3),
        "seconds_of": parts,
        "chosen_threads": [each["chosen"]["threads"] for each in rounds],
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    """Print the rounds, then the last line."""
    chosen = options(__doc__, rounds=5)
    if chosen.child:
        work(chosen.child)
        return
    workers = {way: Worker(way) for way in WAYS}
    for worker in workers.values():
        worker()
    found: dict[str, list] = {"alone": [], "beside": []}
    for number in range(chosen.rounds):
        for name, rounds in found.items():
            with others(OTHERS if name == "beside" else 0):
                order = list(WAYS)[number % len(WAYS) :] + list(WAYS)[: number % len(WAYS)]
                told = {way: workers[way]() for way in order}
            rounds.append(told)
            shown = (f"{way} {told[way]['batch']:.2f}+{told[way]['tokens']:.2f}" for way in WAYS)
            print(f"{name} {number + 1}/{chosen.rounds}: {', '.join(shown)} s", flush=True)
    for worker in workers.values():
        worker.process.stdin.close()
        worker.process.wait()
    say(*(facts_of(name, rounds) for name, rounds in found.items()))


if __name__ == "__main__":
    main()
