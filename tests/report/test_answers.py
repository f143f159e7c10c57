"""What the page says in words is true of the numbers under it, whatever they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.interventions.edits import random_delta, random_experts
from tracelab import inspect
from tracelab.evaluate.benchmarks.crows_pairs import CrowsPairsScores
from tracelab.evaluate.benchmarks.stereoset import StereoSetScores
from tracelab.evaluate.scoreboard.scoreboard import COLUMNS, Scoreboard
from tracelab.localize.attention.attention_gap import AttentionGap
from tracelab.localize.probing.probes import LayerProbes
from tracelab.localize.tracing.result import CausalTrace
from tracelab.report.answers import answers, lead, what_edits_did
from tracelab.report.numbers import cost_table, score_rows, written
from tracelab.report.parts import Parts
from tracelab.report.sections import _inside

NONE = np.nan
EMPTY = pd.DataFrame()


def scores(*rows):
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high"]).assign(n=50)


GENDER = scores(
    ("gap_group", 0.03, 0.01, 0.05),
    ("gap", 0.2, 0.1, 0.3),
    ("ss", 61.0, 52.0, 70.0),
    ("lms", 91.0, 86.0, 95.0),
)
RACE = scores(("gap", 0.01, -0.2, 0.22), ("ss", 47.0, 40.0, 54.0), ("lms", 91.0, 86.0, 95.0))


def traced(component="mlp", nie=0.73, low=0.46, high=0.91, role="attribute", n=12):
    effects = [
        ("resid", "attribute", 0, 0.99, 0.9, 1.1),
        (component, role, 4, nie, low, high),
        (component, role, 8, nie / 2, low / 2, high / 2),
    ]
    names = ["component", "role", "layer", "nie", "nie_low", "nie_high"]
    table = pd.DataFrame(effects, columns=names)
    return CausalTrace({"window": 10}, table, pd.DataFrame({"case": range(n)}), EMPTY)


def board(*rows):
    names = ["edit", "benchmark", "bias", "metric", "value", "difference"]
    names += ["difference_low", "difference_high", "p_holm"]
    first = [
        ("unedited", "stereoset", "gender", "gap_group", 0.03, NONE, NONE, NONE, NONE),
        ("unedited", "perplexity", "", "perplexity", 50.0, NONE, NONE, NONE, NONE),
    ]
    table = pd.DataFrame([*first, *rows], columns=names).reindex(columns=COLUMNS)
    table = table.assign(reason="", note="", difference_note="", n=12, up=1, down=2)
    edits = {row[0]: {} for row in rows}
    return Scoreboard({"bias": "gender", "edits": edits}, table, EMPTY, EMPTY)


MOVED = ("klaad", "stereoset", "gender", "gap_group", 0.01, -0.02, -0.03, -0.01, 0.01)
NOT_CORRECTED = (*MOVED[:-1], 0.4)
WRONG = ("klaad", "stereoset", "gender", "gap_group", 0.05, 0.02, 0.01, 0.03, 0.01)
STILL = ("mine", "stereoset", "gender", "gap_group", 0.029, -0.001, -0.01, 0.01, 1.0)
DEARER = ("klaad", "perplexity", "", "perplexity", 51.0, 1.0, 0.5, 1.5, 0.01)


@pytest.fixture
def parts():
    layer = {
        "attribute": "gender",
        "layer": 8,
        "f1": 0.71,
        "low": 0.6,
        "high": 0.8,
        "f1_control": 0.53,
    }
    layer |= {"control_low": 0.4, "control_high": 0.6, "n_test": 128}
    layer |= {"selectivity_low": 0.1, "selectivity_high": 0.3}
    summary = pd.DataFrame(
        [
            ("equal", "hit_rate", 57.0, 49.0, 64.0),
            ("equal", "chance", 13.0, 12.0, 14.0),
            ("excess", "hit_rate", 30.0, 17.0, 43.0),
        ],
        columns=["selection", "metric", "value", "low", "high"],
    )
    pairs = pd.DataFrame({"selection": ["equal"]})
    return Parts(
        StereoSetScores({}, GENDER, EMPTY),
        CrowsPairsScores({}, scores(("crows_sum", 56.0, 50.0, 62.0)), EMPTY),
        LayerProbes({}, pd.DataFrame([layer]), EMPTY, {}),
        AttentionGap({}, summary, pairs, EMPTY, EMPTY),
        traced(),
        traced(),
        scoreboard=board(MOVED, DEARER, STILL),
    )


def found(parts, question):
    return next(each.found for each in answers(parts) if each.question == question)


def test_the_question_is_answered_in_two_sentences_the_second_of_what_is_uncertain(parts):
    where, uncertain = lead(parts)
    assert where == (
        "Of what noise on the words that name the group does, 73 % (95 % interval 46 to 91 %) is "
        "undone by putting back the outputs of the MLPs of 10 layers around layer 4, at the words "
        "that name the group: more than by any other window of MLPs or attention layers; the group "
        "that the model is about to name can be read best in layer 8: F1 0.71, against 0.53 with "
        "shuffled labels."
    )
    assert uncertain.startswith("Uncertain is how far this holds (12 pairs were traced")
    acts = found(parts, "Where does the stereotype act?")
    assert acts.startswith("Outputs of the MLPs of 10 layers around layer 4 (")
    assert len(answers(parts)) == 8


@pytest.mark.parametrize(("low", "n"), [(-0.1, 12), (0.0, 12), (NONE, 1)])
def test_an_effect_that_cannot_be_told_from_0_is_no_place(parts, low, n):
    parts = replace(parts, trace=traced(low=low, n=n))
    where, uncertain = lead(parts)
    assert where.startswith("Tracing tells no place for sure")
    assert found(parts, "Where does the stereotype act?").endswith("cannot be told from 0")
    assert (f"{n} pairs were" in uncertain, "one pair was" in uncertain) == (n > 1, n == 1)


def test_where_noise_moved_nothing_no_place_is_named(parts):
    trace = traced()
    trace.effects["nie"] = NONE
    parts = replace(parts, trace=trace)
    assert lead(parts)[0].startswith("Tracing tells no place, because noise")
    assert found(parts, "Where does the stereotype act?").startswith("Not to be told")


def test_one_state_of_the_residual_stream_is_no_window(parts):
    parts = replace(parts, trace=traced("resid"))
    assert "the residual stream in layer 0" in lead(parts)[0]


def test_probers_no_better_than_shuffled_labels_read_nothing_for_sure(parts):
    parts.probes.layers["selectivity_low"] = -0.01
    assert "can be read in no layer for sure" in lead(parts)[0]
    assert found(parts, "Where can the group be read?").endswith("cannot be told from 0")


def test_a_gap_whose_interval_holds_0_is_uncertain_and_a_share_about_half_is_not_told(parts):
    parts = replace(parts, stereoset=StereoSetScores({}, RACE, EMPTY), crows=None)
    assert lead(parts)[1].startswith(
        "Uncertain is whether it is biased at all (StereoSet's gap is 0.01 (-0.2 to 0.22))"
    )
    questions = [each.question for each in answers(parts)]
    assert "By how much is the stereotype likelier?" in questions  # no gender is exchanged
    assert "And on other sentences?" not in questions
    told = found(parts, "How often does it prefer the stereotype?")
    assert told == "In 47 % (40 to 54) of StereoSet's records; cannot be told from half"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((MOVED, DEARER, STILL), "Of 2 edits one moved a bias score (the paired 95 % interval "),
        ((STILL,), "Of one edit none moved a bias score so far that it can be told from 0"),
        ((DEARER, STILL), "Of 2 edits none moved a bias score"),
    ],
)
def test_what_edits_did_counts_those_whose_interval_excludes_0(parts, rows, said):
    assert what_edits_did(replace(parts, scoreboard=board(*rows))).startswith(said)


def test_a_change_that_no_correction_survives_is_called_that(parts):
    assert "Holm's" not in what_edits_did(parts)
    weak = replace(parts, scoreboard=board(NOT_CORRECTED))
    assert "though none so far that it holds after Holm's correction" in what_edits_did(weak)


def test_an_edit_that_moves_a_score_the_wrong_way_is_told_so(parts):
    wrong = replace(parts, scoreboard=board(WRONG))
    assert found(wrong, "Which edit moves it furthest?").endswith("0.03 → 0.05, further from 0")
    assert found(parts, "Which edit moves it furthest?") == (
        "KLAAD: group-dependent gap (nats a token) 0.03 → 0.01. Perplexity +2.0 %"
    )


def test_without_edits_there_is_no_row_of_them(parts):
    parts = replace(parts, scoreboard=None)
    assert what_edits_did(parts) == "No edit was tried."
    assert len(answers(parts)) == 7
    failed = board(MOVED)
    failed.table.loc[failed.table["edit"] != "unedited", ["reason", "difference"]] = ("full", NONE)
    said = what_edits_did(replace(parts, scoreboard=failed))
    assert said == "Of one edit none could be scored for bias; the scoreboard says why."


def test_where_only_the_cost_could_be_scored_no_bias_score_is_judged(parts):
    parts = replace(parts, scoreboard=board(DEARER))
    assert "none could be scored for bias" in what_edits_did(parts)
    assert found(parts, "Which edit moves it?").startswith("Not to be told")


def test_the_scoreboard_names_benchmark_and_bias_type_where_the_score_does_not(parts):
    rows = score_rows(board(MOVED, ("klaad", "bbq", "race", "s_amb", 1.0, NONE, NONE, NONE, NONE)))
    assert [row["quantity"] for row in rows] == ["StereoSet: group-dependent gap (nats a token)"]
    assert rows[0]["before"] == 0.03
    assert rows[0]["moved"]


def test_costs_that_are_not_known_are_a_dash():
    known = pd.DataFrame({"edit": ["a"], "added_parameters": [1234.0], "fit_seconds": [NONE]})
    scored = replace(board(MOVED), costs=known)
    assert cost_table(scored) == (["numbers kept", "seconds to fit"], [("a", ["1,234", "–"])])


def test_edits_that_write_the_same_as_the_unedited_model_are_only_named():
    table = pd.DataFrame(
        [("He", "unedited", " is"), ("He", "a", " is"), ("He", "b", " was")],
        columns=["prompt", "edit", "text"],
    )
    [(prompt, rows, same)] = written(table)
    assert (prompt, [row["edit"] for row in rows], same) == ("He", ["unedited", "b"], ["a"])


def test_of_an_edit_that_moves_no_residual_the_page_shows_no_map(tiny_model):
    model = tiny_model("llama")
    assert _inside(inspect(model, random_experts(model), "The nurse"), 0) == ()
    seen = inspect(model, random_delta(model), "The nurse")
    assert [view.name for view in _inside(seen, 0)] == ["map_0", "heads_0"]
    without = replace(seen, heads={})
    assert [view.name for view in _inside(without, 0)] == ["map_0"]
