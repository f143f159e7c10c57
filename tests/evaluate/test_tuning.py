"""Cross-fitting and choosing: nothing is scored by an edit that has seen its terms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tracelab import Erasure, Experts, Tuning, tune
from tracelab.datasets import development_sentences, expert_texts, group_pairs
from tracelab.datasets.spans import find_words
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.stereoset import stereoset_scores
from tracelab.evaluate.crossfit import HeldOut, cross_fitted, folds_of
from tracelab.evaluate.paired import paired
from tracelab.evaluate.tuning import _chosen
from tracelab.interventions import ErasureConfig, ExpertsConfig, FinetuneConfig
from tracelab.interventions.drift import drift
from tracelab.interventions.training.config import Bounds

LOOSE = Bounds(max_kl=1e9, max_lms_loss=100.0)
PAIRS = group_pairs("gender", limit=60)
SMALL = {"limit": 24, "folds": 2, "n_neutral": 4}


def test_folds_share_no_term_and_hold_every_record_once():
    folds = folds_of("gender", folds=3, splits=("test", "dev"))
    terms = [{record.target for record in fold.records} for fold in folds]
    assert all(not a & b for i, a in enumerate(terms) for b in terms[:i])
    assert [fold.terms for fold in folds[:3]] == [frozenset(t) for t in terms[:3]]
    assert not folds[3].terms  # dev: no term of it is in the training data
    ids = [record.id for fold in folds for record in fold.records]
    assert len(ids) == len(set(ids)) == 771 + 255
    sizes = [len(fold.records) for fold in folds[:3]]
    assert max(sizes) < 1.3 * min(sizes)
    with pytest.raises(TracelabError, match="make no 40 folds"):
        folds_of("gender", folds=40)


@pytest.mark.slow
def test_each_fold_is_scored_under_the_fit_that_lacks_its_terms(tiny_model, monkeypatch):
    model, seen = tiny_model("llama"), []
    real = Erasure.training_data

    def watched(bias, **options):
        seen.append(options["without"])
        return real(bias, limit=20, **options)

    monkeypatch.setattr(Erasure, "training_data", watched)
    held = HeldOut(model, folds_of("gender", folds=2, limit=24))
    edits = held.fit(Erasure, "gender", ErasureConfig(), [0])
    assert seen == [fold.terms for fold in held.folds]
    scores = held.score(edits)
    assert scores.sentences["id"].tolist() == held.before.sentences["id"].tolist()
    for fold, edit in zip(held.folds, edits, strict=True):
        with edit.applied(model):
            own = stereoset_scores(model, fold.records).sentences
        part = scores.sentences.set_index("id").loc[own["id"]]
        assert np.allclose(part["gap"], own["gap"], atol=1e-5)
    assert not np.allclose(scores.sentences["gap"], held.before.sentences["gap"], atol=1e-5)


@pytest.mark.slow
def test_cross_fitted_scores_carry_paired_differences(tiny_model):
    made = cross_fitted(tiny_model("llama"), Erasure, "gender", folds=2, limit=12, layers=[0])
    edited = made.frame.dropna(subset="edit").set_index("metric")
    assert edited.loc["gap", "n"] == 24  # 12 of test and 12 of dev
    assert edited.loc["gap_group", "difference"] != 0


@pytest.mark.slow
def test_everything_tried_is_told_and_the_best_within_the_bounds_is_fitted(tiny_model, tmp_path):
    model = tiny_model("llama")
    grid = {"rank": [1, 2], "layers": [[0], range(2)]}
    edit, tuning = tune(
        model, Erasure, PAIRS, grid, bounds=LOOSE, rule="least", folder=tmp_path, **SMALL
    )
    table = tuning.frame
    assert table["tried"].tolist() == [
        "unedited",
        *(f"layers {layers}, rank {rank}" for layers in ("0", "0-1") for rank in (1, 2)),
    ]
    best = table["association"].abs().idxmin()
    assert best > 0
    assert table.index[table["chosen"]].tolist() == [best]
    assert edit.config.rank == tuning.choice["rank"]
    assert list(edit.layers) == tuning.choice["layers"]
    assert edit.notes["tuned"]["of"] == 4
    # what the table says of the chosen is what plain calls give
    held = HeldOut(model, folds_of("gender", folds=2, limit=24))
    edits = held.fit(Erasure, PAIRS, edit.config, tuning.choice["layers"])
    row = paired(held.before, held.score(edits)).set_index("metric").loc["gap_group"]
    chosen = table.loc[best]
    for name in ("difference", "low", "high"):
        assert chosen[name] == pytest.approx(row[name], abs=1e-6)
    texts = development_sentences("tune", SMALL["n_neutral"])
    assert chosen["kl"] == pytest.approx(np.mean([drift(model, e, texts).kl for e in edits]))
    assert Tuning.load(tuning.save(tmp_path / "kept")).choice == tuning.choice
    assert len(tuning.plot().data) >= 1
    assert set(tuning.sentences["tried"]) == set(table["tried"])


def test_what_was_tried_is_not_tried_again(tiny_model, tmp_path, monkeypatch):
    model, grid = tiny_model("llama"), {"rank": [1], "layers": [[0]]}
    first = tune(model, Erasure, PAIRS, grid, bounds=LOOSE, folder=tmp_path, **SMALL)[1]
    monkeypatch.setattr(HeldOut, "fit", lambda *_, **__: pytest.fail("fitted again"))
    again = tune(model, Erasure, PAIRS, grid, bounds=LOOSE, folder=tmp_path, **SMALL)[1]
    assert again.frame.equals(first.frame)


def test_where_nothing_is_allowed_there_is_no_edit_and_a_warning(tiny_model):
    none = Bounds(max_kl=0.0, max_lms_loss=0.0)
    with pytest.warns(UserWarning, match="nothing of 1 tried with erasure"):
        edit, tuning = tune(
            tiny_model("llama"), Erasure, PAIRS, {"rank": [1]}, bounds=none, **SMALL
        )
    assert edit is None
    assert tuning.choice == {}
    assert len(tuning.frame) == 2


@pytest.mark.slow
def test_several_seeds_have_an_interval_over_seeds(tiny_model):
    grid = {"method": ["random"], "layers": [[0]]}
    _, tuning = tune(tiny_model("llama"), Erasure, PAIRS, grid, bounds=LOOSE, seeds=3, **SMALL)
    row = tuning.frame.iloc[1]
    held, found = HeldOut(tiny_model("llama"), folds_of("gender", folds=2, limit=24)), []
    for seed in range(3):
        edits = held.fit(Erasure, PAIRS, ErasureConfig(method="random", seed=seed), [0])
        table = paired(held.before, held.score(edits)).set_index("metric")
        found.append(table.loc["gap_group", "difference"])
    assert row["difference"] == pytest.approx(np.mean(found), abs=1e-6)
    interval = stats.t.interval(0.95, 2, np.mean(found), stats.sem(found))
    assert (row["seed_low"], row["seed_high"]) == pytest.approx(interval, abs=1e-5)


def test_the_least_association_within_the_bounds_is_chosen():
    table = pd.DataFrame(
        {
            "fall": [0.0, 0.01, 0.03, 0.02, 0.05, -0.01],
            "low": [np.nan, -0.02, -0.04, -0.025, -0.06, 0.0],
            "high": [np.nan, 0.0, -0.02, -0.015, -0.04, 0.02],
            "kl": [0.0, 0.01, 0.02, 0.02, 0.5, 0.0],
            "lms_loss": [0.0, 0.0, 2.0, 0.9, 0.0, 0.0],
            "perplexity_change": [0.0, 1.0, 1.0, 1.0, 1.0, np.nan],
        }
    )
    bounds = Bounds(max_kl=0.1, max_lms_loss=1.0, max_perplexity=5.0)
    made = _chosen(table, bounds)
    assert made["allowed"].tolist() == [True, True, False, True, False, False]
    assert made.index[made["chosen"]].tolist() == [3]  # the other allowed one is further off
    wide = table.assign(low=table["low"] - 0.02, high=table["high"] + 0.02)
    assert _chosen(wide, bounds)["chosen"].tolist().index(True) == 1  # as good, and cheaper
    assert _chosen(wide, bounds, "least")["chosen"].tolist().index(True) == 3
    assert made["per_kl"][1] == pytest.approx(1.0)


def test_a_grid_that_the_method_cannot_have_is_refused_before_any_work(tiny_model):
    model = tiny_model("llama")
    for grid, message in (
        ({"rank": [0]}, "rank"),
        ({"breadth": [1]}, "no field breadth"),
        ({}, "no values to try"),
        ({"rank": []}, "no values to try of rank"),
        ({"layers": range(2)}, "a list of lists"),
        ({"layers": [[99]]}, "layer 99"),
    ):
        with pytest.raises(TracelabError, match=message):
            tune(model, Erasure, PAIRS, grid, **SMALL)


def test_pairs_of_ones_own_are_cut_to_those_that_name_no_withheld_term(tiny_model, monkeypatch):
    model, given = tiny_model("llama"), []
    data = group_pairs("gender", limit=60)
    real = Erasure.fit.__func__
    monkeypatch.setattr(
        Erasure,
        "fit",
        classmethod(
            lambda cls, *args, **more: (given.append(args[1]), real(cls, *args, **more))[1]
        ),
    )
    held = HeldOut(model, folds_of("gender", folds=2, limit=24))
    held.fit(Erasure, data, ErasureConfig(), [0])
    for fold, pairs in zip(held.folds, given, strict=True):
        texts = [text for pair in pairs.pairs for text in pair]
        assert 0 < len(texts) < 120
        assert not any(find_words(text, sorted(fold.terms)) for text in texts)


def test_a_combination_that_cannot_be_fitted_is_told_and_stops_no_other(tiny_model):
    grid = [{"method": ["leace"], "rank": [2]}, {"method": ["paired"], "rank": [1]}]
    _, tuning = tune(tiny_model("llama"), Erasure, PAIRS, grid, bounds=LOOSE, **SMALL)
    failed, done = tuning.frame.iloc[1], tuning.frame.iloc[2]
    assert "rank 1 at most" in failed["reason"]
    assert not failed["allowed"]
    assert done["reason"] == ""
    assert np.isfinite(done["difference"])
    assert tuning.plot().data


def test_of_a_bias_type_without_twins_the_gap_is_what_is_lowered(tiny_model):
    grid = {"alpha": [0.5, 1.0]}
    config = ExpertsConfig(training=FinetuneConfig(rank=1, modules=("mlp.out",)))
    texts = expert_texts("race", limit=8)
    _, tuning = tune(
        tiny_model("llama"), Experts, texts, grid, config=config, bounds=LOOSE, **SMALL
    )
    table = tuning.frame
    assert set(table["measure"]) == {"gap"}
    assert table["difference"][1] != table["difference"][2]
    assert "gap_group" not in table
