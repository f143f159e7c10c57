"""Checks that numbers are the same: on the GPU and the CPU, in a batch and alone, by short ways and
plain ones.

All on the small model in fp32; what bf16 rounds is shown on the large one.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from stand_in import neutral, pairs

import tracelab
from tracelab.localize.probing.harvest import group_token_ids, harvest
from tracelab.model.packed import scoring_by_tree
from tracelab.model.plain import plain_twin
from tracelab.model.plain_blocks import PlainBlockRunner, block_runner
from tracelab.model.scoring import logprobs_within, row_logprobs
from tracelab.model.tokens import encode

CLOSE = 1e-3
"""Nats a token, in fp32: two devices sum in another order."""


def require(true: Any, what: str) -> None:
    """Fail a check.

    Raises:
        AssertionError: ``what`` should be and is not.
    """
    if not bool(true):
        raise AssertionError(what)


def sentences(count: int = 48) -> list[str]:
    """Texts of several lengths, of which several begin alike."""
    records = pairs()
    texts = [getattr(r, label).text for r in records for label in ("stereotype", "anti_stereotype")]
    return texts[: count // 2] + neutral()[: count // 2]


def load(models: Any) -> dict[str, Any]:
    """The models are whole: every hook point does what it should, and weights take what they
    should."""
    found = {}
    for name in ("small", "large"):
        model = getattr(models, name)
        facts = tracelab.model.load.model_facts(model)
        require(not facts.faults, f"{name}: {facts.faults}")
        weights = list(model.original_model.parameters())
        require({p.device.type for p in weights} == {torch.device(models.device).type}, "placed")
        found[name] = {
            "parameters": sum(p.numel() for p in weights),
            "weights_mib": round(sum(p.numel() * p.element_size() for p in weights) / 2**20, 1),
            "dtype": str(weights[0].dtype),
        }
    return found


def scores_on_both_devices(models: Any) -> dict[str, Any]:
    """Log-probabilities on the GPU are those on the CPU."""
    texts = sentences()
    ours, theirs = (tracelab.score(model, texts) for model in (models.small, models.on_cpu))
    apart = float(np.abs(ours.scored["logprob"] - theirs.scored["logprob"]).max())
    require(apart < CLOSE, f"log-probabilities differ by {apart:.3g} nats")
    print_of = [model_info(model) for model in (models.small, models.on_cpu)]
    require(print_of[0] == print_of[1], f"one model has two fingerprints: {print_of}")
    return {"texts": len(texts), "largest_difference": apart}


def model_info(model: Any) -> str:
    """The fingerprint of a model's weights."""
    return tracelab.model.load.model_info(model).fingerprint


def batches_and_one_at_a_time(models: Any) -> dict[str, Any]:
    """What a text scores does not depend on the batch it is in."""
    texts = sentences()
    sequences = [encode(models.small, text).ids for text in texts]
    firsts = [1] * len(sequences)
    many = row_logprobs(models.small, sequences, firsts)
    alone = [row_logprobs(models.small, [ids], [1])[0] for ids in sequences]
    apart = max(float((a - b).abs().max()) for a, b in zip(many, alone, strict=True))
    require(apart < CLOSE, f"a batch and one text at a time differ by {apart:.3g}")
    return {"largest_difference": apart}


def trees_and_rows(models: Any) -> dict[str, Any]:
    """Scoring by trees is used on this device, and gives what a text a row gives."""
    model, texts = models.small, sentences(96)
    sequences = [encode(model, text).ids for text in texts]
    firsts = [1] * len(sequences)

    def rows(batch: Any) -> list[torch.Tensor]:
        return row_logprobs(model, [sequences[i] for i in batch], [1] * len(batch))

    with torch.no_grad(), scoring_by_tree(model, sequences, firsts, rows, 1024) as quick:
        require(quick is not None, "trees are not used on this device")
    found = [
        logprobs_within(model, sequences, firsts, batch_tokens=1024, by_tree=way)
        for way in (None, False)
    ]
    apart = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))
    require(apart < CLOSE, f"trees and rows differ by {apart:.3g}")
    return {"largest_difference": apart}


def plain_blocks(models: Any) -> dict[str, Any]:
    """Tracing runs the blocks of a plain twin on this device; by caches it gives what whole passes
    give."""
    runners = {name: type(block_runner(getattr(models, name))) for name in ("small", "large")}
    require(runners["small"] is PlainBlockRunner, "the plain twin is not used in fp32")
    effects = {}
    for run in ("fast", "plain"):
        trace = tracelab.causal_trace(models.small, pairs()[:2], n_samples=2, run=run)
        effects[run] = trace.states["gap"].to_numpy(float)
    apart = float(np.abs(effects["fast"] - effects["plain"]).max())
    require(apart < CLOSE, f"the two ways of tracing differ by {apart:.3g}")
    return {"largest_difference": apart, **{k: v.__name__ for k, v in runners.items()}}


def traces_on_both_devices(models: Any) -> dict[str, Any]:
    """The same noise gives the same trace on both devices."""
    found = [
        tracelab.causal_trace(model, pairs()[:2], n_samples=2, layers=[0, 2])
        for model in (models.small, models.on_cpu)
    ]
    ours, theirs = (trace.states["gap"].to_numpy(float) for trace in found)
    apart = float(np.abs(ours - theirs).max())
    require(apart < 10 * CLOSE, f"traces differ by {apart:.3g}")
    return {"largest_difference": apart, "states": len(ours)}


def harvests_on_both_devices(models: Any) -> dict[str, Any]:
    """What probers are trained on is the same on both devices."""
    corpus = tracelab.datasets.templates("age", limit=8)
    states = [
        harvest(model, corpus, group_token_ids(model, corpus))
        for model in (models.small, models.on_cpu)
    ]
    ours, theirs = (each.activations for each in states)
    apart = float((ours - theirs).abs().max() / theirs.abs().max())
    labels = float((states[0].labels - states[1].labels).abs().max())
    require(apart < CLOSE and labels < CLOSE, f"activations {apart:.3g}, labels {labels:.3g} apart")
    return {"prompts": len(corpus.prompts), "activations": apart, "labels": labels}


@torch.no_grad()
def rounding_of_the_large_model(models: Any) -> dict[str, Any]:
    """How far the large model's dtype is from fp32 in plain ``transformers``, in nats a token."""
    large, texts = models.large, sentences(24)
    own = tracelab.score(large, texts).logprobs
    exact = copy.deepcopy(plain_twin(large.original_model)).float()
    apart = []
    for text, values in zip(texts, own, strict=True):
        ids = torch.tensor([encode(large, text).ids], device=models.device)
        logits = exact(ids).logits[0].float().log_softmax(-1)
        expected = logits[:-1].gather(-1, ids[0, 1:, None])[:, 0].cpu().numpy()
        apart.append(np.abs(values - expected))
    apart = np.concatenate(apart)
    require(apart.mean() < 0.25, f"{apart.mean():.3g} nats a token from fp32 on average")
    dtype = str(next(large.original_model.parameters()).dtype)
    return {"mean": float(apart.mean()), "largest": float(apart.max()), "dtype": dtype}


def a_device_map_of_one(models: Any) -> dict[str, Any]:
    """A model placed by ``device_map`` has the numbers of one that was put there."""
    folder = models.folder / "placed"
    models.plain().save_pretrained(folder)
    models.tokenizer.save_pretrained(folder)
    texts = sentences(16)
    expected = tracelab.score(models.small, texts).scored["logprob"].to_numpy(float)
    found = {}
    for where in ({"": models.device}, "auto"):
        placed = tracelab.load(folder, device_map=where)
        own = tracelab.score(placed, texts).scored["logprob"].to_numpy(float)
        require(np.abs(own - expected).max() < CLOSE, f"device_map={where} scores otherwise")
        edit = tracelab.WeightDelta.low_rank(placed, layers=[0, 1])
        with edit.applied(placed):
            tracelab.score(placed, texts)
        found[str(where)] = str(next(placed.original_model.parameters()).device)
    return found


NUMBERS = {
    check.__name__: check
    for check in (
        load,
        scores_on_both_devices,
        batches_and_one_at_a_time,
        trees_and_rows,
        plain_blocks,
        traces_on_both_devices,
        harvests_on_both_devices,
        a_device_map_of_one,
        rounding_of_the_large_model,
    )
}
"""In the order in which they are run."""
