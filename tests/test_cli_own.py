"""The command line on files of one's own, from a configuration file, into pipes and devices; what
it says of words that are nearly right, and what completes them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading

import pandas as pd
import pytest

from tests.interventions.edits import random_delta
from tests.tiny import tiny_hf
from tracelab.cli import main, words
from tracelab.cli.config_file import with_config
from tracelab.cli.parser import make_parser
from tracelab.datasets.templates import ATTRIBUTES
from tracelab.errors import TracelabError, meant
from tracelab.interventions.methods import METHODS
from tracelab.model.generation import Generations
from tracelab.model.load import load


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a tiny model, an edit of it, pairs and word lists."""
    folder = tmp_path_factory.mktemp("own")
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    random_delta(load(folder / "model")).save(folder / "edit")
    jobs = ("teacher", "driver", "cook", "nurse")
    rows = [
        (f"The {job} forgot it.", f"The {job} led it.", f"The {job} banana it.", job, "age")
        for job in jobs
    ]
    names = ["stereotype", "anti_stereotype", "unrelated", "target", "bias_type"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "mine.csv", index=False)
    lists = {
        "groups": {"old": ["old"], "young": ["young"]},
        "concepts": ["slow", "lazy", "kind", "mean"],
        "templates": ["The {concept} one was", "A {concept} man is", "They call {concept} people"],
    }
    (folder / "lists.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture
def run(place, monkeypatch, capsys):
    """``run(words)``: what the command wrote to ``--json``, in that folder."""
    monkeypatch.chdir(place)

    def call(*arguments, model=True):
        named = ["--model", "model"] if model else []
        status = main([*arguments, *named, "--json", "out.json"])
        assert status == 0, capsys.readouterr().err
        return json.loads((place / "out.json").read_text("utf-8"))

    return call


# --- files of one's own ---------------------------------------------------------------------------


@pytest.mark.slow
def test_pairs_of_a_file_are_scored_traced_attended_to_and_fitted_on(run, place):
    for name in ("crows-pairs", "stereoset", "attention"):
        rows = run("score", name, "--data", "mine.csv")["results"]
        assert {row["benchmark"] for row in rows} == {f"own-{name}"}
        assert {row["bias"] for row in rows} == {"age"}
    rows = run("score", "crows-pairs", "--data", "mine.csv", "--edit", "edit")["results"]
    assert any("difference" in row for row in rows)
    traced = ["trace", "--data", "mine.csv", "--component", "mlp", "--samples", "2"]
    assert {row["layer"] for row in run(*traced)["results"]} == {0, 1, 2, 3}
    words = ["attention", "--data", "mine.csv", "--out", "figures"]
    assert run(*words)["settings"]["n_pairs"] == 4
    assert (place / "figures/attention-mine").is_dir()
    fitted = ["fit", "erasure", "--bias", "age", "--data", "mine.csv", "--out", "erasure"]
    assert run(*fitted)["settings"]["part"]["spec"]["bias"] == "age"


def test_word_lists_of_a_file_are_probed(run):
    table = run(
        "probe", "--bias", "age", "--data", "lists.json", "--seeds", "1", "--split", "sentence"
    )
    assert table["settings"]["attribute"] == "age"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["score", "bbq", "--data", "mine.csv"], "bbq cannot be measured on --data: stereoset, c"),
        (["score", "stereoset", "--data", "mine.csv", "--split", "dev"], "leave --split out"),
        (["score", "stereoset", "--include-path", "x"], "--include-path is of lm-eval/TASK"),
        (["score", "bbq", "--apply-chat-template"], "--apply-chat-template is of lm-eval/TASK"),
        (["score", "bold", "--batch-tokens", "9"], "bold has no --batch-tokens"),
        (["score", "bbq", "--allow-mismatch"], "--allow-mismatch is of edits"),
        (["trace"], "trace needs a bias type: add --bias, or --data"),
        (
            ["trace", "--bias", "race", "--component", "resid", "--window", "3"],
            "--window is of mlp and attn",
        ),
        (["attention", "--data", "crowspairs"], "no pairs file at 'crowspairs'"),
        (["trace", "--data", "mine.csv", "--source", "hub"], "leave --source out"),
        (["attention", "--data", "mine.csv", "--source", "hub"], "leave --source out"),
        (["compare", "--edit", "edit", "--edit", "./edit"], "two bundles are called 'edit'"),
        (["compare", "--edit", "edit", "--stack", "edit", "x/edit"], "two bundles are called"),
        (
            ["fit", "klaad", "--bias", "x", "--out", "b", "--bounds", "kl=1"],
            "--bounds is of --tune",
        ),
        (
            ["fit", "klaad", "--bias", "x", "--out", "b", "--data", "mine.csv", "--tune"],
            "leave --tune and --source out",
        ),
        (["generate", "--prompt", "a", "--greedy", "--top-p", "0.5"], "--top-p: nothing is sam"),
        (["generate", "--prompt", "a", "--strength", "1"], "--strength is that of edits"),
        (["compare", "--edit", "edit", "--include-path", "x"], "--include-path is of lm-eval/"),
        (
            ["export", "edit", "--to", "merged", "--out", "m", "--base-model", "a/b"],
            "--rank and --base-model are of --to peft",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(place, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(place)
    assert main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["inspect", "export", "generate"])
def test_verbs_without_records_have_no_limit(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--limit", "3", *(["b", "--to", "peft"] if verb == "export" else [])])
    assert "--limit" not in make_parser().verbs()[verb].flags()


# --- generate -------------------------------------------------------------------------------------


def test_generate_continues_before_and_under_an_edit_from_one_seed(run, place):
    words = [
        "generate",
        "--prompt",
        "The nurse said",
        "--prompt",
        "He",
        "--num",
        "2",
        "--seed",
        "3",
    ]
    plain = run(*words, "--max-new-tokens", "5")["results"]
    both = run(*words, "--max-new-tokens", "5", "--edit", "edit", "--out", "texts")
    rows = both["results"]
    assert len(plain) == 4
    assert [row["edit"] for row in rows] == [None] * 4 + ["weight_delta"] * 4
    assert [row["continuation"] for row in rows[:4]] == [row["continuation"] for row in plain]
    assert [row["continuation"] for row in rows[4:]] != [row["continuation"] for row in plain]
    kept = Generations.load(place / "texts/generate-under-edit")
    assert kept.frame["continuation"].tolist() == [row["continuation"] for row in rows]
    assert both["settings"]["edit"]["kind"] == "weight_delta"
    off = run(*words, "--max-new-tokens", "5", "--edit", "edit", "--strength", "0")["results"]
    assert [row["continuation"] for row in off[4:]] == [row["continuation"] for row in plain]


@pytest.mark.slow
def test_generate_passes_its_sampling_on(run):
    words = ["generate", "--prompt", "The nurse said", "--max-new-tokens", "4"]
    settings = run(*words, "--top-k", "1", "--temperature", "0.7", "--top-p", "1")["settings"]
    assert (settings["top_k"], settings["temperature"], settings["top_p"]) == (1, 0.7, 1.0)
    sampled = run(*words, "--top-k", "1")["results"]
    greedy = run(*words, "--greedy", "--apply-chat-template")
    assert greedy["settings"]["chat_template"] == "applied"
    assert run(*words, "--greedy")["results"] == sampled


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["scroe", "stereoset"], "score"),
        (["score", "crows-pair"], "crows-pairs"),
        (["fit", "fairmd"], "fairmed"),
        (["score", "stereoset", "--bais", "x"], "--bias"),
        (["fit", "klaad", "--bias", "gender", "--rnak", "2"], "--rank"),
        (["attention", "--bias", "gendr"], "gender"),
        (["probe", "--bias", "natinality"], "nationality"),
        (["compare", "--edit", "b", "--benchmark", "sterioset"], "stereoset"),
        (["report", "--bias", "religon", "--out", "r"], "religion"),
    ],
)
def test_the_word_that_was_meant_is_named(argv, near, capsys):
    try:
        status = main(argv)
    except SystemExit as end:
        status = end.code
    line = capsys.readouterr().err
    assert status == 2
    assert line.count("\n") == 1
    assert f"(did you mean {near}?)" in line


def test_nothing_is_meant_by_a_word_that_is_like_none():
    assert meant("--limit", ["--edit", "--prompt"]) == ""
    assert meant("x" * 10_000, ["x" * 9_999]) == meant(None, ["a"]) == ""


def test_help_names_the_bias_types_that_there_are(capsys):
    assert {method.kind: set(method.biases) for method in METHODS} == {
        kind: set(biases) for kind, biases in words.FITTED.items()
    }
    assert tuple(ATTRIBUTES) == words.FITTED[words.WORDED]
    for kind, biases in words.FITTED.items():
        with pytest.raises(SystemExit):
            main(["fit", kind, "--help"])
        assert ", ".join(biases[:2]) in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_verbs_methods_and_their_options(shell, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", shell])
    assert end.value.code == 0
    script = capsys.readouterr().out
    for word in ("generate", "erasure", "swap-consistency"):
        assert word in script
    if shell != "tcsh":  # whose completion goes one verb deep
        assert "--filter-order" in script
    if (there := shutil.which(shell)) and shell != "tcsh":
        subprocess.run([there, "-n"], input=script, text=True, check=True)


# --- a configuration file -------------------------------------------------------------------------


def expanded(*arguments):
    return with_config(arguments, make_parser())


def test_a_configuration_file_holds_options_and_the_command_line_wins(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'bias = "gender"\nedit = ["a/", "b/"]\nlimit = 7\nno-off-target = true\n'
        'no_png = false\nstack = [["a/", "b/"]]\n'.replace("no_png = false\n", "")
    )
    found = make_parser().parse_args(expanded("compare", "--config", str(file), "--limit", "9"))
    assert (found.bias, found.edit, found.limit) == ("gender", ["a/", "b/"], 9)
    assert found.no_off_target
    assert found.stack == [["a/", "b/"]]
    found = make_parser().parse_args(expanded("compare", f"--config={file}", "--edit", "c/"))
    assert found.edit == ["c/"]
    file.write_text('stack = ["a/", "b/"]\n')  # one, as on the command line
    assert make_parser().parse_args(expanded("compare", f"--config={file}")).stack == [["a/", "b/"]]
    as_json = tmp_path / "run.json"
    as_json.write_text('{"bias": "race", "no_png": false, "prompt": "He", "out": "r"}')
    found = make_parser().parse_args(expanded("report", "--config", str(as_json)))
    assert (found.bias, found.prompt, found.no_png) == ("race", ["He"], False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "bais = 'x'", r"compare has no option 'bais' \(did you mean bias\?\)"),
        ("a.toml", "config = 'x'", "compare has no option 'config'"),
        ("a.toml", "bias = ", "is neither TOML nor JSON"),
        ("a.json", "[1]", "holds no options by name"),
        ("a.toml", "bias = true", "bias takes a value, not true"),
        ("a.toml", "bias = ['a', 'b']", "bias takes one value, not a list"),
        ("a.toml", "no-off-target = 'yes'", "no-off-target is true or false, not 'yes'"),
        ("a.toml", "limit = {a = 1}", "limit cannot be"),
        ("a.toml", None, "cannot read"),
        ("a.toml", "trust-remote-code = true", "lets code of others run: say --trust-remote-code"),
        ("a.json", '{"model": "--"}', "has no value"),
        ("a.json", '{"model": "a\\u0000b"}', "is no text"),
    ],
)
def test_a_configuration_that_cannot_serve_is_one_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(TracelabError, match=message):
        expanded("compare", "--config", str(tmp_path / name))


def test_an_option_cut_short_is_refused_so_that_no_file_is_passed_over(tmp_path):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["compare", "--conf", str(tmp_path / "a.toml"), "--edit", "e"])


@pytest.mark.slow
def test_a_configuration_is_what_a_command_is_run_with(run, place):
    (place / "compare.toml").write_text(
        'edit = "edit"\nbenchmark = ["crows-pairs=6"]\nbias = "gender"\nmodel = "model"\n'
    )
    rows = run("compare", "--config", "compare.toml", model=False)["results"]
    assert {row["edit"] for row in rows} == {"unedited", "edit"}
    assert {row["n"] for row in rows} == {6}


# --- what --json is written to --------------------------------------------------------------------


@pytest.fixture
def quick(place, monkeypatch):
    monkeypatch.chdir(place)
    return ["score", "crows-pairs", "--data", "mine.csv", "--model", "model", "--json"]


def test_json_is_written_through_a_fifo_which_stays_one(quick, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text("utf-8")))
    reader.start()
    assert main([*quick, str(pipe)]) == 0
    reader.join(timeout=30)
    assert json.loads(got[0])["results"]
    assert pipe.is_fifo()


def test_json_goes_through_a_link_to_a_device_and_replaces_neither(quick, tmp_path):
    link = tmp_path / "nowhere"
    link.symlink_to(os.devnull)
    assert main([*quick, str(link)]) == 0
    assert link.is_symlink()
    assert not os.path.isfile(os.devnull)


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_json_on_the_standard_output_leaves_the_table_to_the_other(quick, name, capfd):
    assert main([*quick, name]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["results"]
    assert "own-crows-pairs" in err
    assert os.path.islink("/dev/stdout")
