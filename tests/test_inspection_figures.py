"""Each view of ``inspect`` by the content of its figure, and a result that is saved."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import numpy as np
import pytest

import tracelab
from tests.interventions.edits import random_delta, random_experts, random_fairmed
from tracelab.errors import TracelabError
from tracelab.inspection import before_after
from tracelab.inspection.before_after import VIEWS, BeforeAfter
from tracelab.interventions import FairMed, FairMedConfig, Stack
from tracelab.interventions.fairmed.fairmed import AttributeSpec
from tracelab.interventions.origin import Origin

PROMPT, SHORT = "The nurse said that the doctor", "He was"
EDITS = {
    "delta": random_delta,
    "fairmed": lambda model: random_fairmed(model, lam=2.0, steps=5),
    "experts": lambda model: random_experts(model, alpha=0.7),
    "stack": lambda model: Stack(
        [random_fairmed(model, lam=2.0, steps=5), random_experts(model, alpha=0.7)]
    ),
}


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def result(tiny_model):
    """Two prompts, all positions; names that HTML would eat."""
    model = tiny_model("llama")
    edits = {
        "<i>delta</i>": random_delta(model),
        "fairmed": EDITS["fairmed"](model),
        "mix": EDITS["experts"](model),
    }
    return tracelab.inspect(
        model, edits, ["A <b> tag", SHORT], positions="all", top=2, tokens=["<b>"], new_tokens=4
    )


def shown(figure) -> str:
    """All text of a figure."""
    titles = [annotation.text for annotation in figure.layout.annotations]
    ticks = [t for axis in figure.select_yaxes() for t in axis.ticktext or ()]
    ticks += [t for axis in figure.select_xaxes() for t in axis.ticktext or ()]
    names = [trace.name for trace in figure.data if trace.name]
    return " ".join(
        [figure.layout.title.text, figure.layout.title.subtitle.text, *titles, *ticks, *names]
    )


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "weights"])
@pytest.mark.parametrize("prompt", [0, 1])
def test_a_view_names_prompt_and_model_and_escapes_what_it_shows(result, view, prompt):
    figure = result.plot(view, prompt=prompt)
    caption = figure.layout.title.subtitle.text
    assert "tiny-llama" in caption
    assert ("A &lt;b&gt; tag" if prompt == 0 else SHORT) in caption
    text = shown(figure).replace("<br>", "")
    assert "<" not in text
    if view in ("tokens", "positions", "layers", "map", "attention", "heads"):
        assert "&lt;i&gt;delta&lt;/i&gt;" in text
    labelled = ("positions", "map", "attention", "heads")
    if view in ("tokens", "logits") or (view in labelled and prompt == 0):
        assert "·&lt;" in text


def test_the_tokens_view_has_a_line_a_token_and_the_values_of_the_last_position(result):
    figure = result.plot("tokens", prompt=1)
    table = result.tokens.query("prompt == 1 and position == 1")
    unique = {
        edit: part.drop_duplicates("token_id") for edit, part in table.groupby("edit", sort=False)
    }
    assert len(figure.data) == sum(len(part) + 2 for part in unique.values())
    markers = {
        name: [trace for trace in figure.data if trace.name == name] for name in ("before", "after")
    }
    for name, field in (("before", "p_before"), ("after", "p_after")):
        for trace, part in zip(markers[name], unique.values(), strict=True):
            np.testing.assert_allclose(sorted(trace.x), sorted(part[field]), rtol=1e-5)
    for before, after in zip(markers["before"], markers["after"], strict=True):
        assert (
            np.diff(np.array(after.x) - np.array(before.x)) <= 1e-9
        ).all()  # most promoted first
        assert before.text == after.text
    assert [trace.showlegend for trace in markers["before"]] == [True, False, False]


def test_the_positions_view_has_a_curve_an_edit_over_all_tokens(result):
    figure = result.plot("positions", prompt=1)
    assert [trace.name for trace in figure.data] == ["&lt;i&gt;delta&lt;/i&gt;", "FairMed", "mix"]
    for trace, (_, part) in zip(
        figure.data, result.positions.query("prompt == 1").groupby("edit", sort=False), strict=True
    ):
        np.testing.assert_allclose(trace.y, part["kl"], rtol=1e-5)
    assert list(figure.layout.xaxis.ticktext) == ["He", "·was"]
    assert "nats" in figure.layout.yaxis.title.text


def test_the_layers_view_has_a_curve_an_edit_and_measure(result):
    figure = result.plot("layers")
    assert len(figure.data) == 3 * 3
    assert all(list(trace.x) == [0, 1, 2, 3] for trace in figure.data)
    last = result.layers.query("prompt == 0 and edit == 'mix'")
    last = last[last["position"] == last["position"].max()]
    drawn = last["resid_post"].where(last["resid_post"] > 0)
    np.testing.assert_allclose(figure.data[2].y, drawn, rtol=1e-5)
    assert sum(bool(trace.showlegend) for trace in figure.data) == 3


def test_layers_are_on_a_log_scale_only_where_one_edit_would_hide_another(model):
    small, large = (random_delta(model, scale=scale) for scale in (0.001, 0.1))
    figure = tracelab.inspect(model, {"small": small, "large": large}, PROMPT).plot("layers")
    assert {axis.type for axis in figure.select_yaxes()} == {"log"}
    assert "log scale" in figure.layout.title.subtitle.text
    for trace in figure.data:
        assert not (np.array(trace.y) <= 0).any()
    alone = tracelab.inspect(model, {"small": small}, PROMPT).plot("layers")
    assert {axis.type for axis in alone.select_yaxes()} == {None}
    assert "log scale" not in alone.layout.title.subtitle.text


def test_the_groups_view_has_before_and_after_of_each_group(result):
    figure = result.plot("groups")
    assert [trace.name for trace in figure.data] == [
        f"{group} {when}" for group in ("female", "male", "trans") for when in ("before", "after")
    ]
    assert figure.layout.annotations[0].text == "FairMed: gender"
    assert figure.layout.shapes[0].y0 == pytest.approx(1 / 3)
    assert list(figure.data[0].x) == ["1", "2"]


def test_in_the_groups_view_of_several_attributes_each_group_is_in_the_legend_once(model):
    edits = Stack(
        [random_fairmed(model, attribute="gender"), random_fairmed(model, attribute="age")]
    )
    figure = tracelab.inspect(model, {"both": edits, "again": edits}, PROMPT).plot("groups")
    assert len(figure.data) == 2 * (6 + 4)
    listed = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(listed) == sorted(
        f"{group} {when}"
        for group in ("female", "male", "trans", "old", "young")
        for when in ("before", "after")
    )
    assert [shape.y0 for shape in figure.layout.shapes] == pytest.approx(
        [1 / 3, 1 / 2, 1 / 3, 1 / 2]
    )


def test_group_names_are_escaped(model):
    spec = AttributeSpec(
        attribute="<u>",
        groups=("<b>x", "y"),
        scored=("<b>x", "y"),
        layers=(1,),
        d_model=32,
        hidden=4,
    )
    edit = FairMed(FairMedConfig(), [spec], Origin.of(model))
    figure = tracelab.inspect(model, edit, PROMPT).plot("groups")
    assert "<" not in shown(figure)
    assert "&lt;b&gt;x before" in shown(figure)


def test_the_logits_view_shows_the_formulas_terms_centred(result):
    figure = result.plot("logits", prompt=1)
    (heatmap,) = figure.data
    table = result.tokens.query("prompt == 1 and position == 1 and edit == 'mix'").drop_duplicates(
        "token_id"
    )
    assert list(heatmap.x) == ["z", "z⁺", "z⁻", "z⁺ - z⁻", "after"]
    assert heatmap.z.shape == (len(table), 5)
    np.testing.assert_allclose(heatmap.z[:, 3], table["z_plus"] - table["z_minus"], rtol=1e-5)
    np.testing.assert_allclose(heatmap.z[:, [0, 1, 2, 4]].mean(axis=0), 0, atol=1e-5)
    z, plus, minus, _, after = (heatmap.z[:, i] - heatmap.z[0, i] for i in range(5))
    np.testing.assert_allclose(after, z + 0.7 * (plus - minus), atol=1e-4)
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax


def test_the_logits_view_leaves_what_base_first_cut_empty_and_scales_the_rest(model):
    edit = random_experts(model, filter_order="base_first", top_p=0.05)
    result = tracelab.inspect(model, edit, PROMPT, tokens=["woman"])
    assert np.isinf(result.tokens["logit_after"]).any()
    figure = result.plot("logits")
    assert 0 < figure.layout.coloraxis.cmax < 1000
    after = figure.data[0].z[:, 4]
    cut = np.isinf(result.tokens.drop_duplicates("token_id")["logit_after"])
    assert np.isnan(after[cut]).all()
    assert np.isfinite(after[~cut]).all()


def test_figures_are_all_views_of_all_prompts_that_have_them(result, model):
    views = set(VIEWS) - {"weights"}
    assert set(result.figures()) == {
        "weights",
        *(f"{view}-{prompt}" for view in views for prompt in (0, 1)),
    }
    plain = tracelab.inspect(model, random_fairmed(model), PROMPT)
    assert set(plain.figures()) == {
        "tokens-0",
        "positions-0",
        "layers-0",
        "map-0",
        "groups-0",
        "attention-0",
        "heads-0",
    }


def test_a_view_that_is_none_or_has_nothing_to_show_is_refused(result, model):
    with pytest.raises(
        TracelabError,
        match="unknown view 'maps': choose one of tokens, positions, layers, map, groups, l",
    ):
        result.plot("maps")
    with pytest.raises(TracelabError, match="the layer of the view 'heads' is at most 3, not 4"):
        result.plot("heads", layer=4)
    with pytest.raises(TracelabError, match="'tokens' is not of one layer: 'heads' is"):
        result.plot("tokens", layer=1)
    for prompt in (2, -1):
        with pytest.raises(TracelabError, match=f"no prompt {prompt}: there are 2, counted from 0"):
            result.plot(prompt=prompt)
    plain = tracelab.inspect(model, random_delta(model), PROMPT)
    with pytest.raises(
        TracelabError, match="the view 'groups' is of FairMed, and none of the edits is one"
    ):
        plain.plot("groups")
    with pytest.raises(
        TracelabError, match="the view 'logits' is of experts, and none of the edits has any"
    ):
        plain.plot("logits")
    with pytest.raises(TracelabError, match="the view 'text' needs continuations"):
        plain.plot("text")
    fairmed = tracelab.inspect(model, random_fairmed(model), PROMPT)
    with pytest.raises(
        TracelabError, match="the view 'weights' is of weight deltas, and none of the edits is one"
    ):
        fairmed.plot("weights")


# --- kept
# ---------------------------------------------------------------------------------------------------------  # noqa: E501


def test_a_saved_result_shows_the_same_figures(result, tmp_path):
    back = BeforeAfter.load(result.save(tmp_path / "kept"))
    assert back.settings == result.settings
    for view in VIEWS:
        assert back.plot(view).to_json() == result.plot(view).to_json()


def test_settings_and_page_tell_what_was_inspected(result):
    settings = result.settings
    assert settings["prompts"] == ["A <b> tag", SHORT]
    assert list(settings["edits"]) == ["<i>delta</i>", "fairmed", "mix"]
    assert settings["edits"]["mix"]["config"]["alpha"] == 0.7
    assert settings["edits"]["mix"]["made_for"] == settings["model"]["fingerprint"]
    assert (settings["positions"], settings["top"], settings["rank_by"]) == (
        "all",
        2,
        "probability",
    )
    assert settings["model"]["model_id"] == "tiny-llama"
    assert settings["prepend_bos"] is False
    assert "&lt;i&gt;delta" in result._repr_html_()


# --- where an edit acts
# -----------------------------------------------------------------------------------------------


def test_the_map_has_a_panel_an_edit_and_quantity_with_the_tables_values(result, model):
    figure = result.plot("map", prompt=1)
    assert len(figure.data) == 3 * 3  # without the lens
    rows = result.moves.query("prompt == 1 and edit == 'mix'")
    for heatmap, name in zip(figure.data[6:], ("resid_post", "mlp_out", "attn_out"), strict=True):
        grid = rows.pivot(index="layer", columns="position", values=name).to_numpy()
        np.testing.assert_allclose(heatmap.z, grid, rtol=1e-5)
    lens = tracelab.inspect(model, random_delta(model), SHORT, lens=True)
    panels = lens.plot("map").data
    assert len(panels) == 4
    assert panels[3].coloraxis != panels[0].coloraxis
    np.testing.assert_allclose(panels[3].z.ravel(), lens.moves["lens_kl"], rtol=1e-5)


def test_heads_are_drawn_before_after_and_their_change_with_the_first_key_apart(result):
    figure = result.plot("heads", prompt=0, layer=2)
    heads = result.heads
    assert len(figure.data) == 3 * 4 * 3 * 2  # edits, heads, maps, the first key and the others
    old, new = (heads[name][2, 1].float().numpy() for name in ("before/0", "after/0/0"))
    for maps, want in zip(range(6, 12, 2), (old, new, new - old), strict=True):
        first, others = figure.data[maps], figure.data[maps + 1]
        drawn = np.concatenate([first.z, others.z], axis=1)
        lower = np.tril(np.ones_like(drawn, dtype=bool))
        np.testing.assert_allclose(drawn[lower], want[lower], atol=1e-6)
        assert np.isnan(drawn[~lower]).all()
        assert (first.coloraxis == others.coloraxis) == (maps == 10)
    assert "layer 2" in figure.layout.title.text
    assert figure.layout.coloraxis3.cmax == 1


def test_the_layer_of_heads_is_by_default_the_one_that_moved_most(model):
    result = tracelab.inspect(model, random_delta(model, layers=(2,)), PROMPT)
    change = (result.heads["after/0/0"].float() - result.heads["before/0"].float()).numpy()
    most = int(np.square(change).sum(axis=(1, 2, 3)).argmax())
    assert f"layer {most}:" in result.plot("heads").layout.title.text
    assert most == 3  # the only one after the edit


def test_the_layer_of_heads_of_several_edits_is_where_all_together_moved_most(result):
    heads = {name: maps.clone() for name, maps in result.heads.items()}
    for number, (layer, by) in enumerate([(1, 0.1), (2, 0.4), (1, 0.2)]):
        heads[f"after/{number}/0"] = heads["before/0"].clone()
        heads[f"after/{number}/0"][layer] += by
    assert "layer 2:" in replace(result, heads=heads).plot("heads").layout.title.text


def test_patterns_beyond_the_bound_are_not_kept_and_the_view_says_so(model, monkeypatch):
    monkeypatch.setattr(before_after, "HEADS_MOST", 1)
    result = tracelab.inspect(model, random_delta(model), [PROMPT, SHORT])
    assert {name.split("/")[-1] for name in result.heads} == {"0"}
    assert result.plot("heads", prompt=0).data
    with pytest.raises(TracelabError, match="the view 'heads' needs attention patterns"):
        result.plot("heads", prompt=1)


def test_continuations_are_side_by_side_and_escaped(result):
    (table,) = result.plot("text", prompt=0).data
    edits, before, after = table.cells.values
    assert list(edits) == ["&lt;i&gt;delta&lt;/i&gt;", "fairmed", "mix"]
    rows = result.texts.query("prompt == 0")
    for side, texts in (("before", before), ("after", after)):
        for text, shown_text in zip(rows[side], texts, strict=True):
            plain = re.sub(r"</?(span|b)[^>]*>", "", shown_text)
            assert html.unescape(plain) == text.strip().replace("\n", " ⏎ ")
