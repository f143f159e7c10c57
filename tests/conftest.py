"""Fixtures, and two switches that must come before any import of the package.

The model hub is off, so no test waits for a network; and jaxtyping checks every annotation of tracelab at run
time with beartype.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import jaxtyping

import tests.runtime_types  # noqa: F401  the hook looks it up by name

jaxtyping.install_import_hook("tracelab", "tests.runtime_types.check")

from collections.abc import Callable

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from tests.tiny import tiny_hf
from tracelab import assets
from tracelab.model import from_hf, load


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded model's tokenizer, which adds no BOS."""
    return AutoTokenizer.from_pretrained(assets.model_dir())


@pytest.fixture(scope="session")
def real_model() -> TransformerBridge:
    """The embedded SmolLM2-135M."""
    return load()


@pytest.fixture(scope="session")
def tiny_model(tokenizer) -> Callable[[str], TransformerBridge]:
    """``tiny_model(kind)``: a small random model of an architecture, made once a session."""
    made: dict[str, TransformerBridge] = {}

    def make(kind: str) -> TransformerBridge:
        if kind not in made:
            own = AutoTokenizer.from_pretrained(assets.model_dir())  # bridging changes it
            made[kind] = from_hf(tiny_hf(kind, len(tokenizer)), own, model_id=f"tiny-{kind}")
        return made[kind]

    return make


@pytest.fixture(autouse=True)
def _no_hook_outlives_its_test(request: pytest.FixtureRequest):
    """Every test leaves the models that tests share without hooks."""
    yield
    if "real_model" in request.fixturenames:
        assert not request.getfixturevalue("real_model").list_hooks()


@pytest.fixture(autouse=True)
def _same_global_seed():
    """Tests do not depend on the order in which they run."""
    torch.manual_seed(0)
