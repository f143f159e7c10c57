"""Erasure: what is taken out, what stays, and that the closed form is the published one."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import tracelab
from tests.interventions.edits import bridged, logits, random_erasure
from tracelab.cli import main
from tracelab.datasets import GroupPairs, group_pairs, neutral_sentences
from tracelab.errors import TracelabError
from tracelab.interventions import Erasure, ErasureConfig, Stack, load_intervention
from tracelab.interventions.drift import drift
from tracelab.interventions.erasure import _directions
from tracelab.model.states import token_states
from tracelab.model.tokens import encode

PAIRS = GroupPairs.of(
    "gender",
    [
        (f"{a} {verb} to {place}", f"{b} {verb} to {place}")
        for a, b in (
            ("She", "He"),
            ("A woman", "A man"),
            ("My mother", "My father"),
            ("The queen", "The king"),
        )
        for verb in ("went", "walked", "drove")
        for place in ("work", "the market", "school", "a doctor")
    ],
    ["The river is long and wide.", "Trains leave at noon from the old station."],
)


@pytest.fixture(scope="module")
def model(tokenizer):
    return bridged(len(tokenizer), 0, "own")


def rows(seed=0, n=400, d=8, shift=2.0):
    """Activations of two groups that differ along one direction, with other variance of many
    sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) * torch.logspace(0, 1, d)
    u = torch.randn(d, generator=generator)
    return x + shift * u, x - shift * u


def erased(x, tensors, strength=1.0):
    return x - strength * ((x - tensors["mu"]) @ tensors["read"].T) @ tensors["write"]


def test_leace_without_shrinking_is_the_authors_own():
    from concept_erasure import LeaceEraser

    a, b = rows()
    found = _directions(a, b, [], ErasureConfig(method="leace", shrink=1e-9))
    x, z = torch.cat([a, b]), torch.tensor([0] * len(a) + [1] * len(b))
    theirs = LeaceEraser.fit(x.double(), z, shrinkage=False)(x.double())
    ours = x - ((x - found["mu"]) @ found["read"].T) @ found["write"]
    torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-4)
    assert (ours - x).norm() > 1


def test_after_leace_the_groups_have_one_mean_and_no_linear_probe_beats_chance():
    a, b = rows()
    tensors = _directions(a, b, [], ErasureConfig(method="leace", shrink=1e-9))
    one, other = erased(a, tensors), erased(b, tensors)
    assert torch.allclose(one.mean(dim=0), other.mean(dim=0), atol=1e-3)
    x, y = torch.cat([one, other]).numpy(), np.repeat([0, 1], len(a))
    assert LogisticRegression(max_iter=1000).fit(x, y).score(x, y) < 0.55
    raw = torch.cat([a, b]).numpy()
    assert LogisticRegression(max_iter=1000).fit(raw, y).score(raw, y) > 0.6


def test_leace_is_the_published_closed_form():
    """r(x) = x - W+ P (W (x - mu)), W = S^-1/2 and P the projection on W Cov(x, z)."""
    a, b = rows()
    tensors = _directions(a, b, [], ErasureConfig(method="leace", shrink=1e-12))
    x = torch.cat([a, b]).double()
    z = torch.cat([torch.ones(len(a)), -torch.ones(len(b))]).double()
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / len(x)
    values, vectors = torch.linalg.eigh(covariance)
    whiten, colour = vectors / values.sqrt() @ vectors.T, vectors * values.sqrt() @ vectors.T
    direction = whiten @ (centred.T @ (z - z.mean()) / len(x))
    projection = torch.outer(direction, direction) / direction.square().sum()
    expected = x - centred @ (colour @ projection @ whiten).T
    assert torch.allclose(erased(x.float(), tensors), expected.float(), atol=1e-3)


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_orthogonal_directions_leave_the_rest_of_the_activation(method):
    a, b = rows()
    tensors = _directions(a, b, [], ErasureConfig(method=method))
    assert torch.equal(tensors["read"], tensors["write"])
    assert torch.allclose(tensors["read"] @ tensors["read"].T, torch.eye(1), atol=1e-5)
    change = erased(a, tensors) - a
    assert torch.linalg.matrix_rank(change, atol=1e-3) == 1


@pytest.mark.parametrize("method", ["paired", "leace", "mean"])
def test_a_fit_brings_counterparts_nearer_to_each_other_at_every_edited_layer(model, method):
    edit = Erasure.fit(model, PAIRS, ErasureConfig(method=method), layers=[0, 2])
    ids = [[encode(model, text).ids for text in side] for side in zip(*PAIRS.pairs, strict=True)]

    def distance(layer):
        first, second = (token_states(model, side, "resid_post", layer) for side in ids)
        means = [torch.stack([x[-1] for x in side]).mean(dim=0) for side in (first, second)]
        return float((means[0] - means[1]).norm())

    for layer in (0, 2):
        before = distance(layer)
        with edit.applied(model):
            assert distance(layer) < before
    assert edit.notes["n_pairs"] + edit.notes["left_out"] == len(PAIRS.pairs)


def test_layers_are_fitted_on_what_the_layers_before_them_leave(model):
    both = Erasure.fit(model, PAIRS, layers=[0, 2])
    alone = Erasure.fit(model, PAIRS, layers=[2])
    assert torch.equal(both.read_0, Erasure.fit(model, PAIRS, layers=[0]).read_0)
    assert not torch.allclose(both.read_2, alone.read_2, atol=1e-3)


def test_each_layers_directions_are_those_of_whole_forward_passes_under_the_layers_before(model):
    edit = Erasure.fit(model, PAIRS, layers=[0, 2, 3])
    pairs = [tuple(encode(model, text).ids for text in pair) for pair in PAIRS.pairs]
    starts = [next(i for i in range(len(a)) if a[i] != b[i]) for a, b in pairs if len(a) == len(b)]
    pairs = [(a, b) for a, b in pairs if len(a) == len(b)]
    neutral = [encode(model, text).ids for text in PAIRS.neutral]

    def rows_of(side, layer):
        states = token_states(model, [pair[side] for pair in pairs], "resid_post", layer)
        return torch.cat([x[k:] for x, k in zip(states, starts, strict=True)])

    for before, layer in ((None, 0), (0, 2), (2, 3)):
        with contextlib.nullcontext() if before is None else edit.up_to(before).applied(model):
            a, b = rows_of(0, layer), rows_of(1, layer)
            other = [x[1:] for x in token_states(model, neutral, "resid_post", layer)]
        expected = _directions(a, b, other, edit.config)
        for name in ("mu", "most"):
            torch.testing.assert_close(
                getattr(edit, f"{name}_{layer}"), expected[name], atol=1e-4, rtol=1e-3
            )
        found = {name: getattr(edit, f"{name}_{layer}") for name in ("read", "write", "mu")}
        torch.testing.assert_close(erased(a, found), erased(a, expected), atol=1e-3, rtol=1e-3)


def test_random_directions_follow_the_seed_and_bring_counterparts_no_nearer(model):
    a, b = rows()
    settings = ErasureConfig(method="random", rank=2)
    first, again, other, above = (
        _directions(a, b, [], config, layer)["read"]
        for config, layer in (
            (settings, 0),
            (settings, 0),
            (settings.seeded(1), 0),
            (settings, 1),
        )
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)
    assert not torch.allclose(first, above, atol=1e-2)

    def distance(method):
        found = _directions(a, b, [], ErasureConfig(method=method))
        return float((erased(a, found) - erased(b, found)).mean(dim=0).norm())

    assert distance("paired") < 0.5 * distance("random")


def test_layers_up_to_one_are_a_fit_of_these_alone(model):
    edit = Erasure.fit(model, PAIRS, layers=[0, 2, 3])
    part, alone = edit.up_to(2), Erasure.fit(model, PAIRS, layers=[0, 2])
    assert part.layers == alone.layers == (0, 2)
    assert part.paths() == alone.paths()
    assert torch.equal(logits(model, part), logits(model, alone))
    assert part.spec() == alone.spec()
    with pytest.raises(TracelabError, match="erasure needs layers"):
        Erasure.fit(model, PAIRS, layers=[2]).up_to(1)


def test_the_strength_of_a_fitted_edit_can_be_changed(model):
    edit = Erasure.fit(model, PAIRS, layers=[1])
    assert torch.equal(logits(model, edit.with_strength(0.0)), logits(model))
    half = edit.with_strength(0.5)
    assert (half.config.strength, edit.config.strength) == (0.5, 1.0)
    change, full = logits(model, half) - logits(model), logits(model, edit) - logits(model)
    assert 0 < change.norm() < full.norm()


def test_the_cost_on_held_out_text_is_noted(model):
    texts = ["The river is long and wide.", "Trains leave at noon from the old station."]
    data = GroupPairs.of("gender", PAIRS.pairs, PAIRS.neutral, texts)
    edit = Erasure.fit(model, data, layers=[1])
    cost = drift(model, edit, texts)
    assert edit.notes["kl"] == pytest.approx(cost.kl, abs=1e-5)
    assert edit.notes["kl"] > 0
    assert edit.notes["perplexity_change"] == pytest.approx(cost.perplexity_change, abs=0.01)
    assert not {"kl", "perplexity_change"} & set(edit.with_strength(0.5).notes)
    assert "kl" not in Erasure.fit(model, PAIRS, layers=[1]).notes


def test_strength_0_is_the_unedited_model_bit_for_bit(model):
    assert torch.equal(logits(model, random_erasure(model, strength=0.0)), logits(model))
    assert not torch.equal(logits(model, random_erasure(model)), logits(model))


def test_a_fitted_edit_is_kept_stacked_inspected_and_evaluated(model, tmp_path):
    edit = Erasure.fit(model, PAIRS, layers=[1])
    back = load_intervention(edit.save(tmp_path / "kept"))
    assert torch.equal(logits(model, back), logits(model, edit))
    assert (back.config, back.layers, back.bias) == (edit.config, edit.layers, "gender")
    assert torch.equal(logits(model, Stack([back])), logits(model, edit))
    assert (
        not tracelab.inspect(model, back, "The nurse said")
        .layers.query("layer >= 1")["resid_post"]
        .eq(0)
        .all()
    )
    board = tracelab.evaluate(model, back, ["local-bias"], bias="gender", limit=4, costs=False)
    assert board.failures == 0


WRONG = [
    ({"rank": 0}, "rank is at least 1, not 0"),
    ({"rank": 1.5}, "rank is a whole number, not 1.5"),
    ({"rank": True}, "rank is a whole number, not True"),
    ({"rank": 10**30}, "rank is at most 65536"),
    ({"method": "inlp"}, "unknown method 'inlp': choose one of paired, leace, mean, pca, random"),
    ({"strength": float("nan")}, "strength is a finite number, not nan"),
    ({"strength": "1"}, "strength is a number, not '1'"),
    ({"shrink": 0.0}, "shrink is above 0, not 0.0"),
    ({"ranks": 2}, "ErasureConfig has no field ranks: it has rank, method, strength, shrink, seed"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_wrong_configuration_is_one_sentence(values, message):
    with pytest.raises(TracelabError, match=message):
        ErasureConfig(**values)


def test_what_cannot_be_fitted_is_one_sentence(model):
    with pytest.raises(TracelabError, match="leace of 48 pairs has rank 1 at most, not 2"):
        Erasure.fit(model, PAIRS, ErasureConfig(rank=2, method="leace"))
    with pytest.raises(TracelabError, match="none of 1 pairs has two texts of equally many tokens"):
        Erasure.fit(model, GroupPairs.of("gender", [("She", "A man of the world")]))
    with pytest.raises(TracelabError, match="layer 9 is out of range"):
        Erasure.fit(model, PAIRS, layers=[9])
    with pytest.raises(TracelabError, match="religion, orientation only, not in profession"):
        group_pairs("profession")


@pytest.mark.slow
def test_the_pairs_name_women_first_and_share_no_text_with_what_perplexity_is_measured_on():
    data = group_pairs("gender")
    assert len(data.pairs) > 400
    assert all(a != b for a, b in data.pairs)

    def naming(side, *words):
        return sum(any(f" {word} " in f" {text.lower()} " for word in words) for text in side)

    women, men = zip(*data.pairs, strict=True)
    assert min(naming(women, "she", "her"), naming(men, "he", "his")) > 50
    assert max(naming(women, "he"), naming(men, "she")) < 20  # texts that name both
    assert not set(data.neutral) & set(neutral_sentences())


def test_the_command_line_fits_one(tmp_path, tokenizer, capsys):
    from tests.tiny import tiny_hf

    tiny_hf("llama", len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = [
        "fit",
        "erasure",
        "--bias",
        "gender",
        "--limit",
        "20",
        "--rank",
        "2",
        "--layers",
        "0,1",
    ]
    assert (
        main([*command, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "bundle")]) == 0
    )
    edit = load_intervention(tmp_path / "bundle")
    assert (edit.kind, edit.config.rank, edit.layers) == ("erasure", 2, (0, 1))
    assert main([*command, "--alpha", "1", "--out", str(tmp_path / "other")]) == 2
    assert "fit erasure has no option --alpha 1" in capsys.readouterr().err


@pytest.mark.slow
def test_on_the_real_model_local_bias_falls_at_little_cost(real_model):
    """Fitted on openings of StereoSet's test split; the prompts and sentences measured here are
    others."""
    edit = Erasure.fit(real_model, group_pairs("gender"))
    board = tracelab.evaluate(
        real_model, edit, ["local-bias", "perplexity"], bias="gender", limit=100, costs=False
    )
    rows = board.frame[board.frame["edit"] == edit.name].set_index("metric")
    assert rows.loc["hellinger", "difference_high"] < 0
    before = board.frame.set_index(["edit", "metric"]).loc[("unedited", "perplexity"), "value"]
    assert rows.loc["perplexity", "value"] < 1.06 * before
