"""The command line: its rows, its exit statuses, its one-line errors, and other architectures."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from tests.tiny import tiny_hf
from tracelab.cli import loading, main
from tracelab.errors import TracelabError
from tracelab.inspection.before_after import VIEWS


@pytest.fixture(
    scope="module",
    params=["gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gemma2", "qwen2"))],
)
def tiny_folder(request, tmp_path_factory, tokenizer):
    """A folder with a small random model, saved before any bridge rewires it."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_hf(request.param, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run_json(tmp_path, *arguments):
    file = tmp_path / "out.json"
    assert main([*arguments, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_score_writes_the_documented_rows(tmp_path, tiny_folder):
    written = run_json(
        tmp_path,
        "score",
        "stereoset",
        "--bias",
        "religion",
        "--limit",
        "20",
        "--model",
        tiny_folder,
    )
    assert set(written) == {"command", "settings", "results"}
    assert written["command"].startswith("tracelab score stereoset --bias religion")
    rows = {row["metric"]: row for row in written["results"]}
    assert set(rows["ss"]) == {
        *("benchmark", "bias", "edit", "metric", "value", "low", "high", "n", "note"),
    }
    assert rows["ss"]["benchmark"] == "stereoset"
    assert rows["ss"]["edit"] is None
    assert rows["ss"]["n"] == 20
    assert rows["ss"]["low"] <= rows["ss"]["value"] <= rows["ss"]["high"]


def test_crows_pairs_takes_race_for_race_color(tmp_path, tiny_folder):
    arguments = ["score", "crows-pairs", "--bias", "race", "--limit", "10", "--model", tiny_folder]
    written = run_json(tmp_path, *arguments)
    assert {row["bias"] for row in written["results"]} == {"race-color"}


@pytest.mark.slow
def test_every_localiser_runs_on_other_architectures(tmp_path, tiny_folder):
    common = ["--model", tiny_folder, "--bias", "gender"]
    trace = ["trace", *common, "--limit", "2", "--samples", "2"]
    table = pd.DataFrame(run_json(tmp_path, *trace)["results"])
    assert set(table["component"]) == {"resid", "mlp", "attn"}
    assert set(table["layer"]) == {0, 1, 2, 3}
    table = pd.DataFrame(run_json(tmp_path, "attention", *common, "--limit", "30")["results"])
    assert {"hit_rate", "chance"} <= set(table["metric"])
    probe = ["probe", *common, "--limit", "12", "--seeds", "1"]
    rows = run_json(tmp_path, *probe)["results"]
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]


def test_out_keeps_a_result_that_loads_again(tmp_path, tiny_folder):
    from tracelab import AttentionGap

    arguments = ["attention", "--bias", "gender", "--limit", "20", "--model", tiny_folder]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    kept = AttentionGap.load(tmp_path / "attention-crows-pairs-gender")
    assert kept.settings["n_pairs"] == 20
    assert (tmp_path / "attention-crows-pairs-gender.html").is_file()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, tokenizer):
    """A tiny model's folder, and a FairMed and an experts bundle that the command line fitted on
    it."""
    folder = tmp_path_factory.mktemp("bundles")
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    common = ["--model", str(folder / "model"), "--bias", "gender"]
    fairmed, experts = str(folder / "fairmed"), str(folder / "experts")
    assert (
        main(
            [
                "fit",
                "fairmed",
                *common,
                "--limit",
                "12",
                "--layers",
                "1,2",
                "--lam",
                "2",
                "--out",
                fairmed,
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "fit",
                "experts",
                *common,
                "--limit",
                "8",
                "--rank",
                "2",
                "--alpha",
                "2",
                "--out",
                f"{experts}/",
            ]
        )
        == 0
    )
    return {"model": str(folder / "model"), "fairmed": fairmed, "experts": experts}


def test_fit_writes_bundles_that_hold_what_was_asked_for(bundles):
    from tracelab import Experts, FairMed, load_intervention

    fairmed, experts = load_intervention(bundles["fairmed"]), load_intervention(bundles["experts"])
    assert isinstance(fairmed, FairMed)
    assert (fairmed.layers, fairmed.config.lam) == ([1, 2], 2)
    assert isinstance(experts, Experts)
    assert (experts.config.alpha, experts.bias) == (2, "gender")
    assert all(edit.notes["fit_seconds"] > 0 for edit in (fairmed, experts))
    assert {name: len(losses) for name, losses in experts.notes["losses"].items()} == {
        "expert": 1,
        "anti_expert": 1,
    }


def test_score_with_edits_writes_both_models_and_paired_differences(tmp_path, bundles):
    common = ["score", "local-bias", "--bias", "gender", "--model", bundles["model"]]
    plain = run_json(tmp_path, *common)["results"]
    rows = run_json(tmp_path, *common, "--edit", bundles["fairmed"], "--edit", bundles["experts"])[
        "results"
    ]
    before, after = rows
    assert before["value"] == plain[0]["value"]
    assert before["difference"] is None
    assert after["edit"] == "fairmed(gender) + experts(gender, α=2)"
    assert abs(after["difference"]) > 1e-4  # far above rounding; experts of one step move little
    assert after["difference"] == pytest.approx(after["value"] - before["value"])
    assert after["difference_low"] <= after["difference"] <= after["difference_high"]
    assert 0 < after["p"] <= 1


def test_score_with_strengths(tmp_path, bundles):
    """At 0 nothing is changed; one strength is that of all edits, several are in their order."""
    edits = ["--edit", bundles["fairmed"], "--edit", bundles["experts"]]
    common = ["score", "local-bias", "--bias", "gender", "--model", bundles["model"], *edits]
    before, after = run_json(tmp_path, *common, "--strength", "0")["results"]
    assert after["value"] == before["value"]
    assert after["difference"] == 0
    rows = run_json(tmp_path, *common, "--strength", "0.5", "--strength", "-1")["results"]
    assert rows[1]["edit"] == "fairmed(gender) × 0.5 + experts(gender, α=2) × -1"
    assert abs(rows[1]["difference"]) > 1e-4


def test_one_bundle_is_compared_at_several_strengths(bundles, monkeypatch, capsys):
    """What is handed to the scoreboard; what it computes is tested there."""
    given = []

    def stop(model, edits, *_, **options):
        given.append(edits)
        raise TracelabError("stopped")

    monkeypatch.setattr("tracelab.cli.verbs.compare.evaluate", stop)
    monkeypatch.setattr(loading, "load_model", lambda options: None)
    edits = [part for s in ("0.5", "1") for part in ("--edit", bundles["fairmed"])]
    edits += ["--stack", bundles["fairmed"], bundles["experts"]]
    scales = [part for s in ("0.5", "1", "0.5") for part in ("--strength", s)]
    assert main(["compare", *edits, *scales]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (found,) = given
    assert list(found) == ["fairmed × 0.5", "fairmed", "fairmed × 0.5 + experts × 0.5"]
    assert [edit.strength for edit in (found["fairmed × 0.5"], found["fairmed"])] == [0.5, 1.0]
    stack = [*found["fairmed × 0.5 + experts × 0.5"]]
    assert stack[0] is found["fairmed × 0.5"]  # so that interference can be told
    assert [member.strength for member in stack] == [0.5, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("klaad", ["--trainable", "attn_last", "--rank", "2", "--lam2", "0.3"]),
        ("biasedit", ["--layers", "last12", "--steps", "1", "--rank", "2", "--loss", "logprob"]),
    ],
)
def test_methods_trained_on_triples_are_fitted_scored_and_exported(
    tmp_path, bundles, method, options, capsys
):
    from transformers import AutoModelForCausalLM

    from tracelab import load_intervention

    bundle, merged = tmp_path / method, tmp_path / "merged"
    common = ["--model", bundles["model"], "--bias", "religion"]
    assert main(["fit", method, *common, "--limit", "60", *options, "--out", str(bundle)]) == 0
    # what an interrupted fit keeps is gone
    assert [path.name for path in tmp_path.iterdir()] == [method]
    edit = load_intervention(bundle)
    assert (edit.kind, edit.bias) == (method, "religion")
    assert {row["split"] for row in edit.notes["curves"]} == {"dev", "train"}
    rows = run_json(
        tmp_path, "score", "perplexity", "--limit", "5", *common[:2], "--edit", str(bundle)
    )["results"]
    assert [row["edit"] for row in rows] == [None, f"{method}(religion)"]
    assert main(["export", str(bundle), "--to", "merged", *common[:2], "--out", str(merged)]) == 0
    assert capsys.readouterr().out.strip().endswith(str(merged))
    AutoModelForCausalLM.from_pretrained(merged)


@pytest.mark.parametrize(
    "benchmark",
    [
        *("stereoset", "crows-pairs", "bbq", "attention", "perplexity"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("winobias", "bold")),
    ],
)
def test_every_benchmark_is_scored_under_an_edit(tmp_path, bundles, benchmark):
    arguments = [
        "score",
        benchmark,
        "--limit",
        "8",
        "--model",
        bundles["model"],
        "--edit",
        bundles["experts"],
    ]
    rows = run_json(tmp_path, *arguments)["results"]
    assert {row["edit"] for row in rows} == {None, "experts(gender, α=2)"}
    assert all("difference" in row for row in rows if row["edit"])
    if benchmark == "perplexity":  # the others count, and eight records may count the same
        before, after = (row["value"] for row in rows)
        assert before != after


@pytest.mark.slow
def test_compare_writes_rows_costs_stack_and_every_format(tmp_path, bundles, capsys):
    out = tmp_path / "out"
    edits = ["--edit", bundles["fairmed"], "--edit", bundles["experts"]]
    edits += ["--stack", bundles["fairmed"], bundles["experts"]]
    benchmarks = ["--benchmark", "local-bias=6", "--benchmark", "perplexity"]
    common = ["--model", bundles["model"], "--bias", "gender", "--limit", "5", "--out", str(out)]
    rows = run_json(tmp_path, "compare", *edits, *benchmarks, *common)["results"]
    assert {row["edit"] for row in rows} == {"unedited", "fairmed", "experts", "fairmed + experts"}
    assert {(row["benchmark"], row["n"]) for row in rows} == {("local-bias", 6), ("perplexity", 5)}
    printed = capsys.readouterr().out
    assert "latency_decode" in printed
    assert "interaction" in printed
    written = pd.read_csv(out / "compare-gender.csv")
    assert list(written["edit"]) == [row["edit"] for row in rows]
    assert "\\begin{tabular}" in (out / "compare-gender.tex").read_text()
    assert (out / "compare-gender.html").is_file()
    assert len(list((out / "cells").glob("*.key"))) == 8


def test_a_failed_cell_exits_1_and_keeps_the_rest(tmp_path, bundles, capsys):
    arguments = [
        "compare",
        "--edit",
        bundles["experts"],
        "--bias",
        "profession",
        "--limit",
        "4",
        "--no-off-target",
    ]
    arguments += [
        "--benchmark",
        "crows-pairs",
        "--benchmark",
        "stereoset",
        "--model",
        bundles["model"],
    ]
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 1
    assert "crows-pairs has no bias type 'profession'" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert sum(row["metric"] == "ss" for row in rows) == 2


@pytest.mark.slow
def test_inspect_prints_tokens_and_draws_every_view(tmp_path, bundles, capsys):
    edits = ["--edit", bundles["fairmed"], "--edit", bundles["experts"]]
    prompts = ["--prompt", "The nurse said that", "--prompt", "He"]
    arguments = [
        "inspect",
        "--model",
        bundles["model"],
        *edits,
        *prompts,
        "--top",
        "2",
        "--token",
        "woman",
    ]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert "·woman" in capsys.readouterr().out
    drawn = {file.stem for file in tmp_path.glob("*.html")}
    views = set(VIEWS) - {"weights"}
    figures = {f"inspect-{view}-{number}" for view in views for number in (0, 1)}
    assert drawn == figures | {"inspector"}


def test_scores_under_different_edits_are_kept_side_by_side(tmp_path, bundles):
    common = [
        "score",
        "local-bias",
        "--bias",
        "gender",
        "--limit",
        "4",
        "--model",
        bundles["model"],
    ]
    for edits in (
        [],
        ["--edit", bundles["fairmed"]],
        ["--edit", bundles["fairmed"], "--edit", bundles["experts"]],
    ):
        assert main([*common, *edits, "--out", str(tmp_path)]) == 0
    kept = {folder.name.removeprefix("score-local-bias-gender") for folder in tmp_path.iterdir()}
    assert kept == {"", "-under-fairmed", "-under-fairmed-experts"}


def test_fit_refuses_a_folder_of_other_things_before_any_work(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert (
        main(["fit", "fairmed", "--bias", "gender", "--out", str(tmp_path), "--model", "/no/model"])
        == 2
    )
    assert "holds other files (thesis.tex)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "stereoset", "--bias", "nope"], "choose one of gender, profession"),
        (["score", "stereoset", "--split", "train"], "unknown split 'train'"),
        (["score", "stereoset", "--source", "/no/file.json"], "no StereoSet file"),
        (["trace", "--bias", "gender", "--component", "mid"], "unknown component 'mid'"),
        (["trace", "--bias", "gender", "--method", "guess"], "unknown method 'guess'"),
        (["trace", "--bias", "gender", "--ig-steps", "3"], "add --method attribution"),
        (["score", "perplexity", "--bias", "gender"], "leave --bias out"),
        (["score", "local-bias", "--source", "x"], "local-bias has no --source"),
        (["compare", "--bias", "gender"], "name at least one bundle with --edit"),
        (
            ["compare", "--edit", "/no/bundle", "--bias", "gender"],
            "no bundle folder at '/no/bundle'",
        ),
        (["score", "stereoset", "--edit", "/no/bundle"], "no bundle folder at '/no/bundle'"),
        (["inspect", "--edit", "/no/bundle", "--prompt", "x"], "no bundle folder at '/no/bundle'"),
        (["fit", "fairmed", "--bias", "gender"], "add --out BUNDLE"),
        (["export", "/no/bundle", "--to", "merged"], "add --out DIR"),
        (
            ["export", "/no/bundle", "--to", "peft", "--out", "none"],
            "no bundle folder at '/no/bundle'",
        ),
        (
            ["fit", "biasedit", "--bias", "nonsense", "--out", "none"],
            "unknown bias type 'nonsense'",
        ),
        (
            ["fit", "biasedit", "--bias", "gender", "--layers", "first", "--out", "none"],
            "layers 'first' are not under",
        ),
        (
            ["fit", "klaad", "--bias", "gender", "--lam1", "-1", "--out", "none"],
            "lam1 is at least 0, not -1.0",
        ),
        (
            ["fit", "fairmed", "--bias", "gender", "--alpha", "0", "--out", "none"],
            "fit fairmed has no option --alpha 0",
        ),
        (
            ["fit", "experts", "--bias", "gender", "--epochs", "1", "--lr", "-1", "--out", "none"],
            "lr is above 0, not -1.0",
        ),
        (["fit", "fairmed", "--bias", "nope", "--out", "none"], "unknown attribute 'nope'"),
        (
            ["fit", "fairmed", "--bias", "gender", "--lam", "nan", "--out", "none"],
            "lam is a finite number, not nan",
        ),
        (["fit", "experts", "--bias", "age", "--out", "none"], "unknown bias type 'age'"),
        (
            ["fit", "experts", "--bias", "gender", "--alpha", "inf", "--out", "none"],
            "alpha is a finite",
        ),
        (["trace", "--bias", "gender", "--layers", "99"], "out of range"),
        (["trace", "--bias", "gender", "--layers", "a:b"], "write 0,5,9 or 0:30:3"),
        (["trace", "--bias", "gender", "--window", "31"], "a window of 31 layers"),
        (["attention", "--bias", "gender", "--layer", "77"], "out of range"),
        (["attention", "--bias", "gender", "--head", "77"], "heads 0 to"),
        (["probe", "--bias", "height"], "unknown attribute 'height'"),
        (["report", "--bias", "gender"], "add --out DIR"),
        (["score", "crows-pairs", "--json", "/no/such/folder/x.json"], "no folder"),
        (["score", "crows-pairs", "--json", "/tmp"], "is a folder"),
        (["score", "crows-pairs", "--device", "abacus"], "the device 'abacus' cannot be used"),
        (["trace", "--bias", "gender", "--layers", "5:5"], "nothing to trace"),
        (
            ["report", "--bias", "gender", "--limit", "2", "--out", "never"],
            "too few to hold out",
        ),
        (["score", "crows-pairs", "--model", "/no/such/model"], "no model folder"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)  # a request that is not refused would write its --out here
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("tracelab: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_benchmark_is_refused(tmp_path, capsys):
    file = tmp_path / "dev.json"
    file.write_text('{"data": {"intrasentence": [{"id": "x"}]}}')
    assert main(["score", "stereoset", "--source", str(file)]) == 2
    assert "is not the benchmark it claims to be" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch, tiny_folder):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    file = tmp_path / "out.json"
    arguments = ["score", "crows-pairs", "--bias", "age", "--limit", "4", "--model", tiny_folder]
    assert main([*arguments, "--json", str(file)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_unknown_verb_exits_2_from_the_shell():
    done = subprocess.run(
        [sys.executable, "-m", "tracelab.cli", "paint"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_of_every_verb_shows_an_example(capsys):
    for verb in ("fetch", "score", "probe", "trace", "attention", "compare", "report"):
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert f"example: tracelab {verb}" in " ".join(capsys.readouterr().out.split())
