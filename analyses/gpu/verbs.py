"""Checks that every verb runs on the large model, in what time and memory, and that a plain forward
pass uses the GPU."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numbers_agree import require, sentences
from stand_in import pairs

import tracelab
from tracelab.localize.probing.harvest import group_token_ids, harvest
from tracelab.localize.probing.prober import ProberConfig
from tracelab.model.plain import plain_twin

PASS = (16, 64)
"""Rows and tokens of a plain forward pass: 1,024 tokens."""


def seconds_of(work: Any, device: str, rounds: int = 5) -> float:
    """Median seconds of a work, after one round that is not counted."""
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:]))


@torch.no_grad()
def plain_forward_pass(models: Any) -> dict[str, Any]:
    """Tokens a second of plain ``transformers`` and of the bridge, and their share of what one
    large matrix product reaches here."""
    model, device = models.large, models.device
    plain = plain_twin(model.original_model)
    plain.set_attn_implementation("sdpa")
    tokens = torch.randint(1, 100, PASS, device=device)
    n_tokens = tokens.numel()
    config = model.original_model.config
    embedding = plain.get_input_embeddings().weight
    n_matrix = sum(p.numel() for p in plain.parameters() if p.ndim == 2) - embedding.numel()
    if config.tie_word_embeddings:
        n_matrix += embedding.numel()
    attention = 4 * config.num_hidden_layers * config.hidden_size * PASS[1]
    flops = n_tokens * (2 * n_matrix + attention)
    side = 8192 if device.startswith("cuda") else 512
    square = torch.randn(side, side, device=device, dtype=embedding.dtype)
    peak = 2 * side**3 / seconds_of(lambda: square @ square, device)
    found: dict[str, Any] = {"tflops_of_a_product": round(peak / 1e12, 2)}
    ways = {"plain": lambda: plain(tokens, use_cache=False), "bridge": lambda: model(tokens)}
    for name, way in ways.items():
        seconds = seconds_of(way, device)
        found[name] = {
            "tokens_a_second": round(n_tokens / seconds),
            "share_of_peak": round(flops / seconds / peak, 3),
        }
    long = torch.randint(1, 100, (4, 1024), device=device)
    seconds = seconds_of(lambda: plain(long, use_cache=False, logits_to_keep=1), device)
    found["plain_long"] = {"tokens_a_second": round(long.numel() / seconds)}
    found["matrix_parameters"] = n_matrix
    require(np.isfinite(seconds), "no time was measured")
    return found


def score(models: Any) -> dict[str, Any]:
    """Scores are finite, and how many tokens a second."""
    texts = sentences(400)
    began = time.perf_counter()
    found = tracelab.score(models.large, texts)
    seconds = time.perf_counter() - began
    require(np.isfinite(found.scored["logprob"]).all(), "scores are not finite")
    require(found.scored["logprob"].to_numpy().max() <= 0, "a log-probability above 0")
    return {"tokens_a_second": round(len(found.scored) / seconds), "texts": len(texts)}


def peaks_of_scoring(models: Any) -> dict[str, Any]:
    """Peak memory of a scoring pass by tokens a batch."""
    found = {}
    for batch_tokens in (256, 1024, 4096):
        if models.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        tracelab.score(models.large, sentences(400), batch_tokens=batch_tokens)
        if models.device.startswith("cuda"):
            found[batch_tokens] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    return found


def probe(models: Any) -> dict[str, Any]:
    """Probers are trained on what one pass keeps, and predict groups better than shuffled labels
    do somewhere."""
    corpus = tracelab.datasets.templates("age", limit=24)
    began = time.perf_counter()
    states = harvest(models.large, corpus, group_token_ids(models.large, corpus))
    seconds = time.perf_counter() - began
    require(states.activations.isfinite().all(), "activations are not finite")
    require(torch.allclose(states.labels.sum(1), torch.ones(len(states.labels))), "labels")
    found = tracelab.probe_layers(
        models.large, corpus, config=ProberConfig(hidden=256, epochs=8), n_seeds=1
    )
    require(found.layers["f1"].between(0, 1).all(), "F1 outside 0 to 1")
    best = found.layers.loc[found.layers["f1"].idxmax()]
    return {
        "prompts": len(corpus.prompts),
        "harvest_seconds": round(seconds, 2),
        "best_f1": round(float(best["f1"]), 3),
        "of_shuffled_labels": round(float(best["f1_control"]), 3),
    }


def trace(models: Any) -> dict[str, Any]:
    """A trace of two pairs has an effect in every state, and a restored embedding restores."""
    n_layers = len(models.large.blocks)
    layers = list(range(0, n_layers, max(1, n_layers // 4)))
    found = tracelab.causal_trace(models.large, pairs()[:2], n_samples=10, layers=layers)
    gaps = found.states["gap"].to_numpy(float)
    require(np.isfinite(gaps).all(), "a trace that is not finite")
    require(found.cases["te"].abs().max() > 0, "noise changes nothing")
    return {"states": len(gaps), "run": found.settings["run"], "te": found.cases["te"].tolist()}


def attention(models: Any) -> dict[str, Any]:
    """Attention received sums to one."""
    found = tracelab.attention_gap(
        models.large, pairs()[:8], prepend_bos=models.large.tokenizer.bos_token_id is not None
    )
    total = found.maps.groupby(["pair", "query"])["stereotype"].sum()
    require(np.allclose(total, 1, atol=0.05), f"a query attends to {total.min()} to {total.max()}")
    return {"pairs": 8, "headline": found.headline()}


def generate(models: Any) -> dict[str, Any]:
    """Greedy decoding with the cache gives, in fp32, what it gives without it."""
    prompts = ["The old man", "A small town was founded by monks"]
    texts = [
        tracelab.generate(
            models.small, prompts, do_sample=False, max_new_tokens=12, use_cache=cache
        ).table["continuation"]
        for cache in (True, False)
    ]
    require((texts[0] == texts[1]).all(), "the cache changes what is decoded")
    began = time.perf_counter()
    tracelab.generate(models.large, prompts * 4, max_new_tokens=32)
    return {"tokens_a_second": round(8 * 32 / (time.perf_counter() - began))}


VERBS = {
    check.__name__: check
    for check in (
        plain_forward_pass,
        score,
        peaks_of_scoring,
        probe,
        trace,
        attention,
        generate,
    )
}
"""In the order in which they are run."""
