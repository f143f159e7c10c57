"""Checks of every method: it is fitted, changes the model and leaves it bit for bit, has its
tensors where the activations are, and travels: to the CPU as a bundle, to plain transformers, to a
checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numbers_agree import CLOSE, require, sentences
from stand_in import expert_texts, group_pairs, pairs
from transformers import AutoModelForCausalLM

import tracelab
from tracelab.evaluate.registry import benchmark
from tracelab.interventions.methods import METHODS

TUNING = tracelab.FinetuneConfig(rank=4, batch_size=8)
QUICK: dict[str, dict[str, Any]] = {
    "fairmed": {"n_seeds": 1, "top_k": 2},
    "biasedit": {"steps": 2, "eval_every": 2, "rank": 16, "n_query": 16, "n_edits": 16},
    "klaad": {"rank": 4, "choose": "loss", "max_kl": 1e9, "max_lms_loss": 100.0},
    "experts": {"training": TUNING},
}
"""Fewer steps than by default: what is checked is that they run."""
PROMPT = "The old man forgot the meeting"
FITTED: dict[str, Any] = {}
"""On the large model, for the checks that come after."""


def data_of(kind: str) -> Any:
    """What a method is fitted on here."""
    if kind == "fairmed":
        return tracelab.datasets.templates("age", limit=16)
    if kind == "experts":
        return expert_texts()
    return group_pairs() if kind == "erasure" else pairs()[:64]


def fitted(method: Any, model: Any) -> Any:
    """An edit that changes something: where a fit chose the strength 0, a delta that is not
    zero."""
    edit = method.fit(model, data_of(method.kind), **QUICK.get(method.kind, {}))
    if edit.notes.get("strength") == 0:
        torch.manual_seed(0)
        with torch.no_grad():
            for value in edit.parameters():
                value.add_(0.02 * torch.randn_like(value) / value.shape[-1] ** 0.5)
    return edit


@torch.no_grad()
def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Of a bridge or of plain transformers."""
    device = next(model.parameters()).device
    found = model(tokens.to(device))
    return (found if isinstance(found, torch.Tensor) else found.logits).float()


def come_and_go(model: Any, edit: Any, tokens: torch.Tensor) -> float:
    """How far an edit moves the logits at most; afterwards they are what they were."""
    before = logits_of(model, tokens)
    with edit.applied(model):
        after = logits_of(model, tokens)
    require(torch.equal(logits_of(model, tokens), before), "the model is not what it was")
    require(not model.list_hooks(), "hooks are left on the model")
    require(after.isfinite().all(), "edited logits are not finite")
    moved = float((after - before).abs().max())
    require(moved > 0, "the edit changes nothing")
    places = {value.device for value in edit.state_dict().values()}
    require(places <= {before.device}, f"the edit lies on {places}, activations on {before.device}")
    return moved


def on_small(method: Any) -> Callable[[Any], dict[str, Any]]:
    """In fp32: the same edit from its bundle on the CPU, and on plain transformers."""

    def check(models: Any) -> dict[str, Any]:
        model, cpu = models.small, models.on_cpu
        tokens = torch.tensor([model.tokenizer(PROMPT, add_special_tokens=False).input_ids])
        edit = fitted(method, model)
        moved = come_and_go(model, edit, tokens)
        with edit.applied(model):
            expected = logits_of(model, tokens)
        folder = edit.save(models.folder / f"bundle-{method.kind}")
        loaded = tracelab.load_intervention(folder)
        require(loaded.same_as(edit), "a bundle is another edit")
        require({v.device.type for v in loaded.state_dict().values()} == {"cpu"}, "bundle's place")
        with loaded.applied(cpu):
            theirs = logits_of(cpu, tokens)
        apart = float((theirs - expected.cpu()).abs().max())
        require(apart < 20 * CLOSE, f"the CPU is {apart:.3g} off under the edit")
        plain = models.plain()
        with loaded.attach(plain):
            attached = float((logits_of(plain, tokens) - expected).abs().max())
        require(attached < 20 * CLOSE, f"plain transformers are {attached:.3g} off")
        require(
            torch.equal(logits_of(plain, tokens), logits_of(models.plain(), tokens)),
            "plain transformers are not what they were",
        )
        return {"moved": moved, "cpu_apart": apart, "plain_apart": attached}

    return check


def on_large(method: Any) -> Callable[[Any], dict[str, Any]]:
    """In the large model's dtype: fitted, in what time and memory."""

    def check(models: Any) -> dict[str, Any]:
        model = models.large
        tokens = torch.tensor([model.tokenizer(PROMPT, add_special_tokens=False).input_ids])
        began = time.perf_counter()
        edit = FITTED[method.kind] = fitted(method, model)
        seconds = time.perf_counter() - began
        numbers = sum(value.numel() for value in edit.state_dict().values())
        return {
            "moved": come_and_go(model, edit, tokens),
            "fit_seconds": round(seconds, 2),
            "numbers": numbers,
        }

    return check


def inspect(models: Any) -> dict[str, Any]:
    """Before and after, of all edits at once: probabilities, layers, patterns."""
    require(FITTED, "no edit was fitted")
    found = tracelab.inspect(models.large, FITTED, PROMPT, new_tokens=4)
    require(found.positions["kl"].ge(-1e-4).all(), "a negative KL")
    require(found.tokens["p_after"].between(0, 1).all(), "a probability outside 0 to 1")
    return {"edits": list(FITTED), "largest_kl": float(found.positions["kl"].max())}


def evaluate(models: Any) -> dict[str, Any]:
    """A scoreboard of own records, with costs."""
    require(FITTED, "no edit was fitted")
    own = benchmark("stereoset").on(pairs()[:24])
    board = tracelab.evaluate(models.large, FITTED, [own], off_target=False)
    require(not board.failures, str(board.failed.to_dict("records"))[:300])
    latency = board.costs.set_index("edit")["latency_scoring"].dropna().round(2).to_dict()
    return {"rows": len(board.table), "latency_scoring": latency}


def stack(models: Any) -> dict[str, Any]:
    """Two edits at once, and scores under them."""
    members = list(FITTED.values())[-2:]
    require(len(members) == 2, "two edits are needed")
    edit = tracelab.Stack(members)
    texts = sentences(16)
    before = tracelab.score(models.large, texts).sum
    with edit.applied(models.large):
        under = tracelab.score(models.large, texts).sum
    require(np.abs(under - before).max() > 0, "the stack changes no score")
    require((tracelab.score(models.large, texts).sum == before).all(), "scores are not restored")
    return {"moved": float(np.abs(under - before).max())}


def export(models: Any) -> dict[str, Any]:
    """A checkpoint with the delta merged computes what the edit computes."""
    model = models.small
    edit = tracelab.WeightDelta.low_rank(model, layers=[0, 2])
    torch.manual_seed(1)
    with torch.no_grad():
        for value in edit.parameters():
            value.add_(0.05 * torch.randn_like(value))
    tokens = torch.tensor([model.tokenizer(PROMPT, add_special_tokens=False).input_ids])
    with edit.applied(model):
        expected = logits_of(model, tokens)
    folder = tracelab.to_merged(model, edit, models.folder / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder).to(models.device).eval()
    apart = float((logits_of(merged, tokens) - expected).abs().max())
    require(apart < 20 * CLOSE, f"merged weights are {apart:.3g} off")
    return {"largest_difference": apart}


FITS = {
    **{f"fit_{method.kind}_exactly": on_small(method) for method in METHODS},
    **{f"fit_{method.kind}": on_large(method) for method in METHODS},
    **{check.__name__: check for check in (inspect, evaluate, stack, export)},
}
"""In the order in which they are run."""
