"""The main job on the real model at a small size: the page, its files, and taking up where it
stopped."""

import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

import tracelab
from tests.interventions.edits import random_delta
from tracelab.datasets import stereoset
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.stereoset import StereoSetScores
from tracelab.interventions.methods import METHODS
from tracelab.metrics import label
from tracelab.report import editing
from tracelab.report import parts as report_parts
from tracelab.report.presets import PRESETS, Preset, preset_of

REAL = pytest.param("real", marks=[pytest.mark.slow, pytest.mark.nightly])


@pytest.fixture(scope="module", params=["tiny", REAL])
def model(request):
    """A tiny model for what a report does; the embedded one for what it is made for."""
    if request.param == "real":
        return request.getfixturevalue("real_model")
    return request.getfixturevalue("tiny_model")("llama")


@pytest.fixture(scope="module")
def small_preset():
    """Registered for this module only; the real presets take minutes."""
    fits = {
        "biasedit": {"shift": "direct", "steps": 1, "eval_every": 1, "n_query": 4, "n_dev": 6},
        "klaad": {"trainable": "attn_last", "rank": 2, "n_dev": 6},
    }
    small = {"fit_records": 16, "choice_records": 6, "fits": fits}
    benchmarks = {"stereoset": 6, "perplexity": 3}
    PRESETS["test"] = Preset(
        prober_seeds=1,
        trace_pairs=1,
        trace_samples=1,
        layer_step=15,
        benchmarks=benchmarks,
        **small,
    )
    yield "test"
    del PRESETS["test"]


@pytest.fixture(scope="module")
def made(model, small_preset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    tracelab.report(
        model, "gender", folder, preset=small_preset, limit=12, png=False, interventions={}
    )
    return folder


def test_the_page_is_self_contained_and_holds_every_figure(made):
    page = (made / "index.html").read_text()
    assert "cdn.plot.ly/plotly" not in page.split("</script>")[-1]
    assert 'src="http' not in page
    for name in (
        "f1_per_layer",
        "trace_average",
        "trace_example",
        "attention_gap",
        "attention_pair",
    ):
        assert f'id="{name}"' in page
        assert (made / "figures" / f"{name}.html").is_file()


def test_the_data_and_the_parts_have_a_repr_of_one_line(small_preset):
    data = report_parts.Data.read("gender", PRESETS[small_preset], 0)
    parts = object.__new__(report_parts.Parts)
    scores = StereoSetScores({"model": {"model_id": "m" * 999}}, pd.DataFrame(), pd.DataFrame())
    vars(parts).update(stereoset=scores, crows=None, probes=scores)
    for held in (data, parts):
        assert repr(held).isprintable()
        assert len(repr(held)) < 200
    assert repr(parts).endswith("stereoset, probes)")


def test_headline_numbers_are_those_of_the_tables(made):
    headline = pd.read_csv(made / "tables/headline.csv").set_index("number")
    scores = pd.read_csv(made / "tables/stereoset_table.csv").set_index("metric")
    assert headline.loc["StereoSet SS (%)", "value"] == pytest.approx(scores.loc["ss", "value"])
    attention = pd.read_csv(made / "tables/attention_summary.csv")
    hit = attention[(attention["selection"] == "equal") & (attention["metric"] == "hit_rate")]
    expected = headline.loc["hit rate on differing words (%)", "value"]
    assert expected == pytest.approx(hit["value"].item())


def test_started_again_it_resumes_from_finished_parts(
    model, small_preset, made, monkeypatch, capsys
):
    def must_not_run(*args, **kwargs):
        raise AssertionError("measured again")

    before = (made / "tables/headline.csv").read_text()
    for name in (
        "stereoset_scores",
        "crows_pairs_scores",
        "probe_layers",
        "attention_gap",
        "causal_trace",
    ):
        monkeypatch.setattr(report_parts, name, must_not_run)
    tracelab.report(
        model, "gender", made, preset=small_preset, limit=12, png=False, interventions={}
    )
    assert (made / "tables/headline.csv").read_text() == before
    assert capsys.readouterr().err.count("resumed from") == 6


def test_the_example_is_the_strongest_case_of_the_trace_with_the_same_noise(made):
    case = pd.read_csv(made / "tables/trace_cases.csv").set_index("case")["te"]
    example = pd.read_csv(made / "tables/example_cases.csv").set_index("case")["te"]
    assert example.index.tolist() == [case.abs().idxmax()]
    assert example.iloc[0] == pytest.approx(case[example.index[0]], abs=1e-3)


def test_another_request_in_the_same_folder_is_measured_anew(
    model, small_preset, made, monkeypatch
):
    calls = []

    def stop(*args, **kwargs):
        calls.append(kwargs["seed"])
        raise KeyboardInterrupt

    monkeypatch.setattr(report_parts, "stereoset_scores", stop)
    with pytest.raises(KeyboardInterrupt):
        tracelab.report(
            model,
            "gender",
            made,
            preset=small_preset,
            limit=12,
            png=False,
            seed=1,
            interventions={},
        )
    assert calls == [1]
    # The part that was not made anew is still the old one, and still says so.
    assert (made / "parts/stereoset.key").is_file()


def test_an_unknown_bias_or_preset_is_refused_before_anything_is_written(model, tmp_path):
    for arguments in (("height",), ("gender",)):
        with pytest.raises(TracelabError, match="unknown"):
            tracelab.report(model, *arguments, tmp_path / "new", preset="slow")
    assert not (tmp_path / "new").exists()
    with pytest.raises(TracelabError, match="limit=0"):
        preset_of("quick", 0)


def test_without_edits_the_page_has_none(made):
    assert 'id="scoreboard"' not in (made / "index.html").read_text()
    assert not (made / "bundles").exists()


@pytest.fixture(scope="module")
def edited(model, small_preset, made):
    """The same report with the four methods, fitted on next to nothing."""
    folder = made.with_name(f"{made.name}-edited")
    shutil.copytree(made, folder)
    tracelab.report(model, "gender", folder, preset=small_preset, limit=12, png=False)
    return folder


@pytest.mark.slow
def test_every_method_is_fitted_kept_compared_and_shown(edited):
    folder = edited
    methods = [method.kind for method in METHODS]
    for name in methods:
        assert tracelab.load_intervention(folder / "bundles" / name).kind == name
    table = pd.read_csv(folder / "tables/scoreboard_table.csv")
    choice = pd.read_csv(folder / "tables/choice_table.csv")
    stacked = choice.loc[choice["chosen"], "edit"].tolist()
    assert list(table["edit"].unique()) == [
        "unedited",
        *methods,
        *([" + ".join(stacked)] if stacked else []),
    ]
    assert not table["reason"].notna().any()
    page = (folder / "index.html").read_text()
    for name in ("scoreboard", "tradeoff", "before_after_0", "before_after_1"):
        assert f'id="{name}"' in page
    assert ("were chosen on other data" in page, "No two\nwere stacked" in page) == (
        bool(stacked),
        not stacked,
    )
    headline = pd.read_csv(folder / "tables/headline.csv").set_index("number")["value"]
    own = table[(table["bias"] == "gender") & table["difference"].notna()]
    for metric in ("gap_group", "ss", "lms"):
        for row in own[own["metric"] == metric].to_dict("records"):
            said = headline[f"{row['edit']}: change of {label(metric)}"]
            assert said == pytest.approx(row["difference"])
    texts = pd.read_csv(folder / "tables/texts_table.csv")
    assert set(texts["edit"]) == set(table["edit"])
    for heading in ("What edits do", "What they cost", "What it writes"):
        assert heading in page


@pytest.mark.slow
def test_started_again_edits_and_cells_are_resumed(
    model, small_preset, edited, monkeypatch, capsys
):
    def must_not_run(*args, **kwargs):
        raise AssertionError("fitted again")

    for method in METHODS:
        monkeypatch.setattr(method, "fit", must_not_run)
    kept = sorted((edited / "parts/cells").iterdir())
    tracelab.report(model, "gender", edited, preset=small_preset, limit=12, png=False)
    assert sorted((edited / "parts/cells").iterdir()) == kept
    assert capsys.readouterr().err.count("bundles/") == len(METHODS)


@pytest.mark.slow
def test_the_stack_is_the_two_of_least_association_among_those_that_help_and_keep_lms(edited):
    choice = pd.read_csv(edited / "tables/choice_table.csv").set_index("edit")
    distance = choice["association"].abs()
    allowed = (choice["lms"] >= choice.loc["unedited", "lms"] - 1) & (
        distance < distance["unedited"]
    )
    nearest = distance[allowed].sort_values(kind="stable").index[:2]
    assert choice["chosen"].sum() == (2 if len(nearest) == 2 else 0)
    if len(nearest) == 2:
        assert set(choice.index[choice["chosen"]]) == set(nearest)


@pytest.mark.slow
def test_given_edits_are_compared_instead(model, small_preset, made, edited):
    folder = made.with_name(f"{made.name}-given")
    shutil.copytree(made, folder)
    edit = tracelab.load_intervention(edited / "bundles/biasedit")
    tracelab.report(
        model,
        "gender",
        folder,
        preset=small_preset,
        limit=12,
        png=False,
        interventions={"mine": edit},
        prompts=["He"],
    )
    assert not (folder / "bundles").exists()
    table = pd.read_csv(folder / "tables/scoreboard_table.csv")
    assert set(table["edit"]) == {"unedited", "mine"}
    assert 'id="before_after_1"' not in (folder / "index.html").read_text()


def test_layers_of_a_preset_always_hold_the_last():
    assert PRESETS["quick"].trace_layers(30)[-1] == 29
    assert PRESETS["full"].trace_layers(4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # unedited, then a, b, c: association and LMS
        ([(0.4, 90), (0.1, 90), (0.3, 89.5), (0.0, 88)], "a + b"),  # c costs two points of LMS
        ([(0.4, 90), (-0.3, 90), (0.4, 90), (-0.5, 90)], None),  # only a helps
        ([(0.4, 90), (-0.2, 90), (0.1, 90), (0.3, 90)], "b + a"),
    ],
)
def test_which_two_edits_are_stacked(tiny_model, tmp_path, monkeypatch, scores, expected):
    given = iter(scores)

    def scored(model, records, seed):
        gap, lms = next(given)
        names = ["gap", "gap_group", "ss_pooled", "lms_pooled"]
        table = pd.DataFrame({"metric": names, "value": [9.0, gap, 50.0, lms]})
        return SimpleNamespace(table=table)

    monkeypatch.setattr(editing, "stereoset_scores", scored)
    model = tiny_model("llama")
    edits = {name: random_delta(model, seed=seed) for seed, name in enumerate("abc")}
    records = stereoset("gender", limit=2)
    choice, stack = editing.choose_stack(
        model, edits, records, tmp_path, seed=0, say=lambda text: None
    )
    names = [] if expected is None else sorted(expected.split(" + "))
    assert sorted(choice.table.loc[choice.table["chosen"], "edit"]) == names
    assert [sorted(name.split(" + ")) for name in stack] == ([names] if names else [])
    assert [list(each) for each in stack.values()] == (
        [[edits[name] for name in names]] if names else []
    )


def test_other_weights_under_the_same_settings_are_chosen_among_anew(tiny_model, tmp_path):
    model, records, said = tiny_model("llama"), stereoset("gender", limit=2), []
    for seed in (1, 1, 2):
        edit = random_delta(model, scale=seed)
        editing.choose_stack(model, {"a": edit}, records, tmp_path, seed=0, say=said.append)
    assert [line.split()[1] for line in said] == ["measuring", "resumed", "measuring"]
