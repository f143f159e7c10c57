from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from tests.tiny import D_MODEL, N_LAYERS
from tracelab.datasets.templates import Corpus, Prompt, templates
from tracelab.errors import TracelabError
from tracelab.localize.probing import probes
from tracelab.localize.probing.harvest import Harvest
from tracelab.localize.probing.prober import ProberConfig
from tracelab.localize.probing.probes import LayerProbes, macro_f1, probe_layers, split_rows

SMALL = ProberConfig(hidden=32, epochs=3)
N_CONCEPTS, N_TEMPLATES = 24, 16


def synthetic_corpus(groups=("a", "b")) -> Corpus:
    prompts = tuple(
        Prompt(f"{c}-{t}", "made-up", f"concept {c}", f"{{concept}} {t}", f"Concept {c} {t}")
        for c, t in itertools.product(range(N_CONCEPTS), range(N_TEMPLATES))
    )
    words = {"a": ("man",), "b": ("woman",), "c": ("child",)}
    return Corpus("made-up", tuple((name, words[name]) for name in groups), prompts)


@pytest.fixture
def plant(monkeypatch):
    """``plant(activations, truth)``: probe_layers meets these activations and labels instead of the
    model's."""

    def set_up(activations, truth, n_groups=2):
        labels = torch.nn.functional.one_hot(torch.as_tensor(truth), n_groups) * 0.8 + 0.1
        labels = labels / labels.sum(1, keepdim=True)
        made = Harvest(activations.float(), labels.float(), torch.full((len(labels),), 0.5))
        monkeypatch.setattr(probes, "harvest", lambda *args, **kwargs: made)

    return set_up


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def quiet_probe(*args, **kwargs) -> LayerProbes:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fewer than 50 a group")
        return probe_layers(*args, **kwargs)


# --- macro-F1
# --------------------------------------------------------------------------------------------------


def confusion(truth, predicted, n_groups) -> np.ndarray:
    table = np.zeros((n_groups, n_groups))
    for t, p in zip(truth, predicted, strict=True):
        table[t, p] += 1
    return table


def one_f1(table: np.ndarray, scored: np.ndarray) -> float:
    return float(macro_f1(table[None], scored)[0])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scored", [[0, 1, 2, 3], [0, 2]])
def test_macro_f1_equals_sklearns(seed, scored):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(4, size=(2, 30))
    mask = np.isin(np.arange(4), scored)
    expected = f1_score(truth, predicted, average="macro", labels=scored, zero_division=np.nan)
    assert one_f1(confusion(truth, predicted, 4), mask) == pytest.approx(expected)


def test_macro_f1_of_many_resamples_is_that_of_each():
    rng = np.random.default_rng(0)
    tables = rng.integers(9, size=(5, 7, 3, 3)).astype(float)
    mask = np.array([True, False, True])
    together = macro_f1(tables, mask)
    assert together.shape == (5, 7)
    for i, j in itertools.product(range(5), range(7)):
        assert together[i, j] == pytest.approx(one_f1(tables[i, j], mask))


def test_a_group_neither_true_nor_predicted_is_left_out_of_the_mean():
    truth, predicted = [0, 0, 1, 1], [0, 0, 1, 0]
    both = one_f1(confusion(truth, predicted, 2), np.array([True, True]))
    with_absent = one_f1(confusion(truth, predicted, 3), np.array([True, True, True]))
    assert both == with_absent == pytest.approx((0.8 + 2 / 3) / 2)
    assert np.isnan(one_f1(np.zeros((2, 2)), np.array([True, True])))


# --- splits
# ----------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("attribute", ["gender", "age"])
def test_test_prompts_share_no_concept_and_no_template_with_training(attribute, seed):
    corpus = templates(attribute)
    train, test = split_rows(corpus, "concept_template", seed)
    for field, held_out in (("concept", True), ("template", True)):
        values = [
            {getattr(corpus.prompts[i], field) for i in rows.tolist()} for rows in (train, test)
        ]
        assert values[0].isdisjoint(values[1]) is held_out
        total = len({getattr(prompt, field) for prompt in corpus.prompts})
        assert len(values[0] | values[1]) == total
        assert len(values[1]) == round(total / 4)


def test_the_concept_split_shares_templates_and_the_sentence_split_shares_both():
    corpus = templates("gender")
    n_prompts = len(corpus.prompts)
    for split, shares_concepts in (("concept", False), ("sentence", True)):
        train, test = split_rows(corpus, split, 0)
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(n_prompts))
        concepts, forms = (
            [{getattr(corpus.prompts[i], field) for i in rows.tolist()} for rows in (train, test)]
            for field in ("concept", "template")
        )
        assert bool(concepts[0] & concepts[1]) is shares_concepts
        assert forms[0] & forms[1]
    assert len(test) == round(0.2 * n_prompts)


def test_the_seed_decides_the_split():
    corpus = templates("gender")
    one, again, other = (
        split_rows(corpus, "concept_template", seed)[1].tolist() for seed in (0, 0, 1)
    )
    assert one == again
    assert one != other


def test_a_corpus_too_small_to_hold_anything_out_is_refused():
    corpus = templates("gender", limit=1)
    with pytest.raises(TracelabError, match="too few to hold out 25%"):
        split_rows(corpus, "concept", 0)


# --- what the score shows
# --------------------------------------------------------------------------------------


def test_a_planted_signal_is_found_in_its_layer_and_the_control_stays_at_chance(tiny_model, plant):
    corpus = synthetic_corpus()
    truth = torch.randint(2, (len(corpus.prompts),), generator=torch.Generator().manual_seed(1))
    activations = noise(len(truth), N_LAYERS, D_MODEL)
    activations[:, 2, 5] += 8 * truth - 4
    plant(activations, truth)
    result = quiet_probe(
        tiny_model("llama"), corpus, config=ProberConfig(hidden=32, epochs=8), top_k=1
    )
    table = result.layers.set_index("layer")
    assert result.top_layers == [2]
    assert table.loc[2, "f1"] > 0.95
    assert table.loc[2, "accuracy"] > 0.95
    assert table.loc[2, "low"] > 0.9
    assert table.loc[2, "selectivity_low"] > 0.25
    for layer in (0, 1, 3):
        assert 0.3 < table.loc[layer, "f1"] < 0.7
        assert table.loc[layer, "selectivity_low"] < 0.05
        assert table.loc[layer, "kl"] > table.loc[2, "kl"]
    assert table["f1_control"].between(0.3, 0.7).all()


def test_a_concepts_identity_passes_for_signal_only_where_concepts_are_shared(tiny_model, plant):
    # Each concept has its own random activation and a label of its own: nothing generalises.
    corpus = synthetic_corpus()
    truth = torch.arange(N_CONCEPTS).repeat_interleave(N_TEMPLATES) % 2
    identity = noise(N_CONCEPTS, 1, D_MODEL).repeat_interleave(N_TEMPLATES, 0)
    plant(identity.expand(-1, N_LAYERS, -1), truth)
    config = ProberConfig(hidden=32, epochs=30)
    leaky, honest = (
        quiet_probe(tiny_model("llama"), corpus, config=config, split=split, n_seeds=4).layers["f1"]
        for split in ("sentence", "concept_template")
    )
    assert leaky.min() > 0.95
    assert honest.max() < 0.75


def test_groups_that_are_hardly_ever_the_likeliest_do_not_enter(tiny_model, plant):
    corpus = synthetic_corpus(("a", "b", "c"))
    truth = torch.arange(len(corpus.prompts)) % 2
    truth[0] = 2  # one of 384 prompts
    activations = noise(len(truth), N_LAYERS, D_MODEL)
    activations[:, :, 0] += (8 * (truth == 1).float() - 4)[:, None]
    plant(activations, truth, n_groups=3)
    result = quiet_probe(tiny_model("llama"), corpus, config=ProberConfig(hidden=32, epochs=30))
    assert result.settings["groups_scored"] == ["a", "b"]
    assert result.layers["f1"].min() > 0.8  # with group c, whose F1 is 0, it could not pass 2/3


def test_one_group_that_is_always_the_likeliest_is_refused(tiny_model, plant):
    corpus = synthetic_corpus()
    plant(
        noise(len(corpus.prompts), N_LAYERS, D_MODEL),
        torch.ones(len(corpus.prompts), dtype=torch.long),
    )
    with pytest.raises(
        TracelabError, match="the group 'b' is the most likely after 100% of the prompts"
    ):
        quiet_probe(tiny_model("llama"), corpus)


# --- the whole
# ---------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.fixture(scope="module")
def few_prompts():
    return templates("gender", limit=12)


@pytest.fixture(scope="module")
def tiny_result(tiny_model, few_prompts):
    return quiet_probe(tiny_model("llama"), few_prompts, config=SMALL, n_seeds=2, seed=7)


def test_the_same_seed_repeats_every_table_and_another_does_not(
    tiny_model, few_prompts, tiny_result
):
    again = quiet_probe(tiny_model("llama"), few_prompts, config=SMALL, n_seeds=2, seed=7)
    pd.testing.assert_frame_equal(again.layers, tiny_result.layers)
    pd.testing.assert_frame_equal(again.labels, tiny_result.labels)
    assert all(torch.equal(again.probers[name], kept) for name, kept in tiny_result.probers.items())
    assert again.settings == tiny_result.settings
    other = quiet_probe(tiny_model("llama"), few_prompts, config=SMALL, n_seeds=2, seed=8)
    assert not other.layers["f1"].equals(tiny_result.layers["f1"])


def test_every_layer_has_a_row_with_its_interval(tiny_result):
    table = tiny_result.layers
    assert table["layer"].tolist() == list(range(N_LAYERS))
    for value, low, high in (
        ("f1", "low", "high"),
        ("f1_control", "control_low", "control_high"),
        ("selectivity", "selectivity_low", "selectivity_high"),
    ):
        assert (table[low] <= table[value]).all()
        assert (table[value] <= table[high]).all()
        assert (table[low] < table[high]).all()
    assert table["selectivity"].to_numpy() == pytest.approx(
        (table["f1"] - table["f1_control"]).to_numpy()
    )
    assert table["accuracy"].between(0, 1).all()
    assert (table["kl"] >= 0).all()
    assert tiny_result.frame is table


def test_the_labels_table_has_a_row_a_prompt(tiny_result, few_prompts):
    labels = tiny_result.labels
    assert labels["id"].tolist() == [prompt.id for prompt in few_prompts.prompts]
    shares = labels[[f"p_{name}" for name in few_prompts.group_names]]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(np.ones(len(labels)), abs=1e-5)
    assert (labels["argmax"] == shares.idxmax(axis=1).str.removeprefix("p_")).all()
    assert labels["mass"].between(0, 1).all()


def test_the_kept_probers_never_saw_what_is_marked_held_out(tiny_result, few_prompts):
    train, _ = split_rows(few_prompts, "concept_template", 7)
    held_out = set(range(len(few_prompts.prompts))) - set(train.tolist())
    assert set(np.flatnonzero(tiny_result.labels["held_out"])) == held_out


def test_the_kept_probers_carry_one_row_a_layer(tiny_result):
    assert {name: len(tensor) for name, tensor in tiny_result.probers.items()} == {
        name: N_LAYERS for name in ("w1", "b1", "w2", "b2", "norm_std")
    }
    assert (tiny_result.probers["norm_std"] > 0).all()


def test_top_layers_are_the_best_by_f1(tiny_model, few_prompts):
    result = quiet_probe(tiny_model("llama"), few_prompts, config=SMALL, n_seeds=1, top_k=3)
    by_f1 = sorted(range(N_LAYERS), key=lambda layer: (-result.layers["f1"][layer], layer))
    assert result.top_layers == by_f1[:3]
    assert result.layers["top_k"].sum() == 3


def test_settings_tell_how_the_numbers_were_made(tiny_result, few_prompts):
    kept = tiny_result.settings
    assert kept["attribute"] == "gender"
    assert kept["groups"] == list(few_prompts.group_names)
    assert (kept["split"], kept["n_seeds"], kept["seed"]) == ("concept_template", 2, 7)
    assert kept["prober"] == {
        "hidden": 32,
        "lr": 1e-3,
        "batch_size": 32,
        "epochs": 3,
        "standardise": True,
    }
    assert kept["model"]["model_id"] == "tiny-llama"


def test_few_training_prompts_are_warned_of(tiny_model):
    corpus = templates("gender", limit=8)
    with pytest.warns(
        UserWarning, match=r"\d+ training prompts for 3 groups: fewer than 50 a group"
    ):
        probe_layers(tiny_model("llama"), corpus, config=SMALL, n_seeds=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"split": "word"},
            "unknown split 'word': choose one of concept_template, concept, sentence",
        ),
        ({"n_seeds": 0}, "n_seeds is at least 1, not 0"),
        ({"top_k": 0}, "top_k=0 is out of range: the model has 4 layers"),
        ({"top_k": 5}, "top_k=5 is out of range: the model has 4 layers"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(tiny_model, few_prompts, arguments, message):
    with pytest.raises(TracelabError, match=message):
        probe_layers(tiny_model("llama"), few_prompts, **arguments)


def test_the_embedded_model_is_probed(real_model):
    corpus = templates("gender", limit=12)
    forms = sorted({prompt.template for prompt in corpus.prompts})[:8]
    corpus = replace(corpus, prompts=tuple(p for p in corpus.prompts if p.template in forms))
    result = quiet_probe(real_model, corpus, config=ProberConfig(hidden=64, epochs=8), n_seeds=2)
    table = result.layers
    assert table["layer"].tolist() == list(range(30))
    assert table["top_k"].sum() == 8  # 9 of 32, in proportion
    assert ((table["low"] <= table["f1"]) & (table["f1"] <= table["high"])).all()
    assert table[["f1", "low", "high"]].stack().between(0, 1).all()
    assert len(set(result.labels["argmax"])) >= 2
    assert result.labels["mass"].between(1e-4, 1).all()
    assert result.probers["w1"].shape == (30, 576, 64)
