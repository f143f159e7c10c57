"""What the page leads with is what the scoreboard says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tracelab.evaluate.scoreboard.scoreboard import COLUMNS, Scoreboard
from tracelab.report.moved import sentences, what_moved

NONE = np.nan
ROWS = [
    # edit, benchmark, bias, metric, value, difference, low, high, up, down, note
    ("unedited", "stereoset", "gender", "gap_group", 0.02, NONE, NONE, NONE, NONE, NONE, ""),
    ("unedited", "stereoset", "gender", "ss", 60.0, NONE, NONE, NONE, NONE, NONE, ""),
    ("unedited", "stereoset", "race", "ss", 63.0, NONE, NONE, NONE, NONE, NONE, ""),
    ("unedited", "crows-pairs", "gender", "gap_group", 0.5, NONE, NONE, NONE, NONE, NONE, ""),
    ("unedited", "perplexity", "", "perplexity", 50.0, NONE, NONE, NONE, NONE, NONE, ""),
    ("a", "stereoset", "gender", "gap_group", 0.01, -0.01, -0.015, -0.005, 3, 9, ""),
    ("a", "stereoset", "gender", "ss", 60.0, 0.0, NONE, NONE, 0, 0, "no record changed sides"),
    ("a", "stereoset", "race", "ss", 61.0, -2.0, -3.0, -1.0, 1, 9, ""),
    ("a", "crows-pairs", "gender", "gap_group", 0.1, -0.4, -0.5, -0.3, 1, 9, ""),
    ("a", "perplexity", "", "perplexity", 51.0, 1.0, 0.5, 1.5, NONE, NONE, ""),
    ("b", "stereoset", "gender", "gap_group", 0.02, 0.0, -0.01, 0.01, 5, 5, ""),
    ("b", "perplexity", "", "perplexity", 50.0, 0.0, -0.1, 0.1, NONE, NONE, ""),
    ("c", "stereoset", "gender", "gap_group", -0.06, -0.08, -0.1, -0.06, 1, 11, ""),
]


@pytest.fixture
def board():
    names = ["edit", "benchmark", "bias", "metric", "value", "difference"]
    names += ["difference_low", "difference_high", "up", "down", "difference_note"]
    table = pd.DataFrame(ROWS, columns=names).reindex(columns=COLUMNS)
    table = table.assign(reason="", n=12, p_holm=0.5)
    return Scoreboard({"bias": "gender"}, table, pd.DataFrame(), pd.DataFrame())


def test_only_the_bias_type_and_benchmarks_that_lead_are_there(board):
    moved = what_moved(board)
    assert list(zip(moved["edit"], moved["metric"], moved["moved"], strict=True)) == [
        ("c", "gap_group", True),  # the furthest
        ("a", "gap_group", True),
        ("a", "ss", False),
        ("a", "perplexity", True),
        ("b", "gap_group", False),
        ("b", "perplexity", False),
    ]
    first = moved.iloc[1]
    assert (first["before"], first["after"]) == (0.02, 0.01)
    assert moved.set_index(["edit", "metric"]).loc[("a", "ss"), "note"] == "no record changed sides"


def test_each_edit_is_one_sentence_that_tells_effect_cost_and_what_stayed(board):
    c, a, b = sentences(what_moved(board))
    assert a == (
        "a: group-dependent gap (nats a token) 0.02 → 0.01 (-0.01 [-0.015, -0.005]); perplexity "
        "50 → 51 (+1 [0.5, 1.5]). Perplexity +2.0 %. Not told from 0: StereoSet SS (%)."
    )
    assert b == "b: no change can be told from 0. Perplexity +0.0 %."
    assert c.endswith("(-0.08 [-0.1, -0.06]), further from 0.")


def test_a_board_on_which_every_edit_failed_leads_with_nothing(board):
    board.table.loc[board.table["edit"] != "unedited", "reason"] = "out of memory"
    assert what_moved(board).empty
    assert sentences(what_moved(board)) == []


def test_the_furthest_is_by_the_distance_from_the_ideal_value_that_is_gone(board):
    gone = ("d", "stereoset", "gender", "ss", 50.5, -9.5, -12.0, -7.0, 1, 9, "")
    names = ["edit", "benchmark", "bias", "metric", "value", "difference"]
    names += ["difference_low", "difference_high", "up", "down", "difference_note"]
    row = pd.DataFrame([gone], columns=names).assign(reason="", n=12, p_holm=0.5)
    table = pd.concat([board.table[board.table["edit"] != "c"], row], ignore_index=True)
    # of 10 points from 50 9.5 are gone, of a gap of .02 the half
    assert (
        what_moved(Scoreboard(board.settings, table, *[pd.DataFrame()] * 2))["edit"].iloc[0] == "d"
    )


def test_bias_types_that_an_edit_was_not_made_for_make_no_tradeoff(board):
    assert board.has_tradeoff
    other = board.table[(board.table["metric"] != "gap_group") & (board.table["metric"] != "ss")]
    race = board.table[board.table["bias"] == "race"]
    table = pd.concat([other, race], ignore_index=True)
    assert not Scoreboard(board.settings, table, *[pd.DataFrame()] * 2).has_tradeoff
