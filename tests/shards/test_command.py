"""``--engine``: the same tables from the command line, whoever works, also when a worker dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.interventions.edits import random_delta
from tests.tiny import tiny_hf
from tracelab.cli import main
from tracelab.model.load import load

BBQ = ("score", "bbq", "--bias", "gender", "--limit", "64", "--shard-size", "8")
TRACE = ("trace", "--bias", "gender", "--limit", "4", "--samples", "2", "--shard-size", "1")
TINY = ("--model", "model")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a tiny model and two edits of it."""
    folder = tmp_path_factory.mktemp("engines")
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, seed in (("edit", 0), ("other", 1)):
        random_delta(load(folder / "model"), seed=seed).save(folder / name)
    return folder


@pytest.fixture
def run(place, monkeypatch, capsys):
    """``run(words)``: what the command wrote to ``--json``, in that folder."""
    monkeypatch.chdir(place)

    def call(*arguments):
        status = main([*arguments, *TINY, "--json", "out.json"])
        assert status == 0, capsys.readouterr().err
        return json.loads((place / "out.json").read_text("utf-8"))

    return call


def rows(found):
    return pd.DataFrame(found["results"])


def test_scores_under_edits(run, place):
    edits = ("--edit", "edit", "--edit", "other", "--strength", "0.5")
    asked = ("score", "stereoset", "--bias", "gender", "--limit", "12", *edits)
    found = run(*asked, "--engine", "process", "--shard-size", "5", "--out", "out")
    pd.testing.assert_frame_equal(rows(found), rows(run(*asked)), atol=1e-3)
    assert not list(place.glob("out/*.checkpoint"))


@pytest.mark.slow
def test_a_comparison(run):
    edits = ("--edit", "edit", "--stack", "edit", "other")
    chosen = ("--benchmark", "crows-pairs=8", "--benchmark", "winobias=6")
    asked = ("compare", *edits, *chosen, "--bias", "gender")
    found, whole = rows(run(*asked, "--engine", "process", "--shard-size", "4")), rows(run(*asked))
    pd.testing.assert_frame_equal(found, whole, atol=1e-3)


def test_a_trace_and_an_attention_gap(run):
    assert run(*TRACE, "--engine", "process")["results"] == run(*TRACE[:-2])["results"]
    asked = ("attention", "--bias", "gender", "--limit", "12")
    found = rows(run(*asked, "--engine", "process", "--shard-size", "12"))
    pd.testing.assert_frame_equal(found, rows(run(*asked)))


def test_probers(run):
    asked = ("probe", "--bias", "gender", "--limit", "60", "--seeds", "1")
    found = rows(run(*asked, "--engine", "process", "--shard-size", "60"))
    # training rounds by where in memory the activations lie
    pd.testing.assert_frame_equal(found, rows(run(*asked)), atol=1e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workers", "2"), "--workers: of --engine ray only"),
        (("--engine", "process", "--address", "auto"), "--address: of --engine ray only"),
        (("--shard-size", "9"), "--shard-size is of --engine"),
        (("--engine", "torchrun"), "torchrun --no-python"),
    ],
)
def test_engines_that_cannot_be_had(words, said, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert main(["score", "stereoset", "--bias", "gender", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def command(place, *arguments, by=()):
    """A command of its own, in that folder; what it prints is on its pipes."""
    words = [*arguments, "--json", "apart.json"]
    start = [sys.executable, "-m", *by, "tracelab.cli"]
    return subprocess.Popen(
        [*start, *words], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process, place):
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return json.loads((place / "apart.json").read_text("utf-8"))


TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "-m")


@pytest.mark.slow
@pytest.mark.parametrize("asked", [BBQ, TRACE], ids=["score", "trace"])
def test_torchrun(run, place, asked):
    process = command(place, *asked, *TINY, "--engine", "torchrun", by=TORCHRUN)
    found = finished(process, place)
    assert found["results"] == run(*asked, "--engine", "process")["results"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [BBQ, pytest.param(TRACE, marks=pytest.mark.nightly)],
    ids=["score", "trace"],
)
def test_ray_of_which_a_worker_is_killed(run, place, asked):
    pytest.importorskip("ray")
    words = (*asked, *TINY, "--out", f"ray-{asked[0]}", "--engine", "ray", "--workers", "2")
    process = command(place, *words)
    try:
        kill_one_worker(process, place / f"ray-{asked[0]}")
        found = finished(process, place)
    finally:
        process.kill()
    assert found["results"] == run(*asked, "--engine", "process")["results"]


def kill_one_worker(process, out, patience=300.0):
    """Kill a worker of a command once a shard of it is stored."""
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        workers = workers_below(process.pid)
        if workers and list(out.glob("*.checkpoint/*.key")):
            os.kill(workers[0], signal.SIGKILL)
            return
        time.sleep(0.05)
    pytest.fail(f"no shard was stored while workers were there: {process.poll()}")


def workers_below(pid):
    """The Ray actors of a cluster that a process started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes()
            if (
                title.startswith(b"ray::")
                and b"_Actor)" in title
                and is_below(int(entry.name), pid)
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def is_below(pid, ancestor):
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])
    return False


@pytest.mark.slow
@pytest.mark.nightly
def test_ray_on_the_real_model(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    asked = ("score", "bbq", "--bias", "gender", "--limit", "16", "--shard-size", "8")
    found = finished(command(tmp_path, *asked, "--engine", "ray", "--workers", "2"), tmp_path)
    assert main([*asked, "--engine", "process", "--json", "out.json"]) == 0
    assert found["results"] == json.loads((tmp_path / "out.json").read_text("utf-8"))["results"]
