"""Fixtures, and the switches that must come before any import of the package.

The model hub is off, so no test waits for a network; jaxtyping checks every annotation of tracelab
at run time with beartype; and torch keeps to one thread, in the processes that tests start too:
small products gain nothing from more, and threads of several processes wait for each other.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import jaxtyping

import tests.runtime_types  # noqa: F401  the hook looks it up by its name

jaxtyping.install_import_hook("tracelab", "tests.runtime_types.check")

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import tiny_hf
from tracelab.model import assets
from tracelab.model.load import from_hf, load

_SHARED: list[TransformerBridge] = []


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The embedded model's tokenizer as it is on disk; it adds no BOS."""
    return AutoTokenizer.from_pretrained(assets.model_dir())


@pytest.fixture(scope="session")
def real_model() -> TransformerBridge:
    """The embedded SmolLM2-135M."""
    model = load()
    _SHARED.append(model)
    return model


@pytest.fixture(scope="session")
def plain_model() -> Any:
    """The embedded model in plain ``transformers``, never wrapped: what oracles run."""
    return AutoModelForCausalLM.from_pretrained(assets.model_dir(), dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Any) -> Callable[[str], TransformerBridge]:
    """``tiny_model(kind)``: a small random model of an architecture, made once a session."""
    made: dict[str, TransformerBridge] = {}

    def make(kind: str) -> TransformerBridge:
        if kind not in made:
            made[kind] = from_hf(
                tiny_hf(kind, len(tokenizer)),
                AutoTokenizer.from_pretrained(assets.model_dir()),  # bridging takes it over
                model_id=f"tiny-{kind}",
            )
            _SHARED.append(made[kind])
        return made[kind]

    return make


@pytest.fixture(autouse=True)
def _tests_do_not_depend_on_each_other() -> Iterator[None]:
    """Each test has the same global seed and leaves no hook and no gradient on the models that
    tests share."""
    torch.manual_seed(0)
    yield
    left = [name for model in _SHARED for name in model.list_hooks()]
    grown = [
        model.cfg.model_name
        for model in _SHARED
        if any(p.grad is not None for p in model.parameters())
    ]
    for model in _SHARED if left or grown else ():
        model.reset_hooks()
        for parameter in model.parameters():
            parameter.grad = None
    assert not left
    assert not grown
