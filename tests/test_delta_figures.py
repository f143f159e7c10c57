"""The views ``weights`` and ``attention`` of ``inspect`` by the content of their figures."""

from __future__ import annotations

from html import unescape

import numpy as np
import pytest
import torch

import tracelab
from tests.interventions.edits import random_delta, random_fairmed
from tracelab.model.hook_points import LINEAR_MAPS

PROMPT = "The nurse said that the doctor"


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def titles(figure) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations]


def listing(figure) -> dict[str, list]:
    """The columns of a figure's table."""
    table = figure.data[-1]
    return dict(zip(table.header["values"], map(list, table.cells["values"]), strict=True))


# --- weights
# ------------------------------------------------------------------------------------------------------  # noqa: E501


def test_the_weights_view_has_a_line_a_map_and_the_relative_norm_of_each_layer(model):
    result = tracelab.inspect(
        model, random_delta(model, modules=LINEAR_MAPS, layers=(0, 1, 3)), PROMPT
    )
    figure = result.plot("weights")
    assert [trace.name for trace in figure.data[:-1]] == list(LINEAR_MAPS)
    for trace in figure.data[:-1]:
        part = result.weights.query("module == @trace.name and direction == 0")
        assert list(trace.x) == [0, 1, 3]
        np.testing.assert_allclose(trace.y, part["relative"], rtol=1e-5)
    looks = {(trace.line.color, trace.marker.symbol) for trace in figure.data[:-1]}
    assert len(looks) == len(LINEAR_MAPS)
    assert list(figure.layout.xaxis.range) == [-0.5, 3.5]
    assert figure.layout.yaxis.title.text == "‖ΔW‖ / ‖W‖"
    assert "tiny-llama" in figure.layout.title.subtitle.text


def test_the_weights_view_lists_the_largest_directions_that_write_to_the_residual_stream(model):
    result = tracelab.inspect(
        model, random_delta(model, modules=LINEAR_MAPS, layers=(0, 1, 2, 3)), PROMPT
    )
    figure = result.plot("weights")
    written = result.weights[result.weights["module"].isin(["mlp.out", "attn.o"])]
    largest = written.sort_values("singular_value", ascending=False)[:8]
    shown = listing(figure)
    assert list(shown) == [
        f"<b>{name}</b>" for name in ("layer, map", "share", "promoted", "demoted")
    ]
    assert shown["<b>layer, map</b>"] == [
        f"{row.layer} {row.module}" for row in largest.itertuples()
    ]
    assert shown["<b>share</b>"] == [f"{round(100 * share)}%" for share in largest["share"]]
    assert titles(figure) == [
        "weight_delta",
        "largest directions that write to the residual stream",
    ]
    for name in ("promoted", "demoted"):
        for text, tokens in zip(shown[f"<b>{name}</b>"], largest[name], strict=True):
            drawn = unescape(text.replace("<br>", " ")).split(" ")
            short = [token if len(token) <= 12 else f"{token[:11]}…" for token in tokens.split(" ")]
            assert drawn == short


def test_where_no_map_writes_to_the_residual_stream_the_largest_directions_are_listed_without_tokens(  # noqa: E501
    model,
):
    figure = tracelab.inspect(
        model, random_delta(model, modules=("attn.q", "attn.k")), PROMPT
    ).plot("weights")
    assert titles(figure)[1] == "largest directions"
    assert len(listing(figure)["<b>layer, map</b>"]) == 8
    assert set(listing(figure)["<b>promoted</b>"]) == {""}


def test_each_edit_with_deltas_has_a_panel_and_its_share_of_the_listing(model):
    small = random_delta(model, seed=3, scale=0.05, modules=("mlp.out", "attn.q"))
    edits = {'<i>"a"</i>': random_delta(model), "b": small, "fairmed": random_fairmed(model)}
    result = tracelab.inspect(model, edits, PROMPT)
    figure = result.plot("weights")
    assert titles(figure)[0] == '&lt;i&gt;"a"&lt;/i&gt;'
    assert titles(figure)[2:] == ["b"]
    assert [(trace.name, trace.yaxis, trace.showlegend) for trace in figure.data[:-1]] == [
        ("mlp.out", "y", True),
        ("attn.o", "y", True),
        ("mlp.out", "y2", False),
        ("attn.q", "y2", True),
    ]
    colours = [trace.line.color for trace in figure.data[:-1]]
    assert colours[0] == colours[2]
    places = [text.split("<br>") for text in listing(figure)["<b>layer, map</b>"]]
    assert [edit for _, edit in places] == ['&lt;i&gt;"a"&lt;/i&gt;'] * 4 + ["b"] * 4
    assert {place.split(" ")[1] for place, edit in places if edit == "b"} == {"mlp.out"}


def test_the_weights_view_shows_a_zero_delta_at_zero(model):
    figure = tracelab.inspect(model, tracelab.WeightDelta.low_rank(model, layers=[2]), PROMPT).plot(
        "weights"
    )
    assert list(figure.data[0].y) == [0]
    assert set(listing(figure)["<b>share</b>"]) == {"–"}


# --- attention
# ----------------------------------------------------------------------------------------------------  # noqa: E501


@torch.no_grad()
def test_the_attention_view_has_before_after_and_difference_of_each_edit(model):
    edits = {"a": random_delta(model), "b": random_delta(model, seed=3)}
    figure = tracelab.inspect(model, edits, ["He was", PROMPT]).plot("attention", prompt=1)
    tokens = torch.tensor([model.tokenizer(PROMPT, add_special_tokens=False).input_ids])
    maps = {}
    for name, edit in edits.items():
        _, clean = model.run_with_cache(tokens)
        with edit.applied(model):
            _, edited = model.run_with_cache(tokens)
        before, after = (
            cache["blocks.3.attn.hook_pattern"][0].mean(dim=0) for cache in (clean, edited)
        )
        maps[name] = (before, after, after - before)
    expected = [values for name in edits for values in maps[name]]
    above = np.triu(np.ones((6, 6), dtype=bool), k=1)
    assert len(figure.data) == 6
    for trace, values in zip(figure.data, expected, strict=True):
        assert np.isnan(trace.z[above]).all()
        np.testing.assert_allclose(trace.z[~above], values.numpy()[~above], atol=1e-6)
    assert titles(figure) == [
        "before",
        "after: a",
        "after - before",
        "before",
        "after: b",
        "after - before",
    ]
    assert list(figure.layout.xaxis.ticktext) == [
        "The",
        "·nurse",
        "·said",
        "·that",
        "·the",
        "·doctor",
    ]
    assert figure.layout.xaxis.ticktext == figure.layout.yaxis.ticktext
    assert figure.layout.coloraxis2.cmin == -figure.layout.coloraxis2.cmax
    assert figure.layout.title.text == "Attention at layer 3, mean over heads"
    assert PROMPT in figure.layout.title.subtitle.text


def test_quotation_marks_are_drawn_as_they_are(model):
    figure = tracelab.inspect(model, {'"x"': random_delta(model)}, 'He said "no').plot("attention")
    assert titles(figure)[1] == 'after: "x"'
    assert 'He said "no' in figure.layout.title.subtitle.text
    assert any('"' in label for label in figure.layout.xaxis.ticktext)


def test_the_attention_of_one_token_can_be_drawn(model):
    figure = tracelab.inspect(model, random_delta(model), "He").plot("attention")
    assert [trace.z.tolist() for trace in figure.data] == [[[1]], [[1]], [[0]]]


def test_of_a_long_prompt_not_every_token_is_named(model):
    figure = tracelab.inspect(model, random_delta(model), "He was and" * 12).plot("attention")
    labels = figure.layout.xaxis.ticktext
    assert len(labels) > 32
    assert [bool(label) for label in labels] == [i % 2 == 0 for i in range(len(labels))]
