"""What the tests of BiasEdit share: records, configurations, tiny models and a plain twin as slow
oracle."""

from __future__ import annotations

from functools import partial as bound

import torch

from tests.interventions.edits import logits as logits_of
from tests.interventions.triple_records import OTHER_TARGETS, records, word_hf
from tracelab.interventions import BiasEditConfig, WeightDelta
from tracelab.interventions.biasedit.triple_model import TripleModel
from tracelab.interventions.training.triple_losses import debias_loss, retention_loss
from tracelab.interventions.training.triples import LABELS, tokenise

KINDS = ("llama", "gpt2")
LAYERS = (1, 3)
SMALL = {
    "rank": 8,
    "n_edits": 4,
    "n_query": 3,
    "n_support": 99,
    "batch_size": 3,
    "steps": 2,
    "eval_every": 1,
    "choose": "loss",
    "max_kl": 99.0,
    "max_lms_loss": 99.0,
}
FITTED = BiasEditConfig(**SMALL, lr=0.3, ridge=1.0)
TRAIN, DEV = records(20), records(6, start=100, targets=OTHER_TARGETS)
TOKENS = torch.arange(4, 16).reshape(2, 6)
OWN = BiasEditConfig(**SMALL, retain_on="all", lam=0.7)
CONFIGS = {
    "own": OWN,
    "released": BiasEditConfig.reference(**SMALL, lam=3.0),
    "fillers": BiasEditConfig(**SMALL, span="filler", loss="logprob", retain_on="all"),
    "released losses of all": BiasEditConfig(
        **SMALL, loss="reference", retention="reference", retain_on="all", lam=2.0
    ),
}
logits = bound(logits_of, tokens=TOKENS)


def shapes_of(model, layers=LAYERS):
    return WeightDelta.low_rank(model, layers=layers, modules=("mlp.out",), rank=None).spec().maps


def triple_model(model, config=OWN, given=TRAIN, layers=LAYERS) -> TripleModel:
    return TripleModel(model, tokenise(model, given), shapes_of(model, layers), config)


def random_shifts(model, layers=LAYERS, scale=0.05, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(s.d_in, s.d_out, generator=generator) for s in shapes_of(model, layers)
    ]


def dense_delta(model, layers=LAYERS, **options) -> WeightDelta:
    """A delta with random shifts."""
    delta = WeightDelta.low_rank(model, layers=layers, modules=("mlp.out",), rank=None)
    delta.set_(random_shifts(model, layers, **options))
    return delta


class Twin:
    """A plain ``transformers`` model with the tiny model's weights, of which shifts are added to
    the weights."""

    def __init__(self, kind: str, folder, shifts=(), layers=LAYERS) -> None:
        self.kind, self.layers = kind, layers
        self.hf = word_hf(kind, folder).requires_grad_(False)
        for layer, shift in zip(layers, shifts, strict=False):
            # Conv1D keeps [d_in, d_out]
            self.map(layer).weight += shift if kind == "gpt2" else shift.T
        for layer in layers:
            self.map(layer).weight.requires_grad_()

    def map(self, layer: int):
        if self.kind == "gpt2":
            return self.hf.transformer.h[layer].mlp.c_proj
        return self.hf.model.layers[layer].mlp.down_proj

    def gradients(self) -> list[torch.Tensor]:
        """Of x W, that is, [d_in, d_out]."""
        grads = [self.map(layer).weight.grad for layer in self.layers]
        return grads if self.kind == "gpt2" else [grad.T for grad in grads]

    def logits(self, ids) -> torch.Tensor:
        """Of one sentence, unpadded."""
        return self.hf(torch.tensor([ids])).logits


def slow_debias(twin: Twin, triples, number: int, config) -> torch.Tensor:
    pair = []
    for label in ("stereotype", "anti_stereotype"):
        index = triples.index(number, label)
        ids = triples.sequences[index]
        logprobs = twin.logits(ids)[0].log_softmax(-1)
        values = torch.stack([logprobs[j - 1, ids[j]] for j in range(1, len(ids))])[None]
        chosen = torch.ones_like(values, dtype=torch.bool)
        if config.span == "filler":
            chosen = torch.tensor([[j in triples.fillers[index] for j in range(1, len(ids))]])
        pair += [values, chosen]
    return debias_loss(config.loss, *pair, beta=config.beta, margin=config.margin)[0]


def slow_retention(before: Twin, after: Twin, triples, number: int, config) -> torch.Tensor:
    losses = []
    for label in LABELS if config.retain_on == "all" else ("unrelated",):
        ids = triples.sequences[triples.index(number, label)]
        pair = before.logits(ids).detach(), after.logits(ids)
        tokens = torch.tensor([ids])
        losses.append(retention_loss(config.retention, *pair, tokens, torch.ones_like(tokens))[0])
    return torch.stack(losses).mean()


def same_shifts(first: WeightDelta, second: WeightDelta) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
