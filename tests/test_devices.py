"""Models over several devices, as far as a CPU can tell: the ``meta`` device as a second one, and
accelerate's hooks."""

from __future__ import annotations

import contextlib
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AutoModelForCausalLM, AutoTokenizer

import tracelab
from tests.interventions.edits import (
    TOKENS,
    bridged,
    logits,
    random_delta,
    random_erasure,
    random_experts,
    random_fairmed,
)
from tests.tiny import N_LAYERS, tiny_hf
from tracelab.errors import TracelabError
from tracelab.interventions import Stack
from tracelab.interventions.fairmed import fairmed
from tracelab.interventions.fairmed.neutraliser import Neutralised
from tracelab.model.partial_forward import BlockRunner
from tracelab.model.plain_blocks import PlainBlockRunner, block_runner

FIRST_FAR = 2
"""The first block on the second device."""
PARTS = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
PLACES = {part: "cpu" for part in PARTS} | {
    f"model.layers.{n}": "cpu" if n < FIRST_FAR else "meta" for n in range(N_LAYERS)
}


class OneDeviceAnOperation(TorchDispatchMode):
    """Refuses operations on tensors of two devices, as GPUs do; ``meta`` alone lets some pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        moved = "copy" in str(func)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim]
        devices = {tensor.device for tensor in tensors}
        assert moved or len(devices) < 2, f"{func} on {devices}"
        return func(*args, **(kwargs or {}))


def spread(hf_model: Any, blocks: Any) -> None:
    """Put the blocks from FIRST_FAR on on ``meta``, with all that they are called with."""

    def there(module: Any, args: Any, kwargs: Any) -> Any:
        def move(value: Any) -> Any:
            return value.to("meta") if isinstance(value, Tensor) else value

        return tree_map(move, args), tree_map(move, kwargs)

    for block in list(blocks)[FIRST_FAR:]:
        block.to("meta")
        block.register_forward_pre_hook(there, with_kwargs=True)
    hf_model.hf_device_map = dict(PLACES)


def edits(model: Any) -> dict[str, Any]:
    """Each of a block on the first device and of one on the second."""
    layers = (FIRST_FAR - 1, FIRST_FAR)
    far = random_delta(model, modules=("mlp.out", "attn.q"), layers=layers)
    return {
        "delta": far,
        "half": far.scaled(0.5),
        "erasure": random_erasure(model, layers=layers),
        "fairmed": random_fairmed(model, layers=layers),
        "stack": Stack([far, random_erasure(model, layers=layers)]),
    }


class SecondDevice(Exception):
    """FairMed's search has come to the second device, with all that it needs."""


@pytest.fixture
def search_without_values(monkeypatch):
    """FairMed's search looks at values, of which ``meta`` has none: what it is given is looked
    at."""

    def neutralise(a: Tensor, mask: Tensor, probers: Any, *_: Any) -> Neutralised:
        assert {mask.device, *(p.w1.device for p in probers)} == {a.device}
        if a.device.type == "meta":
            raise SecondDevice
        return Neutralised(torch.zeros_like(a), torch.zeros_like(mask, dtype=torch.long))

    monkeypatch.setattr(fairmed, "neutralise", neutralise)


def ends(name: str) -> Any:
    """How a forward pass under an edit ends."""
    return pytest.raises(SecondDevice) if name == "fairmed" else contextlib.nullcontext()


@pytest.fixture
def folder(tokenizer, tmp_path):
    tiny_hf("llama", len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def freed(edit: Any) -> Any:
    """An edit that asks for no fingerprint: that of weights on ``meta`` cannot be taken."""
    for part in edit.modules():
        if hasattr(part, "origin"):
            part.origin = part.origin and part.origin.model_copy(update={"fingerprint": ""})
    edit.require = edit.require_plain = lambda model: None
    return edit


@pytest.mark.parametrize("name", ["delta", "half", "erasure", "fairmed", "stack"])
def test_an_edits_tensors_follow_the_activations(tokenizer, name, request):
    model = bridged(len(tokenizer), seed=3, model_id="spread")
    edit = freed(edits(model)[name])
    assert not torch.equal(logits(model, edit), logits(model))
    request.getfixturevalue("search_without_values")
    spread(model.original_model, model.blocks)
    seen: list[torch.device] = []

    def look(value: Tensor, hook: Any) -> None:
        seen.append(value.device)

    hooks = [(f"blocks.{n}.hook_resid_post", look) for n in range(FIRST_FAR + 1)]
    on = edit.applied(model), model.hooks(fwd_hooks=hooks)
    with torch.no_grad(), OneDeviceAnOperation(), on[0], on[1], ends(name):
        model(TOKENS, stop_at_layer=N_LAYERS - 1)
        assert [device.type for device in seen] == ["cpu", "cpu", "meta"]


@pytest.mark.parametrize("name", ["delta", "erasure", "fairmed", "stack"])
def test_they_follow_on_plain_transformers_too(tokenizer, name, search_without_values):
    model = bridged(len(tokenizer), seed=3, model_id="spread")
    edit, plain = freed(edits(model)[name]), tiny_hf("llama", len(tokenizer), seed=3)
    spread(plain, plain.model.layers)
    plain.model.norm.to("meta")
    plain.lm_head.to("meta")
    with torch.no_grad(), OneDeviceAnOperation(), edit.attach(plain), ends(name):
        assert plain(TOKENS).logits.device.type == "meta"


def test_what_needs_a_plain_twin_gives_way_or_says_so(tokenizer):
    model = bridged(len(tokenizer), seed=4, model_id="spread")
    texts = ["The old man forgot it.", "The old man led it."] * 8
    expected, experts = tracelab.score(model, texts).sum, random_experts(model)
    assert type(block_runner(model)) is PlainBlockRunner
    model.original_model.hf_device_map = dict(PLACES)
    assert type(block_runner(model)) is BlockRunner
    assert abs(tracelab.score(model, texts).sum - expected).max() < 1e-4
    with pytest.raises(TracelabError, match="is spread over devices: a plain twin lies on one"):
        experts.hooks(model)


def test_offloaded_weights_are_refused_at_load(folder, tmp_path):
    places = {part: "disk" if place == "meta" else place for part, place in PLACES.items()}
    hf_model = AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path / "offloaded"
    )
    own = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(TracelabError, match=r"weights of .* are offloaded \(model\.layers\.2"):
        tracelab.load(hf_model, tokenizer=own)


def test_under_accelerates_hooks_everything_computes_the_same(folder):
    expected = tracelab.load(folder)
    hf_model = AutoModelForCausalLM.from_pretrained(folder)
    accelerate.dispatch_model(
        hf_model, device_map=dict.fromkeys(PLACES, "cpu"), main_device="cpu", force_hooks=True
    )
    assert hasattr(hf_model.model.layers[0], "_hf_hook")
    model = tracelab.load(hf_model, tokenizer=AutoTokenizer.from_pretrained(folder))
    texts = ["The old man forgot it.", "The old man led it."]
    assert abs(tracelab.score(model, texts).sum - tracelab.score(expected, texts).sum).max() < 1e-5
    pairs = tracelab.datasets.pairs([(*texts, "The old man seven it.", "man")], bias="age")
    found = [
        tracelab.causal_trace(each, pairs, n_samples=2, run="fast").states["gap"].to_numpy()
        for each in (model, expected)
    ]
    assert abs(found[0] - found[1]).max() < 1e-4
    data = tracelab.datasets.ExpertTexts("age", texts, texts[::-1])
    tuned = [
        tracelab.Experts.fit(each, data, training=tracelab.FinetuneConfig(rank=2))
        for each in (model, expected)
    ]
    with tuned[0].applied(model), tuned[1].applied(expected):
        apart = tracelab.score(model, texts).sum - tracelab.score(expected, texts).sum
    assert abs(apart).max() < 1e-3
