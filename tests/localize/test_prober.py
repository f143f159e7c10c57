from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tracelab.errors import TracelabError
from tracelab.localize.probing.prober import ProberConfig, Probers, Scale, train_probers

N_LAYERS, D_MODEL, N_GROUPS, N_PROMPTS = 3, 12, 3, 50
CONFIG = ProberConfig(hidden=16, epochs=4, batch_size=8)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(N_PROMPTS, N_LAYERS, D_MODEL, generator=generator)
    labels = torch.randn(N_PROMPTS, N_GROUPS, generator=generator).mul(2).softmax(-1)
    train = torch.randperm(N_PROMPTS, generator=generator)[:37]  # the last batch is short
    return activations, labels, train


def one_network(probers: Probers, layer: int) -> nn.Sequential:
    """The prober of one layer as an ordinary network, in its own memory."""
    network = nn.Sequential(
        nn.Linear(D_MODEL, CONFIG.hidden), nn.ReLU(), nn.Linear(CONFIG.hidden, N_GROUPS)
    )
    with torch.no_grad():
        network[0].weight.copy_(probers.w1[layer].T)
        network[0].bias.copy_(probers.b1[layer, 0])
        network[2].weight.copy_(probers.w2[layer].T)
        network[2].bias.copy_(probers.b2[layer, 0])
    return network


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_batched_training_equals_training_one_layer_alone(data, layer):
    activations, labels, train = data
    network = one_network(Probers(N_LAYERS, D_MODEL, CONFIG.hidden, N_GROUPS, seed=5), layer)
    mean = activations[train, layer].mean(dim=0)
    distance = (activations[train, layer] - mean).norm(dim=-1).square().mean().sqrt()
    inputs = (activations[:, layer] - mean) / distance
    optimizer = torch.optim.Adam(network.parameters(), lr=CONFIG.lr)
    order = torch.Generator().manual_seed(5)
    for _ in range(CONFIG.epochs):
        for rows in train[torch.randperm(len(train), generator=order)].split(CONFIG.batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs[rows]), labels[rows])
            loss.backward()
            optimizer.step()
    batched = train_probers(activations, labels, train, config=CONFIG, seed=5)
    expected = network(inputs)
    assert torch.allclose(batched(activations)[layer], expected, atol=1e-4)
    untrained = one_network(Probers(N_LAYERS, D_MODEL, CONFIG.hidden, N_GROUPS, seed=5), layer)
    # training has moved it far further than the tolerance
    assert (untrained(inputs) - expected).abs().max() > 0.02


@pytest.mark.parametrize("at_once", [1, 2])
def test_how_many_layers_are_trained_together_changes_nothing(data, monkeypatch, at_once):
    activations, labels, train = data
    together = train_probers(activations, labels, train, config=CONFIG, seed=5)
    size = 4 * D_MODEL * CONFIG.hidden
    monkeypatch.setattr("tracelab.localize.probing.prober._GROUP_BYTES", at_once * size)
    parted = train_probers(activations, labels, train, config=CONFIG, seed=5)
    for name, value in together.state_dict().items():
        torch.testing.assert_close(parted.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_without_standardising_the_network_reads_what_it_is_given(data):
    activations, labels, train = data
    config = ProberConfig(hidden=16, epochs=4, batch_size=8, standardise=False)
    raw = train_probers(activations, labels, train, config=config, seed=0)
    scale = Scale.of(activations, train)
    standardised = train_probers(scale.apply(activations), labels, train, config=config, seed=0)
    folded = train_probers(activations, labels, train, config=CONFIG, seed=0)
    expected = standardised(scale.apply(activations))
    torch.testing.assert_close(folded(activations), expected, atol=1e-5, rtol=1e-5)
    assert (raw(activations) - expected).abs().max() > 0.02


def test_a_large_scale_hides_nothing_a_prober_could_read():
    """Three layers of one content, with norms of about 70, 700 and 7,000 and a mean of that
    size."""
    generator = torch.Generator().manual_seed(2)
    n, d = 600, 48
    truth = torch.randn(n, generator=generator)
    content = torch.randn(n, d, generator=generator)
    content[:, 0] = 2 * truth
    content += 5 * torch.randn(d, generator=generator)
    content /= content.norm(dim=-1).mean()
    activations = torch.stack([content * norm for norm in (70, 700, 7000)], dim=1)
    p = torch.sigmoid(2 * truth)
    labels = torch.stack([p, 1 - p], dim=1)
    train, test = torch.arange(450), torch.arange(450, n)

    def measured(config):
        logits = train_probers(activations, labels, train, config=config, seed=0)(activations)[
            :, test
        ]
        log_p = logits.log_softmax(dim=-1)
        kl = (labels[test] * (labels[test].log() - log_p)).sum(dim=-1).mean(dim=-1)
        return kl, (logits.argmax(-1) == labels[test].argmax(-1)).float().mean(dim=-1)

    # not quite the same: layer l begins with weights of its own
    kl, hits = measured(ProberConfig(hidden=64))
    assert kl.max() < 0.03
    assert hits.min() > 0.93
    assert kl[2] < 1.5 * kl[0] + 0.005
    raw_kl, _ = measured(ProberConfig(hidden=64, standardise=False))
    assert raw_kl[2] > 10 * kl[2]


@pytest.mark.parametrize("value", [0.0, 0.1, 3e4])
def test_what_never_varies_does_no_harm(data, value):
    activations, labels, train = data
    feature, layer = activations.clone(), activations.clone()
    feature[:, 1, 4] = value
    layer[:, 1] = value
    for spoilt in (feature, layer):
        probers = train_probers(spoilt, labels, train, config=CONFIG, seed=0)
        clean = train_probers(activations, labels, train, config=CONFIG, seed=0)
        assert probers(spoilt).isfinite().all()
        assert torch.equal(probers.w1[[0, 2]], clean.w1[[0, 2]])
        assert probers(spoilt)[1].abs().max() < 5


def test_a_layers_initial_weights_depend_on_seed_and_layer_only():
    few, many, other = (
        Probers(n, D_MODEL, 16, N_GROUPS, seed) for n, seed in ((2, 1), (5, 1), (2, 2))
    )
    for name in ("w1", "b1", "w2", "b2"):
        a, b, c = (dict(p.named_parameters())[name] for p in (few, many, other))
        assert torch.equal(a, b[:2])
        assert not torch.equal(a, c)
        assert not torch.equal(b[0], b[1])


def test_initial_weights_are_uniform_like_a_linear_layers():
    probers = Probers(1, 64, 1024, 2, seed=0).requires_grad_(False)
    linear = nn.Linear(64, 1024).requires_grad_(False)
    assert probers.w1.abs().max() <= 1 / math.sqrt(64)
    assert float(probers.w1.std()) == pytest.approx(float(linear.weight.std()), rel=0.03)
    assert float(probers.b1.std()) == pytest.approx(float(linear.bias.std()), rel=0.1)
    assert probers.w2.abs().max() <= 1 / math.sqrt(1024)


def test_rows_outside_the_training_set_are_never_read(data):
    activations, labels, train = data
    outside = torch.ones(N_PROMPTS, dtype=torch.bool)
    outside[train] = False
    spoilt = activations.clone()
    spoilt[outside] = float("nan")
    clean, other = (
        train_probers(a, labels, train, config=CONFIG, seed=0) for a in (activations, spoilt)
    )
    assert torch.equal(clean.w1, other.w1)


def test_training_repeats_with_the_seed_whatever_the_global_one(data):
    runs = []
    for global_seed, seed in ((0, 3), (1, 3), (0, 4)):
        torch.manual_seed(global_seed)
        runs.append(train_probers(*data, config=CONFIG, seed=seed).w1)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_trained_probers_are_frozen_and_each_epoch_is_reported(data):
    steps = []
    probers = train_probers(*data, config=CONFIG, seed=0, step=lambda: steps.append(1))
    assert len(steps) == CONFIG.epochs
    assert not any(parameter.requires_grad for parameter in probers.parameters())


def test_a_signal_in_one_layer_is_found_there_only():
    generator = torch.Generator().manual_seed(1)
    truth = torch.arange(400) % 2
    activations = torch.randn(400, 2, D_MODEL, generator=generator)
    activations[:, 1, 0] += 6 * truth - 3
    probers = train_probers(
        activations, nn.functional.one_hot(truth).float(), torch.arange(300), config=CONFIG, seed=0
    )
    hits = (probers(activations[300:]).argmax(-1) == truth[300:]).float().mean(1)
    assert hits[1] > 0.95
    assert 0.3 < hits[0] < 0.7


@pytest.mark.parametrize("lr", [1e4, 1e30, 1e300])
def test_a_training_that_diverges_is_refused(data, lr):
    activations, labels, train = data
    with pytest.raises(TracelabError, match="the training of the probers diverged .*: lower lr="):
        train_probers(
            activations, labels, train, config=ProberConfig(hidden=8, lr=lr, epochs=2), seed=5
        )
