from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tracelab.errors import TracelabError
from tracelab.localize.tracing.result import TE_FLOOR, CausalTrace, effect_table

CASES = pd.DataFrame(
    {
        "case": ["a", "b", "c"],
        "high": [2.0, -1.0, 0.50],
        "low": [1.0, 1.0, 0.45],
        "te": [1.0, -2.0, 0.05],  # c lies under the floor
        "n_tokens": [10, 5, 4],
        "equal_length": [True, False, True],
        "first_token": [True, True, False],
    }
)
STATES = pd.DataFrame(
    [
        ("a", "mlp", 3, "filler", 7, 1.5),
        # two columns of one role: their mean is the case's value
        (
            "a",
            "mlp",
            4,
            "filler",
            7,
            2.5,
        ),
        ("b", "mlp", 2, "filler", 7, 0.0),
        ("c", "mlp", 2, "filler", 7, 0.85),
        ("a", "mlp", 3, "filler", 8, 1.0),
        ("a", "mlp", 4, "filler", 8, 1.0),
        ("b", "mlp", 2, "filler", 8, -3.0),
        ("c", "mlp", 2, "filler", 8, 0.45),
        ("c", "resid", 1, "before_filler", 7, 0.45),
    ],
    columns=["case", "component", "column", "role", "layer", "gap"],
)


@pytest.fixture
def table():
    return effect_table(CASES, STATES).set_index(["component", "role", "layer"])


def test_each_case_counts_once_with_the_mean_over_its_columns(table):
    row = table.loc["mlp", "filler", 7]
    assert row["n"] == 3
    assert row["gap"] == pytest.approx((2.0 + 0.0 + 0.85) / 3)
    assert row["ie"] == pytest.approx(((2.0 - 1.0) + (0.0 - 1.0) + (0.85 - 0.45)) / 3)


def test_nie_is_signed_by_the_total_effect_and_leaves_out_cases_that_noise_did_not_move(table):
    assert CASES["te"].abs().min() < TE_FLOOR
    # a: IE 1, TE 1; b: IE -1, TE -2. b's restored state moves towards its clean gap: positive.
    assert table.loc[("mlp", "filler", 7), "nie"] == pytest.approx((1 * 1 + -1 * -1) / (1 + 2))
    # b overshoots at layer 8: IE -4.
    assert table.loc[("mlp", "filler", 8), "nie"] == pytest.approx((0 + 4) / 3)


def test_biasedits_number_is_the_absolute_gap_a_token_of_pairs_of_equal_length(table):
    row = table.loc["mlp", "filler", 7]
    assert row["n_equal"] == 2
    assert row["biasedit"] == pytest.approx((2.0 / 10 + 0.85 / 4) / 2)


def test_the_cases_behind_each_number_are_counted(table):
    counts = table.loc["mlp", "filler", 7][["n", "n_nie", "n_equal"]]
    assert counts.tolist() == [3, 2, 2]


def test_a_role_without_a_usable_case_has_no_nie(table):
    row = table.loc["resid", "before_filler", 7]
    assert (row["n"], row["n_nie"]) == (1, 0)
    assert row["ie"] == pytest.approx(0)
    assert np.isnan(row[["nie", "nie_low", "nie_high"]].astype(float)).all()


def test_one_case_has_no_interval(table):
    row = table.loc["resid", "before_filler", 7]
    assert np.isnan(row[["gap_low", "ie_low", "ie_high", "biasedit_low"]].astype(float)).all()


def test_restoring_everything_has_a_normalised_effect_of_one_and_nothing_of_zero():
    whole = STATES.assign(gap=STATES["case"].map(CASES.set_index("case")["high"]))
    nothing = STATES.assign(gap=STATES["case"].map(CASES.set_index("case")["low"]))
    for states, expected in ((whole, 1.0), (nothing, 0.0)):
        row = (
            effect_table(CASES, states)
            .set_index(["component", "role", "layer"])
            .loc["mlp", "filler", 7]
        )
        assert [row["nie"], row["nie_low"], row["nie_high"]] == pytest.approx([expected] * 3)


def test_intervals_are_those_of_a_slow_bootstrap_over_cases():
    rng = np.random.default_rng(0)
    te = rng.normal(1, 1, 40)
    cases = pd.DataFrame({"case": [f"c{i}" for i in range(40)], "high": te, "low": 0.0, "te": te})
    cases = cases.assign(n_tokens=8, equal_length=True)
    gaps = 0.5 * te + rng.normal(0, 0.3, 40)
    states = pd.DataFrame(
        {"case": cases["case"], "component": "attn", "column": 1, "role": "filler"}
    )
    states = states.assign(layer=2, gap=gaps)
    (row,) = effect_table(cases, states).to_dict("records")
    ie, nie = [], []
    usable = np.abs(te) >= TE_FLOOR
    for _ in range(4000):
        drawn = rng.integers(40, size=40)
        ie.append(gaps[drawn].mean())
        kept = drawn[usable[drawn]]
        nie.append((np.sign(te[kept]) * gaps[kept]).sum() / np.abs(te[kept]).sum())
    for name, draws in (("ie", ie), ("nie", nie)):
        low, high = np.percentile(draws, [2.5, 97.5])
        assert row[f"{name}_low"] == pytest.approx(low, abs=0.03)
        assert row[f"{name}_high"] == pytest.approx(high, abs=0.03)
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]


@pytest.fixture
def trace():
    return CausalTrace({"seed": 0}, effect_table(CASES, STATES), CASES, STATES)


def test_the_peak_is_the_row_of_the_largest_normalised_effect(trace):
    assert (trace.peak()["component"], trace.peak()["layer"]) == ("mlp", 8)
    assert trace.peak("mlp")["nie"] == trace.effects["nie"].max()


def test_there_is_no_peak_where_noise_moved_nothing():
    cases, states = CASES[2:], STATES[STATES["case"] == "c"]
    with pytest.raises(TracelabError, match=r"no case has a total effect of 0\.1 nats or more"):
        CausalTrace({"seed": 0}, effect_table(cases, states), cases, states).peak()


def test_totals_tell_what_the_noise_did(trace):
    assert (trace.totals["low"] <= trace.totals["value"]).all()
    assert (trace.totals["value"] <= trace.totals["high"]).all()
    totals = trace.totals.set_index("quantity")["value"]
    assert totals["gap_clean"] == pytest.approx(0.5)
    assert totals["gap_corrupted"] == pytest.approx(2.45 / 3)
    assert totals["te"] == pytest.approx(-0.95 / 3)
    assert totals["|te|"] == pytest.approx(3.05 / 3)
    assert totals["shrunk"] == pytest.approx(200 / 3)  # a: 1 < 2, c: 0.45 < 0.5; b ties


def test_cases_whose_first_token_is_noised_have_averages_of_their_own(trace):
    first, later = trace.of_first_token(True), trace.of_first_token(False)
    assert first.cases["case"].tolist() == ["a", "b"]
    assert later.cases["case"].tolist() == ["c"]
    assert set(first.states["case"]) == {"a", "b"}
    row = first.effects.set_index(["component", "role", "layer"]).loc["mlp", "filler", 7]
    assert row["n"] == 2
    assert row["ie"] == pytest.approx(((2.0 - 1.0) + (0.0 - 1.0)) / 2)
    totals = first.totals.set_index("quantity")["value"]
    assert totals["|te|"] == pytest.approx(1.5)
    with pytest.raises(TracelabError, match="in none of 1 cases the first token is noised"):
        later.of_first_token(True)


def test_the_default_example_is_the_case_with_the_largest_effect(trace):
    example = trace.example(component="mlp")
    assert example.index.tolist() == [7, 8]
    assert example[2].tolist() == [0.0, -3.0]
    of_a = trace.example("a", "mlp")
    assert of_a.columns.tolist() == [3, 4]
    assert of_a.loc[7].tolist() == [1.5, 2.5]


def test_an_example_that_does_not_exist_is_refused(trace):
    with pytest.raises(TracelabError, match="no states of case 'z' and component 'mlp'"):
        trace.example("z", "mlp")
    with pytest.raises(TracelabError, match="no states of case 'a' and component 'attn'"):
        trace.example("a", "attn")
