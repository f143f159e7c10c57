"""How a command ends that nobody reads, that is told to stop, or whose output is a pipe, a device
or full."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import tiny_hf
from tracelab.cli import ending, main
from tracelab.cli.checkpoint import checkpoint_of, require_checkpoint
from tracelab.cli.ending import ends_quietly
from tracelab.cli.output import result_name
from tracelab.cli.parser import make_parser
from tracelab.errors import TracelabError
from tracelab.storage.checkpoint import open_entry
from tracelab.storage.files import PREFIX

ROOT = Path(__file__).parent.parent
LIGHT = (  # without the package's imports, which take seconds
    "import sys, types\n"
    "for name in ('tracelab', 'tracelab.cli'):\n"
    "    package = sys.modules[name] = types.ModuleType(name)\n"
    "    package.__path__ = [name.replace('.', '/')]\n"
    "from tracelab.cli.ending import ends_quietly\n"
)
PRINTS = LIGHT + (
    "@ends_quietly\ndef main(argv=None):\n"
    "    for number in range(int(sys.argv[1])):\n        print('a line of a table', number)\n"
    "    return 0\n"
    "sys.exit(main())"
)


# in the buffer until the end, and far more than that
@pytest.mark.parametrize("lines", ["3", "100000"])
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(lines):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, lines], stdout=write, stderr=subprocess.PIPE, cwd=ROOT
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_device_is_one_line():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS, "3"], stdout=full, stderr=subprocess.PIPE, cwd=ROOT
        )
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == ["tracelab: [Errno 28] No space left on device"]


INTERRUPTED = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from tracelab.cli import main
sys.exit(main(["probe", "--bias", "gender"]))
"""


def test_ctrl_c_while_the_imports_of_a_command_run_is_one_line():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    assert line.startswith("tracelab: interrupted")


def test_without_any_output_a_command_still_runs():
    shell, code = f'exec "{sys.executable}" -c "$CODE" 3 >&-', {**os.environ, "CODE": PRINTS}
    done = subprocess.run(shell, shell=True, cwd=ROOT, env=code)
    assert done.returncode == 0


def test_sigterm_clears_up_and_ends_with_143(tmp_path):
    cleared = []

    @ends_quietly
    def terminated(argv=None) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # a second one does not break the clearing up
        except KeyboardInterrupt:
            return 130
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleared.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert terminated() == ending.TERMINATED == 143
    assert cleared == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_an_object_is_deleted_is_not_lost(number, capsys):
    class Slow:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    @ends_quietly
    def interrupted(argv=None) -> int:
        try:
            Slow()
            time.sleep(10)
        except KeyboardInterrupt:
            return 130
        return 0

    # a shell starts what runs in its background with the signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert interrupted() == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""


def test_a_full_disk_for_the_words_too_is_a_status():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS, "3"], stdout=full, stderr=full, cwd=ROOT
        )
    assert done.returncode == 2


# --- where results go
# -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


SCORE = ("score", "crows-pairs", "--bias", "age", "--limit", "4")


def test_json_to_the_standard_output_is_json_and_the_table_goes_to_stderr(model, capsys):
    assert main([*SCORE, "--model", model, "--json", "-"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["results"]
    assert "crows-pairs" in said.err


def test_json_to_a_device_leaves_the_device(model):
    assert main([*SCORE, "--model", model, "--json", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


def test_a_pipe_that_nobody_reads_costs_no_file(model, tmp_path, monkeypatch):
    def closed(*arguments, **options):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("builtins.print", closed)
    out, file = tmp_path / "out", tmp_path / "x.json"
    assert main([*SCORE, "--model", model, "--out", str(out), "--json", str(file)]) == 141
    assert (out / "score-crows-pairs-age/result.json").is_file()
    assert json.loads(file.read_text())["results"]


VERBS = {
    "score": SCORE,
    "probe": ("probe", "--bias", "gender"),
    "trace": ("trace", "--bias", "gender"),
    "attention": ("attention",),
    "fit": ("fit", "fairmed", "--bias", "gender"),
    "compare": ("compare", "--edit", "/no/bundle"),
    "inspect": ("inspect", "--edit", "/no/bundle", "--prompt", "x"),
    "export": ("export", "/no/bundle", "--to", "merged"),
    "report": ("report", "--bias", "gender"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("out", ["file", "file/under", "nowhere", "/dev/null", "/proc/deep"])
def test_what_cannot_hold_a_folder_is_refused_before_the_model_is_looked_for(
    tmp_path, capsys, verb, out
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "no such thing")
    path = out if out.startswith("/") or not out else str(tmp_path / out)
    assert main([*VERBS[verb], "--model", "/no/model", "--out", path]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "--out" in said[0]
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "nowhere"]


@pytest.mark.parametrize(
    "name", ["index.html", "tables/headline.csv", "figures/mine.png", "parts/x", "bundles/x"]
)
def test_a_site_of_somebodys_own_is_refused_before_the_model_is_looked_for(tmp_path, capsys, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    assert main([*VERBS["report"], "--model", "/no/model", "--out", str(tmp_path)]) == 2
    assert "was not written by tracelab" in capsys.readouterr().err
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["attention-crows-pairs.html", "attention-crows-pairs-maps.png"])
def test_a_figure_of_somebodys_own_is_refused_before_the_model_is_looked_for(
    tmp_path, capsys, name
):
    (tmp_path / name).write_text("mine")
    assert main([*VERBS["attention"], "--model", "/no/model", "--out", str(tmp_path)]) == 2
    assert f"{name}' was not written by tracelab" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "name"),
    [("trace", "trace-gender.checkpoint"), ("compare", "cells"), ("inspect", "plotly.min.js")],
)
def test_what_else_a_verb_writes_beside_its_result_is_refused_before_the_model_is_looked_for(
    tmp_path, capsys, verb, name
):
    (tmp_path / name).write_text("mine")
    assert main([*VERBS[verb], "--model", "/no/model", "--out", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


def test_the_name_of_a_result_under_many_edits_is_cut_and_still_its_own():
    parser = make_parser()
    edits = [part for n in range(12) for part in ("--edit", f"an-edit-with-a-rather-long-name-{n}")]
    names = [
        result_name(parser.parse_args([*SCORE, *some, "--out", "x"]))
        for some in (edits, edits[:-2], edits[:2])
    ]
    assert len(set(names)) == 3
    assert all(len(name) <= 180 for name in names)
    assert names[2] == "score-crows-pairs-age-under-an-edit-with-a-rather-long-name-0"
    half = parser.parse_args([*SCORE, *edits[:2], "--strength", "0.5", "--out", "x"])
    assert result_name(half) == names[2] + "-x0.5"


def test_a_bias_type_with_a_slash_stays_in_the_folder():
    options = make_parser().parse_args(
        ["score", "crows-pairs", "--bias", "../race/colour", "--out", "x"]
    )
    assert "/" not in result_name(options)


@pytest.mark.parametrize("to", ["peft", "merged"])
@pytest.mark.slow
def test_the_json_of_an_export_is_its_note(model, tmp_path, to):
    fit = [
        "fit",
        "klaad",
        "--bias",
        "gender",
        "--limit",
        "6",
        "--rank",
        "2",
        "--trainable",
        "attn_last",
    ]
    assert main([*fit, "--model", model, "--out", str(tmp_path / "edit")]) == 0
    file = tmp_path / "x.json"
    export = [
        "export",
        str(tmp_path / "edit"),
        "--to",
        to,
        "--model",
        model,
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*export, "--json", str(file)]) == 0
    settings = json.loads(file.read_text())["settings"]
    assert settings == json.loads((tmp_path / "out/tracelab_export.json").read_text())
    assert set(settings["files"]) <= {path.name for path in (tmp_path / "out").iterdir()}


# --- interrupted fits and traces
# ---------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("method", ["klaad", "biasedit", "experts"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_somebody_has_in_the_place_of_a_checkpoint_is_refused_and_stays(
    tmp_path, capsys, method, kind
):
    mine = tmp_path / "K.checkpoint" if kind == "file" else tmp_path / "K.checkpoint" / "training"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    arguments = [
        "fit",
        method,
        "--bias",
        "gender",
        "--model",
        "/no/model",
        "--out",
        str(tmp_path / "K"),
    ]
    assert main(arguments) == 2
    assert "was not written by tracelab: move it away" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def options_of(verb: str, out: Path) -> argparse.Namespace:
    return make_parser().parse_args([*VERBS[verb], "--out", str(out)])


@pytest.mark.parametrize(("verb", "name"), [("fit", "K"), ("trace", "K/trace-gender")])
def test_a_checkpoint_is_there_until_the_command_is_done(tmp_path, verb, name):
    options = options_of(verb, tmp_path / "K")
    with pytest.raises(KeyboardInterrupt), checkpoint_of(options) as folder:
        assert folder == tmp_path / f"{name}.checkpoint"
        with open_entry(folder, "training", 1) as entry:
            entry.save(lambda path: path.write_text("half"))
        raise KeyboardInterrupt
    assert require_checkpoint(tmp_path / name) == folder
    with checkpoint_of(options) as folder:
        assert (folder / "training").read_text() == "half"
    assert not folder.exists()
    with pytest.raises(TracelabError), checkpoint_of(options):
        raise TracelabError("refused before anything was stored")
    assert not folder.exists()


def test_a_command_that_writes_nothing_has_no_checkpoint():
    with checkpoint_of(make_parser().parse_args(VERBS["trace"])) as folder:
        assert folder is None


def test_a_killed_writer_in_a_checkpoint_is_nobodys(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        checkpoint_of(options_of("fit", tmp_path / "K")) as folder,
    ):
        (folder / f"{PREFIX}left").write_text("half")
        raise KeyboardInterrupt
    assert require_checkpoint(tmp_path / "K") == folder
