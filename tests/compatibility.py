"""What tracelab can do on each architecture, tried out: one function a capability.

:func:`tried` runs them all on a small random model of a family and says of each ``"yes"`` or with
which sentence it was refused. The table in ``docs/compatibility.md`` is made of this
(``python -m docs.draw_compatibility``), and ``tests/test_compatibility.py`` runs it again. A
refusal is a :class:`~tracelab.errors.TracelabError`; any other error, and a number that is not the
one of plain ``transformers``, is a fault and not caught here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

import tracelab
from tests.interventions.edits import CLOSE, QUICK, TOKENS, logits
from tests.small_cache import TOKENS as N_TOKENS
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.interventions import WeightDelta
from tracelab.interventions.method import Method
from tracelab.interventions.methods import METHODS
from tracelab.localize.probing.prober import ProberConfig
from tracelab.model import assets
from tracelab.model.load import from_hf

FAMILIES = {
    "gpt2": "GPT-2",
    "gpt_neo": "GPT-Neo",
    "gptj": "GPT-J",
    "gpt_neox": "GPT-NeoX, Pythia",
    "bloom": "BLOOM",
    "falcon": "Falcon",
    "opt": "OPT",
    "llama": "Llama 1 to 3, SmolLM 1 and 2",
    "mistral": "Mistral",
    "qwen2": "Qwen 2, Qwen 2.5",
    "qwen3": "Qwen 3",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3, text",
    "phi": "Phi 1, Phi 2",
    "phi3": "Phi 3, Phi 4",
    "olmo2": "OLMo 2",
    "granite": "Granite",
    "cohere": "Cohere Command R",
    "mixtral": "Mixtral (mixture of experts)",
    "qwen3_moe": "Qwen 3 MoE (mixture of experts)",
}
"""What is tried: ``transformers``' name of the architecture, and the models that have it."""

YES = "yes"

_SMALL = QUICK | {
    "biasedit": QUICK["biasedit"] | {"choose": "loss", "eval_every": 2},
    "fairmed": QUICK["fairmed"] | {"tol": 0.0},
}
"""Fits that take what they have learned as it is, and edit every position."""


@dataclass
class Tried:
    """A family's model on the bridge and as plain ``transformers`` has it, and the edits fitted to
    it."""

    model: TransformerBridge
    plain: Callable[[], Any]  # a new one, never wrapped, with the same weights
    edits: dict[str, tracelab.Intervention] = field(default_factory=dict)


def load(tried: Tried) -> None:
    """The bridge computes what plain ``transformers`` does."""
    with torch.no_grad():
        torch.testing.assert_close(logits(tried.model), tried.plain()(TOKENS).logits, **CLOSE)


def probe_layers(tried: Tried) -> None:
    """A prober of every layer."""
    corpus = tracelab.datasets.templates("gender", limit=16)
    config = ProberConfig(hidden=8, epochs=1)
    found = tracelab.probe_layers(tried.model, corpus, n_seeds=1, config=config)
    assert len(found.frame) == tried.model.cfg.n_layers


def causal_trace(tried: Tried) -> None:
    """Tracing through the residual stream, the MLPs and attention."""
    records = tracelab.datasets.stereoset("gender", limit=12)
    found = tracelab.causal_trace(tried.model, records, n_samples=1, layers=[1, 3], max_cases=1)
    assert {"resid", "mlp", "attn"} <= set(found.frame["component"])


def attention_gap(tried: Tried) -> None:
    """The gap in what words receive of attention."""
    pairs = tracelab.datasets.crows_pairs("gender", limit=4)
    assert len(tracelab.attention_gap(tried.model, pairs).frame)


def fit(tried: Tried, method: type[Method]) -> None:
    """The method learns an edit of this model."""
    made = method.fit(tried.model, _data(method), **_SMALL.get(method.kind, {}))
    if isinstance(made, WeightDelta):  # after so few steps the start may still be the best state
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in made.parameters():
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    tried.edits[method.kind] = made


def hooks(tried: Tried, method: type[Method]) -> None:
    """The edit's hooks on the bridge change what it computes, and leave nothing behind."""
    before, edit = logits(tried.model), tried.edits[method.kind]
    there = _handles(tried.model)  # OPT's bridge has some of its own
    assert not torch.equal(logits(tried.model, edit), before)
    assert torch.equal(logits(tried.model), before)
    assert _handles(tried.model) == there


def inspect(tried: Tried, method: type[Method]) -> None:
    """What the edit does to the next token."""
    found = tracelab.inspect(tried.model, {"it": tried.edits[method.kind]}, "The nurse said that")
    assert set(found.tokens["edit"]) == {"it"}


def bundle(tried: Tried, method: type[Method]) -> None:
    """The edit is written and read back, and is the same."""
    edit = tried.edits[method.kind]
    with tempfile.TemporaryDirectory() as place:
        back = tracelab.load_intervention(edit.save(Path(place) / "bundle"))
    assert back.same_as(edit)
    assert back.identity() == edit.identity()


def attach(tried: Tried, method: type[Method]) -> None:
    """A plain ``transformers`` model with the edit computes what the bridge does with it."""
    edit, plain = tried.edits[method.kind], tried.plain()
    with torch.no_grad():
        before = plain(TOKENS).logits
        with edit.attach(plain):
            attached = plain(TOKENS).logits
        with _on_the_bridge(edit, tried.model):
            bridged = tried.model.original_model(TOKENS).logits
    moved = (attached - before).abs().max()
    assert moved > 1e-3 * before.std()
    # FairMed searches: where rounding ends a search a step sooner, it is off by a part of a step
    assert (attached - bridged).abs().max() < 0.1 * moved


def _handles(model: TransformerBridge) -> dict[str, int]:
    return {name: len(handles) for name, handles in model.list_hooks().items()}


@contextmanager
def _on_the_bridge(edit: tracelab.Intervention, model: TransformerBridge) -> Iterator[None]:
    """The edit on a bridge; where its hooks are refused, on what the bridge wraps."""
    try:
        edit.hooks(model)
    except TracelabError:
        context: Any = edit.attach(model.original_model)
    else:
        context = edit.applied(model)
    with context:
        yield


OF_THE_MODEL = (load, probe_layers, causal_trace, attention_gap)
OF_A_METHOD = (fit, hooks, inspect, bundle, attach)


def made(family: str) -> Tried:
    """The model of a family, with nothing tried yet."""
    plain = partial(_plain, family)
    tokenizer = AutoTokenizer.from_pretrained(assets.model_dir())
    return Tried(from_hf(plain(), tokenizer, model_id=f"tiny-{family}"), plain)


def tried(family: str) -> dict[str, str]:
    """What became of each capability on a small random model of a family: "yes", or the refusal.

    ``TRACELAB_CACHE`` has to be a small cache (:mod:`tests.small_cache`). Capabilities of a method
    are called ``"erasure: attach"``.
    """
    subject = made(family)
    found = {check.__name__: _outcome(partial(check, subject)) for check in OF_THE_MODEL}
    for method in METHODS:
        for check in OF_A_METHOD:
            name = f"{method.kind}: {check.__name__}"
            if check is not fit and method.kind not in subject.edits:
                found[name] = found[f"{method.kind}: fit"]
            else:
                found[name] = _outcome(partial(check, subject, method))
    return found


def _plain(family: str) -> Any:
    """A tiny model whose norms scale each feature otherwise, as those of trained models do: else
    all that a norm gives out has one length, and FairMed, whose radius is a share of how much
    lengths differ, would do nothing after one."""
    made = tiny_hf(family, N_TOKENS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if tensor.ndim == 1 and "norm" in name and name.endswith("weight"):
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    return made


@cache
def _data(method: type[Method]) -> Any:
    return method.training_data("gender", limit=16)


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except TracelabError as error:
        return str(error)
    return YES
