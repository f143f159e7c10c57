"""Two ways of the same work, timed in turn in one process, and the line that a script prints last.

Every script here runs both sides on the same work, checks that their results agree, and prints as
its last line one of JSON: ``ratio`` is the seconds of the reference over ours (median, smallest and
largest over the rounds), ``agreement`` the largest difference of a result, ``goal`` the ratio that
was aimed at.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any


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
    ratios, seconds = [], []
    for round_number in range(rounds):
        taken = {}
        for way in (ours, reference) if round_number % 2 else (reference, ours):
            started = time.perf_counter()
            way()
            taken[way] = time.perf_counter() - started
        ratios.append(taken[reference] / taken[ours])
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
        "seconds": round(statistics.median(s for s, _ in seconds), 3),
        "reference_seconds": round(statistics.median(s for _, s in seconds), 3),
        "agreement": found,
        "goal": goal,
        "command": " ".join(["python", *sys.argv]),
    }


def say(facts: dict[str, Any]) -> None:
    """Print the last line."""
    print(json.dumps(facts))
