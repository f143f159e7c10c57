"""Figures of scores: what is drawn, never pixels."""

from __future__ import annotations

import pandas as pd
import pytest

from tracelab.errors import TracelabError
from tracelab.figures import log_probabilities, scores, sweep
from tracelab.figures.style import GREY


def table(edit, alpha, values):
    rows = [{"metric": m, "value": v, "low": v - 1, "high": v + 2} for m, v in values.items()]
    return pd.DataFrame(rows).assign(edit=edit, alpha=alpha, model="m")


TABLE = pd.concat(
    [table(None, 0, {"ss": 60, "perplexity": 80}), table("a<b", 1, {"ss": 55, "perplexity": 90})]
)


def with_differences(table):
    """What each edit changes, by a tenth of its value, +- 2."""
    change = table["value"].where(table["edit"].notna()) / 10
    return table.assign(difference=change, difference_low=change - 2, difference_high=change + 2)


def test_scores_without_differences_are_levels_with_intervals_and_the_ideal():
    figure = scores(TABLE, ["ss", "perplexity"], title="t", caption="c")
    unedited, edited = figure.data[:2]
    assert [list(trace.x) for trace in figure.data] == [[60], [55], [80], [90]]
    assert list(edited.error_x.array) == [2]
    assert list(edited.error_x.arrayminus) == [1]
    assert (unedited.marker.color, unedited.error_x.color) == (GREY, GREY)
    assert list(figure.layout.yaxis.ticktext) == ["unedited", "a&lt;b"]
    assert [shape.x0 for shape in figure.layout.shapes] == [50]  # perplexity has no ideal


def test_scores_with_differences_draw_those_beside_no_change_and_the_ideal():
    figure = scores(with_differences(TABLE), ["perplexity", "ss"], title="t", caption="c")
    assert [list(trace.x) for trace in figure.data] == [[9], [5.5]]
    assert list(figure.data[0].error_x.array) == [2]
    assert list(figure.layout.yaxis.ticktext) == ["a&lt;b"]
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["perplexity", "StereoSet SS<br>(points)"]
    # 0, and of SS the 50 that is 5.5 - 5 = 0.5 away from the unedited model's 49.5
    assert [shape.x0 for shape in figure.layout.shapes] == [0, 0, 0.5]
    levels = scores(with_differences(TABLE), ["ss"], title="t", caption="c", values="level")
    assert [list(trace.x) for trace in levels.data] == [[60], [55]]


def test_a_row_is_a_bias_type_and_a_column_a_metric_on_one_scale():
    kinds = [TABLE.assign(bias=bias, benchmark="b") for bias in ("race", "age")]
    figure = scores(pd.concat(kinds), ["ss", "perplexity"], title="t", caption="c")
    rows = [axis.title.text for axis in figure.select_yaxes() if axis.title.text]
    assert rows == ["race", "age"]
    below = next(figure.select_xaxes(row=2, col=2))
    assert below.matches == "x2"
    assert len(figure.layout.annotations) == 2


def test_what_is_neither_difference_nor_level_is_refused():
    with pytest.raises(TracelabError, match="unknown values 'both'"):
        scores(TABLE, ["ss"], title="t", caption="c", values="both")


def test_log_probabilities_are_a_row_a_text_with_its_tokens_and_their_mean():
    texts = pd.DataFrame({"text": ["a <b>", "c\nd" * 99], "logprob_mean": [-2.0, -4.0]})
    tokens = pd.DataFrame(
        {"text": [0, 0, 1], "token": ["a", "<b>", "c"], "logprob": [-1.0, -3.0, -4.0]}
    )
    figure = log_probabilities(texts, tokens, {"model": {"model_id": "m"}})
    each, mean = figure.data
    assert list(zip(each.x, each.y, each.text, strict=True)) == [
        (-1, 0, "a"),
        (-3, 0, "&lt;b&gt;"),
        (-4, 1, "c"),
    ]
    assert list(zip(mean.x, mean.y, strict=True)) == [(-2, 0), (-4, 1)]
    assert figure.layout.yaxis.ticktext[0] == "a &lt;b&gt;"
    assert len(figure.layout.yaxis.ticktext[1]) == 40
    assert figure.layout.title.subtitle.text == "2 texts, 3 tokens · m"


def test_of_many_texts_the_first_are_drawn_and_the_caption_says_so():
    texts = pd.DataFrame({"text": ["x"] * 50, "logprob_mean": [-1.0] * 50})
    tokens = pd.DataFrame({"text": range(50), "token": "x", "logprob": -1.0})
    figure = log_probabilities(texts, tokens, {"model": {"model_id": "m"}})
    assert [len(trace.x) for trace in figure.data] == [40, 40]
    assert "the first 40 of 50 texts, 40 tokens" in figure.layout.title.subtitle.text


def test_a_sweep_draws_a_line_and_a_band_a_series_and_metric():
    figure = sweep(
        TABLE, "alpha", ["ss", "perplexity"], series="model", title="t", caption="c", x_title="α"
    )
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [list(line.x) for line in lines] == [[0, 1], [0, 1]]
    assert [list(line.y) for line in lines] == [[60, 55], [80, 90]]
    assert len(figure.data) == 4
    assert figure.layout.xaxis.title.text == "α"


def test_a_sweep_with_differences_begins_at_0():
    table = with_differences(TABLE)
    figure = sweep(table, "alpha", ["ss"], series="model", title="t", caption="c")
    (line,) = (trace for trace in figure.data if trace.mode == "lines+markers")
    assert list(line.y) == [0, 5.5]
    assert figure.layout.annotations[0].text == "change of StereoSet SS (points)"


def test_a_sweep_draws_no_interval_where_a_difference_has_none():
    table = with_differences(TABLE)
    there = table["difference"].notna()
    table.loc[there, ["difference_low", "difference_high"]] = float("nan")
    figure = sweep(table, "alpha", ["ss"], series="model", title="t", caption="c")
    (drawn,) = (trace for trace in figure.data if trace.mode == "lines" and trace.fill)
    assert pd.isna(pd.Series(drawn.y)).sum() == 2
