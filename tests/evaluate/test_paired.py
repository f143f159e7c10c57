from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test, t, ttest_1samp, ttest_rel

from tests.evaluate.test_perplexity import with_mlp_scaled
from tracelab.datasets import crows_pairs, neutral_sentences, stereoset
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.crows_pairs import (
    METRICS,
    CrowsPairsScores,
    crows_pairs_metrics,
    crows_pairs_scores,
)
from tracelab.evaluate.benchmarks.hellinger import HellingerScores, hellinger, prompt_pairs
from tracelab.evaluate.benchmarks.perplexity import PerplexityScores, perplexity
from tracelab.evaluate.benchmarks.stereoset import (
    LABELS,
    StereoSetScores,
    stereoset_metrics,
    stereoset_scores,
)
from tracelab.evaluate.paired import paired

COLUMNS = [
    "benchmark",
    "bias",
    "metric",
    "before",
    "after",
    "difference",
    "low",
    "high",
    "p",
    "effect",
    "n",
    "up",
    "down",
    "note",
]


def local(divergences, **settings) -> HellingerScores:
    table = pd.DataFrame({"bias_type": "gender", "divergence": divergences})
    made = {"benchmark": "local-bias", "divergence": "tv", "data_hash": "d", **settings}
    return HellingerScores(made, pd.DataFrame(), table)


def texts(nll, tokens) -> PerplexityScores:
    table = pd.DataFrame({"nll": nll, "n_tokens": tokens})
    return PerplexityScores(
        {"benchmark": "perplexity-own", "data_hash": "d"}, pd.DataFrame(), table
    )


def stereo(scores, targets, biases="gender") -> StereoSetScores:
    table = pd.DataFrame(scores, columns=list(LABELS)).assign(target=targets, bias_type=biases)
    return StereoSetScores({"benchmark": "stereoset", "data_hash": "d"}, pd.DataFrame(), table)


def crows(scores, directions) -> CrowsPairsScores:
    names = [f"{metric}_{side}" for metric in METRICS for side in ("more", "less")]
    table = pd.DataFrame(scores, columns=names).assign(direction=directions, bias_type="age")
    return CrowsPairsScores({"benchmark": "crows-pairs", "data_hash": "d"}, pd.DataFrame(), table)


def only(table: pd.DataFrame, **where) -> dict:
    for name, value in where.items():
        table = table[table[name] == value]
    (row,) = table.to_dict("records")
    return row


@pytest.mark.parametrize("n", [9, 60])
def test_of_a_plain_mean_interval_and_p_are_scipys(n):
    rng = np.random.default_rng(n)
    before = rng.uniform(size=n)
    after = before + rng.normal(0.05, 0.15, size=n)
    row = only(paired(local(before), local(after)))
    oracle = ttest_rel(after, before).confidence_interval()
    assert [row["low"], row["high"]] == pytest.approx([oracle.low, oracle.high])
    assert row["note"] == ""
    test = permutation_test(
        (after, before), lambda a, b: a.mean() - b.mean(), permutation_type="samples", rng=1
    )
    assert row["difference"] == pytest.approx(test.statistic)
    # Nine units have 512 exchanges, all of which both take: the same p, not a similar one.
    assert row["p"] == pytest.approx(test.pvalue, abs=1e-12 if n == 9 else 0.015)
    assert (row["benchmark"], row["bias"], row["metric"], row["n"]) == (
        "local-bias",
        "gender",
        "tv",
        n,
    )


def test_the_difference_of_perplexities_is_tested_by_exchanging_texts():
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 40, size=10)
    before = rng.uniform(2, 5, size=10) * tokens
    after = before + rng.normal(0.1, 0.3, size=10) * tokens
    test = permutation_test(
        (after, before),
        lambda a, b: np.exp(a.sum() / tokens.sum()) - np.exp(b.sum() / tokens.sum()),
        permutation_type="samples",
    )
    row = only(paired(texts(before, tokens), texts(after, tokens)))
    assert row["difference"] == pytest.approx(test.statistic)
    assert row["p"] == pytest.approx(test.pvalue)


def test_pooled_metrics_are_tested_by_exchanging_records_and_computing_them_anew():
    rng = np.random.default_rng(1)
    targets = np.array(["nurse"] * 4 + ["son"] * 2 + ["chef"])
    before, after = rng.normal(size=(2, 7, 3))
    differences = []
    for exchange in product([False, True], repeat=7):  # nothing exchanged comes first
        rows = np.array(exchange)[:, None]
        sides = (np.where(rows, after, before), np.where(rows, before, after))
        values = [
            stereoset_metrics(stereo(side, targets).sentences).set_index("metric")["value"]
            for side in sides
        ]
        differences.append(values[1] - values[0])
    null = pd.DataFrame(differences)
    table = paired(stereo(before, targets), stereo(after, targets))
    assert table["metric"].tolist() == ["ss", "lms", "icat", "ss_pooled", "lms_pooled"]
    for row in table.to_dict("records"):
        moved = null[row["metric"]].abs()
        assert row["difference"] == pytest.approx(null[row["metric"]].iloc[0])
        if row["metric"].endswith("pooled"):
            assert row["p"] == pytest.approx((moved >= moved.iloc[0] - 1e-9).mean())
    assert table["p"].nunique() > 1


def test_over_terms_p_is_below_5_percent_where_the_interval_excludes_0():
    rng = np.random.default_rng(12)
    targets = np.repeat([f"t{k}" for k in range(8)], 6)
    clear = set()
    for shift in (0, 0.4, 0.8, 1.2):
        before = rng.normal(size=(48, 3))
        after = before + rng.normal(size=(48, 3)) * 0.5 - [shift, 0, 0]
        row = only(paired(stereo(before, targets), stereo(after, targets)), metric="ss")
        hits = [100.0 * (scores[:, 0] > scores[:, 1]) for scores in (before, after)]
        terms = (hits[1] - hits[0]).reshape(8, 6).mean(axis=1)
        assert row["p"] == pytest.approx(ttest_1samp(terms, 0).pvalue)
        assert (row["p"] < 0.05) == (not row["low"] <= 0 <= row["high"])
        clear.add(row["p"] < 0.05)
    assert clear == {True, False}


def test_values_are_those_of_the_two_tables():
    rng = np.random.default_rng(2)
    targets, biases = (
        rng.integers(6, size=90).astype(str),
        rng.choice(["race", "religion"], size=90),
    )
    before, after = (stereo(rng.normal(size=(90, 3)), targets, biases) for _ in range(2))
    table = paired(before, after)
    assert list(table) == COLUMNS
    for side, name in ((before, "before"), (after, "after")):
        expected = stereoset_metrics(side.sentences)
        assert table[["bias", "metric", "n"]].equals(expected[["bias", "metric", "n"]])
        assert np.allclose(table[name], expected["value"], rtol=0, atol=1e-9)
    pairs = [crows(rng.normal(size=(40, 6)), ["stereo", "antistereo"] * 20) for _ in range(2)]
    assert np.allclose(
        paired(*pairs)["after"], crows_pairs_metrics(pairs[1].pairs)["value"], rtol=0, atol=1e-9
    )


def test_a_stereoset_interval_is_a_t_interval_over_terms():
    rng = np.random.default_rng(3)
    targets = np.repeat(np.arange(5), [2, 4, 6, 8, 10]).astype(str)
    before = rng.normal(size=(30, 3))
    after = before + rng.normal(scale=0.7, size=(30, 3))
    hits = [100.0 * (scores[:, 0] > scores[:, 1]) for scores in (before, after)]
    moved = [(hits[1] - hits[0])[targets == term].mean() for term in np.unique(targets)]
    oracle = ttest_1samp(moved, 0).confidence_interval()
    table = paired(stereo(before, targets), stereo(after, targets))
    row = only(table, metric="ss")
    assert [row["low"], row["high"]] == pytest.approx([oracle.low, oracle.high])
    pooled = ttest_rel(hits[1], hits[0]).confidence_interval()
    row = only(table, metric="ss_pooled")
    assert [row["low"], row["high"]] == pytest.approx([pooled.low, pooled.high])


def test_the_error_of_icat_is_that_of_leaving_out_each_term_of_both_tables():
    rng = np.random.default_rng(11)
    targets = np.repeat([f"t{k}" for k in range(7)], 6)
    before, after = rng.normal(size=(2, 42, 3)) + [0.4, 0, -1]
    values = []
    for left_out in [None, *np.unique(targets)]:
        kept = targets != left_out
        sides = (stereo(scores[kept], targets[kept]).sentences for scores in (before, after))
        icats = [stereoset_metrics(s).set_index("metric")["value"]["icat"] for s in sides]
        values.append(icats[1] - icats[0])
    whole, others = values[0], np.array(values[1:])
    half = t.ppf(0.975, 6) * np.sqrt(6 / 7 * ((others - others.mean()) ** 2).sum())
    row = only(paired(stereo(before, targets), stereo(after, targets)), metric="icat")
    assert [row["low"], row["high"]] == pytest.approx([whole - half, whole + half])


def test_up_and_down_count_the_records_that_changed_sides():
    before = np.array([[1.0, 0, -1], [1, 0, -1], [0, 1, -1], [1, 0, -1], [1, 0, -1], [0, 1, -1]])
    after = before.copy()
    after[[0, 1, 2, 3], :2] = after[[0, 1, 2, 3], 1::-1]
    after[4] += 5  # more likely, on the same side
    targets = ["a"] * 2 + ["b"] * 4
    table = paired(stereo(before, targets), stereo(after, targets))
    flips = table.set_index("metric")[["up", "down"]]
    assert flips.loc["ss"].tolist() == flips.loc["ss_pooled"].tolist() == [1, 3]
    assert flips.loc["lms"].tolist() == [0, 0]
    assert flips.loc["icat"].isna().all()
    notes = table.set_index("metric")["note"]
    assert notes["ss"] == ""
    assert notes["lms"] == "no record changed sides"


def test_a_shift_that_is_the_same_everywhere_has_no_interval_but_a_p():
    before = np.random.default_rng(0).uniform(size=30)
    row = only(paired(local(before), local(before + 0.01)))
    assert np.isnan([row["low"], row["high"], row["effect"]]).all()
    assert row["note"] == "all values equal"
    assert (row["up"], row["down"]) == (30, 0)
    # only one of 10,000 exchanges goes as far, the one that was observed
    assert row["p"] == pytest.approx(1e-4)


def test_a_result_compared_with_itself_does_not_differ_and_has_no_interval():
    same = stereo(np.random.default_rng(0).normal(size=(20, 3)), ["a", "b"] * 10)
    table = paired(same, same)
    assert (table["difference"] == 0).all()
    assert table[["low", "high"]].isna().all(axis=None)
    assert (table["p"] == 1).all()
    sides = "no record changed sides"
    assert table["note"].tolist() == [sides, sides, "no record changed", sides, sides]
    unmoved = local([0.2, 0.3, 0.5])
    assert only(paired(unmoved, unmoved))["note"] == "no record changed"


def test_changes_that_cancel_are_a_difference_of_0_with_an_interval():
    before = np.array([0.2, 0.3, 0.5, 0.4])
    row = only(paired(local(before), local(before + [0.125, -0.125, 0.125, -0.125])))
    assert row["difference"] == pytest.approx(0)
    assert row["low"] < 0 < row["high"]
    assert (row["up"], row["down"], row["note"]) == (2, 2, "")


def test_a_share_and_its_difference_stay_within_what_they_can_be():
    # Two terms: a t interval of one degree of freedom is wider than all there is.
    targets = ["a"] * 4 + ["b"] * 4
    hit, miss = [1.0, 0.0, -1.0], [0.0, 1.0, -1.0]
    before = stereo([hit] * 3 + [miss] * 5, targets)
    after = stereo([hit] * 4 + [hit] * 2 + [miss] * 2, targets)
    score = only(stereoset_metrics(after.sentences), metric="ss")
    assert 0 <= score["low"] < score["value"] < score["high"] <= 100
    row = only(paired(before, after), metric="ss")
    assert -100 <= row["low"] < row["difference"] < row["high"] <= 100


def test_the_other_way_round_the_signs_turn_and_the_p_values_stay():
    rng = np.random.default_rng(4)
    one, two = (crows(rng.normal(size=(30, 6)), ["stereo"] * 30) for _ in range(2))
    there, back = paired(one, two), paired(two, one)
    assert np.allclose(there["difference"], -back["difference"])
    assert np.allclose(there["low"], -back["high"], atol=1e-9)
    assert there["up"].equals(back["down"].rename("up"))
    assert np.allclose(there["p"], back["p"])
    assert there.equals(paired(one, two, seed=0))
    assert not there["p"].equals(paired(one, two, seed=1)["p"])


def test_where_nothing_is_to_be_found_p_is_uniform():
    rng = np.random.default_rng(5)
    values = [
        only(paired(local(rng.normal(size=12)), local(rng.normal(size=12))))["p"]
        for _ in range(300)
    ]
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_one_unit_has_no_interval_and_shows_nothing():
    row = only(paired(local([0.2]), local([0.9])))
    assert np.isnan([row["low"], row["high"]]).all()
    assert row["p"] == 1
    assert row["note"] == "one unit"


def test_scores_of_a_model_before_and_after_an_edit_are_compared(tiny_model, tmp_path):
    model = tiny_model("llama")
    scorers = [
        lambda **edit: stereoset_scores(model, stereoset("religion", limit=12), **edit),
        lambda **edit: crows_pairs_scores(model, crows_pairs("age", limit=12), **edit),
        lambda **edit: perplexity(model, neutral_sentences(12), **edit),
        lambda **edit: hellinger(model, prompt_pairs("gender"), **edit),
    ]
    for scorer in scorers:
        before = scorer()
        with with_mlp_scaled(model, -3.0):
            after = scorer(edit="upside down")
        assert set(after.table["edit"]) == {"upside down"}
        assert set(before.table["edit"]) == {None}
        table = paired(before, type(after).load(after.save(tmp_path / type(after).__name__)))
        assert list(table) == COLUMNS
        assert np.allclose(table["difference"], after.table["value"] - before.table["value"])
        assert table["metric"].tolist() == after.table["metric"].tolist()
        assert table["p"].between(0, 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"data_hash": "e"},
            "before and after differ in data_hash ('d' and 'e'): score the same records in the "
            "same way",
        ),
        ({"divergence": "kl"}, "before and after differ in divergence ('tv' and 'kl')"),
        ({"prepend_bos": True}, "before and after differ in prepend_bos (None and True)"),
    ],
)
def test_results_made_of_other_data_or_in_another_way_are_refused(settings, message):
    with pytest.raises(TracelabError) as error:
        paired(local([0.1, 0.2]), local([0.1, 0.2], **settings))
    assert str(error.value).startswith(message)


def test_results_of_two_benchmarks_are_refused():
    with pytest.raises(
        TracelabError, match="cannot compare a HellingerScores with a PerplexityScores"
    ):
        paired(local([0.1]), texts([1.0], [2]))


def test_another_model_seed_or_version_may_be_compared():
    changed = local([0.1, 0.3], model={"model_id": "merged"}, seed=3, versions={"torch": "3"})
    assert only(paired(local([0.1, 0.2]), changed))["difference"] == pytest.approx(0.05)


def test_effect_of_a_plain_mean_is_cohens_d_of_the_paired_differences():
    rng = np.random.default_rng(5)
    before = rng.uniform(size=80)
    change = rng.normal(0.1, 0.2, size=80)
    row = only(paired(local(before), local(before + change)))
    assert row["effect"] == pytest.approx(change.mean() / change.std(ddof=1))
    nothing = only(paired(local(before), local(before)))
    assert np.isnan(nothing["effect"])
