"""Seconds of scoring and harvest by tokens a batch, and of a trace, of random models on one GPU.

    python analyses/gpu/batches.py [--sizes 1b 8b]

One JSON line a work, with the least and the most seconds of its rounds, in bf16.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from numbers_agree import sentences
from stand_in import SIZES, make_data_folder, make_tokenizer, pairs, random_llama

import tracelab
from tracelab.localize.probing.harvest import group_token_ids, harvest

BATCH_TOKENS = (1024, 4096, 16384)
COMPONENTS = (["resid"], ["resid", "mlp", "attn"])


def timed(work: Callable[[], Any], device: str, rounds: int) -> tuple[float, float]:
    """The least and the most seconds, after a round that is not counted."""
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return round(min(taken[1:]), 3), round(max(taken[1:]), 3)


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=["1b", "8b"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make_data_folder()
    texts = [f"{text} {number}" for number, text in enumerate(sentences(400) * 3)]
    corpus = tracelab.datasets.templates("age")
    for size in parser.parse_args().sizes:
        tokenizer = make_tokenizer(size)
        plain = random_llama(SIZES[size], len(tokenizer), device=device, dtype=torch.bfloat16)
        model = tracelab.load(plain, tokenizer=tokenizer)
        words = group_token_ids(model, corpus)
        for most in BATCH_TOKENS:
            works = {
                "score": lambda m=model, n=most: tracelab.score(m, texts, batch_tokens=n),
                "harvest": lambda m=model, n=most, w=words: harvest(m, corpus, w, batch_tokens=n),
            }
            for name, work in works.items():
                seconds = timed(work, device, 3)
                told = {"size": size, "work": name, "batch_tokens": most, "seconds": seconds}
                print(json.dumps(told), flush=True)
        for components in COMPONENTS:
            seconds = timed(
                lambda m=model, c=components: tracelab.causal_trace(m, pairs()[:2], components=c),
                device,
                2,
            )
            told = {"size": size, "work": "trace", "components": components, "seconds": seconds}
            print(json.dumps(told), flush=True)
        del model, plain


if __name__ == "__main__":
    main()
