"""Figures of scores: what is drawn, never pixels."""

from __future__ import annotations

import pandas as pd

from tracelab.figures import log_probabilities, scores, sweep


def table(edit, alpha, values):
    rows = [{"metric": m, "value": v, "low": v - 1, "high": v + 2} for m, v in values.items()]
    return pd.DataFrame(rows).assign(edit=edit, alpha=alpha, model="m")


TABLE = pd.concat(
    [table(None, 0, {"ss": 60, "perplexity": 80}), table("a<b", 1, {"ss": 55, "perplexity": 90})]
)


def test_scores_draw_a_panel_a_metric_with_intervals_and_the_ideal():
    figure = scores(TABLE, ["ss", "perplexity"], title="t", caption="c")
    ss, perplexity = figure.data
    assert list(ss.x) == [60, 55]
    assert list(perplexity.x) == [80, 90]
    assert list(ss.error_x.array) == [2, 2]
    assert list(ss.error_x.arrayminus) == [1, 1]
    assert list(figure.layout.yaxis.ticktext) == ["unedited", "a&lt;b"]
    assert [shape.x0 for shape in figure.layout.shapes] == [50]  # perplexity has no ideal


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
