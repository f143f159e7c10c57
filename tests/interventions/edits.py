"""Edits with random tensors, which move the logits by whole nats and need no training, and how
tests apply them."""

from __future__ import annotations

import contextlib

import torch
from transformers import AutoTokenizer

from tests.tiny import tiny_hf
from tracelab.datasets import templates
from tracelab.interventions import (
    Erasure,
    ErasureConfig,
    Experts,
    ExpertsConfig,
    FairMed,
    FairMedConfig,
    FinetuneConfig,
    WeightDelta,
)
from tracelab.interventions.fairmed.fairmed import AttributeSpec
from tracelab.interventions.origin import Origin
from tracelab.model import assets
from tracelab.model.hook_points import Point
from tracelab.model.load import from_hf

TOKENS = torch.arange(40, 52).reshape(2, 6)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
QUICK = {
    "fairmed": {"n_seeds": 1, "top_k": 2},
    "biasedit": {"steps": 1, "eval_every": 1, "rank": 4, "init": "normal", "lr": 1e-2},
    # moves something, whatever it costs
    "klaad": {"rank": 2, "choose": "loss", "max_kl": 1e9, "max_lms_loss": 100.0},
    "experts": {"training": FinetuneConfig(rank=2)},
}
"""Smaller fits than by default, by method; one that is quick anyway needs nothing."""


def bridged(vocab: int, seed: int, model_id: str):
    """A tiny llama that no other test uses."""
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    return from_hf(tiny_hf("llama", vocab, seed=seed), own, model_id=model_id)


@torch.no_grad()
def logits(model, edit=None, tokens=TOKENS, **options):
    """The logits of a model, under an edit if one is given."""
    with edit.applied(model) if edit is not None else contextlib.nullcontext():
        return model(tokens, **options)


def random_delta(
    model, *, modules=("mlp.out", "attn.o"), layers=(1, 3), rank=4, seed=0, scale=0.5
) -> WeightDelta:
    delta = WeightDelta.low_rank(model, layers=layers, modules=modules, rank=rank, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return delta


def random_experts(model, *, expert=True, anti=True, bias="gender", **config) -> Experts:
    return Experts(
        random_delta(model, seed=1) if expert else None,
        random_delta(model, seed=2) if anti else None,
        ExpertsConfig(**config),
        bias=bias,
    )


def random_fairmed(model, *, layers=(1, 2), attribute="gender", seed=0, **config) -> FairMed:
    corpus = templates(attribute, limit=4)
    d = model.cfg.d_model
    spec = AttributeSpec(
        attribute=attribute,
        groups=corpus.group_names,
        scored=corpus.group_names,
        layers=tuple(layers),
        d_model=d,
        hidden=16,
    )
    origin = Origin.of(model, [Point("mlp_out", layer) for layer in layers])
    edit = FairMed(FairMedConfig(**config), [spec], origin)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in edit.named_buffers():
            if name.endswith("norm_std"):
                buffer.fill_(1.0)
            else:
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return edit


def random_erasure(model, *, layers=(0, 2), seed=0, bias="gender", **config) -> Erasure:
    settings = ErasureConfig(**{"rank": 2, **config})
    spec = Erasure.Spec(config=settings, bias=bias, layers=tuple(layers), d_model=model.cfg.d_model)
    edit = Erasure(spec, Origin.of(model, [Point("resid_post", layer) for layer in layers]))
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        read = torch.linalg.qr(torch.randn(model.cfg.d_model, settings.rank, generator=generator))[
            0
        ].T
        mu = torch.randn(model.cfg.d_model, generator=generator)
        edit.set_(layer, read=read, write=read, mu=mu, most=torch.full((settings.rank,), 5.0))
    return edit


def without_time(edit) -> dict:
    """The notes of an edit but for how long its fit took."""
    return {name: value for name, value in edit.notes.items() if name != "fit_seconds"}
