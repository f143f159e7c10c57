"""The formulas of :mod:`tracelab.model.memory` against measurement, on random models.

    python analyses/gpu/memory.py [--quick] [--device cuda] [--sizes small medium 1b]

One JSON line a work, size and dtype: bytes by formula, bytes measured beside what was there before,
and their ratio. On a GPU ``torch.cuda.max_memory_allocated`` measures; elsewhere the tensors that
are alive at once are summed (:mod:`tracelab.model.peak`), which other work on the machine does not
move. Last a summary with the smallest and the largest ratio of each work; exit status 1 if one is
outside :data:`BOUNDS`.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from stand_in import (
    SIZES,
    Size,
    expert_texts,
    make_data_folder,
    make_tokenizer,
    pairs,
    random_llama,
)

import tracelab
from tracelab.interventions.training.finetune import finetune
from tracelab.localize.probing.prober import ProberConfig, train_probers
from tracelab.localize.tracing.cases import make_cases, sentences_of
from tracelab.localize.tracing.fast import fast_traces, trace_bytes
from tracelab.model.hook_points import Point
from tracelab.model.memory import Sizes
from tracelab.model.peak import peak_memory
from tracelab.model.plain_blocks import block_runner
from tracelab.model.scoring import row_logprobs
from tracelab.model.states import mean_states

BOUNDS = (0.9, 1.6)
"""Smallest and largest ratio of what is measured to what the formula says."""
SMALLER = {
    "4x128": Size(4, 128, 4, 2, 352),
    "6x256": Size(6, 256, 8, 4, 704),
    "8x384": Size(8, 384, 8, 8, 1024),
}
"""Sizes for a CPU."""
ROWS, LENGTH = 16, 64
SAMPLES, HIDDEN = 8, 256


@contextmanager
def measured(model: Any, device: str) -> Iterator[list[int]]:
    """Bytes beside what was there before, at most; in the list when the block ends."""
    if not device.startswith("cuda"):
        with peak_memory([*model.parameters(), *model.buffers()]) as peak:
            yield peak
        return
    found = [0]
    gc.collect()  # what waits for it would be freed, and not counted, during the work
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield found
    torch.cuda.synchronize()
    found[0] = torch.cuda.max_memory_allocated() - before


def works(model: Any, device: str) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Of each work, the formula's bytes and what does it."""
    sizes = Sizes.of(model)
    ids = torch.randint(1, 200, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [" ".join(["the old man forgot the meeting"] * 8)] * ROWS
    length = len(model.tokenizer(texts[0], add_special_tokens=False).input_ids)
    points = [Point("mlp_out", layer) for layer in range(sizes.layers)]
    delta = tracelab.WeightDelta.low_rank(model, layers=range(sizes.layers), rank=2)
    tuned = [text for text in expert_texts().biased if len(text) > 10][:ROWS]
    longest = max(len(model.tokenizer(t, add_special_tokens=False).input_ids) for t in tuned)
    (case,), _ = make_cases(model, [r for r in pairs()[:1]])
    values = torch.randn(SAMPLES, len(case.noised), sizes.width)
    sentences = sentences_of(case, values, range(case.first - 1, case.first))
    runner = block_runner(model)
    traced, layers = ("resid", "mlp", "attn"), range(sizes.layers)

    def trace() -> None:
        fast_traces(runner, sentences, case.first, layers, traced, 2)

    def fit() -> None:
        finetune(model, delta, tuned, lr=1e-4, epochs=1, batch_size=ROWS, block_size=LENGTH, seed=0)

    def harvest() -> None:
        mean_states(model, texts, points, pool="last", read_logits=lambda batch, logits: None)

    def score() -> None:
        with torch.no_grad():
            row_logprobs(model, ids, [1] * ROWS)

    def generate() -> None:
        tracelab.generate(
            model, ["the old man"] * ROWS, max_new_tokens=200, batch_size=ROWS, do_sample=False
        )

    return {
        "score": (sizes.scoring(ROWS, LENGTH), score),
        "harvest": (sizes.harvest(ROWS, length), harvest),
        "fit": (sizes.fit(ROWS, longest, sizes.layers), fit),
        "trace": (
            trace_bytes(model, case, SAMPLES, len(layers), len(traced)),
            trace,
        ),
        "generate": (sizes.generation(ROWS, 5, 200), generate),
    }


def probers(sizes: Sizes) -> tuple[int, Callable[[], Any]]:
    """In main memory, whatever the device."""
    states = torch.randn(64, sizes.layers, sizes.width)
    labels = torch.full((64, 2), 0.5)

    def train() -> None:
        config = ProberConfig(hidden=HIDDEN, epochs=1)
        train_probers(states, labels, torch.arange(64), config=config, seed=0)

    return sizes.probers(HIDDEN), train


def main() -> int:
    """Print the lines; returns the exit status."""
    chosen = _options()
    make_data_folder()
    named = SMALLER | SIZES
    ratios: dict[str, list[float]] = {}
    for name in chosen.sizes:
        for dtype in (torch.float32, torch.bfloat16)[: 1 if chosen.quick else 2]:
            for work, formula, found in lines(named[name], chosen, dtype):
                ratio = round(found / formula, 3)
                ratios.setdefault(work, []).append(ratio)
                line = {"work": work, "size": name, "dtype": str(dtype).removeprefix("torch.")}
                mib = {"formula_mib": formula / 2**20, "measured_mib": found / 2**20}
                line |= {key: round(value, 2) for key, value in mib.items()}
                print(json.dumps(line | {"ratio": ratio}), flush=True)
    bounds = {work: (min(found), max(found)) for work, found in ratios.items()}
    ok = all(BOUNDS[0] <= low and high <= BOUNDS[1] for low, high in bounds.values())
    print(json.dumps({"work": "summary", "ok": ok, "ratios": bounds, "bounds": BOUNDS}))
    return int(not ok)


def lines(size: Size, chosen: argparse.Namespace, dtype: torch.dtype) -> Iterator[Any]:
    """Work, formula and measurement of one model."""
    tokenizer = make_tokenizer("tiny")
    plain = random_llama(size, chosen.vocabulary, device=chosen.device, dtype=dtype)
    model = tracelab.load(plain, tokenizer=tokenizer)
    for work, (formula, run) in works(model, chosen.device).items():
        if chosen.device.startswith("cuda"):
            run()  # what libraries keep for themselves is not the work's
        with measured(model, chosen.device) as peak:
            run()
        yield work, formula, peak[0]
    formula, run = probers(Sizes.of(model))
    with peak_memory(()) as peak:
        run()
    yield "probers", formula, peak[0]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fp32 alone")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--sizes", nargs="+", choices=[*SMALLER, *SIZES], help="default: three")
    parser.add_argument("--vocabulary", type=int, help="tokens; default 49,152, on a CPU 8,192")
    chosen = parser.parse_args()
    chosen.device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = chosen.device.startswith("cuda")
    chosen.sizes = chosen.sizes or (["small", "medium", "1b"] if on_gpu else list(SMALLER))
    chosen.vocabulary = chosen.vocabulary or (49_152 if on_gpu else 8_192)
    return chosen


if __name__ == "__main__":
    sys.exit(main())
