"""How long it takes until something happens: the import, the help, a command's first computation.

    python analyses/speed/startup.py [--quick] [--rounds 7]

Every way is a process of its own, so the files are read from the system's cache after the first
round, which is not counted.

- ``startup.import``: ``import tracelab`` against bare Python (``python -c pass``).
- ``startup.help``: ``tracelab --help`` against bare Python.
- ``startup.score``: ``tracelab score crows-pairs --limit 1`` against the same model's forward pass
  on one text by ``transformers`` alone, with nothing of tracelab. ``libraries`` is the share of
  ours that goes into importing ``torch``, ``transformers`` and ``transformer_lens``,
  ``bare_seconds`` bare Python's time.

Costs: the goals are at most 5, 10 and 2 times the reference. What agrees is the exit status.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from comparison import compare, options, say

from tracelab.model import assets

ROOT = str(Path(__file__).parents[2])
PLAIN = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained({0!r})
model = AutoModelForCausalLM.from_pretrained({0!r}, dtype=torch.float32).eval()
with torch.no_grad():
    model(**tokenizer("The nurse said that she was late.", return_tensors="pt"))
"""
COMMAND = ("-m", "tracelab.cli")
SCORE = (*COMMAND, "score", "crows-pairs", "--bias", "gender", "--limit", "1")


def python(*arguments: str):
    """A way that runs Python with these arguments and gives its exit status."""
    told = {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def way() -> int:
        run = subprocess.run(
            [sys.executable, *arguments], capture_output=True, env=os.environ | told
        )
        return run.returncode

    return way


def seconds(way, rounds: int) -> float:
    """Median time of a way."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        way()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Print the rounds, then the last line."""
    chosen = options(__doc__, rounds=7)
    bare, plain = python("-c", "pass"), python("-c", PLAIN.format(str(assets.model_dir())))
    libraries = python("-c", "import torch, transformers, transformer_lens")

    def against(name: str, cost: float, ours, reference, rounds: int) -> dict:
        return compare(
            f"startup.{name}", 1 / cost, ours, reference, lambda a, b: a + b, rounds=rounds, close=0
        )

    many = 3 * chosen.rounds
    first = against("import", 5, python("-c", "import tracelab"), bare, many)
    second = against("help", 10, python(*COMMAND, "--help"), bare, many)
    third = against("score", 2, python(*SCORE), plain, chosen.rounds)
    share = seconds(libraries, chosen.rounds) / third["seconds"]
    say(
        first,
        second,
        third | {"libraries": round(share, 3), "bare_seconds": first["reference_seconds"]},
    )


if __name__ == "__main__":
    main()
