from __future__ import annotations

import hashlib
import json
import pkgutil
import warnings
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import tracelab
from tests.interventions.edits import random_delta, random_experts
from tracelab.datasets import crows_pairs, stereoset, templates
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.crows_pairs import CrowsPairsScores, crows_pairs_scores
from tracelab.evaluate.benchmarks.hellinger import HellingerScores, hellinger, prompt_pairs
from tracelab.evaluate.benchmarks.perplexity import PerplexityScores, perplexity
from tracelab.evaluate.benchmarks.stereoset import StereoSetScores, stereoset_scores
from tracelab.evaluate.edited import EditedScores, edited_scores
from tracelab.evaluate.scoreboard.scoreboard import Scoreboard, evaluate
from tracelab.inspection.before_after import BeforeAfter, inspect
from tracelab.localize import attention_gap, causal_trace, probe_layers
from tracelab.localize.attention.attention_gap import AttentionGap
from tracelab.localize.probing.prober import ProberConfig
from tracelab.localize.probing.probes import LayerProbes
from tracelab.localize.tracing.result import CausalTrace
from tracelab.model.generation import Generations, generate
from tracelab.model.load import model_info
from tracelab.model.scoring import Scores, score
from tracelab.model.settings import run_settings
from tracelab.report.editing import Choice
from tracelab.results import Result
from tracelab.storage.data_hash import data_hash


@pytest.fixture(scope="module")
def results(tiny_model) -> dict[type[Result], Result]:
    """One small result of each class."""
    model = tiny_model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few prompts
        probes = probe_layers(
            model, templates("gender", limit=8), config=ProberConfig(hidden=8, epochs=1), n_seeds=1
        )
    trace = causal_trace(
        model, stereoset("gender", limit=4), n_samples=1, window=2, layers=[1], max_cases=2
    )
    delta, records = random_delta(model), stereoset("religion", limit=10)
    choice = pd.DataFrame(
        {"edit": ["unedited", "a", "b"], "ss": [60.0, 50.0, 55.0], "chosen": [False, True, True]}
    )
    return {
        AttentionGap: attention_gap(model, crows_pairs("age", limit=10)),
        Scoreboard: evaluate(model, delta, ["crows-pairs"], bias="gender", limit=4, costs=False),
        EditedScores: edited_scores(
            model, delta, lambda name: stereoset_scores(model, records, edit=name or "none")
        ),
        Choice: Choice(run_settings(model, records, seed=0), choice),
        Scores: score(model, ["The dog", "A cat sits"], ["I see:", "You see:"]),
        StereoSetScores: stereoset_scores(model, records),
        CrowsPairsScores: crows_pairs_scores(model, crows_pairs("age", limit=10)),
        PerplexityScores: perplexity(model, ["The dog sleeps.", "The cat sits on the wall."]),
        HellingerScores: hellinger(model, prompt_pairs("gender")[:3]),
        LayerProbes: probes,
        CausalTrace: trace,
        BeforeAfter: inspect(model, [delta, random_experts(model)], ["The dog", "A cat"], top=3),
        Generations: generate(
            model, ["The dog", "A cat sits"], max_new_tokens=3, num_return_sequences=2
        ),
    }


KINDS = [
    AttentionGap,
    Scoreboard,
    EditedScores,
    Choice,
    Scores,
    StereoSetScores,
    CrowsPairsScores,
    PerplexityScores,
    HellingerScores,
    LayerProbes,
    CausalTrace,
    BeforeAfter,
    Generations,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_result_comes_back_as_it_was(results, tmp_path, kind):
    saved = results[kind]
    back = kind.load(saved.save(tmp_path / "kept"))
    assert type(back) is kind
    assert back.settings == saved.settings
    for name, value in vars(saved).items():
        other = getattr(back, name)
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(other, value, check_exact=True)
        elif name == "probers":
            assert value.keys() == other.keys()
            assert all(torch.equal(value[key], other[key]) for key in value)
    pd.testing.assert_frame_equal(back.frame, saved.frame)
    assert back.tables().keys() == saved.tables().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_is_not_read_as_another_kind(results, tmp_path, kind):
    folder = results[kind].save(tmp_path / "kept")
    other = next(k for k in KINDS if k is not kind)
    with pytest.raises(
        TracelabError, match=f"'.*kept' holds a {kind.__name__}, not a {other.__name__}"
    ):
        other.load(folder)


def test_a_folder_without_a_result_is_named(tmp_path):
    with pytest.raises(TracelabError, match="no saved result in '.*nowhere'"):
        LayerProbes.load(tmp_path / "nowhere")


def test_a_result_is_kept_in_open_formats(results, tmp_path):
    folder = results[LayerProbes].save(tmp_path / "kept")
    assert {file.name for file in folder.iterdir()} == {
        "result.json",
        "layers.parquet",
        "labels.parquet",
        "probers.safetensors",
    }
    assert json.loads((folder / "result.json").read_text())["result"] == "LayerProbes"
    assert set(load_file(folder / "probers.safetensors")) == set(results[LayerProbes].probers)
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder / "layers.parquet"), results[LayerProbes].layers
    )


def test_saving_again_replaces_the_old_result_as_a_whole(results, tmp_path):
    folder = results[LayerProbes].save(tmp_path / "kept")
    results[StereoSetScores].save(folder)
    assert not (folder / "layers.parquet").exists()
    assert isinstance(StereoSetScores.load(folder), StereoSetScores)


def test_a_folder_of_other_things_is_not_replaced(results, tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").write_text("years of work")
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(
            TracelabError, match=r"holds other files \(thesis\.tex\): name a folder of its own"
        ):
            results[StereoSetScores].save(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        TracelabError, match="cannot be replaced by a new folder: name one inside it"
    ):
        results[StereoSetScores].save(".")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_with_a_result_and_something_else_is_not_replaced(results, tmp_path):
    folder = results[StereoSetScores].save(tmp_path / "kept")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(TracelabError, match=r"holds other files \(notes\.txt\)"):
        results[StereoSetScores].save(folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_folder_of_tables_that_we_did_not_write_is_not_replaced(results, tmp_path):
    (tmp_path / "train.parquet").write_text("the user's data")
    with pytest.raises(TracelabError, match=r"holds other files \(train\.parquet\)"):
        results[StereoSetScores].save(tmp_path)
    assert (tmp_path / "train.parquet").is_file()


def test_an_empty_folder_is_used(results, tmp_path):
    assert StereoSetScores.load(results[StereoSetScores].save(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_settings_tell_model_data_seed_and_versions(results, tiny_model, kind):
    settings = results[kind].settings
    assert settings["model"] == model_info(tiny_model("llama")).settings()
    assert len(settings["data_hash"]) == 16
    drawn = kind not in (BeforeAfter, Scores)  # these draw nothing
    assert settings.get("seed") == (0 if drawn else None)
    assert settings["versions"]["torch"] == version("torch") == torch.__version__
    assert set(settings["versions"]) == {"tracelab", "torch", "transformers", "transformer-lens"}


def test_the_data_hash_is_that_of_the_records(tiny_model):
    records = stereoset("religion", limit=3)
    settings = run_settings(tiny_model("llama"), records, benchmark="x")
    assert settings["data_hash"] == data_hash(records)
    assert settings["data_hash"] != run_settings(tiny_model("llama"), records[:2])["data_hash"]
    assert settings["benchmark"] == "x"


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_shows_itself_in_a_notebook(results, kind):
    shown = results[kind]._repr_html_()
    assert kind.__name__ in shown
    assert "tiny-llama" in shown
    rows = len(results[kind].frame)
    assert shown.count("<tr") == 1 + min(rows, 12)
    assert (f"{rows} rows in all" in shown) is (rows > 12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_repr_is_one_line_with_the_model_n_and_a_number(results, kind):
    shown = repr(results[kind])
    assert shown.startswith(f"{kind.__name__}(tiny-llama, ")
    assert "n = " in shown
    assert not shown.endswith(" rows)")  # what is said of a result without a headline
    assert shown.isprintable()
    assert len(shown) < 200


@pytest.mark.parametrize("kind", KINDS)
def test_the_repr_stays_one_line_whatever_a_file_says_and_lacks(results, kind):
    model = {"model_id": "a\n\x1b[2J" + "b" * 5000}
    nothing = {name: pd.DataFrame() for name in results[kind].tables()}
    for settings in ({}, {"model": model}, {"model": None}):
        shown = repr(replace(results[kind], settings=settings, **nothing))
        assert shown.startswith(kind.__name__)
        assert shown.isprintable()
        assert len(shown) < 200


def test_every_result_class_shows_itself_so():
    for module in pkgutil.walk_packages(tracelab.__path__, "tracelab."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    kinds = below(Result)
    assert set(KINDS) < kinds
    assert {kind for kind in kinds if kind.__repr__ is not Result.__repr__} == set()
    assert {kind for kind in kinds if kind.headline is Result.headline} == set()


def below(kind: type) -> set[type]:
    """The package's classes that are derived from one."""
    found = {each for child in kind.__subclasses__() for each in {child} | below(child)}
    return {each for each in found if each.__module__.startswith("tracelab.")}


def test_a_result_of_ones_own_has_its_number_of_rows_for_a_headline():
    @dataclass(frozen=True)
    class Lengths(Result):
        table: pd.DataFrame

        @property
        def frame(self):
            return self.table

    made = Lengths({"model": {"model_id": "m"}}, pd.DataFrame({"x": range(1000)}))
    assert repr(made) == "Lengths(m, 1000 rows)"
    assert "<b>Lengths</b> · m · 1000 rows</p>" in made._repr_html_()


def test_a_result_without_table_or_figure_says_so(results):
    @dataclass(frozen=True)
    class Bare(Result):
        pass

    with pytest.raises(AttributeError, match="Bare has no table"):
        _ = Bare({}).frame
    with pytest.raises(AttributeError, match="Bare has no figure"):
        Bare({}).plot()
    with pytest.raises(AttributeError, match="StereoSetScores has no figure"):
        results[StereoSetScores].plot()


@pytest.mark.parametrize("name", ["../outside.parquet", "/dev/zero", "linked.parquet"])
def test_a_forged_result_reads_no_file_outside_its_folder(results, tmp_path, name):
    kept = results[Generations].save(tmp_path / "kept")
    (tmp_path / "outside.parquet").write_bytes(b"x")
    (kept / "linked.parquet").symlink_to(tmp_path / "outside.parquet")
    content = json.loads((kept / "result.json").read_text())
    del content["sha256"]
    content["files"][name] = hashlib.sha256(b"x").hexdigest()
    (kept / "result.json").write_text(json.dumps(content))
    with pytest.raises(
        TracelabError, match=rf"is damaged \(ValueError: '{name}' is no file of the folder\)"
    ):
        Generations.load(kept)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_folder_can_have_holds_no_result(name):
    with pytest.raises(TracelabError, match="no saved result in"):
        Generations.load(name)
