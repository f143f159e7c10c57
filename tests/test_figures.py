"""Figures by their content: traces, axes, scales and labels, never pixels."""

import numpy as np
import pytest

from tracelab import figures
from tracelab.datasets import Pair, crows_pairs, stereoset, templates
from tracelab.errors import TracelabError
from tracelab.localize import attention_gap, causal_trace, probe_layers
from tracelab.localize.probing.prober import ProberConfig


@pytest.fixture(scope="module")
def trace(tiny_model):
    return causal_trace(
        tiny_model("llama"),
        stereoset("gender"),
        max_cases=2,
        n_samples=2,
        window=2,
        positions="all",
    )


@pytest.fixture(scope="module")
def gap(tiny_model):
    pairs = [pair.pair() for pair in crows_pairs("gender", limit=30)]
    twin = Pair(
        "twin", "gender", "The man and the man met the man.", "The man and the woman met the man."
    )
    return attention_gap(tiny_model("llama"), [twin, *pairs])


def test_f1_figure_shows_prober_control_and_chosen_layers(real_model):
    probes = probe_layers(
        real_model, templates("gender", limit=8), n_seeds=1, config=ProberConfig(hidden=8, epochs=1)
    )
    figure = probes.plot()
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert set(lines) == {"prober", "control (shuffled labels)", "top 8 layers"}
    assert list(lines["prober"].y) == probes.frame["f1"].tolist()
    assert set(lines["top 8 layers"].x) == set(probes.top_layers)
    assert figure.layout.xaxis.title.text == "layer"
    assert tuple(figure.layout.yaxis.range) == (0, 1)


def test_trace_heatmap_is_centred_on_zero_and_one_panel_a_component(trace):
    figure = trace.plot()
    assert len(figure.data) == 3
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax
    shown = figure.data[0].z
    expected = trace.effects.query("component == 'resid' and role == 'attribute'")["nie"]
    np.testing.assert_allclose(shown[0], expected, rtol=1e-6)


def test_trace_captions_tell_where_the_attention_sink_is(trace):
    caption = trace.plot().layout.title.subtitle.text.replace("<br>", " ")
    n = trace.cases["first_token"].sum()
    assert f"no BOS, the first token (attention sink) noised in {n} pairs" in caption
    with_bos = figures.trace_heatmap(
        trace.effects, trace.cases, trace.settings | {"prepend_bos": True}
    )
    assert "BOS before each sentence" in with_bos.layout.title.subtitle.text.replace("<br>", " ")


def test_example_labels_every_token_once_and_marks_the_noised(trace):
    figure = trace.plot_example()
    labels = figure.layout.yaxis.ticktext
    assert len(labels) == figure.data[0].z.shape[0] == len(figure.layout.yaxis.tickvals)
    assert any("*" in label for label in labels)
    assert figure.data[0].zmin == -figure.data[0].zmax


def test_equal_tokens_keep_their_own_row_and_differing_ones_are_bold(gap):
    figure = gap.plot_pair("twin")
    labels = list(figure.layout.yaxis.ticktext)
    assert labels.count("·man") == 2  # the third stands in the bold label
    assert sum(label.startswith("<b>") for label in labels) == 1
    assert list(figure.layout.yaxis.tickvals) == list(range(len(labels)))
    upper = np.triu_indices(len(labels), k=1)
    for heatmap in figure.data:
        assert np.isnan(heatmap.z[upper]).all()
    assert figure.layout.coloraxis2.cmin == -figure.layout.coloraxis2.cmax


def test_gap_figure_quotes_the_hit_rate_chance_and_excess(gap):
    figure = gap.plot()
    caption = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert f"{gap.value('hit_rate').value:.1f} %" in caption
    assert "by chance" in caption
    assert "over a neutral swap" in caption
    assert {violin.name for violin in figure.data} == {"sensitive positions", "other positions"}


def test_a_pair_without_kept_map_is_refused(gap):
    with pytest.raises(TracelabError, match="no attention map of pair 'nobody'"):
        gap.plot_pair("nobody")
