"""A command computes with as many threads as there are free cores, unless it is told how many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import inf

import pytest
import torch

from tracelab import threads
from tracelab.model.settings import request_of, run_settings
from tracelab.threads import chosen_threads, free_threads, quota, settle

CORES = min(2, os.cpu_count() or 1)
TOLD = """
import json, os, sys, types
from tracelab.cli import main
def told(options):
    import torch
    print(json.dumps([torch.get_num_threads(), os.environ.get("GOMP_SPINCOUNT")]))
    return 0
sys.modules["tracelab.cli.run"] = types.SimpleNamespace(run=told)
assert ("torch" in sys.modules) == FIRST
sys.exit(main(sys.argv[1:]))
"""
"""A command that says with how many threads it would compute."""


def told(*words: str, first: str = "", **variables: str):
    """What a command in a process of its own says."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    own = {name: value for name, value in os.environ.items() if name not in names}
    script = first + TOLD.replace("FIRST", str(bool(first)))
    run = subprocess.run(
        [sys.executable, "-c", script, "score", "crows-pairs", *words],
        env=own | variables,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("in_use", "physical", "quota", "wanted"),
    [
        ([0.0, 0.0], None, inf, 2),
        ([0.1, 0.1], None, inf, 2),
        ([0.5, 0.0], None, inf, 1),
        ([1.0, 0.0], None, inf, 1),
        ([1.0, 1.0], None, inf, 1),
        ([], None, inf, 1),
        ([0.0] * 16, None, inf, 16),
        ([0.0] * 16, 8, inf, 8),  # two threads a core
        ([0.0] * 16, None, 2.0, 2),  # a container's share
        ([0.0] * 16, None, 0.5, 1),
        ([1.0] * 13 + [0.0] * 3, 8, 4.0, 3),
    ],
)
def test_as_many_threads_as_cores_are_free_and_at_least_one(in_use, physical, quota, wanted):
    assert chosen_threads(in_use, physical, quota) == wanted


def test_cores_that_may_not_be_used_do_not_count(monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "cpu_percent", lambda *a, **k: [0.0, 100.0, 0.0, 0.0])
    monkeypatch.setattr(psutil, "cpu_count", lambda *a: 4)
    monkeypatch.setattr(threads, "quota", lambda: inf)
    for cores, wanted in (({0, 1, 2, 3}, 3), ({1, 2}, 1), ({2, 3}, 2), ({0, 99}, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores, raising=False)
        assert free_threads() == wanted


def test_a_containers_quota_is_read_from_either_version_of_control_groups(tmp_path):
    assert quota(tmp_path) == inf
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert quota(tmp_path) == inf
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for most, wanted in (("-1", inf), ("400000", 4.0)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{most}\n")
        assert quota(tmp_path) == wanted


def test_a_command_takes_the_threads_that_it_is_told():
    assert told("--threads", "1") == [1, threads.SPINS]
    # torch takes no more than there are cores
    assert told("--threads", "2", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE") == [CORES, None]
    assert told(OMP_NUM_THREADS="1") == [1, None]  # then nothing is chosen
    assert told(OMP_NUM_THREADS="2") == [CORES, None]
    chosen, spins = told()
    assert 1 <= chosen <= (os.cpu_count() or 1)
    assert spins == threads.SPINS


def test_in_a_process_that_has_torch_only_what_is_asked_for_changes():
    first = "import torch; torch.set_num_threads(2)\n"
    assert told(first=first) == [2, None]
    assert told("--threads", "1", first=first) == [1, None]


def test_nothing_is_chosen_for_this_process(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    settle(None)
    assert torch.get_num_threads() == before
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_result_tells_its_threads_and_a_resumed_run_may_have_others(tiny_model):
    model, before = tiny_model("llama"), torch.get_num_threads()
    request = request_of(model, seed=0)
    try:
        torch.set_num_threads(before + 1)
        assert run_settings(model)["threads"] == before + 1
        assert request_of(model, seed=0) == request
    finally:
        torch.set_num_threads(before)
