"""Probing: what a harvest adds to the forward pass, what all layers at once save, and memory.

    python analyses/speed/probing.py [--quick] [--rounds 3]

Four comparisons on the embedded model and the corpus of gender:

- ``probing.harvest``: the MLP output of every layer at the last token and the soft labels, against
  a bare forward pass of the same batches that computes the last position's logits and keeps
  nothing. A cost: at most 1.15 times, so the goal is 1 / 1.15.
- ``probing.fit_sklearn``: the probers of all layers against scikit-learn's ``MLPClassifier`` (same
  width, Adam, batches and epochs, inputs standardised in the same way; it takes hard labels) layer
  after layer. They begin elsewhere, so what agrees is the accuracy on the training rows.
- ``probing.fit_loop``: against one ``torch`` network, loss and optimiser a layer from the same
  beginning, in the way that one writes it first. Here the logits agree.
- ``probing.memory``: peak memory (MiB, under ``seconds`` and ``reference_seconds``) of a process
  that harvests a corpus ten times as large, on a random model so that it takes seconds. What grows
  is the activations kept, ``4 · layers · d_model`` bytes a prompt, beyond 2 GiB in a file.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import torch
from comparison import compare, in_a_process, options, peak_mib, say
from models import random_llama
from sklearn.neural_network import MLPClassifier
from torch import nn

import tracelab
from tracelab.localize.probing.harvest import group_token_ids, harvest
from tracelab.localize.probing.prober import ProberConfig, Probers, Scale, train_probers
from tracelab.model.partial_forward import last_logits
from tracelab.model.tokens import encode, length_batches, pad

BATCH_TOKENS = 1024


def against_bare(model, corpus, rounds: int) -> dict:
    """The harvest beside forward passes of its batches."""
    words = group_token_ids(model, corpus)
    sequences = [encode(model, prompt.text).ids for prompt in corpus.prompts]

    @torch.no_grad()
    def bare():
        found = torch.empty(len(sequences), len(words))
        for batch in length_batches(map(len, sequences), BATCH_TOKENS, equal=True):
            tokens, _ = pad(model, [sequences[i] for i in batch])
            p = last_logits(model, tokens).softmax(dim=-1)
            found[batch] = torch.stack([p[:, ids].sum(dim=1) for ids in words], dim=1)
        return found / found.sum(dim=1, keepdim=True)

    return compare(
        "probing.harvest",
        1 / 1.15,
        lambda: harvest(model, corpus, words, batch_tokens=BATCH_TOKENS),
        bare,
        lambda ours, labels: float((ours.labels - labels).abs().max()),
        rounds=rounds,
        close=1e-5,
    )


def fits(states, config: ProberConfig, rounds: int) -> list[dict]:
    """All layers at once beside two loops over layers."""
    a, labels = states.activations, states.labels
    n, n_layers, d = a.shape
    rows, truth = torch.arange(n), labels.argmax(dim=1)
    scale = Scale.of(a, rows)

    def ours():
        return train_probers(a, labels, rows, config=config, seed=0)(a)

    def torch_loop():
        inputs, made = scale.apply(a), Probers(n_layers, d, config.hidden, labels.shape[1], seed=0)
        logits = []
        for layer in range(n_layers):
            one = nn.Sequential(
                nn.Linear(d, config.hidden),
                nn.ReLU(),
                nn.Linear(config.hidden, labels.shape[1]),
            )
            with torch.no_grad():
                for place, w, b in ((0, made.w1, made.b1), (2, made.w2, made.b2)):
                    one[place].weight.copy_(w[layer].T)
                    one[place].bias.copy_(b[layer, 0])
            optimizer = torch.optim.Adam(one.parameters(), lr=config.lr)
            order = torch.Generator().manual_seed(0)
            for _ in range(config.epochs):
                shuffled = rows[torch.randperm(n, generator=order)]
                for batch in shuffled.split(config.batch_size):
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(one(inputs[batch, layer]), labels[batch])
                    loss.backward()
                    optimizer.step()
            logits.append(one(inputs[:, layer]).detach())
        return torch.stack(logits)

    def sklearn_loop():
        inputs, accuracies = scale.apply(a).numpy(), []
        for layer in range(n_layers):
            one = MLPClassifier(
                (config.hidden,),
                alpha=0.0,
                batch_size=config.batch_size,
                learning_rate_init=config.lr,
                max_iter=config.epochs,
                n_iter_no_change=config.epochs + 1,
                random_state=0,
            )
            with warnings.catch_warnings():  # that twenty epochs are all it gets
                warnings.simplefilter("ignore")
                one.fit(inputs[:, layer], truth.numpy())
            accuracies.append(one.score(inputs[:, layer], truth.numpy()))
        return torch.tensor(accuracies)

    def accuracy(logits, accuracies) -> float:
        mean = (logits.argmax(dim=-1) == truth).double().mean()
        return abs(float(mean - accuracies.mean()))

    def gap(logits, other) -> float:
        return float((logits - other).abs().max())

    return [
        compare("probing.fit_sklearn", 5, ours, sklearn_loop, accuracy, rounds=rounds, close=0.05),
        compare("probing.fit_loop", 5, ours, torch_loop, gap, rounds=rounds, close=5e-3),
    ]


def prompts(corpus, count: int):
    """A corpus of that many prompts: its own again and again."""
    own = corpus.prompts
    made = [replace(own[i % len(own)], id=f"{i}") for i in range(count)]
    return replace(corpus, prompts=tuple(made))


def memory(count: int) -> dict:
    """Peak memory of harvests of ``count`` and ten times as many prompts."""
    few, many = (in_a_process(str(n)) for n in (count, 10 * count))
    ratio = round(few["mib"] / many["mib"], 3)
    return {
        "name": "probing.memory",
        "ratio": ratio,
        "ratio_min": ratio,
        "ratio_max": ratio,
        "seconds": round(many["mib"]),
        "reference_seconds": round(few["mib"]),
        "unit": "MiB",
        "agreement": abs(few["label"] - many["label"]),
        "goal": round(1 / 1.05, 3),
        "kept_mib": round(many["kept_mib"], 1),
    }


def main() -> None:
    """Print the rounds, then the last line."""
    chosen = options(__doc__, rounds=3)
    corpus = tracelab.datasets.templates("gender")
    if chosen.child:
        model = random_llama(layers=8, width=128)
        states = harvest(model, prompts(corpus, int(chosen.child)), group_token_ids(model, corpus))
        found = {"mib": peak_mib(), "label": float(states.labels[0, 0])}
        print(json.dumps(found | {"kept_mib": states.activations.nbytes / 2**20}))
        return
    model = tracelab.load()
    some = prompts(corpus, 64 if chosen.quick else 256)
    first = against_bare(model, some, chosen.rounds)
    states = harvest(model, some, group_token_ids(model, some))
    config = ProberConfig(epochs=4 if chosen.quick else 20)
    more = fits(states, config, chosen.rounds)
    held = memory(200 if chosen.quick else 1000)
    say(first, *more, held | {"command": first["command"]})


if __name__ == "__main__":
    main()
